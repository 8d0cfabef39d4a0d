"""The plan of the stage `files`: which records of which file make a part, and where a worker enters the file for them.

A planned unit is a record, counted in one pass over every file by the readers that workers use later. Ranges of bytes would
spare that pass, but then nobody knew how many records a range holds before it was read, and a count that is made while reading
can not say that something was lost. The pass reads, decompresses and finds where records end; it parses and keeps nothing.
"""

from __future__ import annotations

import bisect
import io
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from classifiers.columns import arrow_rows, parquet_rows
from classifiers.file_names import opened, shown
from classifiers.file_records import COLUMNS, WHOLE, format_of, stream_records
from hornbook.parts import PartRange

if TYPE_CHECKING:
    from classifiers.files import FilesSettings

READERS = 8  # files looked at at a time

PLAN_SCHEMA = pa.schema(
    [
        ("start", pa.int64()),  # first planned unit of the segment
        ("rows", pa.int64()),
        ("part", pa.int64()),  # first planned unit of the part that it belongs to
        ("file", pa.string()),
        ("first_row", pa.int64()),  # of the file
        ("offset", pa.int64()),  # where a reader enters the file; see records.Record
        ("skip", pa.int64()),  # records from there to the first row
        ("size", pa.int64()),  # of the file, bytes
    ]
)


class Segment(NamedTuple):
    """Records of one file that follow each other and fit into a part."""

    rows: int
    first_row: int
    offset: int
    skip: int
    size: int
    """Of the file, bytes."""


def make_plan(files: Sequence[str], settings: FilesSettings, counted: Callable[[int], None] | None = None) -> pa.Table:
    """Return rows of PLAN_SCHEMA. Raises DataError for a file that cannot be read at all.

    A part never spans two files, except that files of one document each share parts. `counted` is called with 1 for each file
    whose records are counted.
    """
    rows: list[tuple[Any, ...]] = []
    start = part = held = weight = 0
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
        for name, segments in zip(files, pool.map(partial(file_segments, settings=settings), files), strict=True):
            whole = format_of(name, settings) in WHOLE
            for segment in segments:
                heavy = weight + segment.size > settings.part_bytes
                if not whole or not held or held >= settings.part_rows or heavy:
                    part, held, weight = start, 0, 0
                rows.append((start, segment.rows, part, name, *segment[1:]))
                start += segment.rows
                held, weight = (held + 1, weight + segment.size) if whole else (0, 0)
            if counted:
                counted(1)
    if not rows:
        return PLAN_SCHEMA.empty_table()
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), PLAN_SCHEMA, strict=True)],
        schema=PLAN_SCHEMA,
    )


def planned_parts(plan: pa.Table) -> list[PartRange]:
    """Return the parts of a plan, in order."""
    if not plan.num_rows:
        return []
    starts = np.unique(plan["part"].to_numpy()).tolist()
    stop = plan["start"][-1].as_py() + plan["rows"][-1].as_py()
    return [PartRange(start, following) for start, following in itertools.pairwise([*starts, stop])]


def part_segments(plan: pa.Table, part: PartRange) -> list[dict[str, Any]]:
    """Return the rows of a plan that make a part."""
    low, high = np.searchsorted(plan["start"].to_numpy(), [part.start, part.stop])
    rows: list[dict[str, Any]] = plan.slice(low, high - low).to_pylist()
    return rows


def file_segments(name: str, settings: FilesSettings) -> list[Segment]:
    """Return a file's records in segments of at most `part_rows` rows and about `part_bytes` bytes."""
    form = format_of(name, settings)
    segments: list[Segment] = []
    with opened(name) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if form in COLUMNS:
            found = (parquet_rows if form == "parquet" else arrow_rows)(file, shown(name), settings)
            every = min(settings.part_rows, max(1, settings.part_bytes * found.rows // max(1, found.size)))
            for row in range(0, found.rows, every):
                entry = found.entries[bisect.bisect_right(found.entries, row) - 1]
                segments.append(Segment(min(every, found.rows - row), row, entry, row - entry, size))
            return segments
    if form in WHOLE:
        return [Segment(1, 0, 0, 0, size)]
    first = entry = skip = rows = weight = 0
    for number, record in enumerate(stream_records(name, settings)):
        if rows and (rows >= settings.part_rows or weight + record.size > settings.part_bytes):
            segments.append(Segment(rows, first, entry, skip, size))
            rows = weight = 0
        if not rows:
            first, entry, skip = number, record.offset, record.skip
        rows += 1
        weight += record.size
    return [*segments, Segment(rows, first, entry, skip, size)] if rows else []
