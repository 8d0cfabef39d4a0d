"""Diversity: what the texts of each wave have in common, cell by cell, and what the next wave does about it.

A cell is what shares some seeds (all stories with one way to open, all sections for one audience). After each wave the
tracker's figures are held against targets; where a cell has collapsed, the controller steers the next wave: it asks for other
openings, makes the commonest ones unlikely where the model has a choice, raises the temperature within bounds, or rests
the cell. A decision is a pure function of the decision before and the wave's figures, and is committed before the wave.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from hornbook.engines.interface import Messages, Sampling
from hornbook.settings import Settings

WORDS_OF_AN_OPENER = 3
KEPT_OPENERS = 10
SAMPLED_TEXTS = 1000
SMALLEST_CELL = 40
"""Texts below which a cell's shares are noise: 5% of 40 is two texts."""
SMALLEST_EMBEDDED_WAVE = 256
STRONGEST_BIAS = -12.0
MOST_STEERED = 24
"""Openers steered against in one cell at the same time, the commonest first."""
MOST_NOTED = 4
AIM = 0.6
"""Share of the target that steering aims at: a share at the target itself would be above it half of the time."""
EVERYWHERE = "*"


class DiversitySettings(Settings):
    """What is watched over a corpus, and steered."""

    steer: bool = Field(False, description="Run in waves and steer each by what the ones before gave.")
    opener_share: float = Field(
        0.05, gt=0, le=1, description="Target: no opener (first three words) above this share of a cell."
    )
    distinct_trigrams: float = Field(
        0.3, ge=0, le=1, description="Target: at least this share of a cell's word trigrams differ (of 200 texts)."
    )
    embedding_similarity: float = Field(
        0.75, gt=0, le=1, description="Target: mean cosine between a cell's texts not above this."
    )
    embedded: int = Field(
        64, ge=0, description=f"Texts embedded per wave of at least {SMALLEST_EMBEDDED_WAVE} texts; 0 is none."
    )
    means: tuple[Literal["decoding", "prompt", "temperature", "cells"], ...] = Field(
        ("decoding", "temperature"),
        description="How to steer. decoding: make common openings unlikely at the start of a reply (vllm; others are asked). "
        "prompt: ask not to begin so. temperature: raise it in a collapsed cell. cells: rest a cell that stays collapsed, where "
        "`accepted` asks for other rows instead.",
    )
    temperature_step: float = Field(0.1, gt=0, description="How much hotter a collapsed cell becomes per wave.")
    temperature_rise: float = Field(0.3, ge=0, description="The most that the temperature is raised.")


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


def cell_of(names: Sequence[str], seeds: Mapping[str, Any]) -> str:
    """Return the cell of a row: the values of the seeds that make cells."""
    return " | ".join(str(seeds[name]) for name in names if name in seeds)


# --- what a wave's texts have in common ----------------------------------------------------------------------------------


@dataclass
class Cell:
    """What is remembered of a cell's texts in one wave; bounded."""

    texts: int = 0
    openers: Counter[str] = field(default_factory=Counter)
    """Counts of the first one, two and three words of texts."""
    sample: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Count a text."""
        self.texts += 1
        words = text.split(None, WORDS_OF_AN_OPENER)[:WORDS_OF_AN_OPENER]
        self.openers.update({" ".join(words[:count]) for count in range(1, len(words) + 1)})
        if len(self.sample) < SAMPLED_TEXTS:
            self.sample.append(text)

    def top_openers(self, count: int = KEPT_OPENERS) -> list[tuple[str, float]]:
        """Return the commonest openers of full length and their shares of the cell."""
        full = [(words, number) for words, number in self.openers.items() if words.count(" ") == WORDS_OF_AN_OPENER - 1]
        full.sort(key=lambda entry: (-entry[1], entry[0]))
        return [(words, number / self.texts) for words, number in full[:count]]


class Wave:
    """The texts of one wave by cell, and all together under EVERYWHERE."""

    def __init__(self) -> None:
        self.cells: dict[str, Cell] = defaultdict(Cell)

    def add(self, text: str, cell: str) -> None:
        """Count an accepted text."""
        self.cells[EVERYWHERE].add(text)
        if cell:
            self.cells[cell].add(text)

    def figures(self, settings: DiversitySettings) -> dict[str, dict[str, Any]]:
        """Return the figures of each cell, JSON-ready; EVERYWHERE first."""
        found = {name: text_figures(cell) for name, cell in self.cells.items()}
        whole = self.cells[EVERYWHERE]
        if settings.embedded and whole.texts >= SMALLEST_EMBEDDED_WAVE:
            for name, similarity in self._similarities(settings.embedded).items():
                found[name]["embedding_similarity"] = similarity
        return found

    def _similarities(self, embedded: int) -> dict[str, float]:
        """Return the mean cosine between texts, over all and within each cell, of texts spread evenly over the cells."""
        cells = {name: cell for name, cell in self.cells.items() if name != EVERYWHERE}
        each = max(4, embedded // max(1, len(cells)))
        picked = {name: _spread(cell.sample, each) for name, cell in cells.items()}
        if not picked:
            picked = {EVERYWHERE: _spread(self.cells[EVERYWHERE].sample, embedded)}
        vectors = _embed([text for texts in picked.values() for text in texts])
        found, start = {EVERYWHERE: _mean_cosine(vectors)}, 0
        for name, texts in picked.items():
            if name != EVERYWHERE and len(texts) > 1:
                found[name] = _mean_cosine(vectors[start : start + len(texts)])
            start += len(texts)
        return found


def text_figures(cell: Cell) -> dict[str, Any]:
    """Return a cell's figures: texts, commonest openers with shares, distinct n-grams, compression ratio.

    `distinct_n` is the share of different word n-grams among all (Li et al., 2016), of at most 200 texts, because it falls with
    the number of texts. `compression_ratio` is bytes / zlib bytes of at most 1,000 texts: higher is more alike (Shaib et al.,
    2024, find it as telling as self-BLEU and much cheaper).
    """
    words = [text.split() for text in _spread(cell.sample, 200)]
    figures: dict[str, Any] = {
        "texts": cell.texts,
        "openers": [[opener, round(share, 4)] for opener, share in cell.top_openers()],
    }
    for size in (1, 2, 3):
        grams = Counter(gram for text in words for gram in zip(*(text[start:] for start in range(size)), strict=False))
        figures[f"distinct_{size}"] = round(len(grams) / max(1, sum(grams.values())), 4)
    joined = "\n".join(cell.sample).encode()
    figures["compression_ratio"] = round(len(joined) / max(1, len(zlib.compress(joined, 6))), 3)
    return figures


def _spread(texts: Sequence[str], count: int) -> list[str]:
    step = max(1, len(texts) // max(1, count))
    return list(texts[::step][:count])


def _embed(texts: Sequence[str]) -> Any:
    from sentence_transformers import SentenceTransformer

    from hornbook.models import resolve

    model = SentenceTransformer(str(resolve("all-minilm-l6-v2").path), device="cpu")
    return model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)


def _mean_cosine(vectors: Any) -> float:
    count = len(vectors)
    if count < 2:
        return 0.0
    total = float((vectors.sum(axis=0) ** 2).sum())  # the sum over all pairs, each with itself included
    return round((total - count) / (count * (count - 1)), 4)


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
        if entry:
            after[name] = entry
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
    if "cells" in settings.means and collapsed and known.get("temperature", 0.0) >= settings.temperature_rise:
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


def summary(waves: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the report shows of a corpus's diversity: figures of the first wave, which nothing steered, and the last."""
    known = list(waves)
    if not known:
        return {}
    shown = {"first_wave": known[0], "last_wave": known[-1]} if len(known) > 1 else {"all": known[0]}
    return {name: dict(figures) for name, figures in shown.items()}
