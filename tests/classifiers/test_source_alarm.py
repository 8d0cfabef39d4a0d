"""The source alarm: silent on chance, loud where a source decides; and the maps that take the source out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from classifiers.grouping import rows_by
from classifiers.source_alarm import ALARM, source_auc
from classifiers.source_blind import SourceMaps, source_maps

FINE = np.linspace(0, 1, 201)


def named(numbers: np.ndarray) -> list[str]:
    return [f"source {number}" for number in numbers]


def heard(labels: np.ndarray, sources: list[str], weights: np.ndarray | None = None) -> float:
    found = source_auc(labels, sources, np.ones(len(labels)) if weights is None else weights)
    assert found is not None
    return found


@pytest.mark.parametrize("sources, each", [(90, 5), (40, 2), (2, 150), (300, 1)])
def test_chance_raises_no_alarm_however_many_and_small_the_sources(sources: int, each: int) -> None:
    of = np.repeat(np.arange(sources), each)
    random = np.random.default_rng(0)
    found = [heard(random.random(len(of)) < 0.5, named(of)) for _ in range(12)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.06) and max(found) < 0.7


def test_a_mean_that_holds_the_document_itself_would_have_raised_one() -> None:
    of, labels = np.repeat(np.arange(90), 2), np.random.default_rng(0).random(180) < 0.5
    naive = roc_auc_score(labels, np.bincount(of, labels)[of] / 2)
    found = heard(labels, named(of))
    assert naive > ALARM > 0.6 > found


@pytest.mark.parametrize("share, lowest, highest", [(1.0, 0.97, 1.0), (0.95, 0.9, 0.99), (0.7, 0.55, 0.75)])
def test_sources_that_decide_are_heard(share: float, lowest: float, highest: float) -> None:
    of = np.repeat(np.arange(30), 8)
    labels = np.random.default_rng(0).random(240) < np.where(of % 2, share, 1 - share)
    assert lowest <= heard(labels, named(of)) <= highest


def test_two_equal_sources_tell_nothing() -> None:
    labels = np.tile([True, False], 150)
    assert heard(labels, ["a"] * 150 + ["b"] * 150) == pytest.approx(0.5, abs=0.05)


def test_the_corpus_counts_not_the_sample() -> None:
    """Two of three sources decide alike, and the third, at random, stands for nearly all of the corpus."""
    labels = np.array([True] * 50 + [False] * 50 + [True, False] * 50)
    sources = ["good"] * 50 + ["bad"] * 50 + ["web"] * 100
    even = heard(labels, sources)
    assert heard(labels, sources, np.where(np.arange(200) < 100, 1.0, 100.0)) < 0.6 < 0.8 < even


def test_nothing_to_predict_is_no_figure() -> None:
    assert source_auc(np.ones(9, bool), ["a", "b", "c"] * 3, np.ones(9)) is None


# --- the cure --------------------------------------------------------------------------------------------------------


def drawn(seed: int, sizes: list[int]) -> tuple[np.ndarray, list[str]]:
    """Scores of sources each of which has a range of its own."""
    random = np.random.default_rng(seed)
    lows = random.random(len(sizes)) * 0.6
    of = np.repeat(np.arange(len(sizes)), sizes)
    return (lows[of] + random.random(len(of)) * 0.3).astype(np.float32), named(of)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 200), min_size=1, max_size=5))
def test_a_source_map_is_monotone_and_stays_in_bounds(seed: int, sizes: list[int]) -> None:
    scores, sources = drawn(seed, sizes)
    maps = source_maps(scores, sources, np.ones(len(scores)))
    for source in {*sources, "unseen"}:
        mapped = maps.blind(FINE, [source] * len(FINE))
        assert np.all(np.diff(mapped) >= 0) and mapped.min() >= 0 and mapped.max() <= 1
    assert np.allclose(maps.blind(FINE, ["unseen"] * len(FINE)), FINE)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.lists(st.integers(150, 300), min_size=2, max_size=6))
def test_after_the_maps_sources_tell_nothing(seed: int, sizes: list[int]) -> None:
    scores, sources = drawn(seed, sizes)
    fresh, fresh_sources = drawn(seed, [2 * size for size in sizes])  # the same ranges, other documents
    maps = source_maps(scores, sources, np.ones(len(scores)))
    mapped = maps.blind(fresh, fresh_sources)
    for share in (0.25, 0.5, 0.75):
        decided = mapped >= np.quantile(mapped, share)
        assert heard(decided, fresh_sources) < 0.6
    for rows in rows_by(fresh_sources).values():
        assert np.array_equal(np.argsort(fresh[rows], kind="stable"), np.argsort(mapped[rows], kind="stable"))


def test_little_seen_of_a_source_moves_it_little() -> None:
    scores = np.concatenate([np.linspace(0.5, 0.9, 500), np.linspace(0.0, 0.2, 5)])
    maps = source_maps(scores, ["large"] * 500 + ["small"] * 5, np.ones(505))
    small = float(maps.blind(np.array([0.1]), ["small"])[0])
    assert 0.1 < small < 0.4  # a third of the way to 0.7, where half of all lies
    more = source_maps(np.repeat(scores, 20), ["large"] * 10000 + ["small"] * 100, np.ones(10100))
    assert float(more.blind(np.array([0.1]), ["small"])[0]) > 0.6
    assert "tiny" not in source_maps(scores, ["large"] * 502 + ["tiny"] * 3, np.ones(505)).sources


def test_the_pool_is_the_corpus_not_the_sample() -> None:
    """As many documents of each source are scored, but nine tenths of the corpus are of the low one."""
    scores = np.concatenate([np.linspace(0, 0.2, 300), np.linspace(0.8, 1, 300)])
    sources, weights = ["low"] * 300 + ["high"] * 300, np.repeat([9.0, 1.0], 300)
    mapped = source_maps(scores, sources, weights).blind(scores, sources)
    assert np.average(mapped < 0.25, weights=weights) == pytest.approx(0.9, abs=0.03)


def test_equal_scores_stay_equal_and_maps_survive_storage() -> None:
    scores, sources = np.array([0.0] * 40 + [0.5] * 40 + [1.0] * 40), ["a", "b"] * 60
    maps = source_maps(scores, sources, np.ones(120))
    again = SourceMaps.from_json(maps.to_json())
    mapped = again.blind(scores, sources)
    assert np.array_equal(mapped, maps.blind(scores, sources)) and len(set(mapped[::2].tolist())) == 3
