"""Token shards: the format between packing and training, and the source that cuts training rows out of them.

A shard is the bare token ids of whole documents, each ended by the end-of-text token, in one file that is memory-mapped.
Beside it lie a Parquet table of document spans (for lineage) and, for conversations, one byte per token that says whether
the token is trained on. Rows of T+1 tokens are cut from the concatenation of all shards when they are read: shards are
made in parallel and none waits for another, another T needs no second packing, and at most one row's tokens per split are
left over. How rows are cut is `Rows`; windows are all full, and cut documents where rows end.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hornbook.errors import DataError
from training.best_fit import Documents, OverLong, RowPlan, cached_plan

FORMAT_VERSION = 1
INDEX = "shards.json"
OPEN_FILES = 128

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
Rows = Literal["windows", "best-fit", "documents", "pairs"]

SPAN_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),  # the document's id in its corpus
        pa.field("key", pa.binary(16), nullable=False),  # the document's key
        pa.field("corpus", pa.string(), nullable=False),  # the stage that made the corpus
        pa.field("split", pa.string(), nullable=False),  # train or validation
        pa.field("start", pa.int64(), nullable=False),  # its first token, counted from the start of the shard
        pa.field("tokens", pa.int64(), nullable=False),  # its tokens, the end-of-text token included
    ]
)


@dataclass(frozen=True)
class Shard:
    """One shard: names of its files relative to the folder, and what they must hold."""

    tokens: str
    spans: str
    count: int
    documents: int
    digest: str
    """Hash of the token file and, where there is one, the mask file; names change with every attempt, this does not."""
    mask: str = ""


@dataclass(frozen=True)
class ShardIndex:
    """All shards of a packed corpus, in order."""

    dtype: str
    vocabulary: int
    eos: int
    splits: dict[str, list[Shard]]
    format_version: int = FORMAT_VERSION

    def write(self, folder: Path) -> Path:
        """Write the index into `folder`; returns its path."""
        path = folder / INDEX
        path.write_text(json.dumps(asdict(self), indent=1))
        return path

    @classmethod
    def read(cls, folder: Path) -> ShardIndex:
        """Read the index of a folder. Raises DataError if it is missing, damaged or of a newer format."""
        path = folder / INDEX
        try:
            value = json.loads(path.read_text())
            if value["format_version"] > FORMAT_VERSION:
                raise DataError(f"{path} was written by a newer hornbook", "upgrade hornbook, or pack again")
            splits = {split: [Shard(**shard) for shard in shards] for split, shards in value.pop("splits").items()}
            return cls(splits=splits, **value)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is missing or damaged: {error}", "run the pack stage again") from error

    def fingerprint(self, split: str) -> str:
        """Return a hash of what a split holds, whatever its files are called."""
        held = [self.dtype, self.vocabulary, self.eos, [[shard.count, shard.digest] for shard in self.splits[split]]]
        return hashlib.sha256(json.dumps(held).encode()).hexdigest()

    def tokens(self, split: str) -> int:
        """Return the number of tokens of a split."""
        return sum(shard.count for shard in self.splits.get(split, []))


def token_dtype(vocabulary: int) -> str:
    """Return the smallest little-endian dtype that holds every id of a vocabulary: `<u2` or `<u4`."""
    return "<u2" if vocabulary <= 1 << 16 else "<u4"


@dataclass
class ShardBuilder:
    """Collects the documents of one part and turns them into the bytes of its shard files.

    Args:
        eos: end-of-text id, put after every document.
        vocabulary: number of ids.
        masked: whether documents come with a training mask.
    """

    eos: int
    vocabulary: int
    masked: bool = False
    _ids: dict[str, list[np.ndarray]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    _trained: dict[str, list[np.ndarray]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    _next: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    _spans: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, identifier: int, key: bytes, corpus: str, split: Split, ids: np.ndarray, trained: np.ndarray | None = None
    ) -> int:
        """Append a document (integers of shape (tokens,), without the end-of-text token); returns its token count.

        `trained` (bool, same shape) marks the tokens that are targets; the end-of-text token is one if the last is.
        """
        if self.masked:
            if trained is None:
                raise ValueError("a masked shard needs a mask for every document")
            self._trained[split].append(np.append(trained, trained[-1:]).astype(np.uint8))
        return self.add_whole(identifier, key, corpus, split, np.append(ids, self.eos))

    def add_whole(self, identifier: int, key: bytes, corpus: str, split: Split, ids: np.ndarray) -> int:
        """Append a document as it is, its end-of-text token (if it has one) included; returns its token count.

        Raises:
            DataError: an id lies outside the vocabulary; the shard's dtype might make another one of it.
        """
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocabulary:
            raise DataError(
                f"document {identifier} of {corpus} has token ids from {ids.min()} to {ids.max()}, the vocabulary has "
                f"{self.vocabulary:,}",
                "the tokenizer leaves numbers out between its words: give each a word, used or not, and train or pack again",
            )
        ids = ids.astype(token_dtype(self.vocabulary))
        self._ids[split].append(ids)
        self._spans.append(
            {"id": identifier, "key": key, "corpus": corpus, "split": split, "start": self._next[split]}
            | {"tokens": len(ids)}
        )
        self._next[split] += len(ids)
        return len(ids)

    def spans(self) -> pa.Table:
        """Return the document spans, of SPAN_SCHEMA."""
        return pa.Table.from_pylist(self._spans, schema=SPAN_SCHEMA)

    def files(self) -> dict[str, bytes]:
        """Return the shard files by role: `train`, `validation`, `train-mask`, `validation-mask`; empty ones left out."""
        files = {str(split): b"".join(array.tobytes() for array in self._ids[split]) for split in SPLITS}
        if self.masked:
            files |= {f"{split}-mask": b"".join(array.tobytes() for array in self._trained[split]) for split in SPLITS}
        return {role: data for role, data in files.items() if data}

    def counts(self) -> dict[str, int]:
        """Return tokens and documents by split, for the part's record."""
        documents = {split: len(self._ids[split]) for split in SPLITS}
        return {f"{split}_tokens": self._next[split] for split in SPLITS} | {
            f"{split}_documents": documents[split] for split in SPLITS
        }


def write_shard_folder(folder: Path, builders: Iterable[ShardBuilder]) -> ShardIndex:
    """Write shards and their index into a local folder (for use without stages; `training.pack` does it part by part)."""
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    builder = None
    for number, builder in enumerate(builders):
        names = {role: f"{role}-{number:05d}.bin" for role in builder.files()}
        digests = {}
        for role, data in builder.files().items():
            (folder / names[role]).write_bytes(data)
            digests[role] = hashlib.sha256(data).hexdigest()
        pq.write_table(builder.spans(), folder / f"spans-{number:05d}.parquet")
        add_shards(splits, names, digests, f"spans-{number:05d}.parquet", builder.counts())
    if builder is None:
        raise DataError("there is nothing to pack", "check that the corpus holds documents")
    index = ShardIndex(token_dtype(builder.vocabulary), builder.vocabulary, builder.eos, splits)
    index.write(folder)
    return index


def add_shards(
    splits: Mapping[str, list[Shard]],
    names: Mapping[str, str],
    digests: Mapping[str, str],
    spans: str,
    counts: Mapping[str, float],
) -> None:
    """Append a part's shards to the lists of an index; names and digests by the roles of `ShardBuilder.files`."""
    for split, shards in splits.items():
        if split in names:
            shard = Shard(
                tokens=names[split],
                spans=spans,
                count=int(counts[f"{split}_tokens"]),
                documents=int(counts[f"{split}_documents"]),
                digest=digests[split] + digests.get(f"{split}-mask", ""),
                mask=names.get(f"{split}-mask", ""),
            )
            shards.append(shard)


@dataclass(frozen=True)
class Location:
    """Where a training token came from."""

    corpus: str
    document: int
    key: bytes
    offset: int
    """The token's number within the document."""


class TokenSource:
    """Training rows of one split of a packed corpus.

    Args:
        folder: local folder with the shards.
        split: `train` or `validation`.
        sequence_length: T; a row has T+1 tokens (inputs and targets overlap in all but one).
        rows: `windows` cuts the concatenation every T tokens; `best-fit` lays whole documents into rows, side by side
            (see `training.best_fit`), padded to T+1; `documents` gives each document its own row, begun by the
            end-of-text token (which opens every document in windows, too), cut or padded to T+1; `pairs` does so with
            two documents at a time, which are read and counted together.
        index: the shards; default: the index file in the folder.
        over_long: what becomes of documents longer than a row in `best-fit` and `documents` (there `split` is `cut`).

    Raises:
        DataError: the index or a shard is missing, or a shard's size is not what the index says.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        sequence_length: int,
        rows: Rows = "windows",
        index: ShardIndex | None = None,
        over_long: OverLong = "split",
    ) -> None:
        self.folder, self.split, self.sequence_length, self.rows = folder, split, sequence_length, rows
        self.over_long = over_long
        self.index = index or ShardIndex.read(folder)
        self.eos = self.index.eos
        self.vocabulary = self.index.vocabulary
        self._shards = self.index.splits.get(split, [])
        self._dtype = np.dtype(self.index.dtype)
        for shard in self._shards:
            self._check_size(shard.tokens, shard.count * self._dtype.itemsize)
            if shard.mask:
                self._check_size(shard.mask, shard.count)
        self._ends = list(accumulate(shard.count for shard in self._shards))
        self._open = lru_cache(maxsize=OPEN_FILES)(self._map)
        self._spans = lru_cache(maxsize=OPEN_FILES)(self._read_spans)
        if rows in ("documents", "pairs"):
            self._starts, self._stops = self._document_bounds()
        elif rows == "best-fit":
            self._plan = self._row_plan()

    def __len__(self) -> int:
        """Return the number of rows."""
        if self.rows == "windows":
            return max(0, (self.tokens - 1) // self.sequence_length)
        return len(self._plan) if self.rows == "best-fit" else len(self._starts) // self.rows_per_draw

    @property
    def tokens(self) -> int:
        """All tokens of the split."""
        return self._ends[-1] if self._ends else 0

    @property
    def rows_per_draw(self) -> int:
        """Rows of T+1 tokens that one number of a sequence stands for."""
        return 2 if self.rows == "pairs" else 1

    @property
    def row_tokens(self) -> float:
        """Tokens that a row holds on average, padding and context left out."""
        if self.rows == "windows" or not len(self):
            return float(self.sequence_length)
        if self.rows == "best-fit":
            return self._plan.tokens / len(self)
        return float((self._stops - self._starts).sum()) / len(self)

    @property
    def masked(self) -> bool:
        """Whether some tokens are not trained on."""
        return self.rows != "windows" or any(shard.mask for shard in self._shards)

    @property
    def numbered(self) -> bool:
        """Whether it takes more than end-of-text tokens to tell the documents of a row apart; see `numbers`."""
        return self.rows == "best-fit" and any(shard.mask for shard in self._shards)

    def read(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (tokens, trained) of the rows `sequences`.

        tokens: int64 of shape (rows, T+1), of pairs (2 rows, T+1). trained: bool of the same shape, whether a token may be
        a target.

        Raises:
            DataError: an id lies outside the vocabulary (the file is named).
        """
        if self.rows == "pairs":
            sequences = (2 * np.asarray(sequences)[:, None] + np.arange(2)).reshape(-1)
        shape = (len(sequences), self.sequence_length + 1)
        tokens, trained = np.full(shape, self.eos, dtype=np.int64), np.zeros(shape, dtype=bool)
        for row, sequence in enumerate(np.asarray(sequences).tolist()):
            for start, stop, at, context in self._pieces(sequence):
                self._copy(start, stop, tokens[row, at:], trained[row, at:])
                if context:
                    trained[row, at] = False
        if tokens.size and int(tokens.max()) >= self.vocabulary:
            self._name_damage(np.asarray(sequences).tolist())
        return tokens, trained

    def numbers(self, sequences: np.ndarray) -> np.ndarray:
        """Return which document of its row each input token belongs to, int64 (rows, T), from 0; what ends one opens the next.

        Conversations may hold end-of-text tokens, at the end of every turn in some templates: only the plan of the rows says
        where one ends.
        """
        found = np.zeros((len(sequences), self.sequence_length), dtype=np.int64)
        for row, sequence in enumerate(np.asarray(sequences).tolist()):
            for _, _, at, _ in self._pieces(sequence)[1:]:
                found[row, at - 1 :] += 1
        return found

    def locate(self, sequence: int, position: int) -> Location:
        """Return the document that the input token at `position` (0 to T-1) of a row belongs to, and where in it.

        An end-of-text token that opens a row belongs to the document behind it. Of a pair: in the chosen answer's row; both
        come from one document.

        Raises:
            IndexError: no such row, or the position is padding.
        """
        if not 0 <= sequence < len(self):
            raise IndexError(f"row {sequence} of {len(self)}")
        pieces = self._pieces(sequence * self.rows_per_draw)
        for start, stop, at, _ in pieces:
            token = start + max(position - at, 0)
            if token < stop and (position >= at or at == 1):
                return self._location(token)
        raise IndexError(f"position {position} of row {sequence} is padding")

    def _location(self, token: int) -> Location:
        shard, within, _ = next(self._in_shards(token, token + 1))
        spans = self._spans(shard.spans)
        row = int(np.searchsorted(spans.column("start").to_numpy(), within, side="right")) - 1
        span = {name: spans.column(name)[row].as_py() for name in ("id", "key", "corpus", "start")}
        return Location(span["corpus"], span["id"], span["key"], within - span["start"])

    def _pieces(self, sequence: int) -> list[tuple[int, int, int, bool]]:
        """Return of each piece of a row its first token, the one after its last, its place, and if it begins with context."""
        if self.rows == "windows":
            start = sequence * self.sequence_length
            return [(start, start + self.sequence_length + 1, 0, False)]
        if self.rows == "best-fit":
            return [
                (start, start + tokens, at, context) for start, tokens, at, context in self._plan[sequence].tolist()
            ]
        return [(int(self._starts[sequence]), int(self._stops[sequence]), 1, False)]

    def _copy(self, start: int, stop: int, tokens: np.ndarray, trained: np.ndarray) -> None:
        at = 0
        for shard, low, high in self._in_shards(start, stop):
            tokens[at : at + high - low] = self._open(shard.tokens, self._dtype.str)[low:high]
            trained[at : at + high - low] = self._open(shard.mask, "u1")[low:high] if shard.mask else True
            at += high - low

    def _in_shards(self, start: int, stop: int) -> Iterator[tuple[Shard, int, int]]:
        """Yield where the tokens from `start` to `stop` (excluded) lie: shard, first token in it, the one after the last."""
        number = bisect_right(self._ends, start)
        while start < stop:
            shard = self._shards[number]
            low = start - (self._ends[number] - shard.count)
            high = min(low + stop - start, shard.count)
            yield shard, low, high
            start, number = start + high - low, number + 1

    def _name_damage(self, sequences: Sequence[int]) -> None:
        for piece in (piece for sequence in sequences for piece in self._pieces(sequence)):
            for shard, low, high in self._in_shards(*piece[:2]):
                ids = self._open(shard.tokens, self._dtype.str)[low:high]
                if int(ids.max()) >= self.vocabulary:
                    raise DataError(
                        f"{self.folder / shard.tokens} holds token id {int(ids.max())} at token {low + int(ids.argmax())}, "
                        f"beyond the vocabulary of {self.vocabulary}",
                        "the file is damaged or was packed with another tokenizer: delete the artifact and pack again",
                    )

    def _map(self, name: str, dtype: str) -> np.ndarray:
        return np.asarray(np.memmap(self.folder / name, dtype=dtype, mode="r"))  # a plain array is cut up twice as fast

    def _read_spans(self, name: str) -> pa.Table:
        spans = pq.read_table(self.folder / name)
        return spans.filter(pc.equal(spans.column("split"), self.split))

    def ids(self, start: int, stop: int) -> np.ndarray:
        """Return the tokens from `start` to `stop` (excluded), counted over all shards, in the shards' dtype."""
        parts = [
            self._open(shard.tokens, self._dtype.str)[low:high] for shard, low, high in self._in_shards(start, stop)
        ]
        return np.concatenate(parts)

    def documents(self) -> Iterator[Documents]:
        """Yield the documents of shard after shard."""
        for shard, end in zip(self._shards, self._ends, strict=True):
            spans = self._spans(shard.spans)
            starts, lengths = (spans.column(name).to_numpy() for name in ("start", "tokens"))
            ids = self._open(shard.tokens, self._dtype.str)
            yield Documents(starts + (end - shard.count), lengths, ids[starts + lengths - 1] != self.eos)

    def longer(self) -> pa.Table:
        """Return the spans of documents longer than a row, of SPAN_SCHEMA."""
        found = [
            spans.filter(pc.greater(spans.column("tokens"), self.sequence_length))
            for spans in (self._spans(shard.spans) for shard in self._shards)
        ]
        return pa.concat_tables([SPAN_SCHEMA.empty_table(), *found])

    def _document_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the first token of every document, and the one after its row's last: 16 bytes a document."""
        parts = [(part.starts, part.lengths) for part in self.documents()]
        none = np.empty(0, dtype=np.int64)
        starts, lengths = (
            np.concatenate([none, *column]) for column in (zip(*parts, strict=True) if parts else ((), ()))
        )
        if self.over_long == "drop":
            fits = lengths <= self.sequence_length
            starts, lengths = starts[fits], lengths[fits]
        return starts, starts + np.minimum(lengths, self.sequence_length)

    def _row_plan(self) -> RowPlan:
        where = [str(self.folder), self.split, [[shard.spans, shard.documents] for shard in self._shards]]
        name = json.dumps([self.index.fingerprint(self.split), *where])
        hashed = hashlib.sha256(name.encode()).hexdigest()
        return cached_plan(hashed, self.documents(), self.sequence_length, self.over_long)

    def _check_size(self, name: str, expected: int) -> None:
        path = self.folder / name
        found = path.stat().st_size if path.exists() else -1
        if found != expected:
            raise DataError(
                f"{path} is missing" if found < 0 else f"{path} has {found:,} bytes, its index says {expected:,}",
                "the packed corpus is damaged: delete its folder and run the pack stage again",
            )
