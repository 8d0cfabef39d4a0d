"""Diversity: what the texts of a wave have in common, cell by cell, and how the first wave of a corpus compares with the last.

A cell is what shares some seeds (all stories with one way to open, all sections for one audience). `steering.py` holds the
figures against the targets and decides what the next wave does.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from pydantic import Field

from hornbook.settings import Settings

WORDS_OF_AN_OPENER = 3
KEPT_OPENERS = 10
COUNTED_OPENERS = 50_000
"""Different openers that are counted; beyond, the rarer half is forgotten."""
SAMPLED_TEXTS = 200
SMALLEST_CELL = 40
"""Texts below which a cell's shares are noise: 5% of 40 is two texts."""
SMALLEST_COMPARED = 16
"""Texts of the first waves, from which on they are compared with the last."""
EMBEDDED_TEXTS = 32
TEXTS_FOR_ONE_EMBEDDED = 8
"""A wave's texts for each of them that is embedded: so it costs little beside their writing, however small the wave."""
SMALLEST_EMBEDDED = 32
"""Texts of a corpus, from which on some are embedded: the model takes seconds to load."""
EMBEDDING_MODEL = "all-minilm-l6-v2"
EMBEDDED_TOKENS = 64
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
    embedded: int | None = Field(
        None,
        ge=0,
        description=f"Texts embedded of the first and of the last wave, and when steering of every wave (there at most one "
        f"in {TEXTS_FOR_ONE_EMBEDDED}). Default: {EMBEDDED_TEXTS} where there are at least {SMALLEST_EMBEDDED} texts, and none "
        "of what `echo` writes.",
    )
    means: tuple[Literal["decoding", "prompt", "temperature", "cells"], ...] = Field(
        ("decoding", "temperature"),
        description="How to steer. decoding: make common openings unlikely at the start of a reply (vllm; others are asked). "
        "prompt: ask not to begin so. temperature: raise it in a collapsed cell. cells: rest a cell that stays collapsed, where "
        "`accepted` asks for other rows instead.",
    )
    temperature_step: float = Field(0.1, gt=0, description="How much hotter a collapsed cell becomes per wave.")
    temperature_rise: float = Field(0.3, ge=0, description="The most that the temperature is raised.")


def cell_of(names: Sequence[str], seeds: Mapping[str, Any]) -> str:
    """Return the cell of a row: the values of the seeds that make cells."""
    return " | ".join(str(seeds[name]) for name in names if name in seeds)


@dataclass
class Cell:
    """What is remembered of a cell's texts; bounded."""

    texts: int = 0
    openers: Counter[str] = field(default_factory=Counter)
    """Counts of the first one, two and three words of texts."""
    sample: list[str] = field(default_factory=list)
    """At most SAMPLED_TEXTS of the texts, each as likely as any other."""
    planned: int = 0
    """Units that were planned, where that is known."""
    near_duplicates: int = 0
    """Units of these that a sieve rejected: too like an earlier one."""
    _dice: random.Random = field(default_factory=lambda: random.Random(0), repr=False)

    def add(self, text: str) -> None:
        """Count a text."""
        self.texts += 1
        words = text.split(None, WORDS_OF_AN_OPENER)[:WORDS_OF_AN_OPENER]
        self.openers.update({" ".join(words[:count]) for count in range(1, len(words) + 1)})
        if len(self.openers) > COUNTED_OPENERS:
            self.openers = Counter(dict(self.openers.most_common(COUNTED_OPENERS // 2)))
        if len(self.sample) < SAMPLED_TEXTS:
            self.sample.append(text)
        elif (place := self._dice.randrange(self.texts)) < SAMPLED_TEXTS:
            self.sample[place] = text

    def with_next(self, other: Cell) -> Cell:
        """Return this cell and another, which came after it, as one."""
        return Cell(
            self.texts + other.texts,
            self.openers + other.openers,
            _some(self.sample + other.sample, SAMPLED_TEXTS),
            self.planned + other.planned,
            self.near_duplicates + other.near_duplicates,
        )

    def top_openers(self, count: int = KEPT_OPENERS) -> list[tuple[str, float]]:
        """Return the commonest openers of full length and their shares of the cell."""
        full = [(words, number) for words, number in self.openers.items() if words.count(" ") == WORDS_OF_AN_OPENER - 1]
        full.sort(key=lambda entry: (-entry[1], entry[0]))
        return [(words, number / self.texts) for words, number in full[:count]]


class Wave:
    """The texts of one wave by cell, and all together under EVERYWHERE."""

    def __init__(self) -> None:
        self.cells: dict[str, Cell] = defaultdict(Cell)

    @property
    def whole(self) -> Cell:
        """All texts of the wave."""
        return self.cells[EVERYWHERE]

    def add(self, text: str, cell: str) -> None:
        """Count an accepted text."""
        self.whole.add(text)
        if cell:
            self.cells[cell].add(text)

    def figures(self, settings: DiversitySettings) -> dict[str, dict[str, Any]]:
        """Return the figures of each cell, JSON-ready; EVERYWHERE first. Embeddings are looked at where they steer."""
        found = {EVERYWHERE: text_figures(self.whole)}
        found |= {name: text_figures(cell) for name, cell in self.cells.items() if name != EVERYWHERE}
        if settings.steer and settings.embedded and self.whole.texts >= SMALLEST_CELL and embeds():
            embedded = min(settings.embedded, self.whole.texts // TEXTS_FOR_ONE_EMBEDDED)
            for name, similarity in self._similarities(embedded).items():
                found[name]["embedding_similarity"] = similarity
        return found

    def _similarities(self, embedded: int) -> dict[str, float]:
        """Return the mean cosine between texts, over all and within each cell that is large enough to be steered."""
        large = {n: cell for n, cell in self.cells.items() if n != EVERYWHERE and cell.texts >= SMALLEST_CELL}
        each = max(4, embedded // max(1, len(large)))
        picked = {name: _some(cell.sample, each) for name, cell in large.items()}
        if not picked:
            picked = {EVERYWHERE: _some(self.whole.sample, embedded)}
        vectors = _embed([text for texts in picked.values() for text in texts])
        found, start = {EVERYWHERE: _mean_cosine(vectors)}, 0
        for name, texts in picked.items():
            if name != EVERYWHERE:
                found[name] = _mean_cosine(vectors[start : start + len(texts)])
            start += len(texts)
        return found


class Ends:
    """The first and the last wave of a corpus, to be compared; a wave of few texts counts with the one before it.

    What comes before SMALLEST_COMPARED texts is the first wave, too: so few steer nothing.
    """

    def __init__(self) -> None:
        self.first: Cell | None = None
        self.last: Cell | None = None
        self._planned = self._near_duplicates = 0

    def add(self, wave: Cell) -> None:
        """Take the next wave."""
        self._planned += wave.planned
        self._near_duplicates += wave.near_duplicates
        if self.first is None:
            self.first = wave
        elif self.first.texts < SMALLEST_COMPARED:
            self.first = self.first.with_next(wave)
        elif self.last is None or wave.texts >= min(self.first.texts, SMALLEST_CELL):
            self.last = wave
        else:
            self.last = self.last.with_next(wave)

    def figures(self, settings: DiversitySettings) -> dict[str, Any]:
        """Return the figures of `first_wave` and `last_wave`, of as many texts of both, or of `all` where there is one wave.

        `near_duplicates` is the share of the whole plan.
        """
        if self.first is None:
            return {}
        ends = {"all": self.first} if self.last is None else {"first_wave": self.first, "last_wave": self.last}
        compared = min(len(cell.sample) for cell in ends.values())
        found: dict[str, Any] = {name: text_figures(cell, compared) for name, cell in ends.items()}
        if settings.embedded and sum(cell.texts for cell in ends.values()) >= SMALLEST_EMBEDDED and embeds():
            for name, cell in ends.items():
                texts = _some(cell.sample, min(compared, settings.embedded))
                found[name] |= {"embedded": len(texts), "embedding_similarity": _mean_cosine(_embed(texts))}
        return {**found, "near_duplicates": _share(self._near_duplicates, self._planned)}


def text_figures(cell: Cell, compared: int = SAMPLED_TEXTS) -> dict[str, Any]:
    """Return a cell's figures: texts, commonest openers with shares, distinct n-grams, compression ratio.

    `distinct_n` is the share of different word n-grams among all (Li et al., 2016); `compression_ratio` is bytes / zlib bytes:
    higher is more alike (Shaib et al., 2024, find it as telling as self-BLEU and much cheaper). Both say more alike of more texts:
    they are of `compared` texts at most, and compare only with figures of as many. `near_duplicates` is the share of the
    planned units that were rejected as such.
    """
    figures: dict[str, Any] = {
        "texts": cell.texts,
        "openers": [[opener, round(share, 4)] for opener, share in cell.top_openers()],
    }
    if cell.planned:
        figures["near_duplicates"] = _share(cell.near_duplicates, cell.planned)
    texts = _some(cell.sample, compared)
    if not texts:
        return figures
    figures["compared"] = len(texts)
    words = [text.split() for text in texts]
    for size in (1, 2, 3):
        grams = Counter(gram for text in words for gram in zip(*(text[start:] for start in range(size)), strict=False))
        figures[f"distinct_{size}"] = round(len(grams) / max(1, sum(grams.values())), 4)
    joined = "\n".join(texts).encode()
    figures["compression_ratio"] = round(len(joined) / max(1, len(zlib.compress(joined, 6))), 3)
    return figures


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def _some(texts: Sequence[str], count: int) -> list[str]:
    """Return `count` texts at random, always the same, in their order: every eighth might be all of one cell."""
    if len(texts) <= count:
        return list(texts)
    return [texts[place] for place in sorted(random.Random(0).sample(range(len(texts)), count))]


def embeds() -> bool:
    """Tell whether the embedding model is installed: a run does not fail for want of a figure."""
    from hornbook.models import EMBEDDED

    return EMBEDDED[EMBEDDING_MODEL].location() is not None


@cache
def embedding_model() -> Any:
    """Return the embedding model, loaded once: that takes seconds and 600 MB."""
    from sentence_transformers import SentenceTransformer

    from hornbook.models import resolve

    model = SentenceTransformer(str(resolve(EMBEDDING_MODEL).path), device="cpu", local_files_only=True)
    model.max_seq_length = EMBEDDED_TOKENS
    return model


def _embed(texts: Sequence[str]) -> Any:
    return embedding_model().encode(list(texts), normalize_embeddings=True, show_progress_bar=False)


def _mean_cosine(vectors: Any) -> float:
    count = len(vectors)
    if count < 2:
        return 0.0
    total = float((vectors.sum(axis=0) ** 2).sum())  # the sum over all pairs, each with itself included
    return round((total - count) / (count * (count - 1)), 4)
