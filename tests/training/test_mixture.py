"""Laws of mixtures: exact counts, even interleaving, no repeats within an epoch, pure functions of (seed, step)."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.errors import RecipeError
from training.mixture import Mixture, PhaseSettings
from training.stretches import WhenDry

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


def test_draws_that_are_due_at_almost_the_same_time_keep_their_order_where_blocks_of_steps_meet() -> None:
    """Of 100 million sequences some pairs are due within a trillionth of the run; one such pair stands at these two steps."""
    blocks = 97_661  # of 1,024 slots
    sizes = {"a": 512 * blocks + 1001, "b": 512 * blocks - 1001}
    step = (
        blocks // 2 * pow(sizes["a"], -1, blocks) % blocks * 1024 // 64
    )  # at which half a draw of `a` is over, but for a hair
    mixture = Mixture(sizes, [PhaseSettings(name="all", steps=sum(sizes.values()) // 64)], 64, 1, seed=0)
    seen = [(a, b) for at in (step - 1, step) for a, b in zip(*_drawn(mixture, at), strict=True)]
    assert len(set(seen)) == 128, "a sequence was drawn twice in an epoch, and another one never"


def _drawn(mixture: Mixture, step: int) -> tuple[list[int], list[int]]:
    batch = mixture.batch(step)
    return batch.source.tolist(), batch.sequence.tolist()


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


@settings(max_examples=25, deadline=None)
@given(data=st.data(), batch=st.integers(64, 100), seed=st.integers(0, 2**40))
def test_planned_and_realised_token_shares_agree_to_a_thousandth(data: st.DataObject, batch: int, seed: int) -> None:
    """Over weights and budgets, ramps, sources that run dry, and rows that hold other numbers of tokens by source."""
    share = st.floats(0.02, 1)
    weights = st.fixed_dictionaries(dict.fromkeys(SIZES, share))
    row_tokens = data.draw(st.fixed_dictionaries({name: st.floats(100, 128) for name in SIZES}))
    start, end = data.draw(weights), data.draw(weights)
    phases = [
        PhaseSettings(name="ramp", steps=data.draw(st.integers(17, 60)), weights=start, end_weights=end),
        PhaseSettings(name="budget", tokens={name: value * 3e5 for name, value in data.draw(weights).items()}),
    ]
    mixture = Mixture(SIZES, phases, batch, 1e9, seed, row_tokens=row_tokens)
    each = np.array([row_tokens[name] for name in SIZES])
    realised = {phase.name: np.zeros(3) for phase in phases}
    for step in range(mixture.steps):
        draws = mixture.batch(step)
        realised[draws.phase] += np.bincount(draws.source, minlength=3) * each
    for found in mixture.shares():
        got = realised[found.phase][list(SIZES).index(found.source)] / realised[found.phase].sum()
        assert abs(found.share - got) < 1e-9
    asked = np.array([phases[1].tokens[name] for name in SIZES])
    rows = realised["budget"].sum() / each.mean()
    assert np.abs(realised["budget"] / realised["budget"].sum() - asked / asked.sum()).max() < max(0.001, 2 / rows)
    assert abs(realised["budget"].sum() - asked.sum()) <= batch * each.max()


def test_a_ramp_is_a_straight_line() -> None:
    ramp = PhaseSettings(
        name="ramp", steps=1000, weights={"stories": 3, "web": 1}, end_weights={"web": 1, "textbooks": 1}
    )
    mixture = Mixture(SIZES, [phase(5, stories=1), ramp, phase(5, web=1)], 16, 1e9, seed=1)
    begin, end = np.array([0.75, 0, 0.25]), np.array([0, 0.5, 0.5])
    totals = np.zeros(3)
    for step in range(1000):
        totals += np.bincount(mixture.batch(5 + step).source, minlength=3)
        along = (step + 1) / 1000
        planned = 16_000 * (begin * along + (end - begin) * along**2 / 2)
        assert np.abs(totals - planned).max() < 3.5
    assert totals.tolist() == [6000, 4000, 6000]
    assert Counter(mixture.batch(1004).source.tolist()) == {1: 8, 2: 8}


def test_budgets_say_how_long_a_phase_is() -> None:
    budget = PhaseSettings(name="decay", tokens={"a": 3e6, "b": 1e6})
    rows = {"a": 1000.0, "b": 500.0}
    mixture = Mixture({"a": 9000, "b": 9000}, [budget], 10, 1, seed=0, row_tokens=rows)
    assert [(share.sequences, share.share) for share in mixture.shares()] == [(3000, 0.75), (2000, 0.25)]
    assert mixture.steps == 500 and budget.expected_steps(10_000) == 400
    for wrong in ({"steps": 3, "tokens": {"a": 1}}, {}, {"tokens": {"a": 1}, "weights": {"a": 1}}):
        with pytest.raises(ValueError, match="tokens"):
            PhaseSettings.model_validate({"name": "p"} | wrong)


DRY = {"small": 100, "large": 10_000}


@pytest.mark.parametrize("when_dry", ["repeat", "renormalise", "stop"])
def test_a_source_that_runs_dry_is_handled_as_configured(when_dry: WhenDry) -> None:
    phases = [phase(30, small=1, large=1), phase(30, small=1, large=3)]
    mixture = Mixture(DRY, phases, 16, 9, seed=2, epoch_caps={"small": 2}, when_dry=when_dry)
    drawn = [mixture.batch(step) for step in range(mixture.steps)]
    small = [int((draws.source == 0).sum()) for draws in drawn]
    epochs = Counter((int(sequence)) for draws in drawn for sequence in draws.sequence[draws.source == 0])
    (dry,) = mixture.dry
    assert (dry.source, dry.phase, dry.then) == ("small", "phase of 30", when_dry)
    assert dry.step == 26  # 25 steps of 8 are two epochs of 100
    if when_dry == "repeat":
        assert small == [8] * 30 + [4] * 30 and mixture.steps == 60
    else:
        assert small[:25] == [8] * 25 and set(epochs.values()) == {2} and len(epochs) == 100
        assert small[25:] == ([0] * 35 if when_dry == "renormalise" else [])
    assert mixture.phase_steps == ([25, 0] if when_dry == "stop" else [30, 30])


def test_the_run_ends_when_every_source_is_dry() -> None:
    mixture = Mixture({"a": 40, "b": 80}, [phase(1000, a=1, b=1)], 4, 1, seed=0, when_dry="renormalise")
    drawn = np.concatenate([mixture.batch(step).sequence for step in range(mixture.steps)])
    assert mixture.steps == 30 and len(drawn) == 120 and [dry.source for dry in mixture.dry] == ["a", "b"]
    with pytest.raises(RecipeError, match="does not last for one step"):
        Mixture({"a": 3}, [phase(5, a=1)], 4, 1, seed=0, when_dry="stop")
    with pytest.raises(RecipeError, match="epoch_caps names c"):
        Mixture({"a": 3}, [phase(1, a=1)], 1, 1, seed=0, epoch_caps={"c": 1})


def test_what_changes_batches_changes_the_fingerprint() -> None:
    def fingerprint(**options: Any) -> str:
        plain = PhaseSettings(name="p", steps=40, weights={"small": 1, "large": 1}, **options.pop("phase", {}))
        return Mixture(DRY, [plain], 8, 9, **({"seed": 1} | options)).fingerprint()

    changed: list[dict[str, Any]] = [
        {"phase": {"end_weights": {"large": 1}}},
        {"row_tokens": {"small": 2, "large": 1}},
        {"epoch_caps": {"small": 1}, "when_dry": "renormalise"},
        {"epoch_caps": {"small": 1}, "when_dry": "stop"},
        {"seed": 2},
    ]
    found = [fingerprint(), *(fingerprint(**options) for options in changed)]
    assert len(set(found)) == len(found)
    assert fingerprint(when_dry="repeat") == fingerprint()  # nothing ran dry
