"""Mixtures: which sequence of which source stands at (step, slot), as a pure function of the seed. No iterator state.

Each phase plans how often every source is drawn; the planned counts follow the weights by largest remainder and are met
exactly. Within a phase the draws of all sources are interleaved evenly (Webster's method: at every step each source has
had its share to within about one sequence), so a batch never drifts from the mixture. The k-th draw of a source, counted
over all phases, is the k-th sequence of its seeded permutation, epoch after epoch: a decay phase goes on where the
stable phase stopped and sees nothing twice before the source is through.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from pydantic import Field

from hornbook.errors import RecipeError
from hornbook.plan import derive_seed, permute
from hornbook.settings import Settings

TIME_BITS = 40


class PhaseSettings(Settings):
    """One phase of training: how long, and from which sources."""

    name: str = Field(..., description="What the phase is called in the metrics: stable, decay, ...")
    steps: int = Field(..., ge=1, description="Optimizer steps.")
    weights: dict[str, float] = Field(
        default_factory=dict, description="Share of the tokens per source (any scale); empty: in proportion to size."
    )


@dataclass(frozen=True)
class Draws:
    """The sequences of one global batch, slot by slot: int64 arrays of shape (global_batch,)."""

    phase: str
    source: np.ndarray
    """Index into Mixture.sources."""
    sequence: np.ndarray
    """Index of the sequence within its source."""
    epoch: np.ndarray


@dataclass(frozen=True)
class Share:
    """What a phase plans to draw from a source."""

    phase: str
    source: str
    sequences: int
    epochs: float


class Mixture:
    """The plan of a run's batches.

    Args:
        sizes: number of sequences of each source, by name; the order of the names is part of the plan.
        phases: in order.
        global_batch: sequences per step.
        max_epochs: no source may be gone through more often than this, all phases together.
        seed: another seed is another order.
        taken: draws of each source that came before the first phase; a branch goes on where its trunk stopped.

    Raises:
        RecipeError: no source, an empty source that has weight, weights that sum to nothing or name no source, too many
            epochs; the message says what would fit.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        phases: Sequence[PhaseSettings],
        global_batch: int,
        max_epochs: float,
        seed: int,
        taken: Mapping[str, int] | None = None,
    ) -> None:
        if not sizes or not phases:
            raise RecipeError("the mixture has no source" if not sizes else "the mixture has no phase")
        self.sources = list(sizes)
        self.sizes = dict(sizes)
        self.phases = list(phases)
        self.global_batch = global_batch
        self.seed = seed
        self.steps = sum(phase.steps for phase in phases)
        self.max_epochs = max_epochs
        self._taken = [(taken or {}).get(name, 0) for name in self.sources]
        self._counts = [self._planned(phase) for phase in phases]
        self._check_epochs(max_epochs)

    def fingerprint(self) -> str:
        """Return a hash of all that the order of the batches depends on, the sources' content aside."""
        made_of = [list(self.sizes.items()), self.global_batch, self.seed, self._counts]
        return hashlib.sha256(repr((made_of, [phase.steps for phase in self.phases])).encode()).hexdigest()

    def plan(self) -> dict[str, Any]:
        """Return what a mixture of the same batches is made from, JSON-ready: `Mixture(**plan)`, phases as settings."""
        phases = [phase.model_dump(mode="json") for phase in self.phases]
        return {
            "sizes": self.sizes,
            "phases": phases,
            "global_batch": self.global_batch,
            "max_epochs": self.max_epochs,
            "seed": self.seed,
        }

    def taken_before(self, step: int) -> dict[str, int]:
        """Return how many draws of each source come before a step; `step` may be the one behind the last."""
        drawn, first = list(self._taken), 0
        for phase, counts in zip(self.phases, self._counts, strict=True):
            done = min(max(step - first, 0), phase.steps)
            before = _taken_before(counts, done * self.global_batch)
            drawn = [total + taken for total, taken in zip(drawn, before, strict=True)]
            first += phase.steps
        return dict(zip(self.sources, drawn, strict=True))

    def phase_of(self, step: int) -> tuple[int, int]:
        """Return (phase number, first step of that phase) of a step."""
        first = 0
        for number, phase in enumerate(self.phases):
            if step < first + phase.steps:
                return number, first
            first += phase.steps
        raise IndexError(f"step {step} of {self.steps}")

    def shares(self) -> list[Share]:
        """Return the planned counts of each phase and source."""
        return [
            Share(phase.name, source, count, count / self.sizes[source] if self.sizes[source] else 0.0)
            for phase, counts in zip(self.phases, self._counts, strict=True)
            for source, count in zip(self.sources, counts, strict=True)
        ]

    def batch(self, step: int) -> Draws:
        """Return the sequences of the global batch of a step (0 is the first). Cost: one batch, whatever the step."""
        number, first = self.phase_of(step)
        source, draw = _interleaved(self._counts[number], (step - first) * self.global_batch, self.global_batch)
        earlier = [sum(each) for each in zip(self._taken, *self._counts[:number], strict=True)]
        draw = draw + np.array(earlier, dtype=np.int64)[source]
        size = np.array([max(1, self.sizes[name]) for name in self.sources], dtype=np.int64)[source]
        epoch, position = draw // size, draw % size
        sequence = np.empty_like(position)
        for index, name in enumerate(self.sources):
            for value in np.unique(epoch[source == index]):
                chosen = (source == index) & (epoch == value)
                sequence[chosen] = permute(position[chosen], self.sizes[name], derive_seed(self.seed, name, int(value)))
        return Draws(self.phases[number].name, source, sequence, epoch)

    def _planned(self, phase: PhaseSettings) -> list[int]:
        weights = phase.weights or {name: float(size) for name, size in self.sizes.items()}
        unknown = sorted(set(weights) - set(self.sources))
        if unknown:
            raise RecipeError(
                f"phase {phase.name!r} weighs {', '.join(unknown)}, which is no source of this stage",
                f"use the names of its inputs: {', '.join(self.sources)}",
            )
        if any(weight < 0 for weight in weights.values()) or not sum(weights.values()) > 0:
            raise RecipeError(
                f"the weights of phase {phase.name!r} sum to nothing (or one is negative): {weights}",
                "give at least one source a weight above 0",
            )
        empty = [name for name, weight in weights.items() if weight > 0 and not self.sizes[name]]
        if empty:
            raise RecipeError(
                f"phase {phase.name!r} weighs {', '.join(empty)}, which holds not one whole sequence",
                "give it weight 0, shorten sequence_length, or make more documents",
            )
        return _largest_remainder(
            [Fraction(weights.get(name, 0.0)) for name in self.sources], phase.steps * self.global_batch
        )

    def _check_epochs(self, max_epochs: float) -> None:
        for index, name in enumerate(self.sources):
            draws = self._taken[index] + sum(counts[index] for counts in self._counts)
            allowed = int(max_epochs * self.sizes[name])
            if draws > allowed:
                fitting = self.steps * allowed // draws
                raise RecipeError(
                    f"source {name!r} has {self.sizes[name]:,} sequences, and the phases draw {draws:,}: "
                    f"{draws / self.sizes[name]:.2f} epochs, {max_epochs:g} allowed",
                    f"lower the steps from {self.steps:,} to {fitting:,}, raise max_epochs to "
                    f"{draws / self.sizes[name]:.2f}, or give {name!r} {allowed / draws:.2f} times its weight",
                )


def _largest_remainder(weights: Sequence[Fraction], total: int) -> list[int]:
    """Split `total` in proportion to weights into whole numbers that add up to it (Hamilton's method)."""
    whole = sum(weights)
    quotas = [weight * total / whole for weight in weights]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(weights)), key=lambda index: (counts[index] - quotas[index], index))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def _time(draw: int, count: int) -> int:
    """Return when the draw-th of `count` evenly spread draws falls due, as an integer: (2 draw + 1) / (2 count)."""
    return ((2 * draw + 1) << TIME_BITS) // (2 * count)


def _interleaved(counts: Sequence[int], first: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (source, draw) of slots `first` to `first + length` when all sources' draws are ordered by due time.

    Ties go to the earlier source. Equal to sorting all draws of the phase, without making the list.
    """
    due = [
        (_time(taken, counts[index]), index, taken)
        for index, taken in enumerate(_taken_before(counts, first))
        if taken < counts[index]
    ]
    heapq.heapify(due)
    source, draw = np.empty(length, dtype=np.int64), np.empty(length, dtype=np.int64)
    for slot in range(length):
        _, index, taken = due[0]
        source[slot], draw[slot] = index, taken
        if taken + 1 < counts[index]:
            heapq.heapreplace(due, (_time(taken + 1, counts[index]), index, taken + 1))
        else:
            heapq.heappop(due)
    return source, draw


def _taken_before(counts: Sequence[int], slots: int) -> list[int]:
    """Return how many draws of each source stand in the first `slots` slots: round the quotas, then mend the sum."""
    total = sum(counts)
    taken = [min(count, (2 * slots * count + total) // (2 * total)) for count in counts]
    while sum(taken) < slots:
        open_sources = [index for index, count in enumerate(counts) if taken[index] < count]
        taken[min(open_sources, key=lambda index: (_time(taken[index], counts[index]), index))] += 1
    while sum(taken) > slots:
        drawn = [index for index in range(len(counts)) if taken[index]]
        taken[max(drawn, key=lambda index: (_time(taken[index] - 1, counts[index]), index))] -= 1
    return taken
