"""One order for the documents of several corpora: input by input, part by part, row by row.

A document's place in it, its ordinal, names it while duplicates are sought: ids are unique only within one artifact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hornbook.artifact import Artifact
from hornbook.parts import PartCommit, PartRange


class CorpusOrder:
    """The parts of several corpora, numbered, and which ordinals each holds.

    Pickled to workers: three numbers a part; commit records are read there.

    Attributes:
        documents: the corpora.
        first: the ordinal of each part's first document, and at the end the number of documents.
    """

    def __init__(self, documents: Sequence[Artifact]) -> None:
        self.documents = list(documents)
        inputs, starts, rows, self.ranges = [], [], [], []
        offset = 0
        for number, artifact in enumerate(self.documents):
            for part in artifact.parts:
                inputs.append(number)
                starts.append(part.start)
                rows.append(part.rows)
                self.ranges.append(PartRange(offset + part.start, offset + part.stop))
            offset = self.ranges[-1].stop if self.ranges else 0
        self.inputs, self.starts = np.array(inputs, np.int32), np.array(starts, np.int64)
        self.first: npt.NDArray[np.int64] = np.concatenate(([0], np.cumsum(rows, dtype=np.int64)))
        self._range_starts = np.array([part.start for part in self.ranges], np.int64)

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return len(self.starts)

    @property
    def rows(self) -> int:
        """How many documents there are."""
        return int(self.first[-1])

    def part_of(self, ordinals: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the number of the part that holds each ordinal."""
        return np.searchsorted(self.first, ordinals, side="right") - 1

    def number_of(self, units: PartRange) -> int:
        """Return the number of the part whose attributes are the range `units`."""
        return int(np.searchsorted(self._range_starts, units.start))

    def read(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Return columns of the documents of a part."""
        artifact = self.documents[self.inputs[number]]
        return artifact.read(self._commit(number), columns=list(columns))

    def read_beside(self, attributes: Sequence[Artifact], number: int, columns: Sequence[str]) -> pa.Table | None:
        """Return columns of the attributes of a part's documents, one artifact a corpus; None if it has no such part."""
        artifact = attributes[self.inputs[number]]
        commit = artifact.parts_by_start.get(int(self.starts[number]))
        return None if commit is None else artifact.read(commit, columns=list(columns))

    def blocks(self, documents: int) -> npt.NDArray[np.int64]:
        """Return bounds of blocks of successive parts, as part numbers, each with at least so many documents."""
        bounds = [0]
        for number in range(1, self.parts + 1):
            if number == self.parts or self.first[number] - self.first[bounds[-1]] >= documents:
                bounds.append(number)
        return np.array(bounds, np.int64)

    def _commit(self, number: int) -> PartCommit:
        return self.documents[self.inputs[number]].parts_by_start[int(self.starts[number])]
