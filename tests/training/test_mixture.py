"""Laws of mixtures: exact counts, even interleaving, no repeats within an epoch, pure functions of (seed, step)."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.errors import RecipeError
from training.mixture import Mixture, PhaseSettings

SIZES = {"stories": 37, "textbooks": 11, "web": 101}


def phase(steps: int, **weights: float) -> PhaseSettings:
    return PhaseSettings(name=f"phase of {steps}", steps=steps, weights=weights)


@settings(max_examples=60)
@given(
    weights=st.lists(st.floats(0, 10), min_size=3, max_size=3).filter(lambda values: sum(values) > 0.01),
    steps=st.integers(1, 40),
    batch=st.integers(1, 17),
    seed=st.integers(0, 2**40),
)
def test_realised_counts_are_the_planned_ones_and_follow_the_weights(
    weights: list[float], steps: int, batch: int, seed: int
) -> None:
    mixture = Mixture(SIZES, [phase(steps, **dict(zip(SIZES, weights, strict=True)))], batch, 1e9, seed)
    drawn = Counter(np.concatenate([mixture.batch(step).source for step in range(steps)]).tolist())
    slots, whole = steps * batch, sum(Fraction(weight) for weight in weights)
    for number, share in enumerate(mixture.shares()):
        assert drawn[number] == share.sequences
        assert abs(share.sequences - slots * Fraction(weights[number]) / whole) < 1


def test_every_prefix_keeps_the_mixture() -> None:
    mixture = Mixture(SIZES, [phase(60, stories=0.5, textbooks=0.2, web=0.3)], 16, 100, seed=3)
    totals = np.zeros(3)
    for step in range(60):
        totals += np.bincount(mixture.batch(step).source, minlength=3)
        assert np.abs(totals - (step + 1) * 16 * np.array([0.5, 0.2, 0.3])).max() < 1.5


def test_epochs_are_whole_and_go_on_across_phases() -> None:
    phases = [phase(10, stories=1, web=1), phase(7, stories=3, textbooks=1), phase(9, web=1)]
    mixture = Mixture(SIZES, phases, 8, 10, seed=5)
    drawn: dict[int, list[int]] = {0: [], 1: [], 2: []}
    names = []
    for step in range(mixture.steps):
        batch = mixture.batch(step)
        names.append(batch.phase)
        for source, sequence in zip(batch.source, batch.sequence, strict=True):
            drawn[int(source)].append(int(sequence))
    assert names == ["phase of 10"] * 10 + ["phase of 7"] * 7 + ["phase of 9"] * 9
    for (_, size), sequences in zip(SIZES.items(), drawn.values(), strict=True):
        for start in range(0, len(sequences), size):
            epoch = sequences[start : start + size]
            assert len(set(epoch)) == len(epoch) and max(epoch) < size
    assert drawn[0][:37] != sorted(drawn[0][:37]) and drawn[0][:37] != drawn[0][37:74]


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    def order(seed: int) -> list[list[int]]:
        mixture = Mixture(SIZES, [phase(20, stories=1, web=2)], 8, 10, seed)
        return [mixture.batch(step).sequence.tolist() for step in range(20)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    mixture = Mixture(SIZES, [phase(20, stories=1, web=2)], 8, 10, seed=1)
    assert [mixture.batch(step).sequence.tolist() for step in reversed(range(20))] == order(1)[::-1]


def test_a_billion_steps_cost_no_more_than_ten() -> None:
    mixture = Mixture({"a": 10**12, "b": 3 * 10**11}, [phase(10**9, a=0.7, b=0.3)], 64, 1, seed=0)
    batch = mixture.batch(10**9 - 1)
    assert len(batch.source) == 64 and batch.sequence.max() < 10**12
    assert len(set(zip(batch.source.tolist(), batch.sequence.tolist(), strict=True))) == 64


@pytest.mark.parametrize(
    ("sizes", "phases", "max_epochs", "message"),
    [
        ({}, [phase(1, a=1)], 1, "no source"),
        ({"a": 5}, [], 1, "no phase"),
        ({"a": 5}, [phase(1, a=0)], 1, "sum to nothing"),
        ({"a": 5}, [phase(1, b=1)], 1, "weighs b, which is no source"),
        ({"a": 5, "b": 0}, [phase(1, a=1, b=1)], 1, "holds not one whole sequence"),
        ({"a": 5}, [phase(10, a=1)], 2, "8.00 epochs, 2 allowed"),
    ],
)
def test_impossible_mixtures_are_refused(
    sizes: dict[str, int], phases: list[PhaseSettings], max_epochs: float, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Mixture(sizes, phases, 4, max_epochs, seed=0)
    if "allowed" in message:
        assert "lower the steps from 10 to 2" in caught.value.cure and "raise max_epochs to 8.00" in caught.value.cure


def test_without_weights_sources_count_by_size() -> None:
    mixture = Mixture({"a": 30, "b": 10, "empty": 0}, [PhaseSettings(name="p", steps=10)], 4, 1, seed=0)
    assert [share.sequences for share in mixture.shares()] == [30, 10, 0]
