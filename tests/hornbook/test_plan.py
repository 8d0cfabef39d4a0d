"""Plans are pure functions of (seed, row): permutations are complete, repeatable and cheap at any position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hornbook.plan import Combinations, derive_seed, permute, row_random


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**62))
def test_a_permutation_visits_everything_once(size: int, seed: int) -> None:
    assert sorted(permute(np.arange(size), size, seed)) == list(range(size))


@given(size=st.integers(1, 10**12), seed=st.integers(0, 2**62), data=st.data())
def test_any_position_can_be_asked_alone(size: int, seed: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    together = permute(np.array(positions), size, seed)
    alone = [int(permute(np.array([position]), size, seed)[0]) for position in positions]
    assert together.tolist() == alone
    assert all(0 <= value < size for value in alone)


def test_seeds_give_different_orders() -> None:
    assert permute(np.arange(1000), 1000, 1).tolist() != permute(np.arange(1000), 1000, 2).tolist()


def test_a_permutation_mixes() -> None:
    moved = permute(np.arange(100_000), 100_000, 5)
    correlation = np.corrcoef(np.arange(100_000), moved)[0, 1]
    assert abs(correlation) < 0.02


def test_positions_outside_are_refused() -> None:
    with pytest.raises(ValueError, match=r"outside range\(10\)"):
        permute(np.array([10]), 10, 0)


def test_derived_seeds_are_stable_and_typed() -> None:
    assert derive_seed(17, "stories", 3) == derive_seed(17, "stories", 3)
    assert derive_seed("1") != derive_seed(1)
    assert derive_seed("a", "b") != derive_seed("ab")
    assert row_random(1, 2).random() == row_random(1, 2).random()


@given(axes=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 2**40))
def test_combinations_come_once_each(axes: list[int], seed: int) -> None:
    combinations = Combinations(axes, seed)
    seen = [combinations[row] for row in range(len(combinations))]
    assert len(set(seen)) == len(seen) == np.prod(axes)
    assert all(0 <= index < axis for cell in seen for index, axis in zip(cell, axes, strict=True))


@given(
    axes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    seed=st.integers(0, 2**62),
    share=st.floats(0, 1),
)
def test_every_prefix_of_combinations_is_balanced(axes: list[int], seed: int, share: float) -> None:
    combinations = Combinations(axes, seed)
    rows = [combinations[row] for row in range(int(len(combinations) * share))]
    for axis, size in enumerate(axes):
        taken = np.bincount([row[axis] for row in rows], minlength=size)
        assert taken.max() - taken.min() <= 1


def test_combinations_do_not_depend_on_the_order_of_asking() -> None:
    rows = [5000, 3, 1_000_000, 1023, 1024, 0]
    walked = Combinations((400, 300, 50), 7)
    assert [walked[row] for row in rows] == [Combinations((400, 300, 50), 7)[row] for row in rows]
    assert Combinations((400, 300, 50), 8)[3] != walked[3]
    with pytest.raises(IndexError, match="row 6000000 of 6000000"):
        walked[6_000_000]
