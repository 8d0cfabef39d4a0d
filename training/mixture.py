"""Mixtures: which sequence of which source stands at (step, slot), as a pure function of the seed. No iterator state.

Each phase plans how often every source is drawn; the planned counts follow the weights by largest remainder and are met
exactly. Weights count tokens: a source whose rows hold fewer is drawn more often. Within a phase the draws of all sources are
interleaved evenly (Webster's method: at every step each source has had its share to within about one sequence), so a batch
never drifts from the mixture. The k-th draw of a source, counted over all phases, is the k-th sequence of its seeded
permutation, epoch after epoch: a decay phase goes on where the stable phase stopped and sees nothing twice before the source
is through.
"""

from __future__ import annotations

import hashlib
import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from hornbook.errors import RecipeError
from hornbook.plan import derive_seed, permute
from hornbook.settings import Settings
from training.schedule import Leg, ScheduleSettings
from training.stretches import Plan, Ramp, WhenDry

TIME_BITS = 96
"""Of a due time's fraction: enough to tell the times of two draws apart that are not due at once, of up to 2^47 draws each."""
BLOCK_SLOTS = 1024
"""About how many slots are worked out together: of small batches, those of some steps in a row."""


class PhaseSettings(Settings):
    """One phase of training: how long, from which sources, at which learning rate."""

    name: str = Field(..., description="What the phase is called in the metrics: stable, decay, ...")
    steps: int = Field(0, ge=0, description="Optimizer steps; left out with `tokens`, which say how long the phase is.")
    weights: dict[str, float] = Field(
        default_factory=dict, description="Share of the tokens per source (any scale); empty: in proportion to size."
    )
    end_weights: dict[str, float] = Field(
        default_factory=dict,
        description="The shares move in a straight line to these over the phase; empty: they stay.",
    )
    tokens: dict[str, float] = Field(
        default_factory=dict, description="Tokens to train on per source, in place of steps and weights."
    )
    schedule: ScheduleSettings | None = Field(
        None,
        description="How the learning rate moves over this phase; default: the loop's schedule, which spans the phases "
        "without one of their own.",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate of a phase with a schedule of its own; default: the loop's."
    )

    @model_validator(mode="after")
    def _one_length(self) -> PhaseSettings:
        if self.tokens and (self.steps or self.weights or self.end_weights):
            raise ValueError(f"phase {self.name!r} has tokens, and steps or weights: tokens stand in place of both")
        if not self.tokens and not self.steps:
            raise ValueError(f"phase {self.name!r} needs steps, at least 1, or tokens per source")
        if self.learning_rate is not None and self.schedule is None:
            raise ValueError(f"phase {self.name!r} has a learning_rate and no schedule: give it one")
        return self

    def expected_steps(self, step_tokens: int) -> int:
        """Return about how many optimizer steps it is, where one takes so many tokens."""
        return self.steps or max(1, round(sum(self.tokens.values()) / step_tokens))


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
    share: float
    """Of the phase's tokens."""


class Mixture:
    """The plan of a run's batches.

    Args:
        sizes: number of sequences of each source, by name; the order of the names is part of the plan.
        phases: in order.
        global_batch: sequences per step.
        max_epochs: no source may be gone through more often than this, all phases together.
        seed: another seed is another order.
        row_tokens: tokens that a sequence of a source holds, on average; default: 1 of each.
        epoch_caps: of single sources, in place of `max_epochs`.
        when_dry: what happens at the step where a source reaches its cap. `refuse`: the mixture is impossible. `repeat`: it
            goes on all the same. `renormalise`: it is left out, the others keep their proportions; when none is left, the
            run ends. `stop`: the run ends.
        taken: draws of each source that came before the first phase; a branch goes on where its trunk stopped.

    Attributes:
        steps: optimizer steps in all.
        phase_steps: those of each phase, fewer than asked for where the run ends early.
        dry: sources that reached their caps, unless that is refused.

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
        *,
        row_tokens: Mapping[str, float] | None = None,
        epoch_caps: Mapping[str, float] | None = None,
        when_dry: WhenDry = "refuse",
        taken: Mapping[str, int] | None = None,
    ) -> None:
        if not sizes or not phases:
            raise RecipeError("the mixture has no source" if not sizes else "the mixture has no phase")
        self.sources = list(sizes)
        self.sizes = dict(sizes)
        self.phases = list(phases)
        self.global_batch = global_batch
        self.seed = seed
        self._row_tokens = [Fraction((row_tokens or {}).get(name) or 1) for name in self.sources]
        self._caps = self._epoch_caps(max_epochs, epoch_caps or {})
        self._made_of = {
            "max_epochs": max_epochs,
            "row_tokens": dict(row_tokens or {}),
            "epoch_caps": dict(epoch_caps or {}),
            "when_dry": when_dry,
        }
        allowed = [int(cap * self.sizes[name]) for name, cap in self._caps.items()]
        ramps = [self._ramp(phase) for phase in phases]
        before = [(taken or {}).get(name, 0) for name in self.sources]
        plan = Plan(ramps, self.sources, allowed, global_batch, when_dry, before)
        if when_dry == "refuse":
            self._check_epochs(plan)
        if not plan.steps:
            raise RecipeError(f"{plan.dry[0].source!r} does not last for one step", "raise its epochs, or give it less")
        self.steps, self.dry = plan.steps, plan.dry
        self._taken, self._stretches = before, plan.stretches
        self._firsts = [stretch.first for stretch in plan.stretches]
        self._block_steps = max(1, BLOCK_SLOTS // global_batch)
        self._block = lru_cache(maxsize=2)(self._draw)
        self.phase_steps = [
            sum(stretch.steps for stretch in plan.stretches if stretch.phase == number) for number in range(len(phases))
        ]

    def fingerprint(self) -> str:
        """Return a hash of all that the order of the batches depends on, the sources' content aside."""
        counts = [stretch.counts for stretch in self._stretches]
        made_of = [list(self.sizes.items()), self.global_batch, self.seed, counts]
        return hashlib.sha256(repr((made_of, [stretch.steps for stretch in self._stretches])).encode()).hexdigest()

    def plan(self) -> dict[str, Any]:
        """Return what a mixture of the same batches is made from, JSON-ready: `Mixture(**plan)`, phases as settings."""
        phases = [phase.model_dump(mode="json") for phase in self.phases]
        own = {"sizes": self.sizes, "phases": phases, "global_batch": self.global_batch, "seed": self.seed}
        return own | self._made_of

    def legs(self) -> list[tuple[Leg, int]]:
        """Return the phases with the steps that each has, as the learning rate follows them."""
        return list(zip(self.phases, self.phase_steps, strict=True))

    def taken_before(self, step: int) -> dict[str, int]:
        """Return how many draws of each source come before a step; `step` may be the one behind the last."""
        drawn = self._taken
        for stretch in self._stretches[: bisect_left(self._firsts, step)]:  # those that begin before it
            done = min(step - stretch.first, stretch.steps)
            here = _taken_before(stretch.counts, done * self.global_batch)
            drawn = [before + taken for before, taken in zip(stretch.before, here, strict=True)]
        return dict(zip(self.sources, drawn, strict=True))

    def shares(self) -> list[Share]:
        """Return the planned counts of each phase and source."""
        found = []
        for number, phase in enumerate(self.phases):
            stretches = [stretch.counts for stretch in self._stretches if stretch.phase == number]
            counts = [sum(column) for column in zip(*stretches, strict=True)] or [0] * len(self.sources)
            tokens = [count * each for count, each in zip(counts, self._row_tokens, strict=True)]
            for source, count, own in zip(self.sources, counts, tokens, strict=True):
                epochs = count / self.sizes[source] if self.sizes[source] else 0.0
                found.append(Share(phase.name, source, count, epochs, float(own / (sum(tokens) or 1))))
        return found

    def batch(self, step: int) -> Draws:
        """Return the sequences of the global batch of a step (0 is the first). Cost: one batch, whatever the step.

        Raises:
            IndexError: there is no such step.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        stretch = bisect_right(self._firsts, step) - 1
        block, place = divmod(step - self._firsts[stretch], self._block_steps)
        source, sequence, epoch = self._block(stretch, block)
        slots = slice(place * self.global_batch, (place + 1) * self.global_batch)
        name = self.phases[self._stretches[stretch].phase].name
        return Draws(name, source[slots], sequence[slots], epoch[slots])

    def _draw(self, number: int, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (source, sequence, epoch) of a block of steps: what is asked for next comes at little more than one's cost."""
        stretch = self._stretches[number]
        first = block * self._block_steps
        slots = min(self._block_steps, stretch.steps - first) * self.global_batch
        source, draw = _interleaved(stretch.counts, first * self.global_batch, slots)
        draw = draw + np.array(stretch.before, dtype=np.int64)[source]
        size = np.array([max(1, self.sizes[name]) for name in self.sources], dtype=np.int64)[source]
        epoch, position = draw // size, draw % size
        sequence = np.empty_like(position)
        for index, name in enumerate(self.sources):
            for value in np.unique(epoch[source == index]):
                chosen = (source == index) & (epoch == value)
                sequence[chosen] = permute(position[chosen], self.sizes[name], derive_seed(self.seed, name, int(value)))
        return source, sequence, epoch

    def _ramp(self, phase: PhaseSettings) -> Ramp:
        """Return what a phase asks for. Raises RecipeError as the class does."""
        begin = self._draw_shares(phase.name, phase.tokens or phase.weights)
        end = self._draw_shares(phase.name, phase.end_weights) if phase.end_weights else begin
        rows = sum(
            Fraction(phase.tokens.get(name, 0)) / each
            for name, each in zip(self.sources, self._row_tokens, strict=True)
        )
        return Ramp(phase.name, phase.steps or max(1, round(rows / self.global_batch)), begin, end)

    def _draw_shares(self, phase: str, weights: Mapping[str, float]) -> list[Fraction]:
        """Return in which share of the draws each source must stand for its share of the tokens."""
        if not weights:
            rows = [Fraction(self.sizes[name]) for name in self.sources]
        else:
            self._check_weights(phase, weights)
            rows = [
                Fraction(weights.get(name, 0)) / each for name, each in zip(self.sources, self._row_tokens, strict=True)
            ]
        if not sum(rows):
            raise RecipeError(
                f"phase {phase!r}: no source holds a whole sequence",
                "make more documents, or choose another loop.sequence_length",
            )
        return [row / sum(rows) for row in rows]

    def _check_weights(self, phase: str, weights: Mapping[str, float]) -> None:
        if unknown := sorted(set(weights) - set(self.sources)):
            raise RecipeError(
                f"phase {phase!r} weighs {', '.join(unknown)}, which is no source of this stage",
                f"use the names of its inputs: {', '.join(self.sources)}",
            )
        if not all(0 <= weight < float("inf") for weight in weights.values()) or not sum(weights.values()) > 0:
            raise RecipeError(
                f"the weights of phase {phase!r} sum to nothing (or one is negative): {weights}",
                "give at least one source a weight above 0",
            )
        empty = [name for name, weight in weights.items() if weight > 0 and not self.sizes[name]]
        if empty:
            raise RecipeError(
                f"phase {phase!r} weighs {', '.join(empty)}, which holds not one whole sequence",
                "give it weight 0, shorten sequence_length, or make more documents",
            )

    def _epoch_caps(self, max_epochs: float, caps: Mapping[str, float]) -> dict[str, float]:
        if unknown := sorted(set(caps) - set(self.sources)):
            raise RecipeError(
                f"epoch_caps names {', '.join(unknown)}, which is no source of this stage",
                f"use the names of its inputs: {', '.join(self.sources)}",
            )
        return {name: caps.get(name, max_epochs) for name in self.sources}

    def _check_epochs(self, plan: Plan) -> None:
        for (name, cap), draws in zip(self._caps.items(), plan.draws, strict=True):
            allowed = int(cap * self.sizes[name])
            if draws > allowed:
                fitting = plan.steps * allowed // draws
                raise RecipeError(
                    f"source {name!r} has {self.sizes[name]:,} sequences, and the phases draw {draws:,}: "
                    f"{draws / self.sizes[name]:.2f} epochs, {cap:g} allowed",
                    f"lower the steps from {plan.steps:,} to {fitting:,}, raise max_epochs to "
                    f"{draws / self.sizes[name]:.2f}, give {name!r} {allowed / draws:.2f} times its weight, or set when_dry",
                )


def with_realised(mixture: Mixture, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what was planned of each source in each phase, and what it came to by a run's metrics rows.

    `tokens` are those trained on, `realised_share` is theirs of the phase's; a source that a phase never draws is left out.
    """
    steps = [count for _, count in mixture.legs()]
    last_steps = list(accumulate(steps))
    tokens = [dict.fromkeys(mixture.sources, 0) for _ in steps]
    for row in rows:
        for source, count in row.get("source_tokens", {}).items():
            tokens[bisect_left(last_steps, row["step"])][source] += count
    shares = mixture.shares()
    owners = [number for number in range(len(steps)) for _ in mixture.sources]
    return [
        vars(share)
        | {
            "tokens": tokens[number][share.source],
            "realised_share": tokens[number][share.source] / (sum(tokens[number].values()) or 1),
        }
        for number, share in zip(owners, shares, strict=True)
        if share.sequences
    ]


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
