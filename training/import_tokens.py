"""Takes in a corpus that another system tokenized: PhoneLM's `.data`, MobileLLM's JSON lines of `token_ids`, or a data set.

The ids must be of the tokenizer that this stage is given; none beyond its vocabulary gets in. Documents are what lies between
end-of-text tokens (or a row of JSON or of a data set); their keys are hashes of their ids, so a training token can be traced to its file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from hornbook.artifact import Artifact
from hornbook.documents import Reject, content_key, document_id, rejects_table
from hornbook.errors import DataError, ModelError, RecipeError
from hornbook.parts import PartContent, PartRange, parquet_bytes
from hornbook.partwork import PartMaker
from hornbook.settings import Settings, runtime
from hornbook.stage import Input, Produces, Stage, StageContext, StageResult
from training.pack import TOKENIZER, held_out
from training.packed import DESCRIPTION, PackDescription, tokenizer_hash
from training.shards import ShardBuilder
from training.token_files import data_ids, dataset_batches, document_ends, read_header, row_of_line
from training.tokenizer import load_tokenizer

PLAN = "plan.parquet"
ENDINGS = {"phonelm": (".data",), "token-ids": (".jsonl",), "dataset": (".parquet", ".arrow")}


class ImportTokensSettings(Settings):
    """Which files, and what they are called in a mixture."""

    paths: tuple[str, ...] = Field(
        ...,
        min_length=1,
        description="Files, folders (searched through) or patterns of .data, .jsonl, .parquet or .arrow files.",
    )
    format: Literal["phonelm", "token-ids", "dataset"] = Field(
        ...,
        description="phonelm: .data shards. token-ids: JSON lines of token_ids (MobileLLM, amber-data-prep). dataset: Parquet "
        "or Arrow with a column input_ids, as `datasets` writes it.",
    )
    source: str = Field("", description="What the corpus is called in a mixture; default: the stage's name.")
    validation_share: float = Field(0.02, ge=0, lt=1, description="Share of the documents held out for validation.")
    part_documents: int = Field(4096, ge=1, description="Most documents (or rows) per part.")
    part_tokens: int = Field(
        1 << 22, ge=1, description="A part of a .data file ends with the document that passes this."
    )
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor.")


class ImportTokens(Stage):
    """Turns files of token ids into a packed corpus."""

    kind = "import-tokens"
    produces: ClassVar[Produces] = "tokens"
    Settings = ImportTokensSettings
    inputs: ClassVar[Mapping[str, Input]] = {"tokenizer": Input("tokenizer")}
    settings: ImportTokensSettings

    @cached_property
    def files(self) -> list[Path]:
        """The files that the paths name, each path's sorted. Raises RecipeError where a path names none."""
        endings, found = ENDINGS[self.settings.format], []
        for name in self.settings.paths:
            path = Path(name).expanduser()
            root = Path(path.anchor or ".")
            matches = (
                [path] if path.exists() else sorted(root.glob(str(path.relative_to(root) if path.anchor else path)))
            )
            files = [file for match in matches for file in (_below(match, endings) if match.is_dir() else [match])]
            if not files:
                raise RecipeError(
                    f"{self.name}.paths: there is no {' or '.join(endings)} file at {name}", "check the path"
                )
            found += files
        return list(dict.fromkeys(file.resolve() for file in found))

    def check(self) -> None:
        """Refuse paths that name no file."""
        _ = self.files

    def check_inputs(self, inputs: Mapping[str, Sequence[Stage]]) -> None:
        """Call the corpus what the stage is called: part of the artifact, so that a renamed stage's is another one."""
        if not self.settings.source:
            self.settings = self.settings.model_copy(update={"source": self.name})

    def extra_identity(self) -> dict[str, str]:
        """Return a digest per file."""
        from hornbook.models import file_digest

        return {f"file {path}": file_digest(path) for path in self.files}

    def run(self, context: StageContext) -> StageResult:
        """Plan segments of the files unless an earlier attempt did, then make a shard of each."""
        store, folder = context.artifact.store, context.artifact.folder
        tokenizer = context.input("tokenizer").local_folder(TOKENIZER)
        loaded = load_tokenizer(tokenizer)
        if loaded.eos_token_id is None:
            raise ModelError(f"the tokenizer {tokenizer} has no end-of-text token", "choose one with an eos_token")
        description = PackDescription(
            source=self.settings.source or self.name,
            kind="text",
            vocabulary=len(loaded),
            eos=int(loaded.eos_token_id),
            tokenizer=tokenizer_hash(tokenizer),
        )
        store.write(f"{folder}/{DESCRIPTION}", description.model_dump_json(indent=1).encode())
        if not store.exists(f"{folder}/{PLAN}"):
            segments = list(self._segments(context, description.eos))
            store.create(f"{folder}/{PLAN}", parquet_bytes(pa.Table.from_pylist(segments)))
        with store.open_input(f"{folder}/{PLAN}") as file:
            plan = pq.read_table(file).to_pylist()
        if not plan:
            raise DataError(f"{self.name}: the files hold no tokens", "check paths and format")
        maker = ImportPart(self.settings, context.artifact, description)
        ranges = [PartRange(segment["unit"], segment["unit"] + segment["units"]) for segment in plan]
        totals = context.make_parts(maker, ranges, unit="documents")
        if not totals.counts.get("train_tokens"):
            raise DataError(f"{self.name}: no document is left to train on", "look at the rejects with `hornbook show`")
        figures = {name: int(value) for name, value in totals.counts.items()}
        return StageResult(metrics={"source": description.source, **figures}, files=[DESCRIPTION, PLAN])

    def _segments(self, context: StageContext, eos: int) -> Iterator[dict[str, Any]]:
        """Yield what becomes a part: file, first place (token or byte), tokens or bytes, first unit, number of units."""
        unit = 0
        with context.progress(len(self.files), unit="files counted") as progress:
            for path in self.files:
                context.check_stop()
                cut = {"phonelm": _data_cuts, "token-ids": _line_cuts, "dataset": _row_cuts}[self.settings.format]
                for first, size, units in cut(path, eos, self.settings):
                    yield {"file": str(path), "first": first, "size": size, "unit": unit, "units": units}
                    unit += units
                progress.advance(1)


class ImportPart(PartMaker):
    """Makes a shard of a planned segment."""

    def __init__(self, settings: ImportTokensSettings, artifact: Artifact, description: PackDescription) -> None:
        self.settings, self.artifact, self.description = settings, artifact, description
        self.max_workers = settings.workers

    def setup(self) -> None:
        """Read the plan."""
        with self.artifact.store.open_input(f"{self.artifact.folder}/{PLAN}") as file:
            self.plan = {segment["unit"]: segment for segment in pq.read_table(file).to_pylist()}

    def make(self, part: PartRange) -> PartContent:
        """Return the shard of a segment: its spans as rows, tokens as files; documents of unknown ids are rejects."""
        described = self.description
        builder = ShardBuilder(described.eos, described.vocabulary)
        rejects: list[Reject] = []
        for place, ids in enumerate(self._documents(self.plan[part.start])):
            unit = part.start + place
            problem = ids if isinstance(ids, str) else _unknown(ids, described.vocabulary)
            if problem or isinstance(ids, str):
                rejects.append(Reject(unit, f"document {unit}", "bad-tokens", problem))
                continue
            key = content_key(ids.astype("<i8").tobytes())
            split = held_out(key, self.settings.validation_share)
            builder.add_whole(document_id(unit), key, described.source, split, ids)
        counts = builder.counts()
        return PartContent(
            table=builder.spans(),
            rejects=rejects_table(rejects),
            files=builder.files(),
            counts=counts | {"tokens": counts["train_tokens"] + counts["validation_tokens"]},
        )

    def _documents(self, segment: Mapping[str, Any]) -> Iterator[np.ndarray | str]:
        path, first = Path(segment["file"]), segment["first"]
        if self.settings.format == "phonelm":
            ids = data_ids(path)[first : first + segment["size"]]
            start = 0
            for end in document_ends(ids, self.description.eos):
                yield np.array(ids[start:end], dtype=np.int64)
                start = end
            return
        if self.settings.format == "dataset":
            yield from _rows(path, first, segment["size"])
            return
        with path.open("rb") as file:
            file.seek(first)
            while file.tell() < first + segment["size"]:
                at = file.tell()
                line = file.readline()
                if line.strip():
                    try:
                        yield row_of_line(line, f"{path} at byte {at}")
                    except ValueError as error:
                        yield str(error)


def _data_cuts(path: Path, eos: int, settings: ImportTokensSettings) -> Iterator[tuple[int, int, int]]:
    read_header(path)
    first = units = end = 0
    for end in document_ends(data_ids(path), eos):
        units += 1
        if units == settings.part_documents or end - first >= settings.part_tokens:
            yield first, end - first, units
            first, units = end, 0
    if units:
        yield first, end - first, units


def _line_cuts(path: Path, eos: int, settings: ImportTokensSettings) -> Iterator[tuple[int, int, int]]:
    first = units = at = 0
    with path.open("rb") as file:
        for line in file:
            at += len(line)
            units += bool(line.strip())
            if units == settings.part_documents:
                yield first, at - first, units
                first, units = at, 0
    if units:
        yield first, at - first, units


def _row_cuts(path: Path, eos: int, settings: ImportTokensSettings) -> Iterator[tuple[int, int, int]]:
    rows = sum(batch.num_rows for batch in dataset_batches(path))
    for first in range(0, rows, settings.part_documents):
        count = min(settings.part_documents, rows - first)
        yield first, count, count


def _rows(path: Path, first: int, count: int) -> Iterator[np.ndarray | str]:
    """Yield the ids of `count` rows from the row `first` on, or what is wrong with one."""
    at = 0
    for batch in dataset_batches(path):
        low, high = max(first - at, 0), min(first + count - at, batch.num_rows)
        for row in range(low, max(low, high)):
            ids = batch.column(0)[row].values
            if ids is None or not len(ids) or ids.null_count:
                yield f"{path} at row {at + row}: no ids, or a gap among them"
            else:
                yield ids.to_numpy(zero_copy_only=False).astype(np.int64)
        at += batch.num_rows
        if at >= first + count:
            return


def _unknown(ids: np.ndarray, vocabulary: int) -> str:
    low, high = int(ids.min()), int(ids.max())
    if low >= 0 and high < vocabulary:
        return ""
    return f"token id {low if low < 0 else high}, the tokenizer has 0 to {vocabulary - 1}"


def _below(folder: Path, endings: Sequence[str]) -> list[Path]:
    """Return a folder's files, those of numbered folders (1, 2, ..., 10: one a node) in their numbers' order."""

    def order(path: Path) -> list[tuple[int, int, str]]:
        parts: Sequence[str] = path.relative_to(folder).parts
        return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]

    return sorted(
        (path for path in folder.rglob("*") if path.is_file() and path.name.endswith(tuple(endings))), key=order
    )
