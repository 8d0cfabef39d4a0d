"""Schedules against their closed forms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest

from training.schedule import LearningRates, ScheduleSettings, learning_rate_share

STEPS = 101


@dataclass(frozen=True)
class Phase:
    schedule: ScheduleSettings | None = None
    learning_rate: float | None = None


def shares(kind: str, warmup: int = 0, **options: float | str) -> list[float]:
    settings = ScheduleSettings(kind=kind, warmup_steps=warmup, **options)  # type: ignore[arg-type]
    return [learning_rate_share(settings, step, STEPS) for step in range(STEPS)]


def test_closed_forms() -> None:
    assert shares("constant") == [1.0] * STEPS
    assert shares("linear", floor=0.2) == pytest.approx([1 - 0.8 * step / 100 for step in range(STEPS)])
    cosine = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 100)) for step in range(STEPS)]
    assert shares("cosine", floor=0.1) == pytest.approx(cosine)
    clamped = [max(0.1, 0.5 * (1 + math.cos(math.pi * step / 100))) for step in range(STEPS)]
    assert shares("cosine-clamped", floor=0.1) == pytest.approx(clamped)
    wsd = shares("wsd", floor=0.0, decay_share=0.2)
    assert wsd[:82] == [1.0] * 82 and wsd[-1] == 0.0 and wsd[91] == pytest.approx(1 - 10 / 19)
    assert shares("wsd", floor=0.0, decay="sqrt")[91] == pytest.approx(math.sqrt(1 - 10 / 19))
    assert shares("wsd", floor=0.0, decay="1-sqrt")[91] == pytest.approx(1 - math.sqrt(10 / 19))


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "cosine-clamped", "wsd"])
def test_warm_up_reaches_the_peak_and_the_last_step_the_floor(kind: str) -> None:
    found = shares(kind, warmup=9, floor=0.3)
    assert found[:9] == pytest.approx([(step + 1) / 10 for step in range(9)]) and found[9] == pytest.approx(1.0)
    assert found[-1] == pytest.approx(1.0 if kind == "constant" else 0.3)
    assert all(left >= right for left, right in pairwise(found[9:]))


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "cosine-clamped", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_short_runs_stay_in_bounds(kind: str, steps: int) -> None:
    settings = ScheduleSettings(kind=kind, warmup_steps=3)  # type: ignore[arg-type]
    assert all(0 < learning_rate_share(settings, step, steps) <= 1 for step in range(steps))


def test_the_runs_schedule_spans_the_phases_without_one_of_their_own() -> None:
    own = Phase(ScheduleSettings(kind="linear", floor=0.0), 0.1)
    rates = LearningRates(2.0, ScheduleSettings(kind="linear", floor=0.5), [(Phase(), 3), (own, 3), (Phase(), 2)])
    assert [rates(step) for step in range(8)] == pytest.approx([2.0, 1.75, 1.5, 0.1, 0.05, 0.0, 1.25, 1.0])
    with pytest.raises(IndexError):
        rates(8)
    whole = LearningRates(2.0, ScheduleSettings(warmup_steps=9), [(Phase(), 60), (Phase(), STEPS - 60)])
    expected = [2.0 * learning_rate_share(ScheduleSettings(warmup_steps=9), step, STEPS) for step in range(STEPS)]
    assert [whole(step) for step in range(STEPS)] == expected
