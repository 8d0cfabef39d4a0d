"""Scores every document by what a judge said of a few: phi-1's second step.

A random forest over embeddings learns which of the annotated documents the judge graded high, then scores all documents,
part in, part out. Nothing is dropped here: the scores lie beside the documents, and the threshold (chosen on annotations
that the forest never saw) is applied when a mixture is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from classifiers.forest import dump_forest, forest_scores, load_forest, train_forest
from hornbook.artifact import THRESHOLD, Artifact
from hornbook.documents import Reject, rejects_table
from hornbook.errors import DataError
from hornbook.parts import PartCommit, PartContent, PartRange, same_ids
from hornbook.partwork import PartMaker
from hornbook.plan import derive_seed
from hornbook.score_figures import kept_and_histogram
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult

FOREST = "forest.skops"
BINS = 20
FEWEST = 8  # annotations that are also documents; below, neither forest nor threshold mean anything


class QualitySettings(Settings):
    """How the forest learns, and where the threshold lies."""

    label_cut: float | None = Field(
        None, ge=0, le=5, description="Grade from which a document counts as good; default: the `label_quantile`."
    )
    label_quantile: float = Field(0.5, gt=0, lt=1, description="Without label_cut: the quantile of grades to cut at.")
    held_out: float = Field(0.3, gt=0, lt=1, description="Share of annotations that only measure, chosen by key.")
    target: Literal["keep-share", "best-f1"] = Field(
        "keep-share", description="What the threshold aims at on held-out annotations."
    )
    keep_share: float = Field(0.5, gt=0, le=1, description="keep-share: the share of documents to keep.")
    trees: int = Field(200, ge=1, description="Trees of the forest.")
    min_leaf: int = Field(3, ge=1, description="Fewest annotations in a leaf: more is smoother.")
    workers: int | None = runtime(None, ge=1, description="Most scoring workers; default: one per processor.")


class Quality(Stage):
    """Trains the forest, scores all documents, chooses the threshold."""

    kind = "quality"
    produces = "attributes"
    Settings = QualitySettings
    inputs: ClassVar[Mapping[str, Input]] = {
        "documents": Input("documents"),
        "embeddings": Input("attributes"),
        "annotations": Input("attributes", many=True),
    }
    settings: QualitySettings

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return as many rows as there are documents."""
        rows = inputs["documents"][0].rows
        return Expected(planned=rows, unit="documents", rows=rows)

    def run(self, context: StageContext) -> StageResult:
        """Train unless an earlier attempt did, score every part, then measure on held-out annotations."""
        store, name = context.artifact.store, f"{context.artifact.folder}/{FOREST}"
        documents, embeddings = context.input("documents"), context.input("embeddings")
        annotated = gather(context.inputs["annotations"], embeddings)
        split = split_annotated(annotated, self.settings, derive_seed(context.seed, "held-out"))
        self._require_both_classes(split)
        if not store.exists(name):
            seed = derive_seed(context.seed, "forest")
            chosen = annotated.vectors[~split.held_out], split.labels[~split.held_out]
            store.create(name, dump_forest(train_forest(*chosen, self.settings.trees, self.settings.min_leaf, seed)))
        maker = ScorePart(self.settings, context.artifact, documents, embeddings)
        context.make_parts(maker, [part.range for part in documents.parts], unit="documents")
        forest = load_forest(store.read(name), store.describe(name))
        held_out_scores = forest_scores(forest, annotated.vectors[split.held_out])
        metrics = measure(annotated, split, held_out_scores, self.settings)
        metrics |= kept_and_histogram(context.artifact, metrics["threshold"], np.linspace(0, 1, BINS + 1))
        metrics["agreement"] = _agreement(context.inputs["annotations"])
        metrics["warnings"] = _warnings(metrics)
        store.write_json(f"{context.artifact.folder}/{THRESHOLD}", {"threshold": metrics["threshold"]})
        return StageResult(metrics=metrics, files=[FOREST, THRESHOLD])

    def _require_both_classes(self, split: Split) -> None:
        cure = "lower or raise label_cut, annotate a larger sample, or name a judge that tells documents apart"
        for what, labels in (("training", split.labels[~split.held_out]), ("held-out", split.labels[split.held_out])):
            if len(set(labels.tolist())) < 2:
                side = "good" if labels.any() else "bad"
                raise DataError(
                    f"{self.name}: all {len(labels)} {what} annotations are {side} at the cut {split.cut:.3f}: "
                    "there is nothing to tell apart",
                    cure,
                )


class ScorePart(PartMaker):
    """Scores the documents of one part from their embeddings."""

    def __init__(
        self, settings: QualitySettings, artifact: Artifact, documents: Artifact, embeddings: Artifact
    ) -> None:
        self.artifact = artifact
        self.documents = documents
        self.embeddings = embeddings
        self.max_workers = settings.workers

    def setup(self) -> None:
        """Load the forest."""
        store, name = self.artifact.store, f"{self.artifact.folder}/{FOREST}"
        self.forest = load_forest(store.read(name), store.describe(name))
        self.parts: dict[int, PartCommit] = {part.start: part for part in self.documents.parts}
        self.embedded: dict[int, PartCommit] = {part.start: part for part in self.embeddings.parts}

    def make(self, part: PartRange) -> PartContent:
        """Return columns id, key, source, score (float32 in [0, 1]) in the documents' order."""
        documents = self.documents.read(self.parts[part.start], columns=["id", "key", "source"])
        if part.start not in self.embedded:
            raise _other_documents(self.embeddings)
        embedded = self.embeddings.read(self.embedded[part.start], columns=["id", "key", "embedding"])
        ids = documents.column("id").to_numpy()
        place = pc.index_in(documents.column("id"), embedded.column("id").combine_chunks())
        known = pc.is_valid(place).to_numpy()
        rows = place.drop_null().to_numpy()
        if embedded.column("key").take(pa.array(rows)).to_pylist() != documents.column("key").filter(known).to_pylist():
            raise _other_documents(self.embeddings)
        scores = forest_scores(self.forest, embedding_matrix(embedded.column("embedding"))[rows])
        rejects = [Reject(int(row), "document", "no-embedding", "it was rejected when embedded") for row in ids[~known]]
        return PartContent(
            table=documents.filter(pa.array(known)).append_column("score", pa.array(scores)),
            rejects=rejects_table(rejects),
            planned=ids,
            unit_of=same_ids,
        )


# --- the annotated documents -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Annotated:
    """Annotated documents with their embeddings: keys (rows), grades (rows, 0 to 5), vectors (rows, dimensions)."""

    keys: list[bytes]
    grades: np.ndarray
    vectors: np.ndarray


@dataclass(frozen=True)
class Split:
    """Which annotated documents are good (`labels`), which only measure (`held_out`), and the grade at the border."""

    labels: np.ndarray
    held_out: np.ndarray
    cut: float


def gather(annotations: Sequence[Artifact], embeddings: Artifact) -> Annotated:
    """Join grades and embeddings on (id, key); only annotated rows are held in memory.

    A document that several annotators graded counts with its mean grade.

    Raises:
        DataError: too few annotations belong to these documents.
    """
    grades: dict[tuple[int, bytes], list[float]] = {}
    for artifact in annotations:
        for table in artifact.tables(columns=["id", "key", "score"]):
            for row in table.to_pylist():
                grades.setdefault((row["id"], row["key"]), []).append(row["score"])
    wanted = pa.array([identifier for identifier, _ in grades], type=pa.int64())
    found: list[tuple[bytes, float]] = []
    vectors: list[np.ndarray] = []
    for table in embeddings.tables(columns=["id", "key", "embedding"]):
        table = table.filter(pc.is_in(table.column("id"), wanted))
        matrix = embedding_matrix(table.column("embedding"))
        pairs = zip(table.column("id").to_pylist(), table.column("key").to_pylist(), strict=True)
        for place, pair in enumerate(pairs):
            if pair in grades:
                found.append((pair[1], float(np.mean(grades[pair]))))
                vectors.append(matrix[place])
    if len(found) < FEWEST:
        raise DataError(
            f"only {len(found)} of {len(grades)} annotations belong to the embedded documents; {FEWEST} are needed",
            "annotate the same documents that are embedded, and a larger sample",
        )
    keys, scores = zip(*found, strict=True)
    return Annotated(list(keys), np.array(scores), np.stack(vectors))


def split_annotated(annotated: Annotated, settings: QualitySettings, seed: int) -> Split:
    """Cut the grades into good and bad, and set some documents aside: those with the smallest seeded hash of their key.

    Which are set aside depends on seed and keys alone. Documents with equal keys fall on the same side.
    """
    cut = settings.label_cut
    if cut is None:
        cut = float(np.quantile(annotated.grades, settings.label_quantile))
    order = {key: derive_seed(seed, key.hex()) for key in annotated.keys}
    smallest = sorted(order, key=lambda key: order[key])[: max(1, round(settings.held_out * len(order)))]
    aside = set(smallest)
    held_out = np.array([key in aside for key in annotated.keys])
    labels = annotated.grades >= cut if settings.label_cut is not None else annotated.grades > cut
    return Split(labels, held_out, cut)


def embedding_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of fixed-size lists as float32 (rows, dimensions)."""
    size = column.type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, size) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros((0, size), dtype=np.float32)


def _other_documents(embeddings: Artifact) -> DataError:
    return DataError(
        f"{embeddings.folder} does not hold the embeddings of these documents",
        "let `documents` name the stage that the embeddings were made from",
    )


# --- figures ---------------------------------------------------------------------------------------------------------


def choose_threshold(scores: np.ndarray, labels: np.ndarray, settings: QualitySettings) -> float:
    """Return the score from which documents are kept: the one that keeps `keep_share` of `scores`, or has the best F1."""
    if settings.target == "keep-share":
        return float(np.quantile(scores, 1 - settings.keep_share))
    candidates = np.unique(scores)
    return float(
        max(candidates, key=lambda threshold: (_precision_recall_f1(scores >= threshold, labels)[2], -threshold))
    )


def measure(
    annotated: Annotated, split: Split, held_out_scores: np.ndarray, settings: QualitySettings
) -> dict[str, Any]:
    """Return what the held-out annotations say of the forest, and the threshold chosen on them."""
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    labels, grades = split.labels[split.held_out], annotated.grades[split.held_out]
    threshold = choose_threshold(held_out_scores, labels, settings)
    precision, recall, f1 = _precision_recall_f1(held_out_scores >= threshold, labels)
    constant = np.ptp(held_out_scores) == 0 or np.ptp(grades) == 0
    return {
        "train": int((~split.held_out).sum()),
        "held_out": int(split.held_out.sum()),
        "label_cut": round(split.cut, 4),
        "good_share": round(float(split.labels.mean()), 4),
        "auc": round(float(roc_auc_score(labels, held_out_scores)), 4),
        "spearman": None if constant else round(float(spearmanr(held_out_scores, grades).statistic), 4),
        "threshold": threshold,
        "target": settings.target,
        "precision": round(precision, 4),
        "recall": round(recall, 4),
        "f1": round(f1, 4),
    }


def _precision_recall_f1(kept: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    right = float((kept & labels).sum())
    precision = right / kept.sum() if kept.any() else 0.0
    recall = right / labels.sum() if labels.any() else 0.0
    return float(precision), float(recall), float(2 * right / max(kept.sum() + labels.sum(), 1))


def _agreement(annotations: Sequence[Artifact]) -> dict[str, Any]:
    """Return how far the judge's two wordings agree: the first annotator's figures."""
    return dict(annotations[0].manifest.metrics.get("agreement", {}))


def _warnings(metrics: Mapping[str, Any]) -> list[str]:
    warnings = []
    if metrics["held_out"] < 50:
        warnings.append(f"only {metrics['held_out']} held-out annotations: the figures above are rough")
    if metrics["auc"] < 0.6:
        warnings.append(
            f"the forest hardly predicts the judge (AUC {metrics['auc']:.2f}, 0.5 is chance): grade more, or with a better judge"
        )
    spearman = metrics["agreement"].get("spearman")
    if spearman is None or spearman < 0.5:
        found = "cannot be told" if spearman is None else f"is {spearman:.2f} (1 is equal order)"
        warnings.append(f"the agreement of the judge's two wordings {found}: its grades are weak labels")
    return warnings
