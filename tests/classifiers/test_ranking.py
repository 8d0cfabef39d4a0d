"""Laws of the figures: what they equal, what they are blind to, and what a threshold reaches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from classifiers.calibration import fit_platt, reliability
from classifiers.quality_figures import at_threshold, compared, effective
from classifiers.ranking import CURVE_POINTS, Ranking, interval, resampled
from classifiers.thresholds import choose_threshold

rows = st.lists(
    st.tuples(st.integers(0, 6).map(lambda n: n / 6), st.booleans(), st.sampled_from([0.5, 1.0, 3.0])),
    min_size=2,
    max_size=30,
)


def columns(table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, labels, weights = zip(*table, strict=True)
    assume(any(labels) and not all(labels))
    return np.array(scores), np.array(labels), np.array(weights)


@given(rows)
def test_auc_is_the_share_of_pairs_in_order(table) -> None:
    scores, labels, weights = columns(table)
    won = total = 0.0
    for good in np.flatnonzero(labels):
        for bad in np.flatnonzero(~labels):
            pair = weights[good] * weights[bad]
            won += pair * ((scores[good] > scores[bad]) + 0.5 * (scores[good] == scores[bad]))
            total += pair
    ranking = Ranking(scores, labels)
    assert float(ranking.auc(weights)) == pytest.approx(won / total)
    assert float(Ranking(-scores, labels).auc(weights)) == pytest.approx(1 - won / total)
    assert ranking.auc(np.stack([weights, 2 * weights])) == pytest.approx([won / total] * 2)


@given(rows)
def test_figures_are_those_of_scikit_learn(table) -> None:
    scores, labels, weights = columns(table)
    ranking = Ranking(scores, labels)
    assert float(ranking.auc(weights)) == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))
    expected = average_precision_score(labels, scores, sample_weight=weights)
    assert float(ranking.average_precision(weights)) == pytest.approx(expected)
    there = at_threshold(scores, labels, weights, 0.5, seed=0)
    expected = f1_score(labels, scores >= 0.5, sample_weight=weights, zero_division=0)
    assert there["f1"][0] == pytest.approx(expected, abs=1e-4)
    assert sum(there["confusion"].values()) == len(table)


def test_curves_go_from_corner_to_corner_in_few_points() -> None:
    random = np.random.default_rng(0)
    scores, labels = random.random(5000), random.random(5000) < 0.3
    ranking = Ranking(scores, labels)
    roc, recalled = ranking.roc(np.ones(5000)), ranking.precision_recall(np.ones(5000))
    assert roc[0] == [0, 0] and roc[-1] == [1, 1] and len(roc) <= CURVE_POINTS and roc == sorted(roc)
    assert recalled[-1] == [1.0, pytest.approx(labels.mean(), abs=1e-4)] and len(recalled) <= CURVE_POINTS


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random, held = np.random.default_rng(1), 0
    for seed in range(60):
        labels = random.random(80) < 0.5
        scores = random.normal(size=80) + labels  # the true AUC is Phi(1 / sqrt 2) = 0.7602
        ranking = Ranking(scores, labels)
        found = interval(float(ranking.auc(np.ones(80))), resampled(ranking.auc, np.ones(80), seed))
        assert found is not None
        _, low, high = found
        held += low <= 0.7602 <= high
    assert 52 <= held <= 60


def test_heads_are_compared_on_the_documents_that_all_of_them_scored() -> None:
    labels = np.array([True, False] * 50)
    right, wrong = labels + 0.0, 1.0 - labels
    half = np.where(np.arange(100) < 50, right, np.nan)
    found = compared({"forest": half, "ngrams": wrong}, labels, np.ones(100), seed=0)
    assert found["forest"]["auc"] == [1, 1, 1] and found["ngrams"]["auc"] == [0, 0, 0]
    assert found["forest"]["auc_above_ngrams"] == [1, 1, 1] and "auc_above_ngrams" not in found["ngrams"]
    assert compared({"forest": right}, np.ones(100, bool), np.ones(100), seed=0) == {}
    assert compared({}, labels, np.ones(100), seed=0) == {}


@given(rows, st.sampled_from([0.1, 0.5, 0.9]))
def test_a_threshold_keeps_the_share_of_the_corpus_that_comes_nearest(table, share: float) -> None:
    scores, labels, weights = columns(table)
    threshold = choose_threshold(scores, labels, weights, "keep-share", keep_share=share)
    misses = [abs(np.average(scores >= score, weights=weights) - share) for score in scores]
    assert abs(np.average(scores >= threshold, weights=weights) - share) == pytest.approx(min(misses))


@given(rows)
def test_no_threshold_has_a_better_f1_and_none_lower_the_asked_precision(table) -> None:
    scores, labels, weights = columns(table)

    def precision(threshold: float) -> float:
        return float(np.average(labels[scores >= threshold], weights=weights[scores >= threshold]))

    best = choose_threshold(scores, labels, weights, "best-f1")
    figures = [f1_score(labels, scores >= score, sample_weight=weights, zero_division=0) for score in scores]
    assert f1_score(labels, scores >= best, sample_weight=weights, zero_division=0) == pytest.approx(max(figures))
    precise = choose_threshold(scores, labels, weights, "precision", precision=0.7)
    reaching = [score for score in scores if precision(score) >= 0.7 - 1e-9]
    if reaching:
        assert precise == min(reaching)
    else:
        assert precision(precise) == pytest.approx(max(map(precision, scores)))


def test_weights_move_the_threshold() -> None:
    scores, labels = np.linspace(0, 1, 101).astype(np.float32), np.linspace(0, 1, 101) >= 0.7
    weights = np.where(scores > 0.5, 9.0, 1.0)
    assert choose_threshold(scores, labels, np.ones(101), "keep-share", 0.25) == pytest.approx(0.75, abs=0.011)
    assert choose_threshold(scores, labels, weights, "keep-share", 0.5) == pytest.approx(0.72, abs=0.011)
    assert choose_threshold(scores, labels, np.ones(101), "best-f1") == pytest.approx(0.7, abs=0.011)


def test_platt_makes_scores_chances_and_keeps_their_order() -> None:
    random = np.random.default_rng(0)
    scores = random.random(4000).astype(np.float32)
    labels = random.random(4000) < 1 / (1 + np.exp(-(6 * scores - 5)))
    curve = fit_platt(scores, labels, np.ones(4000))
    assert curve is not None
    raw, better = (reliability(values, labels, np.ones(4000)) for values in (scores, curve(scores)))
    assert better["ece"] < 0.03 < 0.15 < raw["ece"] and better["brier"] < raw["brier"]
    assert np.array_equal(np.argsort(curve(np.sort(scores)), kind="stable"), np.arange(4000))
    assert fit_platt(-scores, labels, np.ones(4000)) is None


@settings(max_examples=30)
@given(rows)
def test_reliability_counts_every_document_once(table) -> None:
    scores, labels, weights = columns(table)
    found = reliability(scores, labels, weights)
    assert sum(count for _, _, count in found["curve"]) == len(table)
    assert 0 <= found["ece"] <= 1 and 0 <= found["brier"] <= 1


def test_the_effective_number_is_that_of_equal_weights() -> None:
    assert effective(np.full(7, 3.0)) == 7 and effective(np.array([1e9, 1.0, 1.0])) == 1
