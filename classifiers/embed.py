"""Embeddings of documents, kept: for several scorers over one corpus, and for decontamination. Part in, part out.

`quality` and `score` embed by themselves; what is embedded here is embedded once for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa

from classifiers.features import STATIC, FeatureSettings, load_features
from hornbook.artifact import Artifact
from hornbook.documents import Reject, rejects_table
from hornbook.parts import PartContent, PartRange, same_ids
from hornbook.partwork import PartMaker
from hornbook.settings import runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult


class EmbedSettings(FeatureSettings):
    """Which model embeds, and how much of each document it reads."""

    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor, or per GPU.")


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
        maker = EmbedPart(self.settings, documents, on_gpu=self.settings.kind != STATIC and expected_gpus() > 0)
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
        self.parts = self.documents.parts_by_start
        self.features = load_features(self.settings, "cuda" if self.num_gpus else "cpu")

    def make(self, part: PartRange) -> PartContent:
        """Return columns id, key, embedding (fixed-size list of float32, unit length) in the documents' order."""
        import time

        table = self.documents.read(self.parts[part.start], columns=["id", "key", "text"])
        began = time.monotonic()
        vectors = self.features.embed(table.column("text").to_pylist())
        seconds = time.monotonic() - began
        content = embedded_content(table.select(["id", "key"]), vectors)
        content.counts = {"seconds": round(seconds, 3), "bfloat16": int(self.features.precision == "bfloat16")}
        return content


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


def embedding_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of fixed-size lists as float32 (rows, dimensions)."""
    size = column.type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, size) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros((0, size), dtype=np.float32)
