"""Parts: how a planned range of rows reaches storage exactly once.

A range is made by one worker and written as data files under attempt-unique names; then one small commit record names
them, with counts and digests. The record is created atomically and never replaced, so a range is either absent or
whole, however often it was tried. Readers follow commit records only; a rerun makes the ranges that lack one.
"""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hornbook.documents import FAN_OUT_BITS, REJECT_SCHEMA
from hornbook.errors import StoreError
from hornbook.store import Store


@dataclass(frozen=True, order=True)
class PartRange:
    """Planned units `start` (included) to `stop` (excluded) that become one part."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def name(self) -> str:
        """The part's name on storage; sorts in plan order."""
        return f"{self.start:012d}"


@dataclass(frozen=True)
class PartFile:
    """One file of a part: its role (`data`, `rejects`, `tokens`, ...), name in the artifact, bytes and SHA-256."""

    role: str
    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class PartCommit:
    """The commit record of a part. `planned == succeeded + rejected`; `empty` of the succeeded units gave no row."""

    start: int
    stop: int
    planned: int
    rows: int
    succeeded: int
    rejected: int
    empty: int
    reasons: dict[str, int]
    files: tuple[PartFile, ...]
    counts: dict[str, float] = field(default_factory=dict)
    """Sums that the stage wants added up over all parts: tokens, characters, ..."""

    @property
    def range(self) -> PartRange:
        """The planned range that this part holds."""
        return PartRange(self.start, self.stop)

    def has(self, role: str) -> bool:
        """Tell whether the part has a file with this role."""
        return any(entry.role == role for entry in self.files)

    def file(self, role: str) -> PartFile:
        """Return the file with this role. Raises StoreError if the part has none."""
        for entry in self.files:
            if entry.role == role:
                return entry
        raise StoreError(f"part {self.start}-{self.stop} has no {role!r} file")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PartCommit:
        """Rebuild a record from its JSON value."""
        return cls(**{**value, "files": tuple(PartFile(**entry) for entry in value["files"])})


@dataclass
class PartContent:
    """What a worker made of a range.

    Attributes:
        table: the rows, with an int64 column `id`, or None for a part whose rows are other files.
        rejects: rows of REJECT_SCHEMA whose `id` is the planned unit.
        planned: ids of the planned units; default: the range's own numbers.
        unit_of: maps the table's `id` column to planned units; default: the document's planned row.
        files: further files by role (token shards); their bytes are written as they are.
        existing: files that lie in the artifact's folder already and become this part's.
        succeeded: with no table, how many planned units are in `files`.
        empty: planned units that gave no row on purpose (documents below a threshold); any other one missing is an error.
        counts: sums for the manifest.
    """

    table: pa.Table | None
    rejects: pa.Table | None = None
    planned: Sequence[int] | np.ndarray | None = None
    unit_of: Callable[[np.ndarray], np.ndarray] | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    existing: Sequence[PartFile] = ()
    succeeded: int | None = None
    empty: int = 0
    counts: Mapping[str, float] = field(default_factory=dict)


def planned_ranges(rows: int, part_rows: int) -> Iterator[PartRange]:
    """Cut `rows` planned units into ranges of `part_rows` (the last may be shorter)."""
    yield from cut_range(PartRange(0, rows), part_rows)


def cut_range(units: PartRange, part_rows: int) -> Iterator[PartRange]:
    """Cut a range of planned units into ranges of `part_rows` (the last may be shorter)."""
    for start in range(units.start, units.stop, part_rows):
        yield PartRange(start, min(start + part_rows, units.stop))


def document_rows(ids: np.ndarray) -> np.ndarray:
    """Map document ids to planned rows (int64 to int64)."""
    return ids >> FAN_OUT_BITS


def same_ids(ids: np.ndarray) -> np.ndarray:
    """For attributes: the planned unit is the input document itself."""
    return ids


def commit_part(store: Store, folder: str, part: PartRange, content: PartContent) -> PartCommit:
    """Write a part's files, check that every planned unit is accounted for, and commit it.

    Returns the commit record that holds now: if another attempt committed this range first, that one's.

    Raises:
        StoreError: the store cannot be written, or rows and rejects do not add up to the planned units.
    """
    rejects = content.rejects if content.rejects is not None else REJECT_SCHEMA.empty_table()
    succeeded, planned = _account(folder, part, content, rejects)
    attempt = uuid.uuid4().hex[:12]
    files = []
    if content.table is not None:
        files.append(write_part_file(store, folder, part, attempt, "data", "parquet", parquet_bytes(content.table)))
    if rejects.num_rows:
        files.append(write_part_file(store, folder, part, attempt, "rejects", "parquet", parquet_bytes(rejects)))
    for role, data in content.files.items():
        suffix = "parquet" if data[:4] == b"PAR1" else "bin"
        files.append(write_part_file(store, folder, part, attempt, role, suffix, data))
    files += content.existing
    record = PartCommit(
        start=part.start,
        stop=part.stop,
        planned=planned,
        rows=content.table.num_rows if content.table is not None else succeeded,
        succeeded=succeeded,
        rejected=rejects.num_rows,
        empty=content.empty,
        reasons=dict(sorted(Counter(rejects.column("reason").to_pylist()).items())),
        files=tuple(files),
        counts=dict(sorted(content.counts.items())),
    )
    name = commit_name(folder, part)
    if store.create(name, json.dumps(asdict(record), sort_keys=True).encode()):
        return record
    return PartCommit.from_json(store.read_json(name))


def commit_name(folder: str, part: PartRange) -> str:
    """Return the store name of a part's commit record."""
    return f"{folder}/parts/{part.name}.json"


def read_commit(store: Store, folder: str, part: PartRange) -> PartCommit | None:
    """Return a range's commit record, or None if it was not committed."""
    name = commit_name(folder, part)
    return PartCommit.from_json(store.read_json(name)) if store.exists(name) else None


def committed_starts(store: Store, folder: str) -> set[int]:
    """Return the first planned row of every committed part, from one listing."""
    return {int(name.removesuffix(".json")) for name in store.names(f"{folder}/parts") if name.endswith(".json")}


def read_commits(store: Store, folder: str) -> Iterator[PartCommit]:
    """Yield the commit records of an artifact in plan order."""
    for start in sorted(committed_starts(store, folder)):
        yield PartCommit.from_json(store.read_json(f"{folder}/parts/{start:012d}.json"))


def missing_ranges(store: Store, folder: str, ranges: Iterable[PartRange]) -> list[PartRange]:
    """Return the planned ranges that have no commit record yet."""
    done = committed_starts(store, folder)
    return [part for part in ranges if part.start not in done]


def read_part(
    store: Store, folder: str, record: PartCommit, role: str = "data", columns: Sequence[str] | None = None
) -> pa.Table:
    """Read a part's Parquet file, or some of its columns in their order; `made_by.model` reads that field of `made_by` alone."""
    entry = record.file(role)
    name = f"{folder}/{entry.name}"
    try:
        with store.open_input(name) as file:
            # Not read_table: it loads pyarrow.dataset, which takes some 40 MiB of every process.
            table = pq.ParquetFile(file).read(columns=None if columns is None else list(columns))
            return (
                table
                if columns is None
                else table.select(list(dict.fromkeys(name.partition(".")[0] for name in columns)))
            )
    except (pa.ArrowException, KeyError, OSError) as error:
        raise StoreError(
            f"{store.describe(name)} is damaged: {error}",
            f"delete {store.describe(folder)} and run again: it will be made anew",
        ) from error


def _account(folder: str, part: PartRange, content: PartContent, rejects: pa.Table) -> tuple[int, int]:
    """Return (succeeded, planned) units, or raise if a unit is lost, doubled or from elsewhere."""
    planned = np.arange(part.start, part.stop) if content.planned is None else np.asarray(content.planned)
    rejected = rejects.column("id").to_numpy()
    if content.table is None:
        succeeded = content.succeeded if content.succeeded is not None else len(planned) - len(rejected)
        if succeeded + len(rejected) != len(planned):
            raise _unaccounted(folder, part, f"{len(planned)} planned, {succeeded} kept, {len(rejected)} rejected")
        return succeeded, len(planned)
    ids = content.table.column("id").to_numpy()
    if len(np.unique(ids)) != len(ids):
        raise _unaccounted(folder, part, "an id occurs twice")
    units = np.unique((content.unit_of or document_rows)(ids))
    if len(np.unique(rejected)) != len(rejected) or np.intersect1d(units, rejected).size:
        raise _unaccounted(folder, part, "a unit is rejected twice, or rejected and kept")
    if np.setdiff1d(np.concatenate([units, rejected]), planned).size:
        raise _unaccounted(folder, part, "a row belongs to no planned unit of this part")
    accounted = len(units) + len(rejected) + content.empty
    if accounted != len(planned):
        counted = f"{len(units)} kept, {len(rejected)} rejected, {content.empty} empty"
        raise _unaccounted(folder, part, f"{len(planned)} planned, {counted}")
    return len(planned) - len(rejected), len(planned)


def _unaccounted(folder: str, part: PartRange, what: str) -> StoreError:
    return StoreError(
        f"{folder}, rows {part.start}-{part.stop}: planned units and rows do not add up: {what}",
        "this is a bug in the stage that made them: every planned unit must be a row, a reject or declared empty",
    )


def write_part_file(
    store: Store, folder: str, part: PartRange, attempt: str, role: str, suffix: str, data: bytes
) -> PartFile:
    """Write a file that a part may name once it is committed (as one of `PartContent.existing`); `attempt` makes it unique."""
    name = f"{role}/{part.name}-{attempt}.{suffix}"
    store.write(f"{folder}/{name}", data)
    return PartFile(role, name, len(data), hashlib.sha256(data).hexdigest())


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file, as parts hold them."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
