"""A file's records whatever its format: the one place that knows which reader reads what.

All are read from front to back, entered where the plan noted a place: at a byte of the decompressed file, which costs no reading in
a plain file, or at a row of a format of columns (Parquet, Arrow).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from classifiers.archives import tar_records, zip_records
from classifiers.byte_streams import Stream, codec_of, file_stream
from classifiers.columns import column_records
from classifiers.csv_rows import csv_records
from classifiers.file_names import format_named, opened, path_of, shown
from classifiers.json_values import json_records
from classifiers.lines import line_records
from classifiers.records import Bad, Broken, Record, bad_record, checked, decoded, page_text, too_long
from classifiers.web_archives import warc_records
from classifiers.xml_elements import xml_records
from hornbook.errors import DataError

if TYPE_CHECKING:
    from classifiers.files import FilesSettings

COLUMNS = ("parquet", "arrow")
ARCHIVES = ("tar", "zip")
WHOLE = ("html", "markdown", "code", "whole")
KINDS = {"html": "html", "markdown": "markdown", "code": "code"}
PYTHON = (".py", ".pyi")


def format_of(name: str, settings: FilesSettings, member: bool = False) -> str | None:
    """Return how a file is read: what the settings say of all that is no archive, else what its name says.

    A file whose name says nothing holds lines of text, a member of an archive nothing that is known: None.
    """
    named = format_named(name)
    if named in ARCHIVES:
        return named
    found = settings.format if settings.format != "auto" else named or (None if member else "text")
    return "whole" if found == "text" and settings.text_unit == "file" else found


def stream_records(name: str, settings: FilesSettings, offset: int = 0) -> Iterator[Record]:
    """Yield the records of a file from a place that the plan noted, at last a reject where its rest cannot be read.

    Raises DataError for a file that cannot be opened or lacks a chosen column, which no reject can tell.
    """
    form = format_of(name, settings)
    path = path_of(name)
    place, skip = offset, 0
    try:
        with opened(name) as file:
            if form in COLUMNS:
                records = column_records(file, form, shown(name), settings, offset)
            elif form == "warc":
                records = warc_records(file, codec_of(path), settings, offset)
            elif form == "zip":
                records = zip_records(file, settings, partial(_member_records, settings=settings), offset)
            else:
                stream = file_stream(file, path, settings.max_file_bytes)
                if offset and form not in ("csv", "tsv"):
                    stream.skip(offset)
                records = _records(stream, name, form, settings, offset)
            for record in records:
                place, skip = record.offset, record.skip + 1
                yield record
    except OSError as error:
        raise DataError(
            f"{shown(name)} cannot be read: {error}", "check the disk or the network, then run again"
        ) from error
    except Broken as broken:
        yield bad_record(place, skip, broken.reason, broken.detail)


def _records(stream: Stream, name: str, form: str | None, settings: FilesSettings, offset: int = 0) -> Iterator[Record]:
    match form:
        case "jsonl" | "text":
            return line_records(stream, settings, form == "jsonl")
        case "json":
            return json_records(stream, settings)
        case "csv" | "tsv":
            return csv_records(stream, shown(name), settings, "," if form == "csv" else "\t", offset)
        case "xml":
            return xml_records(stream, settings)
        case "tar":
            return tar_records(stream, settings, partial(_member_records, settings=settings))
        case _:
            return whole_record(stream, name, form or "whole", settings)


def _member_records(stream: Stream, name: str, settings: FilesSettings) -> Iterator[Record]:
    """Return the records of an archive's member; one reject for what only a file of its own can be."""
    form = format_of(name, settings, member=True)
    if form is None:
        return iter([bad_record(0, 0, "unknown-format", "its name says no format that is read")])
    if form in (*ARCHIVES, *COLUMNS, "warc"):
        return iter([bad_record(0, 0, "unknown-format", f"{form} inside an archive is not read: unpack it first")])
    return _records(stream, name, form, settings)


def whole_record(stream: Stream, name: str, form: str, settings: FilesSettings) -> Iterator[Record]:
    """Yield the one record of a file that is a document as a whole; it is read when its text is asked for."""
    yield Record(0, 0, settings.max_bytes, _Whole(stream, form, settings), kind=kind_of(name, form))


def kind_of(name: str, form: str) -> str:
    """Return what a document of a whole file is called."""
    return "python" if form == "code" and path_of(name).lower().endswith(PYTHON) else KINDS.get(form, "text")


class _Whole:
    def __init__(self, stream: Stream, form: str, settings: FilesSettings) -> None:
        self.stream, self.form, self.settings = stream, form, settings

    def __call__(self) -> str | Bad:
        limit = self.settings.max_bytes
        try:
            data = self.stream.exactly(limit + 1)
            if len(data) > limit:
                return too_long(len(data) + self.stream.skip(self.settings.max_file_bytes), limit)
        except Broken as broken:
            return Bad(broken.reason, broken.detail)
        if self.form == "html":
            text: Any = page_text(data)[0]
        elif data.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
            text = page_text(data)[0]
        else:
            text = decoded(data, 0, self.settings.encoding)
        return text if isinstance(text, Bad) else checked(text, "file", limit)
