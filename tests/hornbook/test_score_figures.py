"""How well sources alone predict a decision: chance is chance, however small the sources."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hornbook.score_figures import source_auc, source_warnings


def counted(sizes: np.ndarray, kept: np.ndarray) -> dict[str, dict[str, float]]:
    return {
        f"source {number}": {"documents": int(size), "kept": int(good), "share": good / size}
        for number, (size, good) in enumerate(zip(sizes, kept, strict=True))
    }


@pytest.mark.parametrize("sizes", [np.full(1000, 1), np.full(300, 5), np.array([500, 500]), np.arange(1, 60)])
def test_a_decision_by_chance_is_not_predicted(sizes: np.ndarray):
    random = np.random.default_rng(3)
    found = [source_auc(counted(sizes, random.binomial(sizes, 0.4))) for _ in range(10)]
    assert np.mean([figure for figure in found if figure is not None]) == pytest.approx(0.5, abs=0.04)


def test_sources_that_decide_are_found_and_the_cure_is_named():
    decided = counted(np.array([1000, 1000]), np.array([0, 1000]))
    assert source_auc(decided) == 1.0
    # Of the pairs of a kept and a dropped document 0.9 * 0.9 are in order and 2 * 0.9 * 0.1 in one source.
    mostly = counted(np.array([1000, 1000]), np.array([100, 900]))
    assert source_auc(mostly) == pytest.approx(0.9, abs=0.01)
    (warning,) = source_warnings(mostly, source_auc(mostly))
    assert "AUC 0.90" in warning and "10% of 'source 0', 90% of 'source 1'" in warning and "source_blind" in warning
    even = counted(np.array([1000, 1000]), np.array([500, 500]))
    assert source_auc(even) == pytest.approx(0.5, abs=0.03) and source_warnings(even, source_auc(even)) == []


def test_nothing_to_predict_has_no_figure():
    nothing: list[dict[str, dict[str, float]]] = [
        {},
        counted(np.array([5, 9]), np.array([5, 9])),
        counted(np.array([5]), np.array([0])),
    ]
    for kept in nothing:
        assert source_auc(kept) is None and source_warnings(kept, None) == []
    assert source_auc(counted(np.array([9]), np.array([4]))) == pytest.approx(0.5, abs=1e-9)


@given(st.lists(st.tuples(st.integers(1, 10**10), st.floats(0, 1)), min_size=1, max_size=6))
def test_counts_of_any_size_have_a_figure(rows: list[tuple[int, float]]):
    sizes = np.array([size for size, _ in rows])
    kept = np.array([min(size, int(size * share)) for size, share in rows])
    figure = source_auc(counted(sizes, kept))
    assert figure is None or 0 <= figure <= 1
    assert figure == source_auc(counted(sizes, kept))
