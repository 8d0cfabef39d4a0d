"""What the steps of deduplication hand on: records sorted by where they go, of which each reader takes its own slice.

Such a file is the bounds of the slices (64-bit integers, one more than there are slices), then the records, one after the
other. A reader asks for two bounds and its own records, on a disk or an object store, and never for a whole file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from hornbook.artifact import Artifact
from hornbook.parts import PartCommit

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
