"""How well a model calls tools: it answers held-out requests greedily, and its calls are compared with the right ones.

Held-out are the documents that `pack` holds out, by the hash of their key. A request counts as right if the answer can be read
and every call has the right tool with the right arguments, in order, and no more; arguments that equal their defaults may be
left out, 1 and 1.0 are the same. The soft accuracy is DroidCall's README's: the mean over calls of the share of arguments that
are right, nothing for a wrong tool (arXiv 2412.00402).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from hornbook.artifact import Artifact
from hornbook.chat import Message, chat_of
from hornbook.documents import KEY_BYTES, Reject, rejects_table
from hornbook.errors import DataError, RecipeError
from hornbook.parts import PartContent, PartRange, same_ids
from hornbook.partwork import PartMaker
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult
from hornbook.tool_calls import FORMS, Form, canonical_calls, parse_calls
from hornbook.tools import Catalogue, parse_catalogue
from training.pack import held_out

MODEL = "model"
NO_TOOLS = Catalogue({})
CALLS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),  # the document's
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("form", pa.string(), nullable=False),
        pa.field("wanted", pa.string(), nullable=False),
        pa.field("written", pa.string(), nullable=False),
        pa.field("problem", pa.string(), nullable=False),  # why it cannot be read; empty if it can
        pa.field("right", pa.bool_(), nullable=False),
        pa.field("calls", pa.int64(), nullable=False),  # wanted
        pa.field("share", pa.float64(), nullable=False),  # summed over them: of the arguments that are right
    ]
)


class EvaluateCallsSettings(Settings):
    """Which requests are answered, and how."""

    validation_share: float = Field(
        0.02,
        gt=0,
        le=1,
        description="Share of the documents that is asked; the same as `pack`'s, or 1 for a set of its own.",
    )
    form: Form | None = Field(
        None, description="How calls are written; default: as each document's metadata says, json where it does not."
    )
    max_tokens: int = Field(256, ge=1, description="Longest answer, in tokens.")
    batch: int = runtime(16, ge=1, description="Requests that are answered at a time.")
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor, or per GPU.")


class EvaluateCalls(Stage):
    """Asks a model held-out requests; reports how many of its calls are right."""

    kind = "evaluate-calls"
    produces = "figures"
    Settings = EvaluateCallsSettings
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input("model"), "documents": Input("documents")}
    settings: EvaluateCallsSettings

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return about the held-out share of the documents."""
        rows = inputs["documents"][0].rows
        return Expected(planned=rows, unit="documents", rows=None)

    def run(self, context: StageContext) -> StageResult:
        """Answer part by part.

        Raises:
            DataError: no document is held out, or none of those holds calls.
        """
        from hornbook.cluster import expected_gpus

        documents = context.input("documents")
        maker = CallsPart(self.settings, context.input("model"), documents, expected_gpus() > 0)
        totals = context.make_parts(maker, [part.range for part in documents.parts], unit="documents")
        if not totals.rows:
            raise DataError(
                f"{self.name}: no request was asked: {totals.planned} documents, {totals.rejected} rejected",
                "raise validation_share, or look at the rejects with `hornbook show`",
            )
        return StageResult(metrics=_figures(context.artifact))


class CallsPart(PartMaker):
    """Answers the held-out requests of one part."""

    kind = EvaluateCalls.kind

    def __init__(self, settings: EvaluateCallsSettings, model: Artifact, documents: Artifact, on_gpu: bool) -> None:
        self.settings, self.model, self.documents = settings, model, documents
        self.max_workers = settings.workers
        self.num_gpus = 1.0 if on_gpu else 0.0

    def setup(self) -> None:
        """Load the model."""
        self.writer = GreedyWriter(self.model.local_folder(MODEL), "cuda" if self.num_gpus else "cpu")

    def make(self, part: PartRange) -> PartContent:
        """Return rows of CALLS_SCHEMA; documents without calls are rejects, those not held out are no rows."""
        record = self.documents.parts_by_start[part.start]
        table = self.documents.read(record, columns=["id", "key", "meta"])
        rejects: list[Reject] = []
        asked: list[tuple[dict[str, Any], list[Message], Wanted]] = []
        empty = 0
        for row in table.to_pylist():
            if held_out(row["key"], self.settings.validation_share) != "validation":
                empty += 1
                continue
            try:
                prompt, wanted = wanted_calls(row["meta"], self.settings.form)
                asked.append((row, prompt, wanted))
            except ValueError as error:
                rejects.append(Reject(row["id"], "document", "no-calls", str(error)))
        rows = []
        for start in range(0, len(asked), self.settings.batch):
            batch = asked[start : start + self.settings.batch]
            answers = self.writer.answers([prompt for _, prompt, _ in batch], self.settings.max_tokens)
            for (row, _, wanted), written in zip(batch, answers, strict=True):
                rows.append({"id": row["id"], "key": row["key"], **wanted.compared(written)})
        return PartContent(
            table=pa.Table.from_pylist(rows, schema=CALLS_SCHEMA),
            rejects=rejects_table(rejects),
            planned=table.column("id").to_numpy(),
            unit_of=same_ids,
            empty=empty,
        )


class Wanted:
    """The right calls of a request.

    Args:
        calls: as `parse_calls` returns them.
        form: in which they are written.
        catalogue: the tools, for their defaults; without it calls are compared as they are.
    """

    def __init__(self, text: str, form: Form, catalogue: Catalogue = NO_TOOLS) -> None:
        self.text, self.form, self.catalogue = text, form, catalogue
        self.calls = self._read(text)

    def compared(self, written: str) -> dict[str, Any]:
        """Return the columns of CALLS_SCHEMA behind `key` for what a model wrote."""
        found: list[dict[str, Any]] = []
        problem = ""
        try:
            found = self._read(written)
        except ValueError as error:
            problem = str(error)
        share = sum(_share(wanted, given) for wanted, given in zip(self.calls, found, strict=False))
        return {
            "form": self.form, "wanted": self.text, "written": written, "problem": problem,
            "right": not problem and _plain(found) == _plain(self.calls), "calls": len(self.calls), "share": float(share),
        }  # fmt: skip

    def _read(self, text: str) -> list[dict[str, Any]]:
        if text.strip() == "[]":  # no tool can help
            return []
        return canonical_calls(parse_calls(text.strip(), self.form), self.catalogue)


def wanted_calls(meta: str, form: Form | None = None) -> tuple[list[Message], Wanted]:
    """Return the prompt of a function-call conversation, its last answer left out, and the calls of that answer.

    Raises:
        ValueError: there is no conversation, its last turn is not the assistant's, or holds no calls.
    """
    chat = chat_of(meta)
    if chat[-1]["role"] != "assistant":
        raise ValueError("the last turn is not the assistant's")
    value = json.loads(meta)
    used = form or (value.get("form") if value.get("form") in FORMS else "json")
    return chat[:-1], Wanted(chat[-1]["content"], used, _catalogue(value.get("tools")))


def _catalogue(tools: Any) -> Catalogue:
    if not tools:
        return NO_TOOLS
    try:
        return parse_catalogue(json.dumps(tools), "the document's tools")
    except RecipeError:
        return NO_TOOLS


def _share(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> float:
    """Return the share of a call's arguments that are right; none for a wrong tool, all where there is no argument."""
    if wanted["name"] != given["name"]:
        return 0.0
    names = wanted["arguments"].keys() | given["arguments"].keys()
    right = sum(
        name in wanted["arguments"]
        and name in given["arguments"]
        and _plain(wanted["arguments"][name]) == _plain(given["arguments"][name])
        for name in names
    )
    return right / len(names) if names else 1.0


def _plain(value: Any) -> Any:
    """Return a JSON value in which equal numbers are equal and true is not 1."""
    if isinstance(value, bool) or value is None:
        return ("constant", value)
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


class GreedyWriter:
    """A model that answers several conversations at a time with its likeliest tokens.

    Args:
        folder: a Hugging Face folder with a chat template.
        device: `cpu` or `cuda`.

    Raises:
        DataError: the tokenizer has no chat template.
    """

    def __init__(self, folder: Path, device: str) -> None:
        import torch
        import transformers
        from transformers import AutoModelForCausalLM, AutoTokenizer

        transformers.utils.logging.disable_progress_bar()
        if device == "cpu":
            torch.set_num_threads(1)  # a worker has one processor
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
        if not self.tokenizer.chat_template:
            raise DataError(f"the tokenizer in {folder} has no chat template", "tune a model with one")
        self.device = device
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=dtype)
        self.model: Any = model.eval().to(torch.device(device))

    def answers(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
        """Return an answer to each conversation; empty where it leaves no room in the model's context."""
        import torch

        context = int(self.model.config.max_position_embeddings)
        rows = [
            self.tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, return_dict=True)["input_ids"]
            for chat in conversations
        ]
        roomy = [number for number, ids in enumerate(rows) if len(ids) + max_tokens <= context]
        tight = [[number] for number, ids in enumerate(rows) if context - max_tokens < len(ids) < context]
        answers = [""] * len(rows)
        for group in filter(None, [roomy, *tight]):  # a tight one must not shorten the others' answers
            inputs = self.tokenizer.pad({"input_ids": [rows[number] for number in group]}, return_tensors="pt")
            inputs = inputs.to(self.device)
            length = inputs["input_ids"].shape[1]
            room = min(max_tokens, context - length)
            with torch.no_grad():
                written = self.model.generate(**inputs, max_new_tokens=room, do_sample=False)
            for number, ids in zip(group, written, strict=True):
                answers[number] = str(self.tokenizer.decode(ids[length:], skip_special_tokens=True)).strip()
        return answers


def _figures(artifact: Artifact) -> dict[str, Any]:
    """Return the accuracies over all requests, and by the form of the calls."""
    sums: dict[str, list[float]] = {}
    for table in artifact.tables(columns=["form", "problem", "right", "calls", "share"]):
        for row in table.to_pylist():
            for name in ("", row["form"]):
                found = sums.setdefault(name, [0, 0, 0, 0, 0])
                values = (1, row["right"], not row["problem"], row["calls"], row["share"])
                sums[name] = [one + other for one, other in zip(found, values, strict=True)]
    figures = {
        name: {
            "requests": int(asked),
            "accuracy": round(right / asked, 4),
            "readable": round(readable / asked, 4),
            **({"soft_accuracy": round(share / calls, 4)} if calls else {}),
        }
        for name, (asked, right, readable, calls, share) in sums.items()
    }
    return figures.pop("") | {"by_form": figures}
