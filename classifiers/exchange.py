"""What the steps of deduplication hand on: records sorted by where they go, of which each reader takes its own slice.

Such a file is the bounds of the slices (64-bit integers, one more than there are slices), then the records, one after the
other. A reader asks for two bounds and its own records, on a disk or an object store, and never for a whole file.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from hornbook.artifact import Artifact
from hornbook.parts import PartCommit, PartFile, PartRange, write_part_file

Numbers = npt.NDArray[np.int64]
Records = npt.NDArray[Any]

GAP = 1 << 16
"""Bytes between two wanted places that are read along: another request would take longer."""


def packed(records: Records, bounds: Numbers) -> bytes:
    """Return a file of `records`, of which slice n is `records[bounds[n]:bounds[n + 1]]`."""
    return bounds.astype(np.int64).tobytes() + records.tobytes()


def read_slice(artifact: Artifact, part: PartCommit, role: str, number: int, slices: int, dtype: Any) -> Records:
    """Return slice `number` of a file of `slices` slices."""
    kind = np.dtype(dtype)
    with artifact.store.open_input(f"{artifact.folder}/{part.file(role).name}") as file:
        file.seek(8 * number)
        low, high = np.frombuffer(file.read(16), np.int64)
        if low == high:
            return np.empty(0, kind)
        file.seek(8 * (slices + 1) + int(low) * kind.itemsize)
        return np.frombuffer(file.read(int(high - low) * kind.itemsize), kind)


def read_slices(
    artifact: Artifact, parts: Iterable[PartCommit], role: str, number: int, slices: int, dtype: Any
) -> list[Records]:
    """Return slice `number` of the files of all parts, in their order."""
    return [read_slice(artifact, part, role, number, slices, dtype) for part in parts]


def read_all(artifact: Artifact, part: PartCommit, role: str, dtype: Any, at_once: int) -> Iterator[Records]:
    """Yield the records of a file without slices, `at_once` of them at a time."""
    kind = np.dtype(dtype)
    with artifact.store.open_input(f"{artifact.folder}/{part.file(role).name}") as file:
        while data := file.read(at_once * kind.itemsize):
            yield np.frombuffer(data, kind)


def read_ranges(
    artifact: Artifact, part: PartCommit, role: str, starts: Numbers, stops: Numbers, dtype: Any
) -> Records:
    """Return the records `starts[n]` to `stops[n]` of a file without slices, one range after the other.

    The ranges ascend and do not overlap; those near each other are read in one go.
    """
    kind = np.dtype(dtype)
    found: list[Records] = []
    breaks = np.flatnonzero((starts[1:] - stops[:-1]) * kind.itemsize > GAP) + 1
    with artifact.store.open_input(f"{artifact.folder}/{part.file(role).name}") as file:
        for low, high in zip([0, *breaks.tolist()], [*breaks.tolist(), len(starts)], strict=True):
            if low == high:
                continue
            first, last = int(starts[low]), int(stops[high - 1])
            file.seek(first * kind.itemsize)
            read = np.frombuffer(file.read((last - first) * kind.itemsize), kind)
            found += [
                read[start - first : stop - first]
                for start, stop in zip(starts[low:high], stops[low:high], strict=True)
            ]
    return np.concatenate(found) if found else np.empty(0, kind)


class Spill:
    """Takes records on their way to slices and writes a file of a part whenever there are too many to hold.

    The slices are ranges of the records' first field. Files of attempts that died lie in the folder and are named nowhere.

    Args:
        artifact: whose part `part` will be.
        role: of the files.
        bounds: where each slice begins, and where the last one ends.
        at_once: records to hold.
        reduced: what becomes of the records of a file before it is written; default: nothing.
    """

    def __init__(
        self,
        artifact: Artifact,
        part: PartRange,
        role: str,
        bounds: Numbers,
        at_once: int,
        reduced: Callable[[Records], Records] = lambda records: records,
    ) -> None:
        self.artifact, self.part, self.role, self.bounds = artifact, part, role, bounds
        self.at_once, self.reduced = at_once, reduced
        self._waiting: list[Records] = []
        self._count = 0
        self._files: list[PartFile] = []
        self._attempt = uuid.uuid4().hex[:8]

    def add(self, records: Records) -> None:
        """Take records, in any order."""
        if len(records):
            self._waiting.append(records)
            self._count += len(records)
            if self._count >= self.at_once:
                self._write()

    def files(self) -> list[PartFile]:
        """Write what is left; return the part's files."""
        if self._waiting:
            self._write()
        return self._files

    def _write(self) -> None:
        records = self.reduced(np.concatenate(self._waiting))
        self._waiting, self._count = [], 0
        (first, *_) = records.dtype.names or ()
        records = records[np.argsort(records[first], kind="stable")]
        data = packed(records, np.searchsorted(records[first], self.bounds))
        attempt = f"{self._attempt}-{len(self._files)}"
        store, folder = self.artifact.store, self.artifact.folder
        self._files.append(write_part_file(store, folder, self.part, attempt, self.role, "bin", data))


def spilled(
    artifact: Artifact, role: str, numbers: tuple[int, int], slices: int, dtype: Any, at_once: int
) -> Iterator[Records]:
    """Yield the slices from one number to another (excluded) of all that the parts spilled, about `at_once` records at a time."""
    kind = np.dtype(dtype)
    waiting: list[Records] = []
    count = 0
    for file in (entry for part in artifact.parts for entry in part.files if entry.role == role):
        with artifact.store.open_input(f"{artifact.folder}/{file.name}") as source:
            source.seek(8 * numbers[0])
            bounds = np.frombuffer(source.read(8 * (numbers[1] - numbers[0] + 1)), np.int64)
            low, high = int(bounds[0]), int(bounds[-1])
            source.seek(8 * (slices + 1) + low * kind.itemsize)
            while low < high:
                records = np.frombuffer(source.read(min(high - low, at_once) * kind.itemsize), kind)
                waiting.append(records)
                low, count = low + len(records), count + len(records)
                if count >= at_once:
                    yield np.concatenate(waiting)
                    waiting, count = [], 0
    if waiting:
        yield np.concatenate(waiting)
