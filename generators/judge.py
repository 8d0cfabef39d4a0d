"""Grades documents by a rubric with an LLM judge: a number for each criterion and a reason, beside the documents.

TinyStories (2305.07759) had GPT-4 first assess a story in words and then grade it; phi-1 (2306.11644) had it judge what a file
is worth to a student. The judge's answer is a JSON object whose form the engine enforces; one that is not in the form, or out
of range, is a reject that says what the judge said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from generators.asking import Together, Writer, made_with, one_failure, writer
from generators.judge_figures import judge_figures
from generators.replies import ROLE, SAVED, Call, EarlierReplies, KnownReplies, earlier_replies, replies_bytes
from generators.rubric import MEAN, Asking, Grades, NotGraded, Reason, Rubric
from hornbook.artifact import THRESHOLD, Artifact
from hornbook.documents import KEY_BYTES, Reject, canonical_json, generated_key, rejects_table
from hornbook.engines.foreseen import check_sampling
from hornbook.engines.interface import EngineSettings, Reply, Request, Sampling
from hornbook.engines.usage import usage_counts
from hornbook.errors import RecipeError
from hornbook.parts import PartContent, PartRange, same_ids
from hornbook.partwork import PartMaker
from hornbook.plan import derive_seed
from hornbook.settings import Settings, nearest, runtime, validate
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult
from hornbook.stages import own_file

HERE = Path(__file__).parent


class JudgeSettings(Settings):
    """What is graded, by whom, and what becomes of the grades."""

    rubric: str | Rubric = Field(
        "educational",
        description="A rubric that ships (answers, educational, stories), a path to a YAML file of your own, or the rubric "
        "itself.",
    )
    reason: Reason = Field(
        "first", description="The judge's words: before its grades (it thinks first), after them, or none."
    )
    reason_characters: int = Field(300, ge=20, description="Longest reason.")
    characters: int = Field(2000, ge=50, description="Characters of each document that the judge reads.")
    share: float = Field(
        1.0, gt=0, le=1, description="Share of the documents to grade, chosen by the hash of their key."
    )
    score: str = Field(MEAN, description="What the column `score` holds: one criterion, or the mean of all numbers.")
    threshold: float | None = Field(
        None, description="Score from which a pack stage keeps a document, where it names none itself."
    )
    engine: EngineSettings = Field(EngineSettings(), description="The judge.")
    sampling: Sampling = Field(Sampling(temperature=0.0, max_tokens=300), description="How it samples.")
    parts_in_flight: int = runtime(12, ge=1, description="Parts asked at once of each replica of the engine.")


class Judge(Stage):
    """Grades by a rubric: scores and a reason for every document."""

    kind = "judge"
    produces = "attributes"
    Settings = JudgeSettings
    inputs: ClassVar[Mapping[str, Input]] = {"documents": Input("documents")}
    file_settings: ClassVar[tuple[str, ...]] = ("rubric",)
    settings: JudgeSettings

    @cached_property
    def asking(self) -> Asking:
        """The rubric, read once, on the driver: a worker need not have a user's file. Raises RecipeError."""
        settings = self.settings
        where = f"stages.{self.name}.rubric"
        return load_asking(settings.rubric, where, settings.reason, settings.reason_characters, self.folder)

    def models(self) -> Sequence[str]:
        """Return the judge's model."""
        return (self.settings.engine.model,) if self.settings.engine.kind == "vllm" else ()

    def extra_identity(self) -> dict[str, str]:
        """Return what a user's rubric file says: another text is another artifact."""
        return rubric_identity(self.settings.rubric, self.asking)

    def check(self) -> None:
        """Refuse a rubric that cannot be read, a score that it does not give, a threshold out of its range, and sampling
        that the engine cannot do."""
        check_sampling(self.settings.engine, self.settings.sampling, f"stages.{self.name}.engine")
        rubric, score = self.asking.rubric, self.settings.score
        rubric.require_score(score, f"stages.{self.name}.score")
        low, high = rubric.bounds(score)
        if self.settings.threshold is not None and not low <= self.settings.threshold <= high:
            raise RecipeError(
                f"stages.{self.name}.threshold: {self.settings.threshold:g} is not a score, those are {low:g} to {high:g}"
            )

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return the share of the documents."""
        rows = inputs["documents"][0].rows
        graded = None if rows is None else round(rows * self.settings.share)
        return Expected(planned=rows, unit="documents", rows=graded)

    def run(self, context: StageContext) -> StageResult:
        """Grade each part of the input into a part of the same range."""
        documents, settings, artifact = context.input("documents"), self.settings, context.artifact
        earlier = earlier_replies(artifact, self.kind, context.anew)
        parts = [part.range for part in documents.parts]
        engine = context.open_engine(settings.engine, wait=not earlier.cover(parts))
        maker = JudgePart(settings, self.asking, documents, writer(settings.engine, engine), earlier, context.seed)
        totals = context.make_parts(maker, parts, unit="documents", tokens="completion_tokens")
        artifact.store.delete(f"{artifact.folder}/{SAVED}")
        metrics = judge_figures(artifact, self.asking.rubric, settings.score, settings.threshold)
        asked = totals.rows + totals.rejected
        metrics["rejected_share"] = round(totals.rejected / asked, 4) if asked else None
        metrics["completion_tokens"] = int(totals.counts.get("completion_tokens", 0))
        if settings.threshold is None:
            return StageResult(metrics=metrics)
        artifact.store.write_json(f"{artifact.folder}/{THRESHOLD}", {"threshold": settings.threshold})
        return StageResult(metrics=metrics, files=[THRESHOLD])


class JudgePart(PartMaker):
    """Grades the documents of one input part."""

    num_cpus = 0.1  # it waits for the engine

    def __init__(
        self,
        settings: JudgeSettings,
        asking: Asking,
        documents: Artifact,
        engine: Writer,
        earlier: EarlierReplies,
        seed: int,
    ) -> None:
        self.settings, self.asking, self.documents, self.seed = settings, asking, documents, seed
        self.engine, self.earlier = engine, earlier
        self.in_flight = settings.parts_in_flight
        self.replicas = len(engine.handle)

    async def make(self, part: PartRange) -> PartContent:
        """Return rows of `columns`, one for each graded document, in the documents' order."""
        names = ["id", "key", "source", "text"]
        table = await asyncio.to_thread(self.documents.read, self.documents.parts_by_start[part.start], columns=names)
        planned = table.column("id").to_pylist()
        chosen = [row for row in table.to_pylist() if is_chosen(row["key"], self.settings.share, self.seed)]
        calls = await self._ask(part, chosen)
        rows, rejects = [], []
        for row, call in zip(chosen, calls, strict=True):
            reply = call.reply
            try:
                grades = grades_of(reply, self.asking)
            except NotGraded as error:
                rejects.append(
                    Reject(row["id"], f"document {row['key'].hex()}", error.reason, error.detail, reply.text)
                )
                continue
            rows.append(self._row(row, grades))
        refused = [None] * len(rows) + [(reject.reason, reject.detail) for reject in rejects]
        if failure := one_failure(part, refused):
            raise failure
        return PartContent(
            table=pa.Table.from_pylist(rows, schema=columns(self.asking.rubric)),
            rejects=rejects_table(rejects),
            planned=planned,
            unit_of=same_ids,
            empty=len(planned) - len(chosen),
            files={ROLE: replies_bytes(calls)} if calls else {},
            counts={
                "reused": sum(call.reused for call in calls),
                **usage_counts(
                    {"engine": self.settings.engine}, [("engine", call.reply) for call in calls if not call.reused]
                ),
            },
        )

    async def _ask(self, part: PartRange, documents: Sequence[Mapping[str, Any]]) -> list[Call]:
        """Return the judge's reply to each document. Where one cannot be had, the others are saved for the next attempt."""
        known, together = await asyncio.to_thread(self.earlier.load, part), Together()
        ended = await asyncio.gather(*(self._call(row, known, together) for row in documents), return_exceptions=True)
        calls = [end for end in ended if isinstance(end, Call)]
        if failure := next((end for end in ended if isinstance(end, BaseException)), None):
            await asyncio.to_thread(self.earlier.save, part, calls)
            raise failure
        return calls

    async def _call(self, row: Mapping[str, Any], known: KnownReplies, together: Together) -> Call:
        """Return the judge's reply to a document: an earlier one where the same was asked, else a new one."""
        sampling, schema = self.settings.sampling, self.asking.schema
        messages = self.asking.messages(row["text"][: self.settings.characters])
        seed = derive_seed(self.seed, "judge", row["key"].hex()) % (1 << 31)
        key = generated_key(messages, self.engine.revision, made_with(sampling, schema), seed)
        reply, reused = known.find(key)
        if reply is None:
            request = Request(messages, seed, schema=schema, tag=f"judge/{row['id']}")
            reply = await together.ask(self.engine, request, sampling)
        return Call(row["id"], key, reply, reused)

    def _row(self, row: Mapping[str, Any], grades: Grades) -> dict[str, Any]:
        return {
            **{name: row[name] for name in ("id", "key", "source")},
            "score": grades.score(self.settings.score),
            **grades.values,
            "reason": grades.reason,
            "characters": min(len(row["text"]), self.settings.characters),
            "judge": self.engine.model,
            "revision": self.engine.revision,
        }


def columns(rubric: Rubric) -> pa.Schema:
    """Return the schema of a rubric's grades."""
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),  # of the document, in its own artifact
            pa.field("key", pa.binary(KEY_BYTES), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("score", pa.float32(), nullable=False),  # one criterion or the mean, as the settings say
            *(
                pa.field(criterion.name, pa.string() if criterion.choices else pa.float32(), nullable=False)
                for criterion in rubric.criteria
            ),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("characters", pa.int32(), nullable=False),  # how many the judge read
            pa.field("judge", pa.string(), nullable=False),
            pa.field("revision", pa.string(), nullable=False),
        ]
    )


def is_chosen(key: bytes, share: float, seed: int) -> bool:
    """Return whether a document is graded: a function of its key, so that a smaller share is part of a larger one."""
    return share >= 1 or derive_seed(seed, "judged", key.hex()) < share * (1 << 63)


# --- shared with what grades its own output -----------------------------------------------------------------------------


def grades_of(reply: Reply, asking: Asking) -> Grades:
    """Return what an engine's reply grades.

    Raises:
        NotGraded: `engine-error`, `truncated`, `empty`, `invalid-json` or `out-of-range`.
    """
    if reply.finish_reason == "error":
        if reply.text:  # an endpoint that does not enforce the schema
            asking.read(reply.text)
            raise NotGraded("invalid-json", reply.error)
        raise NotGraded("engine-error", reply.error)
    if reply.finish_reason == "length":
        raise NotGraded("truncated", f"cut after {reply.completion_tokens} tokens")
    return asking.read(reply.text)


def load_asking(
    rubric: str | Rubric, where: str, reason: Reason, reason_characters: int, folder: Path | None = None
) -> Asking:
    """Return how a rubric is asked.

    Args:
        rubric: the rubric, its name or the path of its file.
        where: names the setting, for messages.
        folder: the recipe's, where a file is looked for before the current one.

    Raises:
        RecipeError: there is no such rubric, or its file is not one.
    """
    found = _read_rubric(rubric, where, folder) if isinstance(rubric, str) else rubric
    return Asking(found, (HERE / "judge.jinja").read_text(encoding="utf-8"), reason, reason_characters)


def rubric_identity(rubric: str | Rubric, asking: Asking) -> dict[str, str]:
    """Return what enters a fingerprint of a rubric that is neither in the settings nor beside this module."""
    if isinstance(rubric, Rubric) or _shipped(rubric) is not None:
        return {}
    return {"rubric": canonical_json(asking.rubric.identity())}


def _read_rubric(name: str, where: str, folder: Path | None) -> Rubric:
    import yaml

    path = _shipped(name) or own_file(name, folder) or Path(name).expanduser()
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        shipped = sorted(file.name.split(".")[1] for file in HERE.glob("judge.*.yaml"))
        raise RecipeError(
            f"{where}: there is no rubric {name!r}{nearest(name, shipped)}: {error}",
            f"name one that ships ({', '.join(shipped)}), the path of a YAML file, or write the rubric itself here",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{where}: {path} is not YAML: {error}") from None
    if not isinstance(value, dict):
        raise RecipeError(
            f"{where}: {path} is not a rubric", "a rubric is a mapping with name, instruction and criteria"
        )
    return validate(Rubric, value, f"{where}: {path}")


def _shipped(name: str) -> Path | None:
    path = HERE / f"judge.{name}.yaml"
    return path if name.replace("-", "").isalnum() and path.is_file() else None
