"""The quality stage on a corpus whose documents' worth is known: without Ray and without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from graded_corpus import DIMENSION, GradedCorpus, train
from in_process import context_of

from classifiers.annotated import Annotated, key_folds, source_folds, split_annotated
from classifiers.heads import HEADS
from classifiers.quality import Quality, QualitySettings
from classifiers.score import Score, ScoreSettings
from classifiers.scorer import load_scorer
from hornbook.artifact import Artifact
from hornbook.errors import DataError
from hornbook.store import Store

ROWS = 260


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def graded(store: Store, **options) -> GradedCorpus:
    """Documents of five sources, of which the even ones are graded."""
    worth = np.random.default_rng(3).normal(size=ROWS)
    sources = [f"site {row % 5}" for row in range(ROWS)]
    return GradedCorpus(store, **{"worth": worth, "sources": sources, "graded": range(0, ROWS, 2), **options})


def held_out(scorer: Artifact) -> pa.Table:
    with scorer.store.open_input(f"{scorer.folder}/held_out.parquet") as file:
        return pq.read_table(file)


def scores_of(store: Store, inputs: dict[str, list[Artifact]], scorer: Artifact) -> np.ndarray:
    stage = Score("scores", ScoreSettings(), seed=7)
    store.delete("artifacts/scores")
    context = context_of(stage, store, scorer=[scorer], **inputs)
    stage.run(context)
    return np.concatenate([table.column("score").to_numpy() for table in context.artifact.tables()])


def test_all_heads_are_measured_and_the_scorer_ranks_what_it_never_saw(store: Store) -> None:
    corpus = graded(store)
    scorer = train(store, corpus.inputs(), trees=30)
    metrics = scorer.manifest.metrics
    assert json.loads(json.dumps(metrics)) == metrics
    assert metrics["head"] == "forest" and metrics["train"] + metrics["held_out"] == ROWS // 2
    measured = metrics["measured"]
    for name, kinds in (
        ("cross_validated", HEADS),
        ("unseen_sources", HEADS),
        ("held_out", HEADS),
        ("out_of_bag", HEADS[:2]),
    ):
        assert set(measured[name]) == set(kinds)
        for figures in measured[name].values():
            value, low, high = figures["auc"]
            assert 0.7 < low <= value <= high <= 1
    assert metrics["auc"] == measured["held_out"]["forest"]["auc"][0]
    assert set(measured["curves"]["roc"]) == {*HEADS, "held_out"} and measured["folds"]["cross_validated"] == 5
    assert sum(measured["at_threshold"]["confusion"].values()) == metrics["held_out"] == held_out(scorer).num_rows
    assert not store.exists(f"{scorer.folder}/work")
    scores = scores_of(store, {name: corpus.inputs()[name] for name in ("documents", "embeddings")}, scorer)
    odd = np.arange(1, ROWS, 2)  # neither trained on nor held out
    assert np.corrcoef(scores[odd], corpus.worth[odd])[0, 1] > 0.7
    by_key = dict(
        zip(held_out(scorer).column("key").to_pylist(), held_out(scorer).column("score").to_pylist(), strict=True)
    )
    assert all(by_key.get(corpus.key(row), scores[row]) == scores[row] for row in range(ROWS))


def test_the_head_that_scores_is_the_one_that_is_named_or_the_best(store: Store) -> None:
    corpus = graded(store)
    best = train(store, corpus.inputs(), "best", head="best")
    figures = best.manifest.metrics["measured"]["cross_validated"]
    chosen = best.manifest.metrics["head"]
    assert figures[chosen]["auc"][0] == max(found["auc"][0] for found in figures.values())
    assert chosen != "forest"  # ten trees are no match for a line where a line is the truth
    alone = train(store, corpus.inputs(), "ridge", head="ridge", rivals=False)
    assert load_scorer(alone).kind == "ridge" and set(alone.manifest.metrics["measured"]["held_out"]) == {"ridge"}


def test_ngrams_need_no_embedding_model_at_all(store: Store) -> None:
    corpus = graded(store)
    inputs = {"documents": [corpus.documents], "annotations": [corpus.annotations]}
    stage = Quality("q", QualitySettings(head="ngrams"), seed=7)
    assert stage.models() == ()
    scorer = train(store, inputs, head="ngrams")
    assert set(scorer.manifest.metrics["measured"]["cross_validated"]) == {"ngrams"}
    scores = scores_of(store, {"documents": [corpus.documents]}, scorer)
    assert np.corrcoef(scores, corpus.worth)[0, 1] > 0.6


def test_the_same_inputs_give_the_same_bytes_and_a_killed_run_goes_on(store: Store, monkeypatch) -> None:
    corpus = graded(store)
    settings = {"source_blind": True, "calibrated": True, "source_sample": 30}
    digest = train(store, corpus.inputs(), **settings).manifest.digest
    store.delete("artifacts/quality")
    from classifiers.head_parts import HeadPart

    made: list[int] = []
    make = HeadPart.make

    def dies_once(self, part):
        made.append(part.start)
        if len(made) == 20:
            raise KeyboardInterrupt
        return make(self, part)

    monkeypatch.setattr(HeadPart, "make", dies_once)
    with pytest.raises(KeyboardInterrupt):
        train(store, corpus.inputs(), **settings)
    assert train(store, corpus.inputs(), **settings).manifest.digest == digest
    assert sorted(made) == sorted([*range(55), 19])  # five heads, five folds by key and by source each, and whole


def test_people_overrule_the_judge_unless_all_count_alike(store: Store) -> None:
    corpus = graded(store)
    rows = list(range(0, ROWS, 2))
    opposite = corpus.annotate("people", rows, 5 - corpus.grades[rows], kind="labels")
    both = {**corpus.inputs(), "annotations": [corpus.annotations, opposite]}
    first = held_out(train(store, both, "human", rivals=False))
    mixed = train(store, both, "mean", prefer="mean", label_cut=2.5, rivals=False)
    mean = held_out(mixed).column("grade").to_pylist()
    judged = {corpus.key(row): float(corpus.grades[row]) for row in rows}
    for key, grade in zip(first.column("key").to_pylist(), first.column("grade").to_pylist(), strict=True):
        assert grade == pytest.approx(5 - judged[key], abs=1e-5)
    assert mean == pytest.approx([2.5] * len(mean))


def test_weights_count_in_the_threshold_and_the_largest_given_stays(store: Store) -> None:
    corpus = graded(store)
    rows = list(range(0, ROWS, 2))
    weights = [20.0 if corpus.worth[row] > 0 else 1.0 for row in rows]
    sampled = corpus.annotate("sampled", rows, weights=weights)
    chosen = corpus.annotate("chosen", rows[:40], kind="labels")  # says 1 of each
    scorer = train(store, {**corpus.inputs(), "annotations": [sampled, chosen]}, rivals=False, keep_share=0.5)
    table = held_out(scorer)
    by_key = {corpus.key(row): weight for row, weight in zip(rows, weights, strict=True)}
    assert table.column("weight").to_pylist() == [by_key[key] for key in table.column("key").to_pylist()]
    kept = table.column("score").to_numpy() >= scorer.manifest.metrics["threshold"]
    assert np.average(kept, weights=table.column("weight").to_numpy()) == pytest.approx(0.5, abs=0.06)
    assert kept.mean() < 0.4  # half of the corpus is a third of the sample
    assert scorer.manifest.metrics["held_out_effective"] < table.num_rows


def test_a_source_that_decides_raises_the_alarm_and_blindness_ends_it(store: Store) -> None:
    of = np.arange(2 * ROWS) // 2 % 4
    worth = np.where(of < 2, -1.2, 1.2) + 0.7 * np.random.default_rng(1).normal(size=2 * ROWS)
    sources = [f"site {number}" for number in of]
    corpus = graded(store, worth=worth, sources=sources, graded=range(0, 2 * ROWS, 2))
    seeing = train(store, corpus.inputs(), "seeing", rivals=False, trees=40)
    alarm = seeing.manifest.metrics["source_alarm"]
    assert alarm["grades"] > 0.85 and alarm["decisions"] > 0.8 and "source_blind" not in alarm
    said = " ".join(seeing.manifest.metrics["warnings"])
    assert "the source alone predicts the grades" in said and "set source_blind" in said
    blind = train(store, corpus.inputs(), "blind", rivals=False, trees=40, source_blind=True)
    alarm = blind.manifest.metrics["source_alarm"]
    assert alarm["decisions"] < 0.65 < 0.8 < alarm["source_blind"]["decisions_before"]
    assert alarm["source_blind"]["auc_after"] < alarm["source_blind"]["auc_before"] - 0.1
    assert "being blind to sources costs AUC" in " ".join(blind.manifest.metrics["warnings"])
    inputs = {name: corpus.inputs()[name] for name in ("documents", "embeddings")}
    kept = scores_of(store, inputs, blind) >= blind.manifest.metrics["threshold"]
    shares = [kept[1::2][of[1::2] == number].mean() for number in range(4)]  # of documents without a grade
    assert max(shares) - min(shares) < 0.2
    kept = scores_of(store, inputs, seeing) >= seeing.manifest.metrics["threshold"]
    assert kept[of == 3].mean() - kept[of == 0].mean() > 0.8


def test_scores_may_be_chances_without_another_order(store: Store) -> None:
    corpus = graded(store)
    inputs = {name: corpus.inputs()[name] for name in ("documents", "embeddings")}
    plain, chances = (
        scores_of(
            store, inputs, train(store, corpus.inputs(), str(wanted), head="ridge", rivals=False, calibrated=wanted)
        )
        for wanted in (False, True)
    )
    order = np.argsort(plain, kind="stable")
    assert np.all(np.diff(chances[order]) >= 0) and not np.allclose(plain, chances, atol=0.05)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_counted_and_said(store: Store) -> None:
    texts = [" \n" if row in (0, 2) else f"text {row}" for row in range(ROWS)]
    corpus = graded(store, texts=texts)
    corpus.vectors[4] = np.nan
    rows = list(range(0, ROWS, 2))
    grades = corpus.grades[rows].tolist()
    grades[10], grades[11], grades[12] = float("nan"), float("inf"), 7.0
    weights = [1.0] * len(rows)
    weights[13] = float("nan")
    bad = corpus.annotate("bad", rows, grades, weights)
    metrics = train(store, {**corpus.inputs(), "annotations": [bad]}, rivals=False).manifest.metrics
    left_out = metrics["left_out"]
    assert (left_out["bad_grades"], left_out["empty_text"]) == (4, 2)
    assert left_out["no_embedding"] == 1  # `embed` rejected what was not finite
    assert metrics["train"] + metrics["held_out"] == len(rows) - 7
    assert "left out: 4 without a grade from 0 to 5 or a weight, 2 of empty documents, 1 of" in metrics["warnings"][0]


@pytest.mark.parametrize(
    ("agreement", "said"),
    [
        ({"of": "two judges", "spearman": 0.31}, "the agreement of two judges is 0.31"),
        (
            {"of": "two wordings of one judge", "spearman": None},
            "the agreement of two wordings of one judge cannot be told",
        ),
        ({}, "each document was graded once, so nothing says how far"),
        ({"of": "two judges", "spearman": 0.8}, ""),
    ],
)
def test_whose_agreement_is_weak_is_said(store: Store, agreement: dict[str, Any], said: str) -> None:
    corpus = graded(store)
    judged = corpus.annotate("judged", range(0, ROWS, 2), agreement=agreement)
    metrics = train(store, {**corpus.inputs(), "annotations": [judged]}, rivals=False).manifest.metrics
    found = [warning for warning in metrics["warnings"] if "agreement" in warning or "graded once" in warning]
    assert len(found) == bool(said) and all(said in warning for warning in found)


def test_too_few_or_other_or_doubled_documents_are_refused(store: Store) -> None:
    corpus = graded(store)
    few = corpus.annotate("few", range(7))
    with pytest.raises(DataError, match="only 7 of 7 annotations belong to these documents; 8 are needed"):
        train(store, {**corpus.inputs(), "annotations": [few]})
    none = corpus.annotate("none", [])
    with pytest.raises(DataError, match="only 0 of 0"):
        train(store, {**corpus.inputs(), "annotations": [none]}, "other")


@pytest.mark.parametrize("grade", [0.0, 5.0])
@pytest.mark.parametrize("head", ["forest-regressor", "logistic"])
def test_constant_grades_teach_nothing(store: Store, grade: float, head: str) -> None:
    corpus = graded(store)
    same = corpus.annotate("same", range(40), [grade] * 40)
    with pytest.raises(DataError, match=r"all .* annotations are (good|bad) at the cut") as raised:
        train(store, {**corpus.inputs(), "annotations": [same]}, head=head)
    assert "label_cut" in raised.value.cure


def test_a_class_too_small_for_the_folds_takes_fewer_and_one_document_none(store: Store) -> None:
    corpus = graded(store)
    rows = list(range(80))
    order = np.argsort(-corpus.worth[:80])
    for best in (9, 3):
        grades = np.ones(80)
        grades[order[:best]] = 5.0
        few = corpus.annotate(f"best {best}", rows, grades.tolist())
        inputs = {**corpus.inputs(), "annotations": [few]}
        metrics = train(store, inputs, f"q {best}", label_cut=4, rivals=False, held_out=0.5).manifest.metrics
        assert metrics["measured"]["folds"]["cross_validated"] <= best
        found = metrics["measured"]["cross_validated"]
        assert bool(found) == (metrics["measured"]["folds"]["cross_validated"] >= 2)
        if not found:
            assert any("too few good, or bad" in warning for warning in metrics["warnings"])


# --- splits and folds ------------------------------------------------------------------------------------------------


def annotated(keys: list[bytes], sources: list[str], grades: np.ndarray) -> Annotated:
    return Annotated(keys, sources, [""] * len(keys), grades, np.ones(len(keys)), None)


def test_equal_documents_stay_together() -> None:
    keys = [f"{row % 40:016}".encode() for row in range(100)]
    grades = np.array([row % 40 % 5 for row in range(100)], dtype=float)
    split = split_annotated(annotated(keys, ["a"] * 100, grades), None, 0.5, 0.3, seed=1)
    folds = key_folds(keys, split.labels, 5, seed=1)
    for values in (split.held_out, folds):
        assert len({(key, value) for key, value in zip(keys, values.tolist(), strict=True)}) == 40
    assert {int(fold) for fold in folds} == set(range(5))
    shares = [split.labels[folds == fold].mean() for fold in range(5)]
    assert max(shares) - min(shares) < 0.25
    assert not np.array_equal(folds, key_folds(keys, split.labels, 5, seed=2))


def test_a_source_is_in_one_fold_and_the_folds_are_about_as_large() -> None:
    sources = ["big"] * 30 + [f"small {row // 3}" for row in range(60)]
    folds = source_folds(sources, 3, seed=1)
    assert len(set(zip(sources, folds.tolist(), strict=True))) == 21
    assert np.bincount(folds).tolist() == [30, 30, 30]
    assert set(source_folds(["a", "b"], 5, seed=1)) == {0, 1} and set(source_folds(["a"] * 9, 5, seed=1)) == {-1}


def test_embeddings_of_another_size_than_the_scorers_are_refused(store: Store) -> None:
    corpus = graded(store)
    scorer = train(store, corpus.inputs(), rivals=False)
    corpus.vectors = corpus.vectors[:, : DIMENSION - 1]
    smaller = corpus.embed("smaller")
    with pytest.raises(DataError, match="7 dimensions, the scorer was trained on 8"):
        scores_of(store, {"documents": [corpus.documents], "embeddings": [smaller]}, scorer)
