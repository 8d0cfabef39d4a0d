"""From a mixture's phases to stretches: steps in a row over which every source is drawn at an even rate.

A phase with fixed weights is one stretch. A ramp is a stair of them, and where a source runs dry in mid-phase a stretch ends
and the next one goes on without it. What rounding owes a source in one stretch it gets in the phase's next one, so that a
phase's counts are its weights' to within one sequence, however many stretches it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

RAMP_STAIRS = 256
"""Most stretches of a ramp: a weight is off by at most 1/512 of the ramp's height."""

WhenDry = Literal["refuse", "repeat", "renormalise", "stop"]
"""What happens when a source has been gone through as often as it may; see `Mixture`."""


@dataclass(frozen=True)
class Ramp:
    """What a phase asks for: in which share of the draws each source stands at its beginning, and at its end."""

    phase: str
    steps: int
    begin: Sequence[Fraction]
    end: Sequence[Fraction]


@dataclass(frozen=True)
class Stretch:
    """Steps of one phase over which every source is drawn at an even rate."""

    phase: int
    first: int
    """Its first step."""
    steps: int
    counts: list[int]
    """Draws of each source."""
    before: list[int]
    """Draws of each source before it."""


@dataclass(frozen=True)
class Dry:
    """A source that has been gone through as often as it may."""

    source: str
    phase: str
    step: int
    """The first optimizer step (from 1) that it is missing from, or repeated in, or that the run ends before."""
    then: WhenDry


class Plan:
    """Stretches for some ramps.

    Args:
        ramps: of the phases, in order.
        sources: their names.
        caps: how often each source may be drawn, all phases together.
        global_batch: draws per step.
        when_dry: what happens at a cap; with `refuse` it is passed over here as with `repeat`.
        taken: draws of each source before the first ramp.

    Attributes:
        stretches: in the order of their steps; together shorter than the ramps where the run ends early.
        dry: sources that reached their caps.
    """

    def __init__(
        self,
        ramps: Sequence[Ramp],
        sources: Sequence[str],
        caps: Sequence[int],
        global_batch: int,
        when_dry: WhenDry,
        taken: Sequence[int],
    ) -> None:
        self.stretches: list[Stretch] = []
        self.dry: list[Dry] = []
        self._sources, self._caps, self._batch, self._when_dry = sources, caps, global_batch, when_dry
        self._taken = taken
        self._spent: set[int] = set()
        for number, ramp in enumerate(ramps):
            if not self._lay(number, ramp):
                break
        if when_dry == "repeat":
            self._note_repeats(ramps)

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.stretches[-1].first + self.stretches[-1].steps if self.stretches else 0

    @property
    def draws(self) -> list[int]:
        """Draws of each source in all, those before included."""
        if not self.stretches:
            return list(self._taken)
        last = self.stretches[-1]
        return [before + count for before, count in zip(last.before, last.counts, strict=True)]

    def _lay(self, number: int, ramp: Ramp) -> bool:
        """Add the stretches of a phase; false if the run ends in it."""
        stairs = 1 if list(ramp.begin) == list(ramp.end) else min(ramp.steps, RAMP_STAIRS)
        owed = [Fraction(0)] * len(self._sources)
        for low, high in pairwise(ramp.steps * stair // stairs for stair in range(stairs + 1)):
            along = Fraction(low + high, 2 * ramp.steps)
            weights = [begin + (end - begin) * along for begin, end in zip(ramp.begin, ramp.end, strict=True)]
            left = high - low
            while left:
                weights = [Fraction(0) if index in self._spent else weight for index, weight in enumerate(weights)]
                if not any(weights):
                    return False
                steps, dry = self._until_dry(weights, left, owed)
                if steps:
                    quotas = _quotas(weights, steps * self._batch, owed)
                    counts = largest_remainder(quotas)
                    self.stretches.append(Stretch(number, self.steps, steps, counts, self.draws))
                    owed = [quota - count for quota, count in zip(quotas, counts, strict=True)]
                self.dry += [
                    Dry(self._sources[index], ramp.phase, self.steps + 1, self._when_dry) for index in sorted(dry)
                ]
                if dry:
                    if self._when_dry == "stop":
                        return False
                    self._spent |= dry
                    owed = [Fraction(0)] * len(self._sources)
                left -= steps
        return True

    def _until_dry(self, weights: Sequence[Fraction], steps: int, owed: Sequence[Fraction]) -> tuple[int, set[int]]:
        """Return how many of the steps all sources last for, and which ones do not last for one more."""
        drawn = self.draws

        def lacking(count: int) -> set[int]:
            asked = largest_remainder(_quotas(weights, count * self._batch, owed))
            return {index for index, draws in enumerate(asked) if drawn[index] + draws > self._caps[index]}

        if self._when_dry in ("refuse", "repeat") or not lacking(steps):
            return steps, set()
        low, high = 0, steps
        while high - low > 1:  # all last for `low` steps, and not for `high`
            middle = (low + high) // 2
            low, high = (low, middle) if lacking(middle) else (middle, high)
        return low, lacking(high)

    def _note_repeats(self, ramps: Sequence[Ramp]) -> None:
        for stretch in self.stretches:
            for index, (before, count) in enumerate(zip(stretch.before, stretch.counts, strict=True)):
                if before <= self._caps[index] < before + count:
                    step = stretch.first + (self._caps[index] - before) * stretch.steps // count
                    self.dry.append(Dry(self._sources[index], ramps[stretch.phase].phase, step + 1, "repeat"))


def _quotas(weights: Sequence[Fraction], total: int, owed: Sequence[Fraction]) -> list[Fraction]:
    """Return `total` in proportion to weights, with what is owed from before; a source without weight gets nothing."""
    whole = sum(weights)
    return [weight * total / whole + more for weight, more in zip(weights, owed, strict=True)]


def largest_remainder(quotas: Sequence[Fraction]) -> list[int]:
    """Round quotas that add up to a whole number to numbers from 0 on that do, too (Hamilton's method)."""
    counts = [max(0, int(quota)) for quota in quotas]
    short = round(sum(quotas)) - sum(counts)
    by_remainder = sorted(range(len(quotas)), key=lambda index: (counts[index] - quotas[index], index))
    for index in by_remainder[: max(short, 0)]:
        counts[index] += 1
    while short < 0:  # quotas below 0: what was drawn too early of others has to go
        most = max(range(len(counts)), key=lambda index: (counts[index] > 0, counts[index] - quotas[index]))
        counts[most] -= 1
        short += 1
    return counts
