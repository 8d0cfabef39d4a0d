"""CSV and TSV as records: a row each, with the columns that the first row names. A row may hold line ends between quotes.

A quote that is never closed would take all that follows with it: where a row runs past `max_bytes` or the end of the file,
its first line alone is the reject, and reading goes on with the second.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from classifiers.byte_streams import Stream
from classifiers.lines import LOOKED_AT, binary
from classifiers.records import (
    WHOLE,
    Bad,
    Record,
    Told,
    bad_record,
    checked,
    chosen,
    decoded,
    require_columns,
    too_long,
)
from hornbook.documents import canonical_json

if TYPE_CHECKING:
    from classifiers.files import FilesSettings

BOM = b"\xef\xbb\xbf"


def csv_records(stream: Stream, name: str, settings: FilesSettings, delimiter: str, first: int = 0) -> Iterator[Record]:
    """Yield a record per row after the first, from byte `first` on (0: from the first row).

    Raises DataError where the first row lacks the chosen column.
    """
    if found := binary(stream.peek()[:LOOKED_AT]):
        yield bad_record(0, 0, "binary", found)
        return
    csv.field_size_limit(max(csv.field_size_limit(), settings.max_bytes + 1))
    rows = _Rows(stream, settings, delimiter)
    if (header := next(rows, None)) is None:
        return
    names = header[2] if not isinstance(header[2], Bad) else []
    require_columns(names, name, settings)
    if first > rows.offset:
        rows.go_to(first)
    columns = len(names)
    for offset, size, row in rows:
        if not isinstance(row, Bad) and len(row) != columns:
            row = Bad("not-csv", f"row at byte {offset}: {len(row)} columns, the first row names {columns}")
        if isinstance(row, Bad):
            yield bad_record(offset, 0, row.reason, row.detail)
        else:
            yield Record(offset, 0, size, _Row(dict(zip(names, row, strict=True)), offset, settings))


class _Row:
    __slots__ = ("offset", "row", "settings")

    def __init__(self, row: dict[str, str], offset: int, settings: FilesSettings) -> None:
        self.row, self.offset, self.settings = row, offset, settings

    def __call__(self) -> str | Bad | Told:
        settings = self.settings
        if settings.text_field == WHOLE:
            text = self._decoded(canonical_json(self.row))
            return text if isinstance(text, Bad) else checked(text, WHOLE, settings.max_bytes)
        found = {name: self._decoded(self.row[name]) for name in (settings.text_field, *settings.meta_fields)}
        bad = next((cell for cell in found.values() if isinstance(cell, Bad)), None)
        return bad or chosen(found, settings)

    def _decoded(self, cell: str) -> str | Bad:
        return decoded(cell.encode("utf-8", "surrogateescape"), self.offset, self.settings.encoding)


class _TooFar(Exception):
    """A row took more lines than a row may."""


class _Rows:
    """Rows with the byte at which they begin and their bytes. Text is bytes yet: UTF-8 with what is none escaped."""

    def __init__(self, stream: Stream, settings: FilesSettings, delimiter: str) -> None:
        self.stream, self.limit, self.delimiter = stream, settings.max_bytes, delimiter
        self.again: deque[bytes] = deque()
        self.taken: list[bytes] = []
        self.offset = 0
        """Byte at which the next row begins."""

    def go_to(self, offset: int) -> None:
        """Go forward to a byte where a row begins."""
        self.again.clear()
        self.stream.skip(offset - self.stream.offset)
        self.offset = offset

    def __iter__(self) -> Iterator[tuple[int, int, list[str] | Bad]]:
        return self

    def __next__(self) -> tuple[int, int, list[str] | Bad]:
        while True:
            offset, self.taken = self.offset, []
            reader = csv.reader(self._lines(), delimiter=self.delimiter, strict=True)
            row: list[str] | Bad
            try:
                row = next(reader)
            except csv.Error as error:
                row = Bad("not-csv", f"row at byte {offset}: {error}")
                self._keep_first_line()
            except _TooFar:
                if len(self.taken) == 1:
                    size = len(self.taken[0]) + (0 if self.taken[0].endswith(b"\n") else self.stream.end_line())
                    row = too_long(size, self.limit, f" at byte {offset}")
                    self.offset += size
                    return offset, 0, row
                row = Bad(
                    "not-csv", f"row at byte {offset}: a quote that is not closed, or more than {self.limit} bytes"
                )
                self._keep_first_line()
            size = sum(map(len, self.taken))
            self.offset += size
            if row or isinstance(row, Bad):  # an empty line is no row
                return offset, size, row

    def _keep_first_line(self) -> None:
        self.again.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]

    def _lines(self) -> Iterator[str]:
        size = 0
        while True:
            line = self.again.popleft() if self.again else self.stream.readline(self.limit + 1)
            if not line:
                return
            self.taken.append(line)
            size += len(line)
            if size > self.limit:
                raise _TooFar
            start = len(BOM) if self.offset == 0 and len(self.taken) == 1 and line.startswith(BOM) else 0
            yield line[start:].decode("utf-8", "surrogateescape")
