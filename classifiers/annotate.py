"""Grades a sample of documents for educational value with an LLM judge: phi-1's first step.

phi-1 (2306.11644) had GPT-4 judge about 100,000 files "for a student whose goal is to learn"; a classifier then learns from
the grades what the rest is worth. Here each sampled document is graded twice, under two wordings (the templates
`annotate.*_a.jinja` and `annotate.*_b.jinja`), so that their agreement says how far the judge can be trusted.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from classifiers.excerpt import excerpt
from classifiers.strata import fair_shares
from hornbook.artifact import Artifact
from hornbook.documents import KEY_BYTES, Reject, rejects_table
from hornbook.engines.interface import EngineSettings
from hornbook.engines.pool import EngineHandle
from hornbook.errors import DataError
from hornbook.judge import Rubric, content_free_prior, judge
from hornbook.parts import PartCommit, PartContent, PartRange, parquet_bytes, same_ids
from hornbook.partwork import PartMaker
from hornbook.plan import derive_seed
from hornbook.settings import Settings
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult

SAMPLE = "sample.parquet"
PRIOR = "prior.json"
WORDINGS = ("a", "b")
YES_OR_NO = {"choices": ("No", "Yes"), "scores": (0.0, 5.0)}

SAMPLE_SCHEMA = pa.schema(
    [
        ("input", pa.int32()),  # which of the stage's inputs
        ("start", pa.int64()),  # the document's part in it
        ("id", pa.int64()),
        ("key", pa.binary(KEY_BYTES)),
        ("source", pa.string()),
    ]
)

ANNOTATION_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),  # of the document, in its own artifact
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("score_a", pa.float32(), nullable=False),  # 0 to 5, expectation under the first wording
        pa.field("score_b", pa.float32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),  # their mean
        pa.field("grade_a", pa.string(), nullable=False),  # the likeliest answer
        pa.field("grade_b", pa.string(), nullable=False),
        pa.field("judge", pa.string(), nullable=False),
        pa.field("revision", pa.string(), nullable=False),
    ]
)


class AnnotateSettings(Settings):
    """How many documents are graded, by whom, and how much of each the judge reads."""

    sample: int = Field(240, ge=2, description="Documents to grade, shared fairly among sources and lengths.")
    characters: int = Field(1000, ge=50, description="Characters of each document that the judge reads.")
    answers: Literal["yes-no", "grades"] = Field(
        "yes-no",
        description="yes-no: the score is 5 times the probability of Yes; a judge below about 1B parameters ranks sensibly "
        "only this way. grades: the expected digit, 0 to 5, for larger judges.",
    )
    calibrate: bool = Field(
        True, description="Divide each grade's probability by what the judge says of documents without content."
    )
    engine: EngineSettings = Field(default_factory=EngineSettings, description="The judge.")
    part_rows: int = Field(16, ge=1, description="Documents per part, and per call of the engine.")


class Annotate(Stage):
    """Draws a sample and has it graded."""

    kind = "annotate"
    produces = "attributes"
    Settings = AnnotateSettings
    inputs: ClassVar[Mapping[str, Input]] = {"documents": Input("documents", many=True)}
    settings: AnnotateSettings

    def models(self) -> Sequence[str]:
        """Return the judge's model."""
        return (self.settings.engine.model,) if self.settings.engine.kind == "vllm" else ()

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return the sample's size, or all documents where there are fewer."""
        known = [found.rows for found in inputs["documents"]]
        rows = min(self.settings.sample, sum(known)) if None not in known else self.settings.sample  # type: ignore[arg-type]
        return Expected(planned=rows, unit="documents", rows=rows)

    def run(self, context: StageContext) -> StageResult:
        """Write the sample and the judge's prior unless an earlier attempt did, then grade part by part."""
        store, folder = context.artifact.store, context.artifact.folder
        documents = list(context.inputs["documents"])
        if not store.exists(f"{folder}/{SAMPLE}"):
            sample = draw_sample(documents, self.settings.sample, derive_seed(context.seed, "annotate"))
            if sample.num_rows == 0:
                raise DataError(f"{self.name}: there are no documents to grade", "look at the rejects of its inputs")
            store.create(f"{folder}/{SAMPLE}", parquet_bytes(sample))
        with store.open_input(f"{folder}/{SAMPLE}") as file:
            sample = pq.read_table(file)
        engine = context.open_engine(self.settings.engine)
        if not store.exists(f"{folder}/{PRIOR}"):
            prior = asyncio.run(_priors(engine, self.settings.answers)) if self.settings.calibrate else {}
            store.create(f"{folder}/{PRIOR}", json.dumps(prior, sort_keys=True).encode())
        maker = GradePart(self.settings, context.artifact, documents, engine)
        context.make_parts(maker, sample_ranges(sample, self.settings.part_rows), unit="documents", tokens="tokens")
        prior = store.read_json(f"{folder}/{PRIOR}")
        return StageResult(metrics=summary(context.artifact.tables(), prior), files=[SAMPLE, PRIOR])


class GradePart(PartMaker):
    """Grades a planned range of the sample, all of it from one input."""

    num_cpus = 0.1  # it waits for the engine

    def __init__(
        self, settings: AnnotateSettings, artifact: Artifact, documents: Sequence[Artifact], engine: EngineHandle
    ) -> None:
        self.settings = settings
        self.artifact = artifact
        self.documents = list(documents)
        self.engine = engine
        self.replicas = len(engine)

    def setup(self) -> None:
        """Read the sample, the prior and the rubrics."""
        from hornbook.models import digest

        with self.artifact.store.open_input(f"{self.artifact.folder}/{SAMPLE}") as file:
            self.sample = pq.read_table(file)
        self.prior = self.artifact.store.read_json(f"{self.artifact.folder}/{PRIOR}")
        self.rubrics = load_rubrics(self.settings.answers)
        engine = self.settings.engine
        self.revision = digest(engine.model) if engine.kind == "vllm" else engine.kind

    async def make(self, part: PartRange) -> PartContent:
        """Return rows of ANNOTATION_SCHEMA."""
        sample = self.sample.slice(part.start, len(part)).to_pylist()
        texts = await asyncio.to_thread(self._texts, sample)
        tags = [f"{self.artifact.folder}/{part.start + place}" for place in range(len(sample))]
        grades_a, grades_b = await asyncio.gather(
            *(judge(self.engine, rubric, texts, self.prior.get(name), tags) for name, rubric in self.rubrics.items())
        )
        rows, rejects = [], []
        for planned, a, b in zip(sample, grades_a, grades_b, strict=True):
            if a.reason or b.reason:
                failed = a if a.reason else b
                rejects.append(Reject(planned["id"], f"document {planned['id']}", failed.reason, failed.detail))
                continue
            rows.append(
                {
                    **{name: planned[name] for name in ("id", "key", "source")},
                    "score_a": a.score,
                    "score_b": b.score,
                    "score": (a.score + b.score) / 2,
                    "grade_a": a.choice,
                    "grade_b": b.choice,
                    "judge": self.settings.engine.model,
                    "revision": self.revision,
                }
            )
        return PartContent(
            table=pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA),
            rejects=rejects_table(rejects),
            planned=[planned["id"] for planned in sample],
            unit_of=same_ids,
        )

    def _texts(self, sample: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return the excerpts of sampled documents; each part that holds some is read once."""
        found: dict[int, str] = {}
        documents = self.documents[sample[0]["input"]]
        commits: dict[int, PartCommit] = {part.start: part for part in documents.parts}
        for start in sorted({planned["start"] for planned in sample}):
            table = documents.read(commits[start], columns=["id", "text"])
            wanted = pa.array([planned["id"] for planned in sample if planned["start"] == start])
            table = table.filter(pc.is_in(table.column("id"), wanted))
            found.update(zip(table.column("id").to_pylist(), table.column("text").to_pylist(), strict=True))
        return [excerpt(found[planned["id"]], self.settings.characters) for planned in sample]


def load_rubrics(answers: str) -> dict[str, Rubric]:
    """Return the two wordings of a way to answer (`yes-no` or `grades`), by name."""
    here = Path(__file__).parent
    scale: dict[str, Any] = YES_OR_NO if answers == "yes-no" else {}
    stem = answers.replace("-", "_")
    return {
        name: Rubric(name, (here / f"annotate.{stem}_{name}.jinja").read_text(encoding="utf-8"), **scale)
        for name in WORDINGS
    }


async def _priors(engine: EngineHandle, answers: str) -> dict[str, dict[str, float]]:
    return {name: await content_free_prior(engine, rubric) for name, rubric in load_rubrics(answers).items()}


# --- the sample ------------------------------------------------------------------------------------------------------


def draw_sample(inputs: Sequence[Artifact], wanted: int, seed: int) -> pa.Table:
    """Return rows of SAMPLE_SCHEMA: a fair share of every stratum (source, length to a factor of four).

    Within a stratum the documents with the smallest seeded hash of their key are taken, so the choice depends on nothing
    but the documents. Memory: `wanted` rows per stratum; one part at a time is read.
    """
    strata: dict[tuple[str, int], list[tuple[int, tuple[Any, ...]]]] = {}
    for number, artifact in enumerate(inputs):
        for commit in artifact.parts:
            if commit.rows == 0:
                continue
            table = artifact.read(commit, columns=["id", "key", "source", "text"])
            lengths = pc.binary_length(table.column("text")).to_numpy()
            columns = (table.column(name).to_pylist() for name in ("id", "key", "source"))
            for row, key, source, length in zip(*columns, lengths, strict=True):
                heap = strata.setdefault((source, int(length).bit_length() // 2), [])
                entry = (-derive_seed(seed, key.hex(), number, row), (number, commit.start, row, key, source))
                if len(heap) < wanted:
                    heapq.heappush(heap, entry)
                else:
                    heapq.heappushpop(heap, entry)
    names = sorted(strata)
    chosen: list[tuple[Any, ...]] = []
    for name, share in zip(names, fair_shares([len(strata[name]) for name in names], wanted), strict=True):
        chosen += [row for _, row in sorted(strata[name], reverse=True)[:share]]
    rows = [dict(zip(SAMPLE_SCHEMA.names, row, strict=True)) for row in sorted(chosen)]
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)


def sample_ranges(sample: pa.Table, part_rows: int) -> list[PartRange]:
    """Cut the sample into ranges that stay within one input: ids are unique only there."""
    inputs = sample.column("input").to_numpy()
    borders = [0, *(np.flatnonzero(np.diff(inputs)) + 1).tolist(), len(inputs)]
    return [
        PartRange(start, min(start + part_rows, stop))
        for low, stop in itertools.pairwise(borders)
        for start in range(low, stop, part_rows)
    ]


# --- figures for the report ------------------------------------------------------------------------------------------


def summary(tables: Iterable[pa.Table], prior: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return the metrics of finished annotations: agreement of the two wordings, spread, scores by source."""
    table = pa.concat_tables([ANNOTATION_SCHEMA.empty_table(), *tables])
    scores = table.column("score").to_numpy()
    sources = np.array(table.column("source").to_pylist(), dtype=object)
    first, second = (table.column(f"score_{name}").to_numpy() for name in WORDINGS)
    return {
        "documents": len(scores),
        "agreement": agreement(first, second),
        "scores": _spread(scores),
        "scores_by_source": {str(name): _spread(scores[sources == name]) for name in sorted(set(sources))},
        "prior": {name: dict(value) for name, value in prior.items()},
    }


def agreement(first: np.ndarray, second: np.ndarray) -> dict[str, float | None]:
    """Return how far two series of scores (0 to 5) agree.

    `spearman`: rank correlation; `kappa`: quadratic-weighted kappa of the rounded scores (Cohen, 1968); `exact` and
    `within_one`: shares of rounded scores that are equal, or at most one apart. None where undefined (constant scores).
    """
    from scipy.stats import spearmanr
    from sklearn.metrics import cohen_kappa_score

    if len(first) < 2:
        return {"spearman": None, "kappa": None, "exact": None, "within_one": None}
    a, b = np.rint(first).astype(int), np.rint(second).astype(int)
    constant = np.ptp(first) == 0 or np.ptp(second) == 0
    spearman = float("nan") if constant else float(spearmanr(first, second).statistic)
    kappa = float("nan") if len(set(a) | set(b)) < 2 else float(cohen_kappa_score(a, b, weights="quadratic"))
    return {
        "spearman": _figure(spearman),
        "kappa": _figure(kappa),
        "exact": _figure(float(np.mean(a == b))),
        "within_one": _figure(float(np.mean(np.abs(a - b) <= 1))),
    }


def _figure(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _spread(scores: np.ndarray) -> dict[str, Any]:
    if not len(scores):
        return {"documents": 0}
    quantiles = np.quantile(scores, [0, 0.25, 0.5, 0.75, 1])
    names = ("lowest", "quarter", "median", "three_quarters", "highest")
    return {
        "documents": len(scores),
        "mean": round(float(scores.mean()), 4),
        "deviation": round(float(scores.std()), 4),
        **{name: round(float(value), 4) for name, value in zip(names, quantiles, strict=True)},
    }
