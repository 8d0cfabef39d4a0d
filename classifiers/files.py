"""Documents from a user's own files: rows, lines, pages, whole files, inside archives or not; one planned unit each.

The driver looks at every file once, to count its records and note where each part can be entered; workers then read their own
range only. A plain file is entered at its parts' bytes, so any number of workers share it. A compressed one can only be
read from its start: a worker keeps it open from part to part, and so passes over it at most once, however many parts it
makes. Memory: a part, a block, and one record of at most `max_bytes`. A bad record is a reject, never the end of its file; where
the rest of a file cannot be read (a truncated gzip, a bomb beyond the limits) the rest is one reject.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from pydantic import Field, field_validator

from classifiers.byte_streams import codec_of
from classifiers.file_names import named_files, opened, passed_over, path_of, remote_mark, shown
from classifiers.file_plan import make_plan, part_segments, planned_parts
from classifiers.file_records import COLUMNS, format_of, stream_records
from classifiers.records import Bad, Record, Told
from hornbook.artifact import Artifact
from hornbook.documents import Document, Reject, content_key, document_id, documents_table, rejects_table
from hornbook.errors import DataError, RecipeError
from hornbook.parts import PartContent, PartRange, parquet_bytes
from hornbook.partwork import PartMaker
from hornbook.settings import Settings
from hornbook.stage import Expected, Stage, StageContext, StageResult

PLAN = "plan.parquet"
OWN_META = ("file", "row", "member")
NAMED = 20  # empty files, in the warnings


class FilesSettings(Settings):
    """Which files, and where in them the text is."""

    paths: tuple[str, ...] = Field(
        ...,
        min_length=1,
        description="Files, folders (also a dataset that `save_to_disk` wrote), patterns (`/data/**/*.jsonl.gz`); or URLs of these.",
    )
    exclude: tuple[str, ...] = Field(
        (), description="Of these files those that are not read (a damaged table, say): names, folders, patterns."
    )
    format: Literal[
        "auto", "parquet", "arrow", "jsonl", "json", "csv", "tsv", "xml", "warc", "html", "markdown", "code", "text"
    ] = Field(
        "auto",
        description="auto: by the file's name (anything unknown is lines of text). Tar and zip archives hold files of this format.",
    )
    text_field: str = Field(
        "text",
        description="The column, key or XML element that holds the text; `*`: the whole row as JSON, for `chat-records`.",
    )
    meta_fields: tuple[str, ...] = Field(
        (),
        description="Other columns or keys of a row that its document keeps, in `meta`: an id, a URL, a title, a licence.",
    )
    text_unit: Literal["line", "file"] = Field("line", description="What a document is in plain text: a line, a file.")
    encoding: str = Field(
        "utf-8", description="Of text; or `detect`. HTML is decoded as the server or the page says, or as detected."
    )
    source: str = Field("files", min_length=1, description="What mixtures and reports call these documents.")
    max_bytes: int = Field(
        1_000_000, ge=1, description="A record with more bytes than this (a line, a page) is rejected."
    )
    max_member_bytes: int = Field(
        16 << 30, ge=1, description="A member of an archive is read no further than this many bytes, decompressed."
    )
    max_file_bytes: int = Field(
        1 << 40, ge=1, description="A compressed file is read no further than this many bytes, decompressed."
    )
    part_rows: int = Field(
        1000, ge=1, description="Most records per part. Only files of one document each share a part."
    )
    part_bytes: int = Field(64 << 20, ge=1, description="A part ends before its records exceed this many bytes.")

    @field_validator("meta_fields")
    @classmethod
    def _names_of_their_own(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if taken := sorted({*value} & {*OWN_META}):
            raise ValueError(f"{', '.join(taken)}: the document's place in the files is called so; rename the field")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        import codecs

        if value != "detect":
            try:
                value = codecs.lookup(value).name
                b"a".decode(value, "replace")  # of an empty text any codec is one
            except LookupError:
                raise ValueError("not a known text encoding; take utf-8, latin-1, gb18030, ..., or detect") from None
        return value


class Files(Stage):
    """Plans ranges of records within files, then reads them."""

    kind = "files"
    produces = "documents"
    Settings = FilesSettings
    settings: FilesSettings

    @cached_property
    def files(self) -> list[str]:
        """The files that the paths name, sorted, each once. Raises RecipeError where a path names none, or one not in UTF-8, or
        none is left."""
        found = sorted(self._named("paths", self.settings.paths) - self._named("exclude", self.settings.exclude))
        if not found:
            raise RecipeError(f"{self.name}.exclude: no file is left", "name fewer")
        for name in found:
            if (said := os.fsencode(name).decode("utf-8", "backslashreplace")) != name:
                raise RecipeError(
                    f"{self.name}.paths: the name {said} is not UTF-8", "rename the file, or `exclude` it"
                )
        return found

    def _named(self, setting: str, paths: Sequence[str]) -> set[str]:
        """Return the files that the paths of a setting name. Raises RecipeError where a path names none."""
        found: set[str] = set()
        for path in paths:
            matching = named_files(path)
            if not matching:
                where = f"{self.name}.{setting}: there is no file {shown(path)}"
                raise RecipeError(where, "check the path; patterns need quotes")
            found.update(matching)
        return found

    def check(self) -> None:
        """Refuse paths that name no file."""
        _ = self.files

    def extra_identity(self) -> dict[str, str]:
        """Return a digest per file: of its content on this machine, of size and time of change elsewhere."""
        from hornbook.models import file_digest

        return {f"file {name}": remote_mark(name) if "://" in name else file_digest(Path(name)) for name in self.files}

    def run(self, context: StageContext) -> StageResult:
        """Write the plan unless an earlier attempt did, then read every range."""
        store, name = context.artifact.store, f"{context.artifact.folder}/{PLAN}"
        if not store.exists(name):
            with context.progress(len(self.files), unit="files counted") as progress:
                plan = make_plan(self.files, self.settings, progress.advance)
            store.create(name, parquet_bytes(plan))
        with store.open_input(name) as file:
            plan = pq.read_table(file)
        if not plan.num_rows:
            files = ", ".join(map(shown, self.files))
            raise DataError(f"{self.name}: {files}: no rows", "name files that hold documents")
        totals = context.make_parts(ReadRows(self.settings, context.artifact), planned_parts(plan), unit="rows")
        empty = sorted(set(self.files) - set(plan["file"].to_pylist()))
        metrics: dict[str, Any] = {"files": len(self.files), "rows": totals.planned, "empty_files": len(empty)}
        warnings = [f"{shown(name)} is empty" for name in empty[:NAMED]]
        for path in self.settings.paths:
            if left := sorted(set(passed_over(path)) - set(self.files)):
                others = f"{left[0]} and {len(left) - 1:,} others" if len(left) > 1 else left[0]
                warnings.append(
                    f"of the folder {path} the Parquet and Arrow files are read, not {others}: name those by a pattern"
                )
        if warnings:
            metrics["warnings"] = warnings
        return StageResult(metrics=metrics, files=[PLAN])

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return nothing: rows are counted when the stage runs."""
        return Expected(unit="rows")


class ReadRows(PartMaker):
    """Reads the planned ranges of files; keeps the file that it read last open for the range that follows."""

    kind = "files"

    def __init__(self, settings: FilesSettings, artifact: Artifact) -> None:
        self.settings = settings
        self.artifact = artifact

    def setup(self) -> None:
        """Read the plan."""
        with self.artifact.store.open_input(f"{self.artifact.folder}/{PLAN}") as file:
            self.plan = pq.read_table(file)
        self.file = ""
        self.records: Iterator[Record] = iter(())
        self.next_row = 0

    def make(self, part: PartRange) -> PartContent:
        """Return the range's documents and rejects."""
        documents: list[Document] = []
        rejects: list[Reject] = []
        for planned in part_segments(self.plan, part):
            file = shown(planned["file"])
            for place, (found, meta, kind, where) in enumerate(self._found(planned)):
                unit, row = planned["start"] + place, planned["first_row"] + place
                if isinstance(found, Bad):
                    named = " ".join(filter(None, (file, meta.get("member"), f"row {row}")))
                    rejects.append(Reject(unit, named, found.reason, found.detail + where))
                    continue
                told = found if isinstance(found, Told) else Told(found, {})
                key = content_key(told.text.encode())
                meta = {**told.meta, "file": file, "row": row, **meta}
                documents.append(Document(document_id(unit), key, told.text, self.settings.source, kind, meta=meta))
        return PartContent(documents_table(documents), rejects_table(rejects))

    def _found(self, planned: Mapping[str, Any]) -> Iterator[tuple[str | Bad | Told, Mapping[str, Any], str, str]]:
        """Yield (text or what is wrong, meta, kind, where it is, for a reject) of a segment's records."""
        name, count = planned["file"], 0
        form = format_of(name, self.settings)
        self._go_to(planned, form)
        self.file = ""  # whoever fails on the way leaves no place to go on from
        for record in itertools.islice(self.records, planned["rows"]):
            placed = form not in ("zip", *COLUMNS) and not record.skip and "member" not in record.meta
            where = f" (record at byte {record.offset})" if placed else ""
            yield record.read(), record.meta, record.kind, where
            count += 1
        self.file, self.next_row = name, self.next_row + count
        if count != planned["rows"]:
            raise _changed(name)

    def _go_to(self, planned: Mapping[str, Any], form: str | None) -> None:
        """Let `records` be at the segment's first one: by reading on where that is cheaper than entering the file again."""
        name, first = planned["file"], planned["first_row"]
        self._opened(planned).close()
        enterable = form in ("warc", "zip", *COLUMNS) or codec_of(path_of(name)) is None
        ahead = self.file == name and self.next_row <= first
        entry = first - planned["skip"]
        if not ahead or (self.next_row < entry and enterable):
            self.records = stream_records(name, self.settings, planned["offset"])
            self.file, self.next_row = name, entry
        over = first - self.next_row
        if sum(1 for _ in itertools.islice(self.records, over)) < over:
            raise _changed(name)
        self.next_row = first

    def _opened(self, planned: Mapping[str, Any]) -> Any:
        """Open a planned file. Raises DataError where it is not the one that was planned."""
        file = opened(planned["file"])
        if file.seek(0, io.SEEK_END) != planned["size"]:
            file.close()
            raise _changed(planned["file"])
        file.seek(0)
        return file


def _changed(name: str) -> DataError:
    return DataError(
        f"{shown(name)} changed while it was read", "leave the files alone while the stage runs, then run again"
    )
