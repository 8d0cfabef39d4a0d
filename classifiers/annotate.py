"""Grades a sample of documents for educational value with LLM judges: phi-1's first step.

phi-1 (2306.11644) had GPT-4 judge about 100,000 files "for a student whose goal is to learn"; a classifier then learns from
the grades what the rest is worth. Here each sampled document is graded twice, by one judge under two wordings or by two
judges under one, so that their agreement says how far the grades can be trusted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from classifiers.agreement import agreement, spread
from classifiers.annotation_sample import draw_sample, sample_ranges
from classifiers.excerpt import excerpt
from classifiers.wordings import DOCUMENT, Answers, load_wordings
from hornbook.artifact import Artifact
from hornbook.documents import KEY_BYTES, Reject, canonical_json, rejects_table
from hornbook.engines.interface import EngineSettings, Reply, engines_of
from hornbook.engines.pool import EngineHandle
from hornbook.engines.usage import usage_counts
from hornbook.errors import DataError
from hornbook.judge import ONE_TOKEN, Grade, Rubric, content_free_prior, grade
from hornbook.labelling import ASKED, EXCERPT_SCHEMA, EXCERPTS
from hornbook.parts import PartCommit, PartContent, PartRange, parquet_bytes, same_ids
from hornbook.partwork import PartMaker
from hornbook.plan import derive_seed
from hornbook.settings import Settings
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult

SAMPLE = "sample.parquet"
PRIOR = "prior.json"
COLUMNS = ("a", "b")
MANY_REJECTS = 0.1
"""Share of the sample; more are worth a warning."""

ANNOTATION_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),  # of the document, in its own artifact
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field(
            "score_a", pa.float32(), nullable=False
        ),  # 0 to 5, expectation: the first wording's, or the first judge's
        pa.field("score_b", pa.float32()),  # the second's; null where there is none
        pa.field("score", pa.float32(), nullable=False),  # their mean
        pa.field("grade_a", pa.string(), nullable=False),  # the likeliest answer
        pa.field("grade_b", pa.string()),
        pa.field("judge", pa.string(), nullable=False),
        pa.field("revision", pa.string(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),  # documents of the corpus that it stands for
    ]
)


class AnnotateSettings(Settings):
    """How many documents are graded, by whom, and how much of each the judge reads."""

    sample: int = Field(240, ge=2, description="Documents to grade, shared fairly among sources and lengths.")
    characters: int = Field(1000, ge=50, description="Characters of each document that the judge reads.")
    answers: Answers = Field(
        "yes-no",
        description="yes-no: the score is 5 times the probability of Yes; a judge below about 1B parameters ranks sensibly "
        "only this way. grades: the expected digit, 0 to 5, for larger judges.",
    )
    rubric: tuple[str, ...] = Field(
        (),
        max_length=2,
        description="Instead of the two wordings that ship: one or two Jinja templates of your own, which show "
        "`{{ document }}` and ask for what `answers` says.",
    )
    calibrate: bool = Field(
        True, description="Divide each grade's probability by what the judge says of documents without content."
    )
    engine: EngineSettings = Field(default_factory=EngineSettings, description="The judge.")
    second_engine: EngineSettings | None = Field(
        None,
        description="A second judge. Both are then asked in the first wording, so that the agreement measured is that of two "
        "judges; without it one judge is asked in both wordings.",
    )
    part_rows: int = Field(16, ge=1, description="Documents per part, and per call of the engine.")

    @model_validator(mode="after")
    def _two_that_differ(self) -> Self:
        if self.second_engine is None:
            return self
        if len(self.rubric) > 1:
            raise ValueError("with a second_engine, both judges are asked in one wording: name one rubric")
        first, second = ((known.kind, known.model, known.base_url) for known in (self.engine, self.second_engine))
        if first == second:
            raise ValueError("second_engine is the engine once more: of course they would agree")
        return self


@dataclass(frozen=True)
class Voice:
    """One of the at most two that grade every document: which engine is asked, and how."""

    column: str
    """`a` or `b`."""
    engine: str
    """The engine's field of the settings."""
    rubric: Rubric


class Annotate(Stage):
    """Draws a sample and has it graded."""

    kind = "annotate"
    produces = "attributes"
    Settings = AnnotateSettings
    inputs: ClassVar[Mapping[str, Input]] = {"documents": Input("documents", many=True)}
    file_settings: ClassVar[tuple[str, ...]] = ("rubric",)
    settings: AnnotateSettings

    @cached_property
    def voices(self) -> tuple[Voice, ...]:
        """Who grades, read once, on the driver: a worker need not have a user's templates. Raises RecipeError."""
        settings = self.settings
        rubrics = load_wordings(settings.answers, settings.rubric, self.folder, f"stages.{self.name}.rubric")
        if settings.second_engine is None:
            return tuple(Voice(name, "engine", rubric) for name, rubric in zip(COLUMNS, rubrics, strict=False))
        return Voice("a", "engine", rubrics[0]), Voice("b", "second_engine", rubrics[0])

    def check(self) -> None:
        """Refuse templates that cannot be asked."""
        _ = self.voices

    def models(self) -> Sequence[str]:
        """Return the judges' models."""
        return tuple(engine.model for engine in engines_of(self.settings).values() if engine.kind == "vllm")

    def extra_identity(self) -> dict[str, str]:
        """Return what a user's templates say: other words are another artifact."""
        if not self.settings.rubric:
            return {}
        return {"rubric": canonical_json([voice.rubric.template for voice in self.voices])}

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return the sample's size, or all documents where there are fewer."""
        known = [found.rows for found in inputs["documents"]]
        rows = min(self.settings.sample, sum(known)) if None not in known else self.settings.sample  # type: ignore[arg-type]
        return Expected(planned=rows, unit="documents", rows=rows)

    def run(self, context: StageContext) -> StageResult:
        """Write the sample and the judges' priors unless an earlier attempt did, then grade part by part."""
        store, folder = context.artifact.store, context.artifact.folder
        documents = list(context.inputs["documents"])
        if not store.exists(f"{folder}/{SAMPLE}"):
            sample = draw_sample(documents, self.settings.sample, derive_seed(context.seed, "annotate"))
            if sample.num_rows == 0:
                raise DataError(f"{self.name}: there are no documents to grade", "look at the rejects of its inputs")
            store.create(f"{folder}/{SAMPLE}", parquet_bytes(sample))
        with store.open_input(f"{folder}/{SAMPLE}") as file:
            sample = pq.read_table(file)
        engines = {name: context.open_engine(settings) for name, settings in engines_of(self.settings).items()}
        if not store.exists(f"{folder}/{PRIOR}"):
            prior = asyncio.run(_priors(engines, self.voices)) if self.settings.calibrate else {}
            store.create(f"{folder}/{PRIOR}", json.dumps(prior, sort_keys=True).encode())
        store.write_json(f"{folder}/{ASKED}", _asked(self.settings, self.voices))
        maker = GradePart(self.settings, self.voices, context.artifact, documents, engines)
        ranges = sample_ranges(sample, self.settings.part_rows)
        totals = context.make_parts(maker, ranges, unit="documents", tokens="prompt_tokens")
        if totals.rows == 0:
            raise _nothing_graded(self.name, context.artifact)
        prior = store.read_json(f"{folder}/{PRIOR}")
        metrics = summary(context.artifact.tables(), prior, sample.num_rows, self._between())
        return StageResult(metrics=metrics, files=[SAMPLE, PRIOR, ASKED])

    def _between(self) -> dict[str, str]:
        """Return whose agreement is measured; empty where one voice grades alone."""
        if self.settings.second_engine is not None:
            return {
                "of": "two judges",
                "first": self.settings.engine.model,
                "second": self.settings.second_engine.model,
            }
        if len(self.voices) < 2:
            return {}
        first, second = (voice.rubric.name for voice in self.voices)
        return {"of": "two wordings of one judge", "first": first, "second": second}


class GradePart(PartMaker):
    """Grades a planned range of the sample, all of it from one input."""

    num_cpus = 0.1  # it waits for the engine

    def __init__(
        self,
        settings: AnnotateSettings,
        voices: Sequence[Voice],
        artifact: Artifact,
        documents: Sequence[Artifact],
        engines: Mapping[str, EngineHandle],
    ) -> None:
        self.settings, self.voices = settings, list(voices)
        self.artifact, self.documents = artifact, list(documents)
        self.engines = dict(engines)
        self.replicas = max(map(len, self.engines.values()))

    def setup(self) -> None:
        """Read the sample and the prior."""
        from hornbook.models import digest

        with self.artifact.store.open_input(f"{self.artifact.folder}/{SAMPLE}") as file:
            self.sample = pq.read_table(file)
        self.prior = self.artifact.store.read_json(f"{self.artifact.folder}/{PRIOR}")
        self.settings_of = engines_of(self.settings)
        asked = self.settings_of.values()
        self.judge = " + ".join(engine.model for engine in asked)
        self.revision = " + ".join(digest(engine.model) if engine.kind == "vllm" else engine.kind for engine in asked)

    async def make(self, part: PartRange) -> PartContent:
        """Return rows of ANNOTATION_SCHEMA and, as the role EXCERPTS, what the judges read."""
        sample = self.sample.slice(part.start, len(part)).to_pylist()
        excerpts = await asyncio.to_thread(self._excerpts, sample)
        texts = [row["text"] for row in excerpts]
        tags = [f"{self.artifact.folder}/{part.start + place}" for place in range(len(sample))]
        replies = await asyncio.gather(*(self._ask(voice, texts, tags) for voice in self.voices))
        rows, rejects = [], []
        for place, planned in enumerate(sample):
            grades = [
                grade(said[place], voice.rubric, self.prior.get(voice.column))
                for voice, said in zip(self.voices, replies, strict=True)
            ]
            failed = next((found for found in grades if found.reason), None)
            if failed is None:
                rows.append(self._row(planned, grades))
            else:
                rejects.append(Reject(planned["id"], f"document {planned['id']}", failed.reason, failed.detail))
        asked = [(voice.engine, reply) for voice, said in zip(self.voices, replies, strict=True) for reply in said]
        return PartContent(
            table=pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA),
            rejects=rejects_table(rejects),
            planned=[planned["id"] for planned in sample],
            unit_of=same_ids,
            files={EXCERPTS: parquet_bytes(pa.Table.from_pylist(excerpts, schema=EXCERPT_SCHEMA))},
            counts=usage_counts(self.settings_of, asked),
        )

    async def _ask(self, voice: Voice, texts: Sequence[str], tags: Sequence[str]) -> list[Reply]:
        requests = [voice.rubric.request(text, tag) for text, tag in zip(texts, tags, strict=True)]
        return await self.engines[voice.engine].generate(requests, ONE_TOKEN)

    def _row(self, planned: Mapping[str, Any], grades: Sequence[Grade]) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for voice, found in zip(self.voices, grades, strict=True):
            columns |= {f"score_{voice.column}": found.score, f"grade_{voice.column}": found.choice}
        return {
            **{name: planned[name] for name in ("id", "key", "source", "weight")},
            **columns,
            "score": sum(found.score for found in grades) / len(grades),
            "judge": self.judge,
            "revision": self.revision,
        }

    def _excerpts(self, sample: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return rows of EXCERPT_SCHEMA; each part that holds sampled documents is read once."""
        found: dict[int, dict[str, Any]] = {}
        documents = self.documents[sample[0]["input"]]
        commits = documents.parts_by_start
        for start in sorted({planned["start"] for planned in sample}):
            wanted = [planned["id"] for planned in sample if planned["start"] == start]
            for row in _rows(documents, commits[start], wanted):
                found[row["id"]] = {
                    "kind": row["kind"],
                    "characters": len(row["text"]),
                    "text": excerpt(row["text"], self.settings.characters),
                }
        names = ("id", "key", "source", "input", "start")
        return [{**{name: planned[name] for name in names}, **found[planned["id"]]} for planned in sample]


def _rows(documents: Artifact, commit: PartCommit, wanted: Sequence[int]) -> list[dict[str, Any]]:
    table = documents.read(commit, columns=["id", "kind", "text"])
    return table.filter(pc.is_in(table.column("id"), pa.array(wanted))).to_pylist()


def _nothing_graded(name: str, artifact: Artifact) -> DataError:
    rejects = next(table for table in artifact.tables(role="rejects") if table.num_rows)
    reason, detail = (rejects.column(column)[0].as_py() for column in ("reason", "detail"))
    return DataError(
        f"{name}: no document got a grade; the first one: {reason}: {detail}",
        f"mend the judge, or name another; `hornbook run RECIPE --from {name}` asks again",
    )


async def _priors(engines: Mapping[str, EngineHandle], voices: Sequence[Voice]) -> dict[str, dict[str, float]]:
    return {voice.column: await content_free_prior(engines[voice.engine], voice.rubric) for voice in voices}


def _asked(settings: AnnotateSettings, voices: Sequence[Voice]) -> dict[str, Any]:
    """Return what a person who grades the same documents should know: who was asked what."""
    engines = engines_of(settings)
    return {
        "shipped": not settings.rubric,
        "voices": [
            {
                "judge": engines[voice.engine].model,
                "wording": voice.rubric.name,
                "messages": voice.rubric.messages(DOCUMENT),
                "choices": voice.rubric.choices,
            }
            for voice in voices
        ],
    }


# --- figures for the report ------------------------------------------------------------------------------------------


def summary(
    tables: Iterable[pa.Table], prior: Mapping[str, Mapping[str, float]], planned: int, between: Mapping[str, str]
) -> dict[str, Any]:
    """Return the metrics of finished annotations.

    `agreement`: of whom, and how far; empty where one voice graded alone. `scores`, `scores_by_source`: their spread in the
    sample; `corpus_mean` is the estimate for all documents, each grade counted by its weight.
    """
    table = pa.concat_tables([ANNOTATION_SCHEMA.empty_table(), *tables])
    scores, weights = (table.column(name).to_numpy() for name in ("score", "weight"))
    sources = np.array(table.column("source").to_pylist(), dtype=object)
    first, second = (table.column(f"score_{name}").to_numpy() for name in COLUMNS)
    rejected = 1 - len(scores) / planned
    warnings = []
    if rejected > MANY_REJECTS:
        warnings.append(f"{rejected:.0%} of the sample got no grade: hornbook show has the reasons")
    return {
        "documents": len(scores),
        "agreement": {**between, **agreement(first, second)} if between else {},
        "scores": _weighted(scores, weights),
        "scores_by_source": {
            str(name): _weighted(scores[sources == name], weights[sources == name]) for name in sorted(set(sources))
        },
        "prior": {name: dict(value) for name, value in prior.items()},
        "warnings": warnings,
    }


def _weighted(scores: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    found = spread(scores)
    return {**found, "corpus_mean": round(float(np.average(scores, weights=weights)), 4)} if len(scores) else found
