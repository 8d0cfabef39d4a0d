"""Files of rows with named columns, Parquet and Arrow (what `datasets` saves), entered at any row; memory: one batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from classifiers.records import WHOLE, Bad, Told, checked, chosen, require_columns
from hornbook.documents import canonical_json
from hornbook.errors import DataError

if TYPE_CHECKING:
    from classifiers.files import FilesSettings

BATCH = 256  # rows
ARROW_FILE = b"ARROW1"


def parquet_rows(file: BinaryIO, name: str, settings: FilesSettings) -> tuple[int, int]:
    """Return (rows, bytes of text, decompressed). Raises DataError where there is no such column of text."""
    try:
        found = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name} is not a readable Parquet file: {error}", "write it again, or name it under `exclude`"
        ) from error
    _require_text(found.schema_arrow, name, settings)
    metadata = found.metadata
    size = 0
    for group in range(metadata.num_row_groups):
        columns = (metadata.row_group(group).column(number) for number in range(metadata.num_columns))
        size += sum(
            column.total_uncompressed_size
            for column in columns
            if settings.text_field == WHOLE or column.path_in_schema.partition(".")[0] in _wanted(settings)
        )
    return metadata.num_rows, size


def parquet_texts(file: BinaryIO, first: int, rows: int, settings: FilesSettings) -> Iterator[str | Bad | Told]:
    """Yield the texts of `rows` rows from row `first` on."""
    found = pq.ParquetFile(file)
    groups: list[int] = []
    for group in range(found.num_row_groups):
        held = found.metadata.row_group(group).num_rows
        if first >= held and not groups:
            first -= held
        else:
            groups.append(group)
    columns = None if settings.text_field == WHOLE else _wanted(settings)
    batches = found.iter_batches(batch_size=BATCH, row_groups=groups, columns=columns)
    yield from _texts(batches, first, rows, settings)


def arrow_rows(file: BinaryIO, name: str, settings: FilesSettings) -> tuple[int, int]:
    """Return (rows, bytes of text). Raises DataError for a file that is no Arrow data or lacks the column of text."""
    rows = size = 0
    try:
        reader = _arrow(file)
        _require_text(reader.schema, name, settings)
        for batch in _batches(reader):
            rows += len(batch)
            size += (batch if settings.text_field == WHOLE else batch.select(_wanted(settings))).nbytes
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name} is not readable Arrow data: {error}", "write it again, or name it under `exclude`"
        ) from error
    return rows, size


def arrow_texts(file: BinaryIO, first: int, rows: int, settings: FilesSettings) -> Iterator[str | Bad | Told]:
    """Yield the texts of `rows` rows from row `first` on."""
    reader = _arrow(file)
    whole = settings.text_field == WHOLE
    batches = (batch if whole else batch.select(_wanted(settings)) for batch in _batches(reader))
    yield from _texts(batches, first, rows, settings)


def _arrow(file: BinaryIO) -> Any:
    """Open Arrow data, streamed (as `datasets` writes it) or with a footer."""
    source = pa.memory_map(file.name) if isinstance(getattr(file, "name", None), str) else file
    if file.read(len(ARROW_FILE)) == ARROW_FILE:
        return pa.ipc.open_file(source)
    file.seek(0)
    return pa.ipc.open_stream(source)


def _batches(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        yield from reader


def _texts(batches: Any, first: int, rows: int, settings: FilesSettings) -> Iterator[str | Bad | Told]:
    for batch in batches:
        found = batch.slice(min(first, len(batch)), max(0, rows))
        first -= min(first, len(batch))
        if settings.text_field == WHOLE:
            yield from (checked(text, WHOLE, settings.max_bytes) for text in _whole_rows(found))
        else:
            yield from (chosen(row, settings) for row in found.to_pylist())
        rows -= len(found)
        if rows <= 0:
            return


def _whole_rows(batch: pa.RecordBatch) -> Iterator[str]:
    """Yield rows as JSON; what JSON has not (a time, bytes) is written as Python shows it."""
    for row in batch.to_pylist():
        yield canonical_json(json.loads(json.dumps(row, default=str)))


def _wanted(settings: FilesSettings) -> list[str]:
    return list(dict.fromkeys([settings.text_field, *settings.meta_fields]))


def _require_text(schema: pa.Schema, name: str, settings: FilesSettings) -> None:
    if settings.text_field == WHOLE:
        return
    require_columns(schema.names, name, settings)
    kind = schema.field(settings.text_field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{name}: column {settings.text_field!r} holds {kind}, not text", "set text_field")
