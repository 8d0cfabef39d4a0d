"""What all kinds of generated text share: a plan of prompts, one engine, replies that become documents or rejects.

A kind is a short class: `prompt(row)` says what to ask for a planned row, a pure function of (seed, row); `parse` turns the
answer into a text, or refuses it with a reason.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from generators.checks import Refused
from hornbook.artifact import Artifact
from hornbook.documents import (
    Document,
    MadeBy,
    Reject,
    canonical_json,
    document_id,
    documents_table,
    generated_key,
    rejects_table,
)
from hornbook.engines.interface import EngineSettings, Reply, Request, Sampling
from hornbook.errors import HornbookError, RecipeError
from hornbook.models import digest
from hornbook.parts import PartContent, PartRange, planned_ranges
from hornbook.partwork import PartMaker
from hornbook.plan import Combinations, derive_seed
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Produces, Stage, StageContext, StageResult

if TYPE_CHECKING:
    import jinja2

    from hornbook.engines.pool import EngineHandle

OPENER_WORDS = 3
SAMPLED_DOCUMENTS = 50_000


class PromptSettings(Settings):
    """Settings of every kind of generated text."""

    rows: int = Field(..., ge=1, description="Planned rows, one prompt each; rejected ones are not made up for.")
    part_rows: int = Field(16, ge=1, description="Planned rows per part: what is lost at most when a worker dies.")
    engine: EngineSettings = Field(EngineSettings(), description="The engine that writes.")
    sampling: Sampling = Field(Sampling(), description="How it samples.")
    truncated: Literal["reject", "trim", "keep"] = Field(
        "reject", description="A reply cut at max_tokens: reject it, trim it to its last whole sentence, or keep it."
    )
    parts_in_flight: int = runtime(
        12, ge=1, description="Parts asked at once of each replica of the engine; keeps its batch full."
    )


@dataclass(frozen=True)
class Prompt:
    """What to ask for one planned row: the messages, the seeds they were made from, and the documents they quote."""

    messages: tuple[dict[str, str], ...]
    seeds: Mapping[str, Any]
    parents: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Parsed:
    """An accepted answer: its text and what belongs into `meta`."""

    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


class PromptedStage(Stage):
    """A kind of generated text. Subclasses give `kind`, `source`, `prompt` and, where needed, `parse` and `open`."""

    produces: ClassVar[Produces] = "documents"
    settings: PromptSettings
    document_kind: ClassVar[str] = "text"
    expected_tokens: ClassVar[int] = 200
    too_many_rows: ClassVar[str] = "ask for fewer rows"

    def open(self, inputs: Mapping[str, Sequence[Artifact]]) -> None:
        """Prepare for reading input documents; called once in each worker."""

    @abstractmethod
    def prompt(self, row: int) -> Prompt:
        """Return what to ask for planned row `row`: a pure function of (self.seed, row). May raise Refused."""

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        """Turn an answer (stripped, not empty) into a document's text. Raises Refused."""
        return Parsed(text)

    def accept(self, prompt: Prompt, reply: Reply) -> Parsed:
        """Turn an engine's reply into a document's text. Raises Refused for what failed, was cut, is empty or unparsable."""
        text = reply.text.strip()
        if reply.finish_reason == "error":
            raise Refused("engine-error", reply.error)
        if reply.finish_reason == "length" and self.settings.truncated == "reject":
            raise Refused("truncated", f"cut at {self.settings.sampling.max_tokens} tokens")
        if reply.finish_reason == "length" and self.settings.truncated == "trim":
            text = to_last_sentence(text)
        if not text:
            raise Refused("empty")
        return self.parse(prompt, text)

    def planned(self, context: StageContext) -> int:
        """Return the number of planned rows."""
        return self.settings.rows

    def models(self) -> Sequence[str]:
        """The engine's model, where it is ours to resolve."""
        return (self.settings.engine.model,) if self.settings.engine.kind == "vllm" else ()

    @property
    def combinations(self) -> Combinations | None:
        """The walk through all combinations of seeds, for kinds whose prompts are planned from such a walk."""
        return None

    def check(self) -> None:
        """Refuse sampling that the engine cannot do, and more rows than there are distinct prompts."""
        distinct = None if self.combinations is None else len(self.combinations)
        if distinct is not None and self.settings.rows > distinct:
            raise RecipeError(
                f"stages.{self.name}.rows: {self.settings.rows:,} asked, but there are {distinct:,} distinct prompts",
                self.too_many_rows,
            )
        if self.settings.engine.kind == "openai" and self.settings.sampling.end_bias:
            raise RecipeError(
                f"stages.{self.name}.sampling.end_bias: an endpoint does not say which token ends its model's replies",
                "set end_bias: 0, or use the vllm engine",
            )
        if not self.inputs:  # else the first prompt needs documents that are not there yet
            self._check_prompt()

    def _check_prompt(self) -> None:
        """Render the first row's prompt: a kind or a template that cannot is found before anything runs."""
        import jinja2

        try:
            prompt = self.prompt(0)
        except jinja2.TemplateError as error:
            raise RecipeError(
                f"stages.{self.name}: the prompt of kind {self.kind!r} cannot be rendered: {error}"
            ) from None
        except Refused:
            return
        except RecipeError:
            raise
        except Exception as error:
            raise RecipeError(
                f"stages.{self.name}: the kind {self.kind!r} fails to make its first prompt: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(prompt, Prompt):
            raise RecipeError(f"stages.{self.name}: prompt() of kind {self.kind!r} returns {prompt!r}, not a Prompt")

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Planned rows, and tokens at the kind's usual length."""
        rows = self.settings.rows
        return Expected(
            planned=rows, rows=rows, tokens=rows * min(self.expected_tokens, self.settings.sampling.max_tokens)
        )

    @cached_property
    def template_text(self) -> str:
        """The Jinja file beside the kind's module. Travels with the stage: a worker need not have a user's file."""
        module = sys.modules[type(self).__module__]
        path = Path(str(module.__file__)).with_suffix(".jinja")
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(
                f"stages.{self.name}: the kind {self.kind!r} has no prompt: {error}",
                f"write it as a Jinja template into {path.name} beside {path.with_suffix('.py').name}",
            ) from None

    @cached_property
    def template(self) -> jinja2.Template:
        """The kind's prompt, compiled; a variable that it names and `ask` is not given is an error."""
        import jinja2

        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(self.template_text)

    def ask(self, **seeds: Any) -> tuple[dict[str, str], ...]:
        """Render the kind's template as a single user message."""
        return ({"role": "user", "content": self.template.render(**seeds).strip()},)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "template"}  # it cannot be pickled

    def run(self, context: StageContext) -> StageResult:
        """Ask the engine for every planned row that is not there yet."""
        handle = context.open_engine(self.settings.engine)
        maker = _PromptMaker(self, handle, context.inputs)
        ranges = planned_ranges(self.planned(context), self.settings.part_rows)
        totals = context.make_parts(maker, ranges, tokens="completion_tokens")
        return StageResult(metrics={**corpus_metrics(context.artifact), **_finish_reasons(totals.counts)})


class _PromptMaker(PartMaker):
    """Makes a range of rows: renders the prompts, asks the engine for all of them at once, sorts the answers."""

    num_cpus = 0.1

    def __init__(self, stage: PromptedStage, handle: EngineHandle, inputs: Mapping[str, Sequence[Artifact]]) -> None:
        self.stage, self.handle, self.inputs = stage, handle, inputs
        self.in_flight = stage.settings.parts_in_flight
        self.replicas = len(handle)
        engine = stage.settings.engine
        self.revision = digest(engine.model) if engine.kind == "vllm" else f"{engine.kind}:{engine.model}"
        self.sampling = canonical_json(stage.settings.sampling.identity())

    def setup(self) -> None:
        self.stage.open(self.inputs)

    async def make(self, part: PartRange) -> PartContent:
        prompts: dict[int, Prompt] = {}
        rejects: list[Reject] = []
        for row in range(part.start, part.stop):
            try:
                prompts[row] = self._prompt(row)
            except Refused as refused:
                rejects.append(Reject(row, f"{self.stage.kind} row {row}", refused.reason, refused.detail))
        requests = [
            Request(prompt.messages, sampling_seed(self.stage, row), tag=f"{self.stage.kind}/{row}")
            for row, prompt in prompts.items()
        ]
        replies = await self.handle.generate(requests, self.stage.settings.sampling)
        documents = []
        counts: Counter[str] = Counter()
        for (row, prompt), reply in zip(prompts.items(), replies, strict=True):
            counts[f"finish_{reply.finish_reason}"] += 1
            counts["prompt_tokens"] += reply.prompt_tokens
            counts["completion_tokens"] += reply.completion_tokens
            try:
                parsed = self._accept(prompt, reply)
            except Refused as refused:
                rejects.append(Reject(row, prompt.messages[-1]["content"], refused.reason, refused.detail, reply.text))
                continue
            counts["tokens"] += reply.completion_tokens
            documents.append(self._document(row, prompt, reply, parsed))
        return PartContent(documents_table(documents), rejects_table(rejects), counts=counts)

    def _prompt(self, row: int) -> Prompt:
        try:
            return self.stage.prompt(row)
        except (Refused, HornbookError):
            raise
        except Exception as error:  # a user's kind may do anything: the row is a reject that says what
            raise Refused("prompt-failed", f"{type(error).__name__}: {error}") from error

    def _accept(self, prompt: Prompt, reply: Reply) -> Parsed:
        try:
            parsed = self.stage.accept(prompt, reply)
        except (Refused, HornbookError):
            raise
        except Exception as error:
            raise Refused("parse-failed", f"{type(error).__name__}: {error}") from error
        if not isinstance(parsed, Parsed) or not isinstance(parsed.text, str):
            raise Refused("parse-failed", f"parse() returned {parsed!r:.200}, not a Parsed")
        return parsed

    def _document(self, row: int, prompt: Prompt, reply: Reply, parsed: Parsed) -> Document:
        made_by = MadeBy(
            prompt=canonical_json(list(prompt.messages)),
            seeds=canonical_json(dict(prompt.seeds)),
            model=self.stage.settings.engine.model,
            revision=self.revision,
            sampling=self.sampling,
            row_seed=sampling_seed(self.stage, row),
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
        )
        return Document(
            id=document_id(row),
            key=generated_key(prompt.messages, self.revision, self.sampling, made_by.row_seed),
            text=parsed.text,
            source=self.stage.kind,
            kind=self.stage.document_kind,
            parents=prompt.parents,
            made_by=made_by,
            meta=parsed.meta,
        )


def sampling_seed(stage: PromptedStage, row: int) -> int:
    """Return the seed that a planned row's reply is sampled with."""
    return derive_seed(stage.seed, stage.kind, "sampling", row) % (1 << 31)


def to_last_sentence(text: str) -> str:
    """Cut a text after its last sentence end; a text without one is empty."""
    end = max(text.rfind(mark) for mark in ".!?")
    if end < 0:
        return ""
    closing = text[end + 1 : end + 2]
    return text[: end + 1 + (closing in ('"', "'", ")", "”") and closing != "")]


def corpus_metrics(artifact: Artifact) -> dict[str, Any]:
    """Return what the report shows of a generated corpus: lengths and the commonest openings.

    Of about SAMPLED_DOCUMENTS documents, from parts spread evenly over the artifact: the driver must not read it all.
    """
    parts = [part for part in artifact.parts if part.rows]
    step = max(1, sum(part.rows for part in parts) // SAMPLED_DOCUMENTS)
    openers: Counter[str] = Counter()
    lengths: list[int] = []
    for part in parts[::step]:
        table = artifact.read(part, columns=["text", "made_by.completion_tokens"])
        openers.update(" ".join(text.split(None, OPENER_WORDS)[:OPENER_WORDS]) for text in table["text"].to_pylist())
        lengths += table["completion_tokens"].to_pylist()  # pyarrow names a nested column by its last part
    lengths.sort()
    median = lengths[len(lengths) // 2] if lengths else 0
    return {"median_tokens": median, "openers": openers.most_common(10)}


def _finish_reasons(counts: Mapping[str, float]) -> dict[str, Any]:
    reasons = {
        name: int(counts[f"finish_{name}"]) for name in ("stop", "length", "error") if f"finish_{name}" in counts
    }
    return {"finish_reasons": reasons, "completion_tokens": int(counts.get("completion_tokens", 0))}
