"""Scores every document with a trained scorer: phi-1's last step before the threshold. Part in, part out.

A document is embedded and scored in one go; vectors are kept only by `embed`. Nothing is dropped here: the scores lie beside
the documents, and a threshold applies where a corpus is selected or packed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from classifiers.beside import Beside, require_same_documents
from classifiers.embed import embedding_matrix
from classifiers.features import STATIC, features_identity, load_features, settings_of_embeddings
from classifiers.scorer import load_scorer
from hornbook.artifact import THRESHOLD, Artifact
from hornbook.dial_figures import write_dial
from hornbook.documents import Reject, rejects_table
from hornbook.errors import RecipeError
from hornbook.parts import PartContent, PartRange, same_ids
from hornbook.partwork import PartMaker
from hornbook.score_figures import kept_and_histogram, source_auc, source_warnings
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult

BINS = 20


class ScoreSettings(Settings):
    """How fast it goes; what it does is in the scorer."""

    batch_tokens: int | None = runtime(
        None, ge=1, description="Tokens per forward pass; default: 1,024 on a CPU, 131,072 on a GPU."
    )
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor, or per GPU.")
    threads: int = runtime(1, ge=1, description="Processors per worker on a CPU.")


class Score(Stage):
    """Scores every document with a trained scorer."""

    kind = "score"
    produces = "attributes"
    Settings = ScoreSettings
    inputs: ClassVar[Mapping[str, Input]] = {
        "documents": Input("documents"),
        "scorer": Input("scorer"),
        "embeddings": Input("attributes", optional=True),
    }
    settings: ScoreSettings

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return as many rows as there are documents."""
        rows = inputs["documents"][0].rows
        return Expected(planned=rows, unit="documents", rows=rows)

    def run(self, context: StageContext) -> StageResult:
        """Score each part of the documents into a part of the same range; the threshold is the scorer's."""
        from hornbook.cluster import expected_gpus
        from hornbook.models import resolve

        documents, trained = context.input("documents"), context.input("scorer")
        embeddings = context.optional_input("embeddings")
        scorer = load_scorer(trained)
        if embeddings is not None:
            require_same_documents(self.name, documents, embeddings)
        if scorer.needs_vectors and embeddings is None:
            resolve(scorer.feature_settings().model)  # another model is said here, before workers start
        elif scorer.needs_vectors and embeddings and _made_of(embeddings) != dict(scorer.features):
            raise RecipeError(
                f"stages.{self.name}: {embeddings.manifest.stage} embeds otherwise than the scorer was trained",
                f"let `embeddings` name the embeddings that {trained.manifest.stage} was trained on, or leave it out",
            )
        embeds = scorer.needs_vectors and embeddings is None
        on_gpu = embeds and scorer.feature_settings().kind != STATIC and expected_gpus() > 0
        maker = ScorePart(self.settings, documents, trained, embeddings, on_gpu)
        totals = context.make_parts(maker, [part.range for part in documents.parts], unit="documents")
        threshold = float(trained.store.read_json(f"{trained.folder}/{THRESHOLD}")["threshold"])
        seconds = totals.counts.get("seconds", 0.0)
        figures = kept_and_histogram(context.artifact, threshold, np.linspace(0, 1, BINS + 1))
        auc = source_auc(figures["kept"])
        metrics = {
            "threshold": threshold,
            "documents_per_worker_second": round(totals.planned / seconds, 1) if seconds else None,
            **figures,
            "source_auc": None if auc is None else round(auc, 4),
            "warnings": source_warnings(figures["kept"], auc),
        }
        context.artifact.store.write_json(f"{context.artifact.folder}/{THRESHOLD}", {"threshold": threshold})
        write_dial(context.artifact, documents, trained)
        return StageResult(metrics=metrics, files=[THRESHOLD])


def _made_of(embeddings: Artifact) -> dict[str, Any]:
    return features_identity(settings_of_embeddings(embeddings.manifest.settings))


class ScorePart(PartMaker):
    """Scores the documents of one part."""

    def __init__(
        self,
        settings: ScoreSettings,
        documents: Artifact,
        trained: Artifact,
        embeddings: Artifact | None,
        on_gpu: bool,
    ) -> None:
        self.settings = settings
        self.documents = documents
        self.trained = trained
        self.embeddings = Beside(embeddings, ["embedding"]) if embeddings is not None else None
        self.max_workers = settings.workers
        self.num_cpus = 1.0 if on_gpu else float(settings.threads)
        self.num_gpus = 1.0 if on_gpu else 0.0

    def setup(self) -> None:
        """Load the scorer and, without embeddings, its embedding model."""
        self.parts = self.documents.parts_by_start
        self.scorer = load_scorer(self.trained)
        if self.embeddings is None and self.scorer.needs_vectors:
            fast = {name: getattr(self.settings, name) for name in ("batch_tokens", "threads")}
            settings = self.scorer.feature_settings().model_copy(update=fast)
            self.features = load_features(settings, "cuda" if self.num_gpus else "cpu")

    def make(self, part: PartRange) -> PartContent:
        """Return columns id, key, source, score (float32 in [0, 1]) and bytes of text in the documents' order."""
        import time

        documents = self.documents.read(self.parts[part.start], columns=["id", "key", "source", "text"])
        began = time.monotonic()
        vectors, known = self._vectors(part, documents)
        finite = known.copy()
        finite[known] = np.isfinite(vectors).all(axis=1)
        kept = documents.filter(pa.array(finite))
        texts = () if self.scorer.needs_vectors else kept.column("text").to_pylist()
        scores = self.scorer.scores(vectors[finite[known]], kept.column("source").to_pylist(), texts)
        seconds = time.monotonic() - began
        ids = documents.column("id").to_numpy()
        rejects = [Reject(int(row), "document", "no-embedding", "it was rejected when embedded") for row in ids[~known]]
        rejects += [
            Reject(int(row), "document", "not-finite", "the embedding has NaN or infinity")
            for row in ids[known & ~finite]
        ]
        sizes = pc.cast(pc.binary_length(kept.column("text")), pa.int64())
        table = kept.select(["id", "key", "source"]).append_column("score", pa.array(scores, pa.float32()))
        return PartContent(
            table=table.append_column("bytes", sizes),
            rejects=rejects_table(rejects),
            planned=ids,
            unit_of=same_ids,
            counts={"seconds": round(seconds, 3)},
        )

    def _vectors(self, part: PartRange, documents: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors of the documents that have one, and which have, bool (rows,); without numbers if none are needed."""
        if not self.scorer.needs_vectors:
            return np.zeros((len(documents), 0), dtype=np.float32), np.ones(len(documents), dtype=bool)
        if self.embeddings is None:
            return self.features.embed(documents.column("text").to_pylist()), np.ones(len(documents), dtype=bool)
        rows, known = self.embeddings.read(part, documents)
        return embedding_matrix(rows.column("embedding").filter(pa.array(known))), known
