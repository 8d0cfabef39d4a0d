"""Heads: what they score, and that storage gives back the same head, in the same bytes, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression, Perceptron
from sklearn.metrics import roc_auc_score

from classifiers.calibration import Platt
from classifiers.forest import take_out_of_bag, train_classifier
from classifiers.head_file import dump_head, load_head
from classifiers.heads import HEADS, NGRAMS, Examples, head_scores, train_head
from classifiers.ngrams import hashed_ngrams
from classifiers.scorer import Scorer, load_scorer, save_scorer
from classifiers.source_blind import source_maps
from hornbook.artifact import Artifact
from hornbook.errors import DataError, StoreError
from hornbook.store import Store


@pytest.fixture(scope="module")
def examples() -> Examples:
    vectors = np.random.default_rng(0).normal(size=(80, 16)).astype(np.float32)
    worth = vectors[:, 0] + 0.3 * vectors[:, 1]
    texts = [f"{'fine' if value > 0 else 'poor'} words number {row}" for row, value in enumerate(worth)]
    return Examples(vectors, hashed_ngrams(texts), worth > 0, np.clip(2.5 + worth, 0, 5), None)


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_survives_storage_and_the_same_training_gives_the_same_bytes(kind: str, examples: Examples) -> None:
    head = train_head(kind, examples, trees=7, min_leaf=3, seed=2**40 + 1)
    data = dump_head(head)
    features = examples.features(kind)
    scores = head_scores(kind, load_head(data, kind, "here"), features)
    assert np.array_equal(scores, head_scores(kind, head, features))
    assert scores.dtype == np.float32 and scores.min() >= 0 and scores.max() <= 1
    assert scores[examples.labels].mean() > scores[~examples.labels].mean() + 0.1
    assert dump_head(train_head(kind, examples, trees=7, min_leaf=3, seed=2**40 + 1)) == data
    assert head_scores(kind, head, features[:0]).shape == (0,)
    other = train_head(kind, examples, trees=7, min_leaf=3, seed=2)
    assert (dump_head(other) == data) == (kind in ("logistic", "ridge"))  # nothing is drawn for these


@pytest.mark.parametrize("kind", HEADS)
def test_weights_change_what_is_learned(kind: str, examples: Examples) -> None:
    weights = np.where(examples.features("ridge")[:, 2] > 0, 5.0, 0.1)
    weighted = Examples(examples.vectors, examples.ngrams, examples.labels, examples.grades, weights)
    heads = [train_head(kind, given, trees=7, min_leaf=3, seed=1) for given in (examples, weighted)]
    assert dump_head(heads[0]) != dump_head(heads[1])


def test_what_is_no_head_of_that_kind_is_refused(examples: Examples) -> None:
    logistic = LogisticRegression().fit(examples.vectors, examples.labels)
    files = (b"not a zip file", skops.io.dumps(logistic), skops.io.dumps(print), skops.io.dumps(Perceptron()))
    for data in files:
        with pytest.raises(StoreError, match=r"^head\.skops"):
            load_head(data, "forest", "head.skops")
    with pytest.raises(StoreError, match="damaged"):
        load_head(skops.io.dumps(logistic), "oracle", "head.skops")


def test_out_of_bag_scores_are_no_part_of_a_stored_forest(examples: Examples) -> None:
    for kind in ("forest", "forest-regressor"):
        plain = train_head(kind, examples, trees=40, min_leaf=3, seed=1)
        measured = train_head(kind, examples, trees=40, min_leaf=3, seed=1, out_of_bag=True)
        scores = take_out_of_bag(measured)
        assert scores is not None and scores[examples.labels].mean() > scores[~examples.labels].mean()
        assert not np.array_equal(scores, head_scores(kind, plain, examples.vectors))
        assert take_out_of_bag(plain) is None
        assert len(dump_head(measured)) == pytest.approx(len(dump_head(plain)), abs=20)


def test_rows_that_nearly_all_trees_saw_have_no_out_of_bag_score() -> None:
    draws = np.random.default_rng(0)
    for good, known_good in ((50, 50), (30, 30), (8, 0)):  # trees draw a row of a rare class several times each
        labels = np.arange(100) < good
        vectors = draws.normal(size=(100, 40)).astype(np.float32) + labels[:, None]
        scores = take_out_of_bag(train_classifier(vectors, labels, None, 100, 3, 1, out_of_bag=True))
        assert scores is not None
        known = np.isfinite(scores)
        assert known[~labels].all() and known[labels].sum() == known_good
        assert not known_good or roc_auc_score(labels[known], scores[known]) > 0.9


def test_a_scorer_survives_storage_with_its_curve_and_maps(examples: Examples, tmp_path) -> None:
    sources = ["a", "b"] * 40
    head = train_head("ridge", examples, trees=1, min_leaf=1, seed=0)
    raw = head_scores("ridge", head, examples.vectors)
    scorer = Scorer("ridge", {"model": "m"}, 16, 1000, head, Platt(4.0, -2.0), source_maps(raw, sources, np.ones(80)))
    artifact = Artifact(Store(str(tmp_path)), "artifacts/q")
    save_scorer(scorer, dump_head(head), artifact)
    again = load_scorer(artifact)
    scores = again.scores(examples.vectors, sources)
    assert np.array_equal(scores, scorer.scores(examples.vectors, sources))
    assert scores.min() >= 0 and scores.max() <= 1 and scores.dtype == np.float32
    with pytest.raises(DataError, match="15 dimensions, the scorer was trained on 16"):
        again.scores(examples.features("ridge")[:, :15], sources)


def test_ngrams_score_texts_without_vectors(examples: Examples) -> None:
    head = train_head(NGRAMS, examples, trees=1, min_leaf=1, seed=0)
    scorer = Scorer(NGRAMS, {}, 0, 60, head)
    assert not scorer.needs_vectors
    fine, poor, blank, late = scorer.scores(None, ["a"] * 4, ["fine words", "poor words", "", "x" * 60 + " poor"])
    assert fine > 0.6 > 0.4 > poor
    assert late == pytest.approx(scorer.scores(None, ["a"], ["x" * 60])[0]) and 0 <= blank <= 1
