"""Steering: what the next wave does about what the waves before it had in common.

After each wave its figures are held against the targets. Where a cell has collapsed, the next wave is asked for other openings, the
commonest ones are made unlikely where the model has a choice, the temperature rises within bounds, or the cell rests. A decision
is a pure function of the decision before and the wave's figures, and is committed before the wave.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from generators.diversity import EVERYWHERE, SMALLEST_CELL, Cell, DiversitySettings, Wave
from hornbook.engines.interface import Messages, Sampling

STRONGEST_BIAS = -12.0
MOST_STEERED = 24
"""Openers steered against in one cell at the same time, the commonest first."""
MOST_NOTED = 4
AIM = 0.6
"""Share of the target that steering aims at: a share at the target itself would be above it half of the time."""


# --- steering a row ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steering:
    """What the committed decisions mean for one row.

    Attributes:
        avoid: openings to make unlikely, as (words up to and including the one to avoid, bias on its logit).
        notes: openings that the prompt asks not to use.
        temperature: what is added to the temperature.
        rest: whether the row's cell rests, so that nothing is asked.
    """

    avoid: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    temperature: float = 0.0
    rest: bool = False

    @classmethod
    def of(cls, decisions: Mapping[str, Any], cell: str) -> Steering:
        """Return the steering of a row in a cell: what holds everywhere, and what holds in its cell."""
        steer = decisions.get("steer", {})
        both = [steer[name] for name in (EVERYWHERE, cell) if name in steer]
        if not both:
            return cls()
        avoid: dict[str, float] = {}
        for entry in both:
            for words, bias in entry.get("avoid", []):
                avoid[words] = min(bias, avoid.get(words, 0.0))
        notes = [words for entry in reversed(both) for words in entry.get("notes", [])]
        return cls(
            tuple(sorted(avoid.items())),
            tuple(dict.fromkeys(notes))[:MOST_NOTED],
            max(entry.get("temperature", 0.0) for entry in both),
            any(entry.get("rest", False) for entry in both),
        )

    def sampling(self, sampling: Sampling) -> Sampling:
        """Return the sampling with its temperature raised."""
        if not self.temperature:
            return sampling
        return sampling.model_copy(update={"temperature": round(sampling.temperature + self.temperature, 4)})

    def messages(self, messages: Messages) -> Messages:
        """Return the chat with a note on openings at its very end, so that rows still share their prompts' beginnings."""
        if not self.notes or not messages:
            return messages
        openings = ", ".join(f'"{words}"' for words in self.notes)
        last = {**messages[-1], "content": f"{messages[-1]['content']} Do not begin with {openings}."}
        return (*messages[:-1], last)


# --- deciding what the next wave does ------------------------------------------------------------------------------------


def steer_next(
    before: Mapping[str, Any],
    wave: Wave,
    figures: Mapping[str, Mapping[str, Any]],
    settings: DiversitySettings,
    temperature: float,
) -> dict[str, Any]:
    """Return the steering of the next wave: by cell, {avoid, notes, temperature, rest}.

    Args:
        before: the steering under which `wave` was written.
        figures: `wave.figures(settings)`.
        temperature: at which it was sampled, without steering.
    """
    after: dict[str, Any] = {}
    for name, cell in wave.cells.items():
        known = before.get(name, {})
        if cell.texts < SMALLEST_CELL:
            if known:
                after[name] = dict(known)
            continue
        entry = _steer_cell(known, cell, figures.get(name, {}), settings, temperature)
        if name == EVERYWHERE:
            entry.pop("rest", None)
        if entry:
            after[name] = entry
    if all(after.get(name, {}).get("rest") for name in wave.cells if name != EVERYWHERE):
        after = {name: {key: value for key, value in entry.items() if key != "rest"} for name, entry in after.items()}
    for name, known in before.items():  # a cell that rested, and has no texts, is tried again without its rest
        if name not in wave.cells:
            after[name] = {key: value for key, value in known.items() if key != "rest"}
    return after


def _steer_cell(
    known: Mapping[str, Any],
    cell: Cell,
    figures: Mapping[str, Any],
    settings: DiversitySettings,
    temperature: float,
) -> dict[str, Any]:
    common = [(words, share) for words, share in cell.top_openers(MOST_STEERED) if share > settings.opener_share * AIM]
    worst = max((share for _, share in common), default=0.0)
    entry: dict[str, Any] = {}
    if "decoding" in settings.means:
        avoid = dict(known.get("avoid", []))
        for opener, share in common:
            words, bias = _bias(opener, share, cell, settings.opener_share * AIM, temperature)
            avoid[words] = round(max(STRONGEST_BIAS, avoid.get(words, 0.0) + bias), 3)
        if avoid:
            strongest = sorted(avoid.items(), key=lambda item: (item[1], item[0]))[:MOST_STEERED]
            entry["avoid"] = [list(item) for item in strongest]
    if "prompt" in settings.means:
        noted = [words for words, share in common if share > settings.opener_share]
        if notes := list(dict.fromkeys([*noted, *known.get("notes", [])]))[:MOST_NOTED]:
            entry["notes"] = notes
    collapsed = (
        worst > 2 * settings.opener_share
        or figures.get("distinct_3", 1.0) < settings.distinct_trigrams
        or figures.get("embedding_similarity", 0.0) > settings.embedding_similarity
    )
    if "temperature" in settings.means:
        step = settings.temperature_step if collapsed else -settings.temperature_step / 2
        rise = min(settings.temperature_rise, max(0.0, known.get("temperature", 0.0) + step))
        if rise:
            entry["temperature"] = round(rise, 4)
    hottest = "temperature" not in settings.means or known.get("temperature", 0.0) >= settings.temperature_rise
    if "cells" in settings.means and collapsed and hottest:
        entry["rest"] = True
    return entry


def _bias(opener: str, share: float, cell: Cell, aim: float, temperature: float) -> tuple[str, float]:
    """Return where to push against an opener and how hard: (words up to the one to avoid, bias on its logit).

    The word is the one where the model has most choice: the one of lowest probability given the words before it. To forbid
    the "a" of "Once upon a" would give nonsense, "Once" has alternatives. The bias is the change of log odds that brings the
    opener from its share to the aim, times the temperature, since logits are divided by it.
    """
    words = opener.split(" ")
    shares = [1.0] + [cell.openers[" ".join(words[:count])] / cell.texts for count in range(1, len(words) + 1)]
    given = [after / before for before, after in itertools.pairwise(shares)]
    place = min(range(len(words)), key=lambda index: (given[index], index))
    now = min(given[place], 0.98)
    wanted = now * min(1.0, aim / share)
    bias = math.log(wanted / (1 - wanted)) - math.log(now / (1 - now))
    return " ".join(words[: place + 1]), bias * max(temperature, 0.1)
