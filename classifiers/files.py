"""Documents from a user's own files: Parquet rows, JSON lines, or lines of text, one planned unit each.

The driver looks at every file once, to count its rows and note where each part begins; workers then read their own range
only. A line is never held in memory beyond `max_bytes`, so one of 50 MB is a reject like any other.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from hornbook.artifact import Artifact
from hornbook.documents import Document, Reject, content_key, document_id, documents_table, rejects_table
from hornbook.errors import DataError, RecipeError
from hornbook.parts import PartContent, PartRange, parquet_bytes
from hornbook.partwork import PartMaker
from hornbook.settings import Settings
from hornbook.stage import Expected, Stage, StageContext, StageResult

PLAN = "plan.parquet"
BLOCK = 1 << 20  # bytes
NAMED = 20  # empty files, in the warnings

PLAN_SCHEMA = pa.schema(
    [
        ("start", pa.int64()),  # first planned unit of the part
        ("rows", pa.int64()),
        ("file", pa.string()),
        ("first_row", pa.int64()),  # of the file
        ("offset", pa.int64()),  # byte at which that row begins; -1 for Parquet
        ("size", pa.int64()),  # of the file, bytes
    ]
)


class FilesSettings(Settings):
    """Which files, and where in them the text is."""

    paths: tuple[str, ...] = Field(
        ..., min_length=1, description="Files, or shell patterns (`/data/*.jsonl`); or URLs."
    )
    format: Literal["auto", "parquet", "jsonl", "text"] = Field(
        "auto", description="auto: by the file's name (.parquet, .jsonl; anything else is text)."
    )
    text_field: str = Field("text", description="The column or key that holds the text.")
    source: str = Field("files", min_length=1, description="What mixtures and reports call these documents.")
    max_bytes: int = Field(1_000_000, ge=1, description="A row or line with more bytes than this is rejected.")
    part_rows: int = Field(1000, ge=1, description="Most rows or lines per part; a part never spans two files.")


class Files(Stage):
    """Plans ranges of rows within files, then reads them."""

    kind = "files"
    produces = "documents"
    Settings = FilesSettings
    settings: FilesSettings

    @cached_property
    def files(self) -> list[str]:
        """The files that the paths name, sorted, each once. Raises RecipeError where a path names none."""
        found: set[str] = set()
        for path in self.settings.paths:
            matching = [path] if "://" in path else sorted(map(str, _matching(path)))
            if not matching:
                raise RecipeError(f"{self.name}.paths: there is no file {path}", "check the path; patterns need quotes")
            found.update(matching)
        return sorted(found)

    def check(self) -> None:
        """Refuse paths that name no file."""
        _ = self.files

    def extra_identity(self) -> dict[str, str]:
        """Return a digest per file: of its content on this machine, of size and time of change elsewhere."""
        from hornbook.models import file_digest

        return {f"file {name}": _remote_mark(name) if "://" in name else file_digest(Path(name)) for name in self.files}

    def run(self, context: StageContext) -> StageResult:
        """Write the plan unless an earlier attempt did, then read every range."""
        store, name = context.artifact.store, f"{context.artifact.folder}/{PLAN}"
        if not store.exists(name):
            store.create(name, parquet_bytes(make_plan(self.files, self.settings)))
        with store.open_input(name) as file:
            plan = pq.read_table(file).to_pylist()
        if not plan:
            raise DataError(f"{self.name}: {', '.join(self.files)}: no rows", "name files that hold documents")
        ranges = [PartRange(part["start"], part["start"] + part["rows"]) for part in plan]
        totals = context.make_parts(ReadRows(self.settings, context.artifact), ranges, unit="rows")
        empty = sorted(set(self.files) - {part["file"] for part in plan})
        metrics: dict[str, Any] = {"files": len(self.files), "rows": totals.planned, "empty_files": len(empty)}
        if empty:
            metrics["warnings"] = [f"{name} is empty" for name in empty[:NAMED]]
        return StageResult(metrics=metrics, files=[PLAN])

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return nothing: rows are counted when the stage runs."""
        return Expected(unit="rows")


class ReadRows(PartMaker):
    """Reads one planned range of one file."""

    def __init__(self, settings: FilesSettings, artifact: Artifact) -> None:
        self.settings = settings
        self.artifact = artifact

    def setup(self) -> None:
        """Read the plan."""
        with self.artifact.store.open_input(f"{self.artifact.folder}/{PLAN}") as file:
            self.plan = {part["start"]: part for part in pq.read_table(file).to_pylist()}

    def make(self, part: PartRange) -> PartContent:
        """Return the range's documents and rejects."""
        planned = self.plan[part.start]
        parquet = planned["offset"] < 0
        rows = _parquet_rows(planned, self.settings) if parquet else _lines(planned, self.settings)
        documents: list[Document] = []
        rejects: list[Reject] = []
        for place, found in enumerate(rows):
            unit, row = part.start + place, planned["first_row"] + place
            if isinstance(found, _Unreadable):
                rejects.append(Reject(unit, f"{planned['file']} row {row}", found.reason, found.detail))
                continue
            meta = {"file": planned["file"], "row": row}
            key = content_key(found.encode())
            documents.append(Document(document_id(unit), key, found, self.settings.source, "text", meta=meta))
        return PartContent(documents_table(documents), rejects_table(rejects))


class _Unreadable:
    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail


# --- the plan --------------------------------------------------------------------------------------------------------


def make_plan(files: Sequence[str], settings: FilesSettings) -> pa.Table:
    """Return rows of PLAN_SCHEMA. Raises DataError for a file that cannot be read at all."""
    parts: list[dict[str, Any]] = []
    start = 0
    for name in files:
        parquet = _is_parquet(name, settings)
        with _opened(name) as file:
            rows, offsets = _parquet_count(file, name, settings) if parquet else _line_starts(file, settings.part_rows)
            size = file.seek(0, io.SEEK_END)
        for number, first_row in enumerate(range(0, rows, settings.part_rows)):
            count = min(settings.part_rows, rows - first_row)
            offset = -1 if parquet else offsets[number]
            parts.append(dict(zip(PLAN_SCHEMA.names, (start, count, name, first_row, offset, size), strict=True)))
            start += count
    return pa.Table.from_pylist(parts, schema=PLAN_SCHEMA)


def _parquet_count(file: BinaryIO, name: str, settings: FilesSettings) -> tuple[int, list[int]]:
    try:
        found = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name} is not a readable Parquet file: {error}", "write it again, or leave it out") from error
    schema = found.schema_arrow
    if settings.text_field not in schema.names:
        raise DataError(
            f"{name} has no column {settings.text_field!r} (it has: {', '.join(schema.names)})", "set text_field"
        )
    kind = schema.field(settings.text_field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{name}: column {settings.text_field!r} holds {kind}, not text", "set text_field")
    return found.metadata.num_rows, []


def _line_starts(file: BinaryIO, every: int) -> tuple[int, list[int]]:
    """Return the number of lines and the byte offset of each `every`-th one; holds one block."""
    lines, position, offsets, open_line = 0, 0, [0], False
    while block := file.read(BLOCK):
        found = block.find(b"\n")
        while found >= 0:
            lines += 1
            if lines % every == 0:
                offsets.append(position + found + 1)
            found = block.find(b"\n", found + 1)
        position += len(block)
        open_line = not block.endswith(b"\n")
    return lines + open_line, offsets


# --- reading ---------------------------------------------------------------------------------------------------------


def _parquet_rows(planned: Mapping[str, Any], settings: FilesSettings) -> Iterator[str | _Unreadable]:
    """Yield a range's texts; memory: one batch of rows."""
    skip, left = planned["first_row"], planned["rows"]
    try:
        with _opened(planned["file"]) as file:
            found = pq.ParquetFile(file)
            groups: list[int] = []
            for group in range(found.num_row_groups):
                rows = found.metadata.row_group(group).num_rows
                if skip >= rows and not groups:
                    skip -= rows
                else:
                    groups.append(group)
            for batch in found.iter_batches(batch_size=256, row_groups=groups, columns=[settings.text_field]):
                texts = batch.column(0).slice(min(skip, len(batch)))
                skip -= len(batch) - len(texts)
                for text in texts.slice(0, left):
                    yield _checked(text.as_py(), settings)
                left -= min(left, len(texts))
                if not left:
                    return
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{planned['file']} is damaged: {error}", "write it again, or leave it out of paths") from error
    raise _changed(planned["file"])


def _lines(planned: Mapping[str, Any], settings: FilesSettings) -> Iterator[str | _Unreadable]:
    """Yield a range's texts; memory: one line of at most `max_bytes`, and one block."""
    as_json = settings.format == "jsonl" or (settings.format == "auto" and planned["file"].endswith(".jsonl"))
    with _opened(planned["file"]) as file:
        if file.seek(0, io.SEEK_END) != planned["size"]:
            raise _changed(planned["file"])
        offset = file.seek(planned["offset"])
        for _ in range(planned["rows"]):
            line = file.readline(settings.max_bytes + 1)
            size = len(line)
            if size > settings.max_bytes and not line.endswith(b"\n"):
                size += _skip_line(file)
                yield _Unreadable("too-long", f"{size} bytes at byte {offset}, max_bytes is {settings.max_bytes}")
            else:
                yield _decoded(line.removesuffix(b"\n"), offset, as_json, settings)
            offset += size


def _skip_line(file: BinaryIO) -> int:
    """Read to the end of a line and forget it; return how many bytes that were."""
    size = 0
    while more := file.readline(BLOCK):
        size += len(more)
        if more.endswith(b"\n"):
            break
    return size


def _decoded(line: bytes, offset: int, as_json: bool, settings: FilesSettings) -> str | _Unreadable:
    try:
        text: Any = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return _Unreadable("encoding", f"not UTF-8 at byte {offset + error.start}: {error.reason}")
    if as_json and text.strip():
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            return _Unreadable("not-json", f"line at byte {offset}: {error}")
        text = value.get(settings.text_field) if isinstance(value, dict) else None
    return _checked(text, settings)


def _checked(text: Any, settings: FilesSettings) -> str | _Unreadable:
    if not isinstance(text, str):
        return _Unreadable("no-text", f"{settings.text_field!r} is missing, or not text")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:  # JSON can spell half a character: "\ud800"
        return _Unreadable("encoding", f"half a surrogate pair at character {error.start}")
    if size > settings.max_bytes:
        return _Unreadable("too-long", f"{size} bytes, max_bytes is {settings.max_bytes}")
    return text if text.strip() else _Unreadable("empty", "only white space")


def _changed(name: str) -> DataError:
    return DataError(f"{name} changed while it was read", "leave the files alone while the stage runs, then run again")


# --- names and bytes -------------------------------------------------------------------------------------------------


def _matching(path: str) -> list[Path]:
    expanded = Path(path).expanduser()
    if expanded.is_file():
        return [expanded.resolve()]
    root = Path(expanded.anchor or ".")
    pattern = str(expanded.relative_to(root)) if expanded.anchor else str(expanded)
    return [found.resolve() for found in root.glob(pattern) if found.is_file()]


def _is_parquet(name: str, settings: FilesSettings) -> bool:
    return settings.format == "parquet" or (settings.format == "auto" and name.split("?")[0].endswith(".parquet"))


def _opened(name: str) -> Any:
    """Open a local path or a URL for reading. Raises DataError with the cause."""
    try:
        if "://" not in name:
            return Path(name).open("rb")
        from pyarrow.fs import FileSystem

        system, path = FileSystem.from_uri(name)
        return io.BufferedReader(system.open_input_file(path))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name} cannot be opened: {error}", "check the path, the permissions, the credentials"
        ) from error


def _remote_mark(name: str) -> str:
    from pyarrow.fs import FileSystem

    try:
        system, path = FileSystem.from_uri(name)
        info = system.get_file_info(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name} cannot be looked at: {error}", "check the URL and the credentials") from error
    return hashlib.sha256(f"{name} {info.size} {info.mtime_ns}".encode()).hexdigest()
