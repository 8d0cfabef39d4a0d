"""Learning-rate schedules as pure functions of the step, so that a resumed run has nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

from pydantic import Field

from hornbook.settings import Settings


class ScheduleSettings(Settings):
    """How the learning rate moves from step to step."""

    kind: Literal["constant", "linear", "cosine", "cosine-clamped", "wsd"] = Field(
        "cosine",
        description="constant; linear to the floor; cosine rescaled to the floor; cosine-clamped: cosine to zero, but never "
        "below the floor; wsd: warm up, stay, decay.",
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up from zero.")
    floor: float = Field(0.1, ge=0, le=1, description="Last learning rate as a share of the peak.")
    decay_share: float = Field(0.2, gt=0, le=1, description="wsd: share of all steps that the decay takes.")
    decay: Literal["linear", "sqrt", "1-sqrt"] = Field(
        "linear",
        description="wsd: shape of the decay over its share t from 0 to 1: 1 - t, the root of 1 - t, or 1 - the root of t.",
    )


def learning_rate_share(settings: ScheduleSettings, step: int, steps: int) -> float:
    """Return the learning rate of a step as a share of the peak.

    Args:
        step: 0 for the first optimizer step.
        steps: all optimizer steps of the run.

    Warm-up reaches the peak at step `warmup_steps`; the last step stands at the floor (cosine: Loshchilov and Hutter,
    arXiv 1608.03983; clamped: HammerLLM's program; wsd: MiniCPM, arXiv 2404.06395; 1-sqrt: Haegele et al., 2405.18392).
    """
    if step < settings.warmup_steps:
        return (step + 1) / (settings.warmup_steps + 1)
    if settings.kind == "constant":
        return 1.0
    begin = settings.warmup_steps
    if settings.kind == "wsd":
        begin = max(begin, steps - max(1, round(settings.decay_share * steps)))
    left = 1.0 - min(max((step - begin) / max(steps - 1 - begin, 1), 0.0), 1.0)
    cosine = 0.5 * (1.0 - math.cos(math.pi * left))
    if settings.kind == "cosine-clamped":
        return max(settings.floor, cosine)
    share = cosine if settings.kind == "cosine" else left
    if settings.kind == "wsd" and settings.decay != "linear":
        share = math.sqrt(left) if settings.decay == "sqrt" else 1.0 - math.sqrt(1.0 - left)
    return settings.floor + (1.0 - settings.floor) * share


class Leg(Protocol):
    """A phase, as far as the learning rate is concerned; see `training.mixture.PhaseSettings`."""

    @property
    def schedule(self) -> ScheduleSettings | None:
        """Its own schedule."""
        ...

    @property
    def learning_rate(self) -> float | None:
        """The peak of its own schedule."""
        ...


class LearningRates:
    """The learning rate of every step of a run in phases.

    Args:
        peak, schedule: the run's; the schedule spans the phases that have none of their own, one after the other.
        legs: the phases, each with its optimizer steps.
    """

    def __init__(self, peak: float, schedule: ScheduleSettings, legs: Sequence[tuple[Leg, int]]) -> None:
        self._peak, self._schedule, self._legs = peak, schedule, legs
        self._shared = sum(count for leg, count in legs if leg.schedule is None)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, 0 for the first. Raises IndexError beyond the last."""
        first = shared = 0
        for leg, count in self._legs:
            if step < first + count:
                if leg.schedule is None:
                    return self._peak * learning_rate_share(self._schedule, shared + step - first, self._shared)
                return (leg.learning_rate or self._peak) * learning_rate_share(leg.schedule, step - first, count)
            first += count
            shared += 0 if leg.schedule else count
        raise IndexError(f"step {step} of {first}")
