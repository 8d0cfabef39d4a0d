"""Embeddings of documents: what the quality forest looks at. Part in, part out, one vector per document.

The model is a sentence-transformers folder. Documents of a part are sorted by length before they are batched, so that
little is computed on padding, and put back in order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from classifiers.excerpt import excerpt
from hornbook.artifact import Artifact
from hornbook.documents import Reject, rejects_table
from hornbook.errors import ModelError
from hornbook.parts import PartCommit, PartContent, PartRange, same_ids
from hornbook.partwork import PartMaker
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult

CHARACTERS_PER_TOKEN = 12  # code with much white space; more characters than that per token are not read


class EmbedSettings(Settings):
    """Which model embeds, and how much of each document it reads."""

    model: str = Field("all-minilm-l6-v2", description="A sentence-transformers model: name or folder.")
    max_tokens: int = Field(256, ge=8, description="Tokens read of each document; the rest is not looked at.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the processor or GPU multiplies in it, else float32."
    )
    batch_rows: int = runtime(32, ge=1, description="Documents per forward pass.")
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor, or per GPU.")
    threads: int = runtime(1, ge=1, description="Processors per worker on a CPU.")


class Embed(Stage):
    """Embeds every document of its input."""

    kind = "embed"
    produces = "attributes"
    Settings = EmbedSettings
    inputs: ClassVar[Mapping[str, Input]] = {"documents": Input("documents")}
    settings: EmbedSettings

    def models(self) -> Sequence[str]:
        """Return the embedding model."""
        return (self.settings.model,)

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return as many rows as there are documents."""
        rows = inputs["documents"][0].rows
        return Expected(planned=rows, unit="documents", rows=rows)

    def run(self, context: StageContext) -> StageResult:
        """Embed each part of the input into a part of the same range."""
        from hornbook.cluster import expected_gpus
        from hornbook.models import resolve

        resolve(self.settings.model)  # a wrong name is said here, before workers start
        documents = context.input("documents")
        maker = EmbedPart(self.settings, documents, on_gpu=expected_gpus() > 0)
        totals = context.make_parts(maker, [part.range for part in documents.parts], unit="documents")
        seconds = totals.counts.get("seconds", 0.0)
        metrics = {
            "precision": "bfloat16" if totals.counts.get("bfloat16") else "float32",
            "documents_per_worker_second": round(totals.planned / seconds, 1) if seconds else None,
        }
        return StageResult(metrics=metrics)


class EmbedPart(PartMaker):
    """Embeds the documents of one input part."""

    def __init__(self, settings: EmbedSettings, documents: Artifact, on_gpu: bool) -> None:
        self.settings = settings
        self.documents = documents
        self.max_workers = settings.workers
        self.num_cpus = 1.0 if on_gpu else float(settings.threads)
        self.num_gpus = 1.0 if on_gpu else 0.0

    def setup(self) -> None:
        """Load the model."""
        self.parts: dict[int, PartCommit] = {part.start: part for part in self.documents.parts}
        device = "cuda" if self.num_gpus else "cpu"
        self.precision = chosen_precision(self.settings.precision, device)
        self.model = load_model(self.settings, device, self.precision)

    def make(self, part: PartRange) -> PartContent:
        """Return columns id, key, embedding (fixed-size list of float32, unit length) in the documents' order."""
        import time

        table = self.documents.read(self.parts[part.start], columns=["id", "key", "text"])
        began = time.monotonic()
        vectors = embed_texts(self.model, table.column("text").to_pylist(), self.settings)
        seconds = time.monotonic() - began
        content = embedded_content(table.select(["id", "key"]), vectors)
        content.counts = {"seconds": round(seconds, 3), "bfloat16": int(self.precision == "bfloat16")}
        return content


def load_model(settings: EmbedSettings, device: str, precision: str) -> Any:
    """Return the SentenceTransformer on `device` in `precision`. Raises ModelError if the folder is none."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one processor per worker: threads would only compete
    import torch
    from sentence_transformers import SentenceTransformer

    from hornbook.models import resolve

    if device == "cpu":
        torch.set_num_threads(settings.threads)
    folder = resolve(settings.model).path
    try:
        model = SentenceTransformer(str(folder), device=device, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{settings.model} is not a sentence-transformers model: {error}", "name all-minilm-l6-v2 or another"
        ) from error
    model.max_seq_length = min(settings.max_tokens, model.max_seq_length or settings.max_tokens)
    return model.to(torch.bfloat16) if precision == "bfloat16" else model


def embed_texts(model: Any, texts: Sequence[str], settings: EmbedSettings) -> np.ndarray:
    """Return float32 vectors of unit length, (len(texts), dimensions); zero rows for no texts."""
    heads = [excerpt(text, CHARACTERS_PER_TOKEN * settings.max_tokens) for text in texts]
    if not heads:
        return np.zeros((0, model.get_embedding_dimension()), dtype=np.float32)
    tensors = model.encode(heads, batch_size=settings.batch_rows, show_progress_bar=False, convert_to_tensor=True)
    vectors = tensors.float().cpu().numpy()
    with np.errstate(invalid="ignore"):
        return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def embedded_content(rows: pa.Table, vectors: np.ndarray) -> PartContent:
    """Return a part's content: `rows` (id, key) with their vectors; a vector that is not finite is a reject."""
    finite = np.isfinite(vectors).all(axis=1) if len(vectors) else np.zeros(0, dtype=bool)
    ids = rows.column("id").to_numpy()
    kept = rows.filter(pa.array(finite))
    values = pa.array(vectors[finite].reshape(-1), type=pa.float32())
    column = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
    rejects = [Reject(int(row), "document", "not-finite", "the embedding has NaN or infinity") for row in ids[~finite]]
    return PartContent(
        table=kept.append_column("embedding", column),
        rejects=rejects_table(rejects),
        planned=ids,
        unit_of=same_ids,
    )


def chosen_precision(setting: str, device: str) -> str:
    """Return float32 or bfloat16: what `auto` means on this device."""
    if setting != "auto":
        return setting
    import torch

    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    # Emulated bfloat16 is slower than float32: ask for the instructions.
    quick = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if quick else "float32"
