"""Writes a packed corpus as the files that PhoneLM or MobileLLM train on, or as a plain data set of ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from hornbook.errors import DataError
from hornbook.settings import Settings
from hornbook.stage import Expected, Input, Produces, Stage, StageContext, StageResult
from training.packed import describe, shard_index
from training.shards import SPLITS, Shard, Split, TokenSource
from training.token_files import write_data, write_dataset, write_rows

FOLDER = "files"
BLOCK = 1 << 22  # tokens


class ExportTokensSettings(Settings):
    """Whose format, and how it is cut."""

    format: Literal["phonelm", "token-ids", "dataset"] = Field(
        ...,
        description="phonelm: .data shards. token-ids: JSON lines. dataset: Parquet, a document a row, which "
        "`datasets.load_dataset` reads.",
    )
    max_tokens: int = Field(1 << 28, ge=1, lt=1 << 31, description="phonelm: tokens of a file, at most.")
    row_tokens: int = Field(
        2049, ge=2, description="token-ids: ids of a row; what is left over at the end is left out."
    )
    nodes: int = Field(1, ge=1, description="token-ids: folders that rows are shared out to, 1 to this number.")
    special_tokens: int = Field(0, ge=0, description="phonelm: what the header says of special tokens.")


class ExportTokens(Stage):
    """Writes the tokens of a packed corpus, training and validation apart, into the artifact's folder `files`."""

    kind = "export-tokens"
    produces: ClassVar[Produces] = "files"
    Settings = ExportTokensSettings
    inputs: ClassVar[Mapping[str, Input]] = {"tokens": Input("tokens")}
    settings: ExportTokensSettings

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return the tokens."""
        return Expected(unit="tokens", tokens=inputs["tokens"][0].tokens)

    def run(self, context: StageContext) -> StageResult:
        """Write the files.

        Raises:
            DataError: the corpus holds conversations; neither format says which tokens are trained on.
        """
        packed = context.input("tokens")
        if describe(packed).kind != "text":
            raise DataError(
                f"{packed.manifest.stage} holds conversations, and {self.settings.format} cannot say which tokens are trained on",
                "pack it with form: text",
            )
        index = shard_index(packed)
        local = packed.local_folder()
        figures: dict[str, int] = {}
        with context.scratch() as scratch, context.progress(sum(map(index.tokens, SPLITS)), "tokens") as progress:
            for split in SPLITS:
                if self.settings.format == "dataset":
                    figures |= self._write_dataset(scratch, split, TokenSource(local, split, 2, index=index))
                    progress.advance(index.tokens(split))
                    continue
                pieces = _pieces(local, index.splits[split], index.dtype, progress.advance)
                if self.settings.format == "phonelm":
                    figures |= self._write_data(scratch, split, pieces, index.vocabulary)
                else:
                    figures |= self._write_rows(scratch / split, split, pieces, index.tokens(split))
            files = context.save_folder(scratch, FOLDER)
        return StageResult(metrics=figures, files=files)

    def _write_data(self, folder: Path, split: str, pieces: Iterator[np.ndarray], vocabulary: int) -> dict[str, int]:
        written = number = 0
        for whole in _regrouped(pieces, self.settings.max_tokens):
            path = folder / f"{split}-{number:05d}.data"
            written += write_data(path, whole, vocabulary, self.settings.special_tokens)
            number += 1
        return {f"{split}_tokens": written, f"{split}_files": number}

    def _write_rows(self, folder: Path, split: str, pieces: Iterator[np.ndarray], tokens: int) -> dict[str, int]:
        length = self.settings.row_tokens
        rows = 0
        if tokens >= length:
            folder.mkdir()
            rows = write_rows(folder, _rows(pieces, length), self.settings.nodes)
        return {f"{split}_rows": rows, f"{split}_left_out": tokens - rows * length}

    def _write_dataset(self, folder: Path, split: Split, source: TokenSource) -> dict[str, int]:
        written = 0
        shards = len(source.index.splits[split])
        for number, documents in enumerate(source.documents()):
            path = folder / f"{split}-{number:05d}-of-{shards:05d}.parquet"
            bounds = zip(documents.starts.tolist(), documents.lengths.tolist(), strict=True)
            written += write_dataset(path, (source.ids(start, start + length) for start, length in bounds))
        return {f"{split}_rows": written, f"{split}_files": shards}


def _pieces(folder: Path, shards: Sequence[Shard], dtype: str, advance: Callable[[int], None]) -> Iterator[np.ndarray]:
    """Yield the tokens of all shards, in order, a block at a time."""
    for shard in shards:
        ids = np.memmap(folder / shard.tokens, dtype=dtype, mode="r") if shard.count else np.empty(0, dtype)
        for start in range(0, len(ids), BLOCK):
            piece = np.array(ids[start : start + BLOCK])
            advance(len(piece))
            yield piece


def _regrouped(pieces: Iterator[np.ndarray], most: int) -> Iterator[Iterator[np.ndarray]]:
    """Cut a stream of pieces into streams of `most` tokens; each must be used up before the next is asked for."""
    left = next(pieces, None)

    def one() -> Iterator[np.ndarray]:
        nonlocal left
        room = most
        while left is not None and room:
            yield left[:room]
            taken = min(room, len(left))
            room -= taken
            left = left[taken:] if taken < len(left) else next(pieces, None)

    while left is not None:
        yield one()


def _rows(pieces: Iterator[np.ndarray], length: int) -> Iterator[np.ndarray]:
    rest = np.empty(0, np.int64)
    for piece in pieces:
        rest = np.concatenate([rest, piece.astype(np.int64)])
        whole = len(rest) // length * length
        yield from rest[:whole].reshape(-1, length)
        rest = rest[whole:]
