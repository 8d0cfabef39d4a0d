"""Other systems' files of token ids: PhoneLM's `.data` shards, JSON lines of `token_ids` as MobileLLM reads them, and data sets.

PhoneLM: a header of 20 bytes, little-endian (the letters XLLM, version 1, number of tokens, number of special tokens, a code
for the dtype), then the bare ids. MobileLLM: folders 1, 2, ... (one a node) of JSON lines, each a row of 2,049 ids.
Data sets: Parquet files, or the Arrow files of `datasets`' save_to_disk, with a column `input_ids`, a document a row.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hornbook.errors import DataError

MAGIC, VERSION = b"XLLM", 1
HEADER = struct.Struct("<4siiii")
DTYPES = ("<i2", "<i4", "<i8")
COLUMNS = ("input_ids", "token_ids")
MOST_TOKENS = (1 << 31) - 1  # that the header can count


@dataclass(frozen=True)
class DataHeader:
    """What a `.data` file says of itself."""

    tokens: int
    special: int
    dtype: str


def read_header(path: Path) -> DataHeader:
    """Read a `.data` file's header. Raises DataError if it is none, or has more or fewer tokens than it says."""
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size or head[:4] != MAGIC:
        raise DataError(f"{path} is no PhoneLM token file: it does not begin with XLLM", "check paths and format")
    _, version, tokens, special, code = HEADER.unpack(head)
    if version != VERSION or not 0 <= code < len(DTYPES):
        raise DataError(f"{path} has version {version} and dtype {code}; known: version 1, dtypes 0 to 2", "convert it")
    found = path.stat().st_size - HEADER.size
    wanted = tokens * np.dtype(DTYPES[code]).itemsize
    if found != wanted:
        raise DataError(
            f"{path} says {tokens:,} tokens, {wanted:,} bytes, and holds {found:,}", "it was cut off: write it again"
        )
    return DataHeader(tokens, special, DTYPES[code])


def data_ids(path: Path) -> np.ndarray:
    """Return the ids of a `.data` file, memory-mapped, (tokens,)."""
    header = read_header(path)
    if not header.tokens:
        return np.empty(0, header.dtype)
    return np.memmap(path, dtype=header.dtype, mode="r", offset=HEADER.size)


def write_data(path: Path, pieces: Iterable[np.ndarray], vocabulary: int, special: int) -> int:
    """Write pieces of ids as one `.data` file of the smallest dtype; returns its tokens. Raises DataError beyond 2^31."""
    code = next(code for code, dtype in enumerate(DTYPES) if vocabulary - 1 <= np.iinfo(dtype).max)
    tokens = 0
    with path.open("wb") as file:
        file.write(b"\0" * HEADER.size)  # no file of this format until it is whole
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, dtype=DTYPES[code]).tobytes())
            tokens += len(piece)
        if tokens > MOST_TOKENS:
            raise DataError(f"{path}: {tokens:,} tokens are more than the header can count", "lower max_tokens")
        file.seek(0)
        file.write(HEADER.pack(MAGIC, VERSION, tokens, special, code))
    return tokens


def document_ends(ids: np.ndarray, eos: int, block: int = 1 << 24) -> Iterator[int]:
    """Yield where each document ends (the place behind its end-of-text token), and the end of what follows the last one."""
    last = 0
    for start in range(0, len(ids), block):
        for place in np.flatnonzero(ids[start : start + block] == eos):
            last = start + int(place) + 1
            yield last
    if last < len(ids):
        yield len(ids)


def row_of_line(line: bytes, where: str) -> np.ndarray:
    """Return the ids of a JSON line, int64 (tokens,). Raises ValueError saying what is wrong with it."""
    try:
        row = json.loads(line)
        ids = np.array(row["token_ids"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{where}: no JSON object with token_ids: {error}") from None
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(f"{where}: token_ids is no list of whole numbers")
    return ids.astype(np.int64)


def write_rows(folder: Path, rows: Iterable[np.ndarray], nodes: int, name: str = "tokens.jsonl") -> int:
    """Write rows of ids as JSON lines, in turn into the folders 1 to `nodes`; returns how many."""
    files = []
    for node in range(1, nodes + 1):
        (folder / str(node)).mkdir(parents=True, exist_ok=True)
        files.append((folder / str(node) / name).open("w"))
    count = 0
    try:
        for count, row in enumerate(rows, start=1):
            files[(count - 1) % nodes].write(json.dumps({"token_ids": row.tolist()}, separators=(",", ":")) + "\n")
    finally:
        for file in files:
            file.close()
    return count


def dataset_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a data set's file, ids alone, a batch at a time.

    Raises:
        DataError: it cannot be read, or has no column of ids.
    """
    try:
        if path.suffix == ".arrow":
            with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
                name = _ids_column(path, stream.schema)
                for batch in stream:
                    yield batch.select([name])
        else:
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(1024, columns=[_ids_column(path, file.schema_arrow)])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is no file of a data set: {error}", "check paths and format") from error


def _ids_column(path: Path, schema: pa.Schema) -> str:
    for name in COLUMNS:
        kind = schema.field(name).type if name in schema.names else pa.null()
        if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_integer(kind.value_type):
            return name
    raise DataError(f"{path} has no column {' or '.join(COLUMNS)} of lists of whole numbers", "check paths and format")


def write_dataset(path: Path, documents: Iterable[np.ndarray]) -> int:
    """Write documents' ids as one Parquet file with the column `input_ids`, int32; returns how many."""
    schema = pa.schema([pa.field("input_ids", pa.list_(pa.int32()))])
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        waiting: list[np.ndarray] = []
        for ids in documents:
            waiting.append(ids)
            count += 1
            if len(waiting) == 1024:
                writer.write_batch(pa.record_batch([pa.array(waiting, schema.field(0).type)], schema=schema))
                waiting = []
        if waiting:
            writer.write_batch(pa.record_batch([pa.array(waiting, schema.field(0).type)], schema=schema))
    return count
