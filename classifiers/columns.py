"""Files of rows with named columns, Parquet and Arrow (what `datasets` saves): a record per row; memory: one batch.

A reader enters Parquet at a row group and Arrow at the start, and reads on from there. Both may hold what a program wrote
that never looked: text that is no UTF-8 is a reject of its row, and offsets that lead out of a file are found before they are
followed, since following them ends the process.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from classifiers.records import WHOLE, Bad, Record, Told, checked, chosen, require_columns
from hornbook.documents import canonical_json
from hornbook.errors import DataError

if TYPE_CHECKING:
    from classifiers.files import FilesSettings

BATCH = 256  # rows at most
BATCH_BYTES = 4 << 20
"""Bytes of text in a batch, about, as far as rows are alike."""
BUFFER = 1 << 20
"""Bytes of a Parquet column that are read at a time. Without it a row group's are, and one may be as large as its file."""
ARROW_FILE = b"ARROW1"
AS_BYTES = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}
"""Types of text, and those of the same bytes."""


class Held(NamedTuple):
    """What a file holds."""

    rows: int
    size: int
    """Bytes of text, decompressed."""
    entries: list[int]
    """Rows at which a reader can begin, ascending."""


def parquet_rows(file: BinaryIO, name: str, settings: FilesSettings) -> Held:
    """Return what a Parquet file holds. Raises DataError where it has no such column of text."""
    try:
        found = _parquet(file)
        _require_text(found.schema_arrow, name, settings)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{name} is not a readable Parquet file: {error}", "write it again, or name it under `exclude`"
        ) from error
    metadata = found.metadata
    groups = _groups(metadata, settings)
    entries = list(itertools.accumulate((rows for rows, _ in groups), initial=0))
    return Held(metadata.num_rows, sum(size for _, size in groups), entries)


def arrow_rows(file: BinaryIO, name: str, settings: FilesSettings) -> Held:
    """Return what a file holds. Raises DataError for one that is no Arrow data or has no such column of text."""
    rows = size = 0
    try:
        reader = _arrow(file)
        _require_text(reader.schema, name, settings)
        for batch in _batches(reader, settings):
            rows += len(batch)
            size += batch.nbytes
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{name} is not readable Arrow data: {error}", "write it again, or name it under `exclude`"
        ) from error
    return Held(rows, size, [0])


def column_records(file: BinaryIO, form: str, name: str, settings: FilesSettings, first: int) -> Iterator[Record]:
    """Yield a record per row, from row `first` on, one of the `entries`. Raises DataError where the file is damaged."""
    row = first
    try:
        batches = _parquet_batches(file, first, settings) if form == "parquet" else _arrow_batches(file, settings)
        for batch in batches:
            texts = _Texts(batch, settings)
            for place in range(len(batch)):
                yield Record(row, 0, 0, _Text(texts, place))
                row += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name} is damaged: {error}", "write it again, or name it under `exclude`") from error


def _parquet(file: BinaryIO) -> pq.ParquetFile:
    return pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)


def _parquet_batches(file: BinaryIO, first: int, settings: FilesSettings) -> Iterator[pa.RecordBatch]:
    found = _parquet(file)
    columns = None if settings.text_field == WHOLE else _wanted(settings)
    begin = 0
    for number, (rows, size) in enumerate(_groups(found.metadata, settings)):
        if begin >= first and rows:
            batch = _batch_rows(rows, size)
            yield from found.iter_batches(batch_size=batch, row_groups=[number], columns=columns, use_threads=False)
        begin += rows


def _groups(metadata: pq.FileMetaData, settings: FilesSettings) -> list[tuple[int, int]]:
    """Return how many rows, and how many bytes of text, decompressed, each row group has."""
    found = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = (group.column(column) for column in range(metadata.num_columns))
        read = (
            column
            for column in columns
            if settings.text_field == WHOLE or column.path_in_schema.partition(".")[0] in _wanted(settings)
        )
        found.append((group.num_rows, sum(column.total_uncompressed_size for column in read)))
    return found


def _batch_rows(rows: int, size: int) -> int:
    """Return how many rows to take at a time where so many rows are so many bytes."""
    return max(1, min(BATCH, BATCH_BYTES * rows // max(1, size)))


def _arrow_batches(file: BinaryIO, settings: FilesSettings) -> Iterator[pa.RecordBatch]:
    for batch in _batches(_arrow(file), settings):
        rows = _batch_rows(len(batch), batch.nbytes)
        for start in range(0, len(batch), rows):
            yield batch.slice(start, rows)


def _arrow(file: BinaryIO) -> Any:
    """Open Arrow data, streamed (as `datasets` writes it) or with a footer."""
    source = pa.memory_map(file.name) if isinstance(getattr(file, "name", None), str) else file
    if file.read(len(ARROW_FILE)) == ARROW_FILE:
        return pa.ipc.open_file(source)
    file.seek(0)
    return pa.ipc.open_stream(source)


def _batches(reader: Any, settings: FilesSettings) -> Iterator[pa.RecordBatch]:
    """Yield what is read of each batch; its offsets lead nowhere else. Raises ArrowInvalid where they would."""
    numbered = isinstance(reader, pa.ipc.RecordBatchFileReader)
    batches = map(reader.get_batch, range(reader.num_record_batches)) if numbered else reader
    for batch in batches:
        read = batch if settings.text_field == WHOLE else batch.select(_wanted(settings))
        for column in read.columns:
            # Text as bytes: whether they are UTF-8 is a matter of each row.
            bare = AS_BYTES.get(column.type)
            (column.view(bare) if bare else column).validate(full=True)
        yield read


class _Texts:
    """A batch's texts, made when the first of them is asked for: of rows that are passed over none is."""

    def __init__(self, batch: pa.RecordBatch, settings: FilesSettings) -> None:
        self.batch, self.settings = batch, settings

    @cached_property
    def found(self) -> list[str | Bad | Told]:
        """The texts, or what is wrong with them."""
        try:
            return self._texts(self.batch)
        except UnicodeDecodeError:
            return [self._text(place) for place in range(len(self.batch))]

    def _texts(self, batch: pa.RecordBatch) -> list[str | Bad | Told]:
        rows, limit = batch.to_pylist(), self.settings.max_bytes
        if self.settings.text_field != WHOLE:
            return [chosen(row, self.settings) for row in rows]
        # What JSON has not (a time, bytes) is written as Python shows it.
        return [checked(canonical_json(json.loads(json.dumps(row, default=str))), WHOLE, limit) for row in rows]

    def _text(self, place: int) -> str | Bad | Told:
        try:
            return self._texts(self.batch.slice(place, 1))[0]
        except UnicodeDecodeError as error:
            return Bad("encoding", f"not UTF-8 at byte {error.start} of the text: {error.reason}")


class _Text:
    __slots__ = ("place", "texts")

    def __init__(self, texts: _Texts, place: int) -> None:
        self.texts, self.place = texts, place

    def __call__(self) -> str | Bad | Told:
        return self.texts.found[self.place]


def _wanted(settings: FilesSettings) -> list[str]:
    return list(dict.fromkeys([settings.text_field, *settings.meta_fields]))


def _require_text(schema: pa.Schema, name: str, settings: FilesSettings) -> None:
    if settings.text_field == WHOLE:
        return
    require_columns(schema.names, name, settings)
    kind = schema.field(settings.text_field).type
    if kind not in AS_BYTES:
        raise DataError(f"{name}: column {settings.text_field!r} holds {kind}, not text", "set text_field")
