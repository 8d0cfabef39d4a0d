"""Learns from a judge's grades of a few documents what the rest is worth: phi-1's second step.

A head over embeddings (phi-1's: a random forest) learns which of the annotated documents were graded high. Rivals and a model
of mere n-grams learn the same, and all are measured on annotations that they did not learn from; there, too, the threshold is
chosen. `score` then applies the scorer to all documents. Steps of parts in the folder `work`, so that a run that was killed goes
on where it stood:

    graded      a file                 each annotated document's grade and weight     classifiers.annotated
    annotated   a part of the corpus   what is learned from: vectors, texts, grades    classifiers.annotated_parts
    trained     a head and fold each   scores of documents not learned from, heads    classifiers.head_parts
    (source_blind: `candidates`, `sample`, `sampled`: some documents of every source, scored    classifiers.source_sample)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from classifiers.annotated import Annotated, collect_grades, require_both_classes
from classifiers.annotated_parts import AnnotatedPart, found_annotated
from classifiers.beside import require_same_documents
from classifiers.calibration import fit_platt
from classifiers.features import STATIC, FeatureSettings, features_identity, settings_of_embeddings
from classifiers.found_rows import LEFT_OUT, FoundRows
from classifiers.head_file import load_head
from classifiers.head_parts import BY_KEY, BY_SOURCE, WHOLE, HeadPart, TrainedHeads, Training, plan_units
from classifiers.head_parts import OUT_OF_BAG as BAG_SCORES
from classifiers.heads import HEADS, NGRAMS
from classifiers.measured import (
    CROSS_VALIDATED,
    HELD_OUT,
    OUT_OF_BAG,
    UNSEEN_SOURCES,
    Measured,
    metrics_of,
    warnings_of,
)
from classifiers.scorer import HEAD, SCORER, Scorer, save_scorer
from classifiers.scorer import HELD_OUT as HELD_OUT_FILE
from classifiers.source_blind import SourceMaps, source_maps
from classifiers.source_sample import CandidatesPart, SampleScoresPart, draw_sample, sample_scores
from classifiers.thresholds import Target, choose_threshold
from hornbook.artifact import THRESHOLD, Artifact
from hornbook.documents import KEY_BYTES
from hornbook.errors import DataError
from hornbook.parts import PartRange, commit_part, missing_ranges, parquet_bytes
from hornbook.partwork import PartMaker
from hornbook.plan import derive_seed
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult

WORK = "work"
FEWEST = 8  # annotations that are also documents; below, neither head nor threshold mean anything
SMALL_TRAINING = 2000
"""Annotations up to which heads are trained here: to start workers would take longer."""
SMALL_CORPUS = 64
"""Parts of a corpus up to which they are looked through here, where nothing is to be embedded."""


class QualitySettings(Settings):
    """What documents look like to the head, how it learns, and where the threshold lies."""

    features: FeatureSettings = Field(
        FeatureSettings(), description="The embedding model. An input `embeddings` has its own instead."
    )

    head: Literal["forest", "forest-regressor", "logistic", "ridge", "ngrams", "best"] = Field(
        "forest",
        description="What scores. ngrams: words and characters, without an embedding model. best: the highest "
        "cross-validated AUC.",
    )
    rivals: bool = Field(True, description="Train and measure the other heads, too; best always does.")
    label_cut: float | None = Field(
        None, ge=0, le=5, description="Grade from which a document counts as good; default: the `label_quantile`."
    )
    label_quantile: float = Field(0.5, gt=0, lt=1, description="Without label_cut: the quantile of grades to cut at.")
    prefer: Literal["human", "mean"] = Field(
        "human", description="A document graded by people and by a judge: people's grade counts, or the mean of all."
    )
    weighted: bool = Field(
        False, description="Learn more from documents that stand for more of the corpus. Figures always are weighted."
    )
    held_out: float = Field(0.3, gt=0, lt=1, description="Share of annotations that only measure, chosen by key.")
    folds: int = Field(5, ge=2, le=50, description="Folds of the cross-validation of the others.")
    target: Target = Field("keep-share", description="What the threshold aims at on held-out annotations.")
    keep_share: float = Field(0.5, gt=0, le=1, description="keep-share: the share of the corpus to keep.")
    precision: float = Field(0.8, gt=0, le=1, description="precision: the share of good documents among the kept.")
    calibrated: bool = Field(
        False, description="Make scores the chance that a document is good (Platt's curve); their order stays."
    )
    source_blind: bool = Field(
        False,
        description="Map each source's scores through their quantiles to those of all: every source keeps its share.",
    )
    source_sample: int = Field(400, ge=20, description="source_blind: documents of each source that are scored for it.")
    trees: int = Field(200, ge=1, description="Trees of the forests.")
    min_leaf: int = Field(3, ge=1, description="Fewest annotations in a leaf: more is smoother.")
    ngram_characters: int = Field(1000, ge=50, description="Characters of each document that the n-grams are read of.")
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor, or per GPU.")


class Quality(Stage):
    """Trains a scorer on annotated documents, measures it and chooses the threshold."""

    kind = "quality"
    produces = "scorer"
    Settings = QualitySettings
    inputs: ClassVar[Mapping[str, Input]] = {
        "documents": Input("documents"),
        "annotations": Input("attributes", many=True),
        "embeddings": Input("attributes", optional=True),
    }
    settings: QualitySettings

    def models(self) -> Sequence[str]:
        """Return the embedding model."""
        return () if self.settings.head == NGRAMS else (self.settings.features.model,)

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return the number of annotations; it makes no rows."""
        known = [found.rows for found in inputs["annotations"] if found.rows is not None]
        return Expected(planned=sum(known) if known else None, unit="annotations")

    def run(self, context: StageContext) -> StageResult:
        """Find and embed the annotated documents, train and measure heads, choose one and its threshold.

        Raises:
            DataError: too few annotations belong to the documents, or all are good, or all bad.
        """
        rows, features = self._rows(context)
        annotated, left_out = self._annotated(context, rows)
        heads, measured = self._trained(context, rows, annotated)
        kind = measured.best() if self.settings.head == "best" else self.settings.head
        head = heads.whole(kind)
        plain = self._scorer(kind, load_head(head, kind, "the head just trained"), features, measured)
        maps = self._source_maps(context, rows, plain, head) if self.settings.source_blind else None
        scorer = replace(plain, blind=maps)
        metrics = metrics_of(measured, scorer, plain, self._threshold)
        agreement = _agreement(context.inputs["annotations"])
        metrics |= {"target": self.settings.target, "left_out": left_out, "agreement": agreement}
        metrics["warnings"] = warnings_of(metrics, left_out, agreement)
        store, folder = context.artifact.store, context.artifact.folder
        save_scorer(scorer, head, context.artifact)
        store.write(f"{folder}/{HELD_OUT_FILE}", parquet_bytes(held_out_table(measured, scorer)))
        store.write_json(f"{folder}/{THRESHOLD}", {"threshold": metrics["threshold"]})
        store.delete(f"{folder}/{WORK}")
        return StageResult(metrics=metrics, files=[SCORER, HEAD, HELD_OUT_FILE, THRESHOLD])

    def _rows(self, context: StageContext) -> tuple[FoundRows, dict[str, Any]]:
        """Return how documents and vectors are read, and what the vectors are made of: nothing, for n-grams alone."""
        documents, embeddings = context.input("documents"), context.optional_input("embeddings")
        if embeddings is not None:
            require_same_documents(self.name, documents, embeddings)
            made_by = settings_of_embeddings(embeddings.manifest.settings)
            return FoundRows(documents, embeddings, None), features_identity(made_by)
        if self.settings.head == NGRAMS:
            return FoundRows(documents, None, None), {}
        return FoundRows(documents, None, self.settings.features), features_identity(self.settings.features)

    def _kinds(self, rows: FoundRows) -> Sequence[str]:
        """Return the kinds of heads to train."""
        if self.settings.head == NGRAMS and not rows.gives_vectors:
            return (NGRAMS,)
        return HEADS if self.settings.rivals or self.settings.head == "best" else (self.settings.head,)

    def _annotated(self, context: StageContext, rows: FoundRows) -> tuple[Annotated, dict[str, int]]:
        """Return the annotated documents, and how many annotations were left out, by reason."""
        store, graded = context.artifact.store, f"{context.artifact.folder}/{WORK}/graded.parquet"
        grades, left_out = collect_grades(context.inputs["annotations"], self.settings.prefer)
        store.write(graded, parquet_bytes(grades))
        parts = len(rows.documents.parts)
        here = not rows.embeds and parts <= SMALL_CORPUS
        maker = AnnotatedPart(rows, store, graded, self.settings.ngram_characters, *self._machine(rows))
        found = self._make(context, "annotated", maker, parts, here)
        for name in LEFT_OUT:
            left_out[name] = sum(int(part.counts[name]) for part in found.parts)
        annotated = found_annotated(found, vectors=False)
        left_out["of_other_documents"] = len(grades) - len(annotated) - sum(left_out[name] for name in LEFT_OUT)
        if len(annotated) < FEWEST:
            raise DataError(
                f"only {len(annotated)} of {len(grades)} annotations belong to these documents; {FEWEST} are needed",
                "annotate the same documents, and a larger sample",
            )
        return annotated, left_out

    def _trained(self, context: StageContext, rows: FoundRows, annotated: Annotated) -> tuple[TrainedHeads, Measured]:
        """Return all heads, and what they gave documents that they did not learn from."""
        training = Training(
            **{name: getattr(self.settings, name) for name in Training.__dataclass_fields__ if name != "seed"},
            seed=context.seed,
        )
        split = training.split(annotated)
        require_both_classes(self.name, split)
        folds = {name: training.fold_numbers(annotated, split, name) for name in (BY_KEY, BY_SOURCE, WHOLE)}
        units = plan_units(self._kinds(rows), folds)
        found = Artifact(context.artifact.store, f"{context.artifact.folder}/{WORK}/annotated")
        here = len(annotated) <= SMALL_TRAINING
        parts = self._make(context, "trained", HeadPart(found, training, units), len(units), here)
        heads = TrainedHeads(parts, units, len(annotated))
        unseen = {
            CROSS_VALIDATED: heads.unseen(BY_KEY),
            UNSEEN_SOURCES: heads.unseen(BY_SOURCE),
            OUT_OF_BAG: heads.unseen(WHOLE, BAG_SCORES),
            HELD_OUT: heads.unseen(WHOLE),
        }
        counts = {CROSS_VALIDATED: _count(folds[BY_KEY]), UNSEEN_SOURCES: _count(folds[BY_SOURCE])}
        return heads, Measured(annotated, split, unseen, counts, derive_seed(context.seed, "bootstrap"))

    def _scorer(self, kind: str, head: Any, features: Mapping[str, Any], measured: Measured) -> Scorer:
        """Return the scorer with a head, calibrated if that is wanted and higher scores are better."""
        platt = None
        if self.settings.calibrated:
            scores = measured.of(kind)
            rows = np.isfinite(scores) & ~measured.split.held_out
            if rows.any():
                platt = fit_platt(scores[rows], measured.split.labels[rows], measured.annotated.weights[rows])
        if kind == NGRAMS:
            return Scorer(kind, {}, 0, self.settings.ngram_characters, head, platt)
        return Scorer(kind, features, int(head.n_features_in_), self.settings.ngram_characters, head, platt)

    def _source_maps(self, context: StageContext, rows: FoundRows, plain: Scorer, head: bytes) -> SourceMaps:
        """Draw some documents of every source, score them and return the maps that take the source out of scores."""
        store, work = context.artifact.store, f"{context.artifact.folder}/{WORK}"
        parts, most, seed = len(rows.documents.parts), self.settings.source_sample, derive_seed(context.seed, "sources")
        here = not rows.embeds and parts <= SMALL_CORPUS
        maker = CandidatesPart(rows.documents, f"{work}/graded.parquet", most, seed)
        candidates = self._make(context, "candidates", maker, parts, here)
        store.write(f"{work}/sample.parquet", parquet_bytes(draw_sample(candidates, most)))
        trained = Artifact(store, f"{work}/plain")
        save_scorer(plain, head, trained)
        scoring = SampleScoresPart(rows, trained, f"{work}/sample.parquet", *self._machine(rows))
        scores, sources, weights = sample_scores(self._make(context, "sampled", scoring, parts, here))
        return source_maps(scores, sources, weights)

    def _threshold(self, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
        """Return what the settings aim at."""
        aim = self.settings
        return choose_threshold(scores, labels, weights, aim.target, aim.keep_share, aim.precision)

    def _machine(self, rows: FoundRows) -> tuple[float, bool]:
        """Return the processors of a worker that reads documents, and whether it has a GPU."""
        from hornbook.cluster import expected_gpus

        features = self.settings.features
        on_gpu = rows.embeds and features.kind != STATIC and expected_gpus() > 0
        return float(features.threads) if rows.embeds else 1.0, on_gpu

    def _make(self, context: StageContext, step: str, maker: PartMaker, units: int, here: bool) -> Artifact:
        """Make what is missing of a step's parts, with workers or `here`, and return the folder that has them."""
        store, folder = context.artifact.store, f"{context.artifact.folder}/{WORK}/{step}"
        ranges = [PartRange(unit, unit + 1) for unit in range(units)]
        if not here:
            maker.max_workers = self.settings.workers
            replace(context, artifact=Artifact(store, folder)).make_parts(maker, ranges, unit="parts")
        elif missing := missing_ranges(store, folder, ranges):
            maker.setup()
            with context.progress(units, "parts", units - len(missing)) as progress:
                for part in missing:
                    context.check_stop()
                    commit_part(store, folder, part, maker.make(part))
                    progress.advance(1)
        return Artifact(store, folder)


def held_out_table(measured: Measured, scorer: Scorer) -> pa.Table:
    """Return the annotations that training never saw: key, source, grade, label, weight and score."""
    annotated, split, scores = measured.annotated, measured.split, measured.finished(scorer)
    rows = np.flatnonzero(split.held_out)
    return pa.table(
        {
            "key": pa.array([annotated.keys[row] for row in rows], pa.binary(KEY_BYTES)),
            "source": pa.array([annotated.sources[row] for row in rows], pa.string()),
            "grade": pa.array(annotated.grades[rows], pa.float32()),
            "label": pa.array(split.labels[rows], pa.bool_()),
            "weight": pa.array(annotated.weights[rows], pa.float32()),
            "score": pa.array(scores[rows], pa.float32()),
        }
    )


def _agreement(annotations: Sequence[Artifact]) -> dict[str, Any]:
    """Return whose grades were compared, and how far they agree: the figures of the first annotator that has some."""
    found = (artifact.manifest.metrics.get("agreement") for artifact in annotations)
    return dict(next(filter(None, found), {}))


def _count(folds: np.ndarray) -> int:
    return int(folds.max(initial=-1)) + 1
