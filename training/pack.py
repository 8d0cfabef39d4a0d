"""Turns documents into token shards: one part of the corpus becomes one shard, in parallel, and none waits for another.

Which documents are kept (a threshold on a score) is decided here, so that a threshold changes without scoring again.
Some documents are held out for validation, by the hash of their key: the same document is held out in every corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from hornbook.artifact import Artifact
from hornbook.chat import Message, chat_of
from hornbook.documents import Reject, rejects_table
from hornbook.errors import DataError, ModelError
from hornbook.parts import PartContent, PartRange
from hornbook.partwork import PartMaker
from hornbook.plan import derive_seed
from hornbook.preference import preference_of
from hornbook.scores import ScoreFilter
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult
from training.packed import DESCRIPTION, PackDescription, template_hash, tokenizer_hash
from training.shards import SPLITS, ShardBuilder, Split
from training.tokenizer import load_tokenizer

TOKENIZER = "tokenizer"
Encoded = tuple[np.ndarray, np.ndarray | None]
"""A document's ids, and which of them are trained on (None: all)."""


class PackSettings(Settings):
    """What is packed, and how."""

    form: Literal["text", "chat", "preference"] = Field(
        "text",
        description="text: documents. chat: conversations, trained on what the assistant says only. preference: pairs of "
        "answers, for `dpo`.",
    )
    source: str = Field("", description="What the corpus is called in a mixture; default: the stage that made it.")
    minimum_score: float | None = Field(
        None, description="With scores: keep documents from this score on; default: the threshold that the scores name."
    )
    validation_share: float = Field(0.02, ge=0, lt=1, description="Share of the documents held out for validation.")
    workers: int | None = runtime(None, ge=1, description="Most packing workers; default: one per processor.")


class Pack(Stage):
    """Packs one corpus."""

    kind = "pack"
    produces = "tokens"
    Settings = PackSettings
    inputs: ClassVar[Mapping[str, Input]] = {
        "documents": Input("documents"),
        "tokenizer": Input("tokenizer"),
        "scores": Input("attributes", optional=True),
    }
    settings: PackSettings

    def check_inputs(self, inputs: Mapping[str, Sequence[Stage]]) -> None:
        """Call the corpus what the stage that made it is called: part of the artifact, so that a renamed stage is packed anew."""
        if not self.settings.source:
            self.settings = self.settings.model_copy(update={"source": inputs["documents"][0].name})

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return as many documents as there are, at most."""
        documents = inputs["documents"][0]
        return Expected(planned=documents.rows, unit="documents", rows=documents.rows, tokens=documents.tokens)

    def run(self, context: StageContext) -> StageResult:
        """Pack each part of the input into a shard of the same range."""
        documents, scores = context.input("documents"), context.optional_input("scores")
        tokenizer = context.input("tokenizer").local_folder(TOKENIZER)
        kept = ScoreFilter(self.name, documents, scores, self.settings.minimum_score)
        maker = PackPart(self.settings, documents, context.input("tokenizer"), kept)
        description = maker.describe(self.settings.source or context.input_stages["documents"][0], tokenizer)
        store = context.artifact.store
        store.write(f"{context.artifact.folder}/{DESCRIPTION}", description.model_dump_json(indent=1).encode())
        totals = context.make_parts(maker, [part.range for part in documents.parts], unit="documents")
        if not totals.counts.get("train_tokens"):
            raise DataError(
                f"{self.name}: no document is left to train on: {totals.planned} planned, {totals.rejected} rejected, "
                f"{int(totals.counts.get('below_threshold', 0))} below the threshold",
                "lower minimum_score, or look at the rejects with `hornbook show`",
            )
        figures = {name: int(value) for name, value in totals.counts.items()}
        return StageResult(
            metrics={"source": description.source, "minimum_score": kept.threshold, **figures}, files=[DESCRIPTION]
        )


class PackPart(PartMaker):
    """Packs the documents of one part."""

    def __init__(
        self,
        settings: PackSettings,
        documents: Artifact,
        tokenizer: Artifact,
        scores: ScoreFilter,
    ) -> None:
        self.settings, self.documents, self.tokenizer, self.scores = settings, documents, tokenizer, scores
        self.max_workers = settings.workers

    def setup(self) -> None:
        """Load the tokenizer."""
        import os

        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one processor per worker
        self.load(self.tokenizer.local_folder(TOKENIZER))

    def load(self, folder: Path) -> None:
        """Load the tokenizer from a local folder. Raises ModelError if it cannot serve."""
        self.transformers_tokenizer: Any = load_tokenizer(folder)
        if self.transformers_tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer {folder} has no end-of-text token", "choose one with an eos_token")
        if self.settings.form != "text" and "{% generation %}" not in (self.transformers_tokenizer.chat_template or ""):
            raise ModelError(
                f"the tokenizer {folder} has no chat template that marks the assistant's words",
                "put {% generation %} and {% endgeneration %} around them in its chat_template",
            )
        self.eos = int(self.transformers_tokenizer.eos_token_id)
        self.backend = self.transformers_tokenizer.backend_tokenizer
        self.special = [token for token in self.transformers_tokenizer.all_special_tokens if token]

    def describe(self, source: str, folder: Path) -> PackDescription:
        """Return the description of what this maker makes."""
        self.load(folder)
        found = PackDescription(
            source=source,
            kind=self.settings.form,
            vocabulary=len(self.transformers_tokenizer),
            eos=self.eos,
            tokenizer=tokenizer_hash(folder),
            template="" if self.settings.form == "text" else template_hash(folder),
        )
        del self.transformers_tokenizer, self.backend  # not to be pickled to the workers
        return found

    def make(self, part: PartRange) -> PartContent:
        """Return the shard of a range: its spans as rows, tokens and masks as files."""
        record = self.documents.parts_by_start[part.start]
        table = self.documents.read(record, columns=["id", "key", "text", "source", "meta"])
        ids = table.column("id").to_numpy()
        kept = self.scores.kept(record, ids)
        builder = ShardBuilder(self.eos, len(self.transformers_tokenizer), masked=self.settings.form != "text")
        rejects = []
        table = table.filter(kept)
        sizes = dict.fromkeys((f"{split}_bytes" for split in SPLITS), 0)
        rows = table.select(["id", "key", "source"]).append_column("bytes", pc.binary_length(table.column("text")))
        for row, tokens in zip(rows.to_pylist(), self._encode(table), strict=True):
            if isinstance(tokens, str):
                reason, _, detail = tokens.partition(": ")
                rejects.append(Reject(row["id"], "document", reason, detail))
                continue
            split = held_out(row["key"], self.settings.validation_share)
            sizes[f"{split}_bytes"] += row["bytes"]
            for number, answer in enumerate(tokens):  # of a pair, the rejected answer has the document's id turned over
                identifier = row["id"] if number == 0 else ~row["id"]
                builder.add(identifier, row["key"], row["source"], split, *answer)
        counts = builder.counts() | sizes
        below = int((~kept).sum())
        return PartContent(
            table=builder.spans(),
            rejects=rejects_table(rejects),
            planned=ids,
            unit_of=document_of,
            files=builder.files(),
            empty=below,
            counts=counts | {"tokens": counts["train_tokens"] + counts["validation_tokens"], "below_threshold": below},
        )

    def _encode(self, table: Any) -> list[list[Encoded] | str]:
        """Return (ids, mask) of each document, of both answers of a pair, or `reason: detail` of its reject."""
        if self.settings.form != "text":
            encode = self._encode_chat if self.settings.form == "chat" else self._encode_pair
            return [encode(meta) for meta in table.column("meta").to_pylist()]
        self.backend.encode_special_tokens = True  # a document that says <|endoftext|> does not end there
        texts = table.column("text").to_pylist()
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)  # as encode_batch, without offsets
        return [
            [(np.array(encoding.ids, dtype=np.int64), None)] if encoding.ids else "empty: no token"
            for encoding in encodings
        ]

    def _encode_chat(self, meta: str) -> list[Encoded] | str:
        try:
            ids, mask = self._render(chat_of(meta))
        except ValueError as error:
            return _named(error, "bad-chat")
        return [(ids, mask)] if mask.any() else "no-target: the template marks nothing of this conversation"

    def _encode_pair(self, meta: str) -> list[Encoded] | str:
        try:
            pair = preference_of(meta)
            answers = [Message(role="assistant", content=text) for text in (pair.chosen, pair.rejected)]
            both = [self._render([*pair.prompt, answer]) for answer in answers]
        except ValueError as error:
            return _named(error, "bad-preference")
        for _, mask in both:
            starts = np.flatnonzero(mask & ~np.concatenate([[False], mask[:-1]]))
            if not len(starts):
                return "no-target: the template marks nothing of an answer"
            mask[: starts[-1]] = False  # what the assistant said before is part of the prompt
        return list(both)

    def _render(self, chat: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        """Return a conversation's ids and the mask of what the assistant says. Raises ValueError, `reason: detail`."""
        from jinja2 import TemplateError

        if found := [token for token in self.special for message in chat if token in message["content"]]:
            raise ValueError(f"special-token: {found[0]} in a turn's text")
        self.backend.encode_special_tokens = False
        try:
            rendered = self.transformers_tokenizer.apply_chat_template(
                list(chat), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
        except TemplateError as error:  # its own raise_exception: no system prompt, say
            raise ValueError(f"the chat template refuses it: {error}") from error
        ids, mask = np.array(rendered["input_ids"]), np.array(rendered["assistant_masks"], dtype=bool)
        if len(ids) and ids[0] == self.eos:  # every training row begins with it anyhow
            ids, mask = ids[1:], mask[1:]
        if len(ids) and ids[-1] == self.eos:  # and ends with it; there it is trained on if what comes before is
            ids, mask = ids[:-1], mask[:-1]
        return ids, mask


def _named(error: ValueError, reason: str) -> str:
    """Return `reason: detail` of a reject; an error that names its own reason keeps it."""
    return str(error) if str(error).startswith("special-token: ") else f"{reason}: {error}"


def document_of(ids: np.ndarray) -> np.ndarray:
    """Map the ids of spans to documents' ids: a rejected answer's is its document's turned over (~id)."""
    return np.where(ids < 0, ~ids, ids)


def held_out(key: bytes, share: float) -> Split:
    """Return the split that a document belongs to: a pure function of its key."""
    return "validation" if derive_seed("validation", key.hex()) < share * (1 << 63) else "train"
