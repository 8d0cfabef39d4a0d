"""Trains heads fold by fold, and whole: each a planned unit of its own, so that a cluster trains them side by side.

A head's scores of documents that it did not learn from are what all figures are made of: of each training document by the head
of the folds without it (twice: folds by key, and folds by source, which say how it does on sources that it never saw), and
of the held-out documents by the head of all training documents, which is the one that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from classifiers.annotated import Annotated, Split, key_folds, source_folds, split_annotated
from classifiers.annotated_parts import found_annotated
from classifiers.forest import take_out_of_bag
from classifiers.head_file import dump_head
from classifiers.heads import FORESTS, NGRAMS, Examples, head_scores, train_head
from classifiers.ngrams import hashed_ngrams
from hornbook.artifact import Artifact
from hornbook.parts import PartContent, PartRange, parquet_bytes
from hornbook.partwork import PartMaker
from hornbook.plan import derive_seed

BY_KEY, BY_SOURCE, WHOLE = "key", "source", "whole"
SCORES, OUT_OF_BAG, HEAD_BYTES = "scores", "out_of_bag", "head"


@dataclass(frozen=True)
class Training:
    """How heads are trained: what of `QualitySettings` they depend on, and the seed."""

    trees: int
    min_leaf: int
    weighted: bool
    folds: int
    label_cut: float | None
    label_quantile: float
    held_out: float
    seed: int

    def split(self, annotated: Annotated) -> Split:
        """Return labels and held-out documents."""
        seed = derive_seed(self.seed, "held-out")
        return split_annotated(annotated, self.label_cut, self.label_quantile, self.held_out, seed)

    def fold_numbers(self, annotated: Annotated, split: Split, grouping: str) -> np.ndarray:
        """Return each document's fold, int (rows,), -1 for held-out ones; of WHOLE, 0 for them and -1 for the others."""
        if grouping == WHOLE:
            return np.where(split.held_out, 0, -1)
        rows, seed = np.flatnonzero(~split.held_out), derive_seed(self.seed, "folds", grouping)
        numbers = np.full(len(annotated), -1)
        if grouping == BY_KEY:
            keys = [annotated.keys[row] for row in rows]
            numbers[rows] = key_folds(keys, split.labels[rows], self.folds, seed)
        else:
            numbers[rows] = source_folds([annotated.sources[row] for row in rows], self.folds, seed)
        return numbers


@dataclass(frozen=True)
class Unit:
    """One training: of which head, on which grouping's documents without one fold."""

    kind: str
    grouping: str
    fold: int


def plan_units(kinds: Sequence[str], folds: Mapping[str, np.ndarray]) -> list[Unit]:
    """Return the trainings of some kinds of head, by the folds of each grouping."""
    return [
        Unit(kind, grouping, fold)
        for kind in kinds
        for grouping, numbers in folds.items()
        for fold in range(int(numbers.max(initial=-1)) + 1)
    ]


class HeadPart(PartMaker):
    """Trains one head and scores the documents that it did not learn from."""

    kind = "quality"

    def __init__(self, annotated: Artifact, training: Training, units: Sequence[Unit]) -> None:
        self.annotated = annotated
        self.training = training
        self.units = list(units)

    def setup(self) -> None:
        """Read the annotated documents, hash their n-grams, draw the folds."""
        annotated = found_annotated(self.annotated, vectors=True)
        self.split = self.training.split(annotated)
        groupings = {unit.grouping for unit in self.units}
        self.folds = {name: self.training.fold_numbers(annotated, self.split, name) for name in groupings}
        ngrams = any(unit.kind == NGRAMS for unit in self.units)
        self.examples = Examples(
            vectors=annotated.vectors,
            ngrams=hashed_ngrams(annotated.texts) if ngrams else None,
            labels=self.split.labels,
            grades=annotated.grades,
            weights=annotated.weights / annotated.weights.mean() if self.training.weighted else None,
        )

    def make(self, part: PartRange) -> PartContent:
        """Return files: scores (row, score), of a whole head also its skops bytes and, of a forest, out-of-bag scores.

        Without a file: the documents to learn from were all good, or all bad.
        """
        unit = self.units[part.start]
        asked = self.folds[unit.grouping] == unit.fold
        learned = ~self.split.held_out & ~asked
        if len(set(self.examples.labels[learned].tolist())) < 2:
            return PartContent(table=None, succeeded=1)
        training, seed = self.training, derive_seed(self.training.seed, unit.kind, unit.grouping, unit.fold)
        whole = unit.grouping == WHOLE
        head = train_head(
            unit.kind, self.examples.take(learned), training.trees, training.min_leaf, seed, out_of_bag=whole
        )
        out_of_bag = take_out_of_bag(head) if unit.kind in FORESTS else None
        scores = head_scores(unit.kind, head, self.examples.take(asked).features(unit.kind))
        files = {SCORES: _scores_file(np.flatnonzero(asked), scores)}
        if whole:
            files[HEAD_BYTES] = dump_head(head)
            if out_of_bag is not None:
                files[OUT_OF_BAG] = _scores_file(np.flatnonzero(learned), out_of_bag)
        return PartContent(table=None, succeeded=1, files=files)


@dataclass(frozen=True)
class TrainedHeads:
    """What `HeadPart` made.

    Attributes:
        parts: where it is.
        units: all its units.
        rows: how many annotated documents there are.
    """

    parts: Artifact
    units: Sequence[Unit]
    rows: int

    def unseen(self, grouping: str, role: str = SCORES) -> dict[str, np.ndarray]:
        """Return by kind of head what it gave documents that it had not learned from, float32 (rows,), NaN where nothing.

        Args:
            grouping: whose folds.
            role: SCORES, or OUT_OF_BAG.
        """
        found: dict[str, np.ndarray] = {}
        for part in self.parts.parts:
            unit = self.units[part.start]
            if unit.grouping == grouping and part.has(role):
                table = self.parts.read(part, role=role)
                scores = found.setdefault(unit.kind, np.full(self.rows, np.nan, dtype=np.float32))
                scores[table.column("row").to_numpy()] = table.column("score").to_numpy()
        return found

    def whole(self, kind: str) -> bytes:
        """Return the head of a kind that learned from all training documents, as a skops file."""
        (part,) = (part for part in self.parts.parts if self.units[part.start] == Unit(kind, WHOLE, 0))
        return self.parts.store.read(f"{self.parts.folder}/{part.file(HEAD_BYTES).name}")


def _scores_file(rows: np.ndarray, scores: np.ndarray) -> bytes:
    return parquet_bytes(pa.table({"row": pa.array(rows, pa.int64()), "score": pa.array(scores, pa.float32())}))
