"""Best-fit rows: documents laid into rows of T tokens so that none is cut that fits into one (arXiv 2404.10830).

A document longer than a row is cut into rows of its own and a rest. Rests and whole documents are then placed longest first,
each into the fullest row that still has room for it. The plan depends on the documents' lengths and on T alone, so one packed
corpus serves any T. It is made once per machine, a group of documents at a time, and lies memory-mapped in the cache:
neither the corpus nor its number of documents ever has to fit into memory.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hornbook.errors import StoreError
from hornbook.machine import cache_folder

VERSION = 1
GROUP = 1 << 20
"""Documents (or pieces) that are laid into rows together; at most a few rows of each group stay partly empty."""
PIECE = np.dtype([("start", "<i8"), ("tokens", "<i4"), ("place", "<i4"), ("context", "?")])
"""Tokens from `start` on, counted over all shards, that stand at `place` in their row. Of a piece from the middle of a
document the first token is `context`: it is there for the next one's sake and no target."""

OverLong = Literal["split", "cut", "drop"]
"""What becomes of a document longer than a row: pieces; its beginning; nothing."""


@dataclass(frozen=True)
class Documents:
    """Some documents, by their place in the tokens of all shards together.

    Attributes:
        starts, lengths: int64 (documents,).
        open: bool (documents,), whether no end-of-text token ends it; one is put behind it then.
    """

    starts: np.ndarray
    lengths: np.ndarray
    open: np.ndarray

    def __getitem__(self, which: slice | np.ndarray) -> Documents:
        return Documents(self.starts[which], self.lengths[which], self.open[which])


@dataclass(frozen=True)
class RowPlan:
    """Which pieces stand in which row.

    Attributes:
        pieces: of PIECE, row after row.
        rows: int64 (rows + 1,): where each row's pieces begin in `pieces`.
        tokens: of all rows, context left out.
    """

    pieces: np.ndarray
    rows: np.ndarray
    tokens: int

    def __len__(self) -> int:
        return len(self.rows) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the pieces of a row, in the order of their places."""
        return self.pieces[self.rows[row] : self.rows[row + 1]]


def cached_plan(name: str, documents: Iterable[Documents], row: int, over_long: OverLong) -> RowPlan:
    """Return the plan of this name from the cache, made first if it is not there.

    Args:
        name: a hash of all that decides the documents.
        documents: of shard after shard.
        row: T.
        over_long: what becomes of longer documents.

    Raises:
        StoreError: the cache has no room.
    """
    folder = cache_folder() / "rows" / f"{name[:32]}-{row}-{over_long}-{VERSION}"
    if not folder.exists():
        making = folder.with_name(f".{folder.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        try:
            making.mkdir(parents=True)
            _write(making, documents, row, over_long)
            making.rename(folder)
        except OSError as error:
            if not folder.exists():  # no one else made it in the meantime
                raise StoreError(
                    f"the plan of best-fit rows cannot be written to {folder.parent}: {error}",
                    "free some space, or set HORNBOOK_CACHE to a folder with room",
                ) from error
        finally:
            shutil.rmtree(making, ignore_errors=True)
    tokens = int((folder / "tokens").read_text())
    return RowPlan(_mapped(folder / "pieces.bin", PIECE), _mapped(folder / "rows.bin", np.dtype("<i8")), tokens)


def _write(folder: Path, documents: Iterable[Documents], row: int, over_long: OverLong) -> None:
    written = tokens = 0
    with (folder / "pieces.bin").open("wb") as pieces, (folder / "rows.bin").open("wb") as rows:
        rows.write(np.zeros(1, "<i8").tobytes())
        for group in _groups(documents):
            found = lay_out(group, row, over_long)
            pieces.write(found.pieces.tobytes())
            rows.write((found.rows[1:] + written).astype("<i8").tobytes())
            written += len(found.pieces)
            tokens += found.tokens
    (folder / "tokens").write_text(str(tokens))


def _groups(documents: Iterable[Documents]) -> Iterator[Documents]:
    """Yield documents in groups of about GROUP, whatever shards they lie in."""
    waiting: list[Documents] = []
    for shard in documents:
        for low in range(0, len(shard.starts), GROUP):
            waiting.append(shard[low : low + GROUP])
            if sum(len(few.starts) for few in waiting) >= GROUP:
                yield _joined(waiting)
                waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(parts: Sequence[Documents]) -> Documents:
    columns = zip(*((part.starts, part.lengths, part.open) for part in parts), strict=True)
    return Documents(*(np.concatenate(column) for column in columns))


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def lay_out(documents: Documents, row: int, over_long: OverLong = "split") -> RowPlan:
    """Return the rows of some documents; see `cached_plan`."""
    lengths = documents.lengths
    if over_long == "drop":
        documents = documents[lengths <= row]
    elif over_long == "cut":
        documents = Documents(documents.starts, np.minimum(lengths, row), documents.open & (lengths < row))
    pieces, sizes = _cut(documents, row)
    chosen, rows = best_fit(sizes, row)
    pieces, sizes = pieces[chosen], sizes[chosen]
    first = rows[:-1]
    opener = np.where(pieces["context"][first], 0, 1)  # a document's first token follows an end-of-text token
    ahead = np.cumsum(sizes) - sizes  # sizes of all pieces before, this row's and the earlier ones'
    pieces["place"] = ahead - np.repeat(ahead[first] - opener, np.diff(rows))
    return RowPlan(pieces, rows, int(pieces["tokens"].sum(dtype=np.int64)) - int(pieces["context"].sum()))


def _cut(documents: Documents, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pieces of documents, without places, and what room each takes: a whole row's context stands before it."""
    count = -(-documents.lengths // row)
    owner = np.repeat(np.arange(len(count)), count)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    own = np.minimum(row, documents.lengths[owner] - number * row)
    pieces = np.zeros(len(owner), PIECE)
    pieces["context"] = number > 0
    pieces["start"] = documents.starts[owner] + number * row - pieces["context"]
    pieces["tokens"] = own + pieces["context"]
    closing = documents.open[owner] & (number == count[owner] - 1)
    return pieces, np.minimum(own + pieces["context"] + closing, row)


def best_fit(sizes: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay pieces into rows, longest first, each into the fullest row it fits into (best-fit decreasing).

    All pieces of one size are placed at once, so the cost is that of sorting, and little for each pair of a size and a room.

    Args:
        sizes: int64 (pieces,), 1 to `room`.
        room: of a row.

    Returns:
        The pieces row after row, in the order in which they were placed, int64 (pieces,); where each row begins among
        them, int64 (rows + 1,).
    """
    order = np.argsort(-sizes, kind="stable")
    row_of = np.empty(len(sizes), dtype=np.int64)
    left_in: list[list[np.ndarray]] = [[] for _ in range(room + 1)]  # rows by the room that is left in them
    any_left = np.zeros(room + 1, dtype=bool)
    rows = at = 0

    def leave(which: np.ndarray, left: int) -> None:
        if left and len(which):
            left_in[left].append(which)
            any_left[left] = True

    values, counts = np.unique(sizes, return_counts=True)
    for size, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        waiting = count
        while waiting:
            left = size + int(any_left[size:].argmax())
            if not any_left[left]:
                left, opened = room, -(-waiting // (room // size))
                leave(np.arange(rows, rows + opened), room)
                rows += opened
            each = left // size  # a row that has room for another one is the fullest that has
            open_rows = np.concatenate(left_in[left])
            used = min(len(open_rows), -(-waiting // each))
            placed = min(waiting, used * each)
            row_of[order[at : at + placed]] = np.repeat(open_rows[:used], each)[:placed]
            left_in[left], any_left[left] = [], False
            leave(open_rows[used:], left)
            leave(open_rows[: used - 1], left - each * size)
            leave(open_rows[used - 1 : used], left - (placed - (used - 1) * each) * size)
            at, waiting = at + placed, waiting - placed
    by_row = order[np.argsort(row_of[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows))])
    return by_row, starts.astype(np.int64)
