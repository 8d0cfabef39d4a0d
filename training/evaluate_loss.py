"""The loss of trained models on held-out documents, document by document, comparable across tokenizers: bits per byte.

Each document is cut into windows as training cuts rows (an end-of-text token opens the document, no window sees the one
before), and at most `windows` of them, spread evenly over the document, are scored: heads of files are no fair sample. What
is counted: the cross entropy of every token of these windows, and the UTF-8 bytes that the tokens stand for. The end-of-text
token stands for no byte and is not scored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from hornbook.artifact import Artifact
from hornbook.documents import KEY_BYTES, Reject, rejects_table
from hornbook.errors import DataError, ModelError
from hornbook.parts import PartContent, PartRange, same_ids
from hornbook.partwork import PartMaker
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL = "model"

LOSS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),  # number of the (model, document) pair
        pa.field("model", pa.string(), nullable=False),  # digest of the model's artifact
        pa.field("corpus", pa.string(), nullable=False),  # the stage that made the documents
        pa.field("document", pa.int64(), nullable=False),  # its id in its own artifact
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("group", pa.string(), nullable=False),  # what documents share: the package, or whatever `group` names
        pa.field("nats", pa.float64(), nullable=False),  # summed cross entropy of the scored tokens
        pa.field("tokens", pa.int64(), nullable=False),  # scored
        pa.field("bytes", pa.int64(), nullable=False),  # that these tokens stand for
    ]
)


class EvaluateLossSettings(Settings):
    """How much of each document is scored."""

    windows: int = Field(4, ge=0, description="Windows scored of each document, spread evenly; 0 scores all of them.")
    sequence_length: int | None = Field(
        None, ge=2, description="Tokens of a window; default: the model's context, 1,024 at most."
    )
    group: str = Field(
        "distribution",
        description="Field of the documents' metadata that says which belong together; documents without it: their source.",
    )
    microbatch: int = runtime(16, ge=1, description="Windows per forward pass.")
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor, or per GPU.")


class EvaluateLoss(Stage):
    """Scores every document with every model."""

    kind = "evaluate-loss"
    produces = "losses"
    Settings = EvaluateLossSettings
    inputs: ClassVar[Mapping[str, Input]] = {
        "models": Input("model", many=True),
        "documents": Input("documents", many=True),
    }
    settings: EvaluateLossSettings

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return a row for each pair of a model and a document."""
        known = [found.rows for found in inputs["documents"]]
        rows = None if None in known else len(inputs["models"]) * sum(known)  # type: ignore[arg-type]
        return Expected(planned=rows, unit="documents", rows=rows)

    def run(self, context: StageContext) -> StageResult:
        """Score each part of each corpus with each model."""
        from hornbook.cluster import expected_gpus

        models, corpora = context.inputs["models"], context.inputs["documents"]
        tasks = plan_tasks(len(models), corpora)
        if not tasks:
            raise DataError(f"{self.name}: there is no document to score", "look at the rejects of its inputs")
        maker = LossPart(self.settings, models, corpora, context.input_stages["documents"], tasks, expected_gpus() > 0)
        context.make_parts(maker, list(tasks), unit="documents")
        return StageResult(metrics={"bits_per_byte": _figures(context, models)})


@dataclass(frozen=True)
class Task:
    """A part of a corpus to be scored with a model, by their numbers among the inputs."""

    model: int
    corpus: int
    part: int


def plan_tasks(models: int, corpora: Sequence[Artifact]) -> dict[PartRange, Task]:
    """Return the tasks by the pairs that they number: model by model, so that a worker loads each about once."""
    tasks: dict[PartRange, Task] = {}
    first = 0
    for model in range(models):
        for number, corpus in enumerate(corpora):
            for place, part in enumerate(corpus.parts):
                if part.rows:
                    tasks[PartRange(first, first + part.rows)] = Task(model, number, place)
                    first += part.rows
    return tasks


class LossPart(PartMaker):
    """Scores the documents of one part with one model."""

    kind = EvaluateLoss.kind

    def __init__(
        self,
        settings: EvaluateLossSettings,
        models: Sequence[Artifact],
        corpora: Sequence[Artifact],
        names: Sequence[str],
        tasks: Mapping[PartRange, Task],
        on_gpu: bool,
    ) -> None:
        self.settings, self.models, self.corpora, self.names = settings, list(models), list(corpora), list(names)
        self.tasks = dict(tasks)
        self.max_workers = settings.workers
        self.num_gpus = 1.0 if on_gpu else 0.0

    def setup(self) -> None:
        """Load nothing yet: the first part says which model."""
        import torch

        self.loaded: tuple[int, LossScorer] | None = None
        if not self.num_gpus:
            torch.set_num_threads(1)  # a worker has one processor

    def make(self, part: PartRange) -> PartContent:
        """Return rows of LOSS_SCHEMA; documents without a token are rejects."""
        task = self.tasks[part]
        if self.loaded is None or self.loaded[0] != task.model:
            folder = self.models[task.model].local_folder(MODEL)
            device = "cuda" if self.num_gpus else "cpu"
            self.loaded = (task.model, LossScorer(folder, self.settings, device))
        scorer, corpus = self.loaded[1], self.corpora[task.corpus]
        columns = ["id", "key", "text", "source", "meta"]
        rows, rejects = [], []
        for pair, document in enumerate(corpus.read(corpus.parts[task.part], columns=columns).to_pylist(), part.start):
            nats, tokens, size = scorer.loss(document["text"])
            if not tokens:
                rejects.append(Reject(pair, f"document {document['id']}", "empty", "it has no token"))
                continue
            group = json.loads(document["meta"]).get(self.settings.group) or document["source"]
            rows.append(
                {
                    "id": pair,
                    "model": self.models[task.model].manifest.digest,
                    "corpus": self.names[task.corpus],
                    "document": document["id"],
                    "key": document["key"],
                    "group": str(group),
                    "nats": nats,
                    "tokens": tokens,
                    "bytes": size,
                }
            )
        return PartContent(
            table=pa.Table.from_pylist(rows, schema=LOSS_SCHEMA),
            rejects=rejects_table(rejects),
            unit_of=same_ids,
            counts={"tokens": sum(row["tokens"] for row in rows)},
        )


class LossScorer:
    """A model with its tokenizer, ready to score texts.

    Args:
        folder: a Hugging Face folder as training leaves it.
        settings: how much of a text is scored.
        device: `cpu` or `cuda`; the model computes in float32.

    Raises:
        ModelError: the tokenizer is not byte-level, so that its tokens' bytes are not known.
    """

    def __init__(self, folder: Path, settings: EvaluateLossSettings, device: str = "cpu") -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from training.model import LanguageModel
        from training.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(folder)
        self.backend = tokenizer.backend_tokenizer
        self.backend.encode_special_tokens = True  # a document that says <|endoftext|> does not end there
        self.backend.no_truncation()
        self.eos = int(tokenizer.eos_token_id)
        self.bytes = token_bytes(self.backend, folder)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, dtype=torch.float32
        )
        self.length = settings.sequence_length or min(int(model.config.max_position_embeddings), 1024)
        self.windows, self.microbatch, self.device = settings.windows, settings.microbatch, device
        self.model = LanguageModel(model, self.eos, document_mask=False).to(device).eval()

    def loss(self, text: str) -> tuple[float, int, int]:
        """Return (summed cross entropy in nats, tokens, bytes) of the scored windows of a text."""
        import torch

        from training.loss import IGNORED, chunked_cross_entropy

        ids = np.array([self.eos, *self.backend.encode(text, add_special_tokens=False).ids], dtype=np.int64)
        count = -(-(len(ids) - 1) // self.length)
        chosen = np.arange(count)
        if 0 < self.windows < count:
            chosen = np.arange(self.windows) * count // self.windows
        inputs = np.full((len(chosen), self.length), self.eos, dtype=np.int64)
        targets = np.full((len(chosen), self.length), IGNORED, dtype=np.int64)
        for row, window in enumerate(chosen):
            cut = ids[window * self.length : (window + 1) * self.length + 1]
            inputs[row, : len(cut) - 1], targets[row, : len(cut) - 1] = cut[:-1], cut[1:]
        nats = 0.0
        head = self.model.model.get_output_embeddings()
        with torch.no_grad():
            for low in range(0, len(chosen), self.microbatch):
                tokens = torch.from_numpy(inputs[low : low + self.microbatch]).to(self.device)
                wanted = torch.from_numpy(targets[low : low + self.microbatch]).to(self.device)
                hidden = self.model.hidden(tokens).flatten(0, 1)
                bias = getattr(head, "bias", None)
                nats += chunked_cross_entropy(hidden, head.weight, bias, wanted.flatten()).item()
        scored = targets[targets != IGNORED]
        return nats, len(scored), int(self.bytes[scored].sum())


def token_bytes(backend: Any, folder: Path) -> np.ndarray:
    """Return how many bytes of text each id stands for, int64 (ids,); none for special tokens.

    Raises:
        ModelError: the tokenizer is not byte-level (one character of a token's name is not one byte).
    """
    state = json.loads(backend.to_str())
    decoder = state.get("decoder") or {}
    steps = [decoder, *decoder.get("decoders", [])]
    if all(step.get("type") != "ByteLevel" for step in steps):
        raise ModelError(
            f"the tokenizer in {folder} is not byte-level: how many bytes its tokens stand for is not known",
            "bits per byte are of models with a byte-level tokenizer (hornbook's own, GPT-2's, Llama 3's)",
        )
    special = {token["id"] for token in state.get("added_tokens", []) if token["special"]}
    names = backend.get_vocab(with_added_tokens=True)
    sizes = np.zeros(max(names.values()) + 1, dtype=np.int64)
    for name, number in names.items():
        sizes[number] = 0 if number in special else len(name)
    return sizes


def bits_per_byte(nats: float, size: float) -> float:
    """Return bits per byte of a summed cross entropy; not a number where there is no byte."""
    return nats / np.log(2) / size if size else float("nan")


def _figures(context: StageContext, models: Sequence[Artifact]) -> dict[str, dict[str, float]]:
    """Return bits per byte by model and corpus, all scored bytes together."""
    sums: dict[tuple[str, str], np.ndarray] = {}
    for table in context.artifact.tables(columns=["model", "corpus", "nats", "bytes"]):
        grouped = table.group_by(["model", "corpus"]).aggregate([("nats", "sum"), ("bytes", "sum")])
        for row in grouped.to_pylist():
            found = np.array([row["nats_sum"], row["bytes_sum"]])
            sums[row["model"], row["corpus"]] = sums.get((row["model"], row["corpus"]), 0) + found
    names = dict(zip(context.input_stages["models"], models, strict=True))
    return {
        name: {
            corpus: round(bits_per_byte(*found), 4)
            for (digest, corpus), found in sums.items()
            if digest == model.manifest.digest
        }
        for name, model in names.items()
    }
