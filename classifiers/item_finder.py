"""Finds the items of evaluation sets in documents: by shared words, and programs by their syntax trees as well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from classifiers.code_similarity import ProgramIndex
from classifiers.evaluation_sets import CODE
from classifiers.overlap_index import OverlapIndex
from hornbook.errors import DataError
from hornbook.settings import Settings

WHOLE, SYNTAX = "whole", "syntax"

Vector = npt.NDArray[np.float32]


class FindSettings(Settings):
    """When a document holds an item."""

    ngram: int = Field(
        13, ge=2, description="Words of a run that document and item share; shorter items are matched whole."
    )
    least_words: int = Field(8, ge=1, description="Texts with fewer words are not looked for: they stand everywhere.")
    more_than: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="A hit shares more than this part of the item's words. Cosmopedia's rule: ngram 10, more_than 0.5.",
    )
    ast_match: float | None = Field(
        None,
        ge=0.8,
        le=0.95,
        description="For items with code: edit similarity of syntax trees from which a function is a hit (phi-1: 0.8 to 0.95).",
    )
    least_nodes: int = Field(20, ge=1, description="Functions with fewer nodes in their tree are not compared.")
    embedding_distance: float = Field(
        1.0, gt=0, le=2, description="With embeddings: trees are compared up to this L2 distance (unit vectors) only."
    )


@dataclass(frozen=True)
class Hit:
    """An item that a document holds: how much of it (share of words, or match rate), and how that was found."""

    benchmark: str
    item: str
    overlap: float
    method: str


@dataclass
class Found:
    """What came of a document: its hits, best first, each item once; whether a limit left code uncompared."""

    hits: list[Hit] = field(default_factory=list)
    cut_short: bool = False


class ItemFinder:
    """The items of all evaluation sets, ready to be looked for. Deterministic.

    Args:
        items: rows of `hornbook`'s ITEMS_SCHEMA (`classifiers.evaluation_sets`), in order.
        settings: when a document holds an item.
    """

    def __init__(self, items: pa.Table, settings: FindSettings) -> None:
        self.settings = settings
        self.rows = items.select(["benchmark", "item", "field", "text"]).to_pylist()
        texts = [row["text"] for row in self.rows]
        self.programs = [number for number, row in enumerate(self.rows) if row["field"] == CODE]
        self._place = {number: place for place, number in enumerate(self.programs)}
        self.words = OverlapIndex(texts, settings.ngram, settings.least_words)
        self.trees: ProgramIndex | None = None
        if settings.ast_match is not None:
            self.trees = ProgramIndex(
                [texts[number] for number in self.programs], settings.ast_match, settings.least_nodes
            )
        vectors = items.column("vector").take(pa.array(self.programs, pa.int64())).to_pylist()
        self.vectors = np.array(vectors, dtype=np.float32) if vectors and all(vectors) else None

    def find(self, text: str, vector: Vector | None = None) -> Found:
        """Return the items that a document holds.

        Args:
            text: the document.
            vector: its embedding, which narrows down the programs that it is compared with; None compares with all.
        """
        hits = []
        for number, overlap in self.words.find(text):
            if overlap > self.settings.more_than:
                method = WHOLE if self.words.whole(number) else f"{self.settings.ngram}-gram"
                hits.append(self._hit(number, overlap, method))
        found = Found()
        if self.trees is not None:
            compared = self.trees.find(text, self._near(vector))
            found.cut_short = compared.cut_short
            hits += [self._hit(self.programs[number], rate, SYNTAX) for number, rate in compared.hits]
        best: dict[tuple[str, str], Hit] = {}
        for hit in sorted(hits, key=lambda hit: -hit.overlap):  # stable: of equal ones the first stays first
            best.setdefault((hit.benchmark, hit.item), hit)
        found.hits = list(best.values())
        return found

    def findable_by_words(self, number: int) -> bool:
        """Tell whether a text is long enough to be looked for."""
        return bool(self.words.usable[number])

    def findable_by_tree(self, number: int) -> bool:
        """Tell whether a text is a program with a function that is large enough to be compared."""
        return self.trees is not None and number in self._place and bool(self.trees.usable[self._place[number]])

    def vector(self, number: int) -> Vector | None:
        """Return the embedding of a program."""
        return None if self.vectors is None or number not in self._place else self.vectors[self._place[number]]

    def figures(self, benchmarks: Iterable[str]) -> dict[str, dict[str, int]]:
        """Return, for each evaluation set, how many items it has and how many of them can be found at all.

        Raises:
            DataError: a set none of whose items can be found, which would pass over every document in silence.
        """
        items: dict[str, set[str]] = {}
        findable: dict[str, set[str]] = {}
        trees = set() if self.trees is None else {self.programs[place] for place in np.flatnonzero(self.trees.usable)}
        for number, row in enumerate(self.rows):
            items.setdefault(row["benchmark"], set()).add(row["item"])
            if self.words.usable[number] or number in trees:
                findable.setdefault(row["benchmark"], set()).add(row["item"])
        for name in benchmarks:
            if not findable.get(name):
                raise DataError(
                    f"none of the {len(items.get(name, ()))} items of the evaluation set {name!r} can be looked for: "
                    f"no text of theirs has {self.settings.least_words} words",
                    "name fields with more text, or lower least_words",
                )
        return {name: {"items": len(items[name]), "findable": len(findable[name])} for name in benchmarks}

    def _hit(self, number: int, overlap: float, method: str) -> Hit:
        row: Mapping[str, Any] = self.rows[number]
        return Hit(row["benchmark"], row["item"], overlap, method)

    def _near(self, vector: Vector | None) -> list[int] | None:
        if vector is None or self.vectors is None or not np.isfinite(vector).all():
            return None  # nothing to go by: all are compared, rather than none
        distances = np.linalg.norm(self.vectors - vector, axis=1)
        return np.flatnonzero(distances <= self.settings.embedding_distance).tolist()


def most_hit(counts: Counter[tuple[str, str]], most: int) -> list[dict[str, Any]]:
    """Return the items that the most documents hold: one that hundreds do is a common phrase more likely than a leak."""
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:most]
    return [{"benchmark": name, "item": item, "documents": count} for (name, item), count in ordered]
