"""What a kind of generated text is: a plan of prompts, and what becomes of the answers.

A kind is a short class: `prompt(row)` says what to ask for a planned row, a pure function of (seed, row, committed
decisions); `parse` turns the answer into a text, or refuses it with a reason. The rest is the base's: `generators.writing`
asks the engine, `generators.sifting` compares rows with earlier ones, `generators.waves` runs the plan.
"""

from __future__ import annotations

import hashlib
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from generators.checks import CheckSettings, NearDuplicateSieve, Refused, check_refusal, check_text
from generators.diversity import EMBEDDED_TEXTS, DiversitySettings
from generators.kind_faults import NOT_ITS_FAULT, describe, kind_error, usable_prompt
from generators.prompt_settings import PromptSettings
from generators.sentences import to_last_sentence
from hornbook.artifact import Artifact
from hornbook.engines.foreseen import check_sampling
from hornbook.engines.interface import EngineSettings, Messages, Reply, Sampling, engines_of
from hornbook.engines.schema import parse_schema
from hornbook.errors import EngineError, RecipeError
from hornbook.fingerprint import code_digest, data_files
from hornbook.plan import Combinations, golden_choice
from hornbook.settings import nearest
from hornbook.stage import Expected, Produces, Stage, StageContext, StageResult

if TYPE_CHECKING:
    import jinja2

__all__ = ["Ask", "Messages", "Parsed", "Prompt", "PromptSettings", "PromptedStage", "Refused", "Sieve"]


NOTHING_ASKED = Reply("", "stop")
"""The reply to a prompt without messages."""


@dataclass(frozen=True)
class Prompt:
    """What to ask for one planned row.

    Attributes:
        messages: the chat; empty if nothing is to be asked: then `parse` gets an empty answer.
        seeds: what the prompt was made from.
        parents: keys of the documents that it quotes.
        schema: a JSON Schema, as JSON text, that the engine makes the reply follow.
        required: words, or a sentence, that the document's text must hold.
    """

    messages: Messages
    seeds: Mapping[str, Any]
    parents: tuple[bytes, ...] = ()
    schema: str = ""
    required: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parsed:
    """An accepted answer: its text and what belongs into `meta`."""

    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


class Ask(Protocol):
    """How a kind asks an engine within one planned row; each call is seeded and kept with its key."""

    async def __call__(
        self,
        messages: Messages,
        *,
        schema: str = "",
        choices: tuple[str, ...] = (),
        engine: str = "engine",
        sampling: Sampling | None = None,
    ) -> Reply:
        """Return the reply; a failed one has finish reason "error".

        Args:
            schema: a JSON Schema that the reply must follow.
            choices: the only replies allowed, each one token.
            engine: the settings field with the engine to ask; "engine" is the row's own writer.
            sampling: in place of the writer's.
        """


class Sieve(Protocol):
    """A check against earlier rows. One process asks it row by row, in plan order; its memory must be bounded."""

    reason: str

    def refuses(self, text: str, meta: Mapping[str, Any]) -> str:
        """Return why a document is too like an earlier one, or an empty string."""

    def add(self, text: str, meta: Mapping[str, Any]) -> None:
        """Remember a document that all sieves have let pass."""


class PromptedStage(Stage):
    """A kind of generated text. Subclasses give `kind`, `prompt` and, where needed, `parse`, `open` and the rest.

    Class attributes:
        document_kind: what its documents are (`text`, `chat`, ...).
        expected_tokens: usual length of a reply, for estimates before anything ran.
        too_many_rows: the cure for asking for more rows than there are distinct prompts.
        cells: names of the seeds whose values are the cells that diversity is tracked in.
        language: ISO 639-1 code of the language that texts must be in; empty if it is not checked.
        slow_parse: whether `parse` takes milliseconds or more (a sandbox): it runs in a thread then.
    """

    produces: ClassVar[Produces] = "documents"
    settings: PromptSettings
    document_kind: ClassVar[str] = "text"
    expected_tokens: ClassVar[int] = 200
    too_many_rows: ClassVar[str] = "ask for fewer rows"
    cells: ClassVar[tuple[str, ...]] = ()
    language: ClassVar[str] = ""
    slow_parse: ClassVar[bool] = False

    decisions: Mapping[str, Any] = {}  # never changed in place: each wave's stage gets its own
    """What the waves before this one led to; committed before it starts."""

    def open(self, inputs: Mapping[str, Sequence[Artifact]]) -> None:
        """Prepare for reading input documents; called once in each worker."""

    @abstractmethod
    def prompt(self, row: int) -> Prompt:
        """Return what to ask for planned row `row`: a pure function of (seed, row, decisions). May raise Refused."""

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        """Turn an answer (stripped, not empty) into a document's text. Raises Refused."""
        return Parsed(text)

    async def write(self, prompt: Prompt, ask: Ask) -> Parsed:
        """Make a row's document: one call and `accept`. Override it where a row takes several calls. Raises Refused."""
        reply = await ask(prompt.messages, schema=prompt.schema) if prompt.messages else NOTHING_ASKED
        if self.slow_parse:
            import asyncio

            return await asyncio.to_thread(self._accept_in_thread, prompt, reply)
        return self.accept(prompt, reply)

    def _accept_in_thread(self, prompt: Prompt, reply: Reply) -> Parsed:
        try:
            return self.accept(prompt, reply)
        except StopIteration as error:  # no future can hold one: who waits for it would wait for ever
            raise RuntimeError(f"StopIteration in parse(): {describe(error)}") from error

    def accept(self, prompt: Prompt, reply: Reply) -> Parsed:
        """Turn a reply into a document's text. Raises Refused for what failed, was cut, is empty, declines or cannot be parsed."""
        text = reply.text.strip()
        if reply.finish_reason == "error":
            raise Refused("engine-error", reply.error)
        if reply.finish_reason == "length" and self.settings.truncated == "reject":
            raise Refused("truncated", f"cut at {self.settings.sampling.max_tokens} tokens")
        if reply.finish_reason == "length" and self.settings.truncated == "trim":
            text = to_last_sentence(text)
        if not text and prompt.messages:
            raise Refused("empty")
        check_refusal(text, self.settings.checks)  # before a parser calls it something else
        return self.parse(prompt, text)

    def check_text(self, prompt: Prompt, text: str) -> None:
        """Refuse a document's text that refuses to answer, talks to the user (in a chat it may), loops, is unfinished, in
        another language or lacks what it must hold."""
        check_text(text, self._checks, prompt.required, self.language_of(prompt))

    @cached_property
    def _checks(self) -> CheckSettings:
        talks = self.document_kind != "text"
        return self.settings.checks.model_copy(update={"chatter": False}) if talks else self.settings.checks

    def language_of(self, prompt: Prompt) -> str:
        """Return the ISO 639-1 code of the language that a row's text must be in; empty if any will do."""
        return self.language

    def sieves(self) -> list[Sieve]:
        """Return fresh checks against earlier rows."""
        checks = self.settings.checks
        return [NearDuplicateSieve(checks)] if checks.near_duplicates else []

    def learn(self, accepted: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what the next wave shall know of this wave's accepted documents ({id, text, meta, seeds}, in plan order).

        Must be JSON and small: it is committed with the wave and is `decisions` of the next one's stage.
        """
        return {}

    @property
    def learns(self) -> bool:
        """Whether later rows depend on what became of earlier ones, so that the plan runs in waves."""
        steers = self.settings.diversity.steer
        return self.settings.accepted is not None or steers or type(self).learn is not PromptedStage.learn

    def planned(self, context: StageContext) -> int:
        """Return the most rows (prompts) that the plan may reach."""
        return self.most_rows

    @property
    def most_rows(self) -> int:
        """The most rows that the settings allow, and no more than there are distinct prompts."""
        wanted = self.settings.planned_rows
        return wanted if self.combinations is None else min(wanted, len(self.combinations))

    @cached_property
    def writers(self) -> list[tuple[str, EngineSettings, Sampling]]:
        """The models that write: name of the settings field, engine, sampling."""
        settings = self.settings
        if not settings.engines:
            return [("engine", settings.engine, settings.sampling)]
        return [
            (f"engines.{number}", entry.engine, entry.sampling or settings.sampling)
            for number, entry in enumerate(settings.engines)
        ]

    def writer_of(self, row: int) -> int:
        """Return which of `writers` a planned row belongs to: in proportion to their weights in every prefix."""
        weights = [entry.weight for entry in self.settings.engines] or [1.0]
        return golden_choice(weights, row, self.seed)

    @property
    def diversity(self) -> DiversitySettings:
        """The settings of diversity, with what can be done: a writer that cannot be kept from openings is asked."""
        settings = self.settings.diversity
        if self.settings.accepted is None:  # no other rows would be asked for instead of those of a cell that rests
            means = tuple(name for name in settings.means if name != "cells")
            settings = settings.model_copy(update={"means": means})
        if settings.embedded is None:  # what `echo` writes means nothing
            meant = any(engine.kind != "echo" for _, engine, _ in self.writers)
            settings = settings.model_copy(update={"embedded": EMBEDDED_TEXTS if meant else 0})
        able = [engine.kind == "vllm" and engine.speculation == "none" for _, engine, _ in self.writers]
        if all(able) or "decoding" not in settings.means or "prompt" in settings.means:
            return settings
        return settings.model_copy(update={"means": (*settings.means, "prompt")})

    def engines(self) -> dict[str, EngineSettings]:
        """Return every engine that the stage asks, by settings field."""
        return engines_of(self.settings)

    def models(self) -> Sequence[str]:
        """The engines' models, where they are ours to resolve."""
        return sorted({engine.model for engine in self.engines().values() if engine.kind == "vllm"})

    @property
    def combinations(self) -> Combinations | None:
        """The walk through all combinations of seeds, for kinds whose prompts are planned from such a walk."""
        return None

    def check(self) -> None:
        """Refuse sampling that the engine cannot do, more accepted rows than planned ones, and more rows than there are
        distinct prompts."""
        self._check_class()
        settings = self.settings
        if settings.rows and settings.accepted and settings.accepted > settings.rows * settings.samples:
            raise RecipeError(
                f"stages.{self.name}.accepted: {settings.accepted:,} rows can never be accepted: rows x samples, "
                f"{settings.rows * settings.samples:,}, are the most that are planned",
                "leave rows out (over_generation bounds the plan), or raise it",
            )
        distinct = None if self.combinations is None else len(self.combinations)
        wanted = self.settings.rows or -(-(self.settings.accepted or 1) // self.settings.samples)
        if distinct is not None and wanted > distinct:
            raise RecipeError(
                f"stages.{self.name}.rows: {wanted:,} asked, but there are {distinct:,} distinct prompts",
                self.too_many_rows,
            )
        for name, engine, sampling in self.writers:
            if engine.kind == "openai" and sampling.end_bias:
                raise RecipeError(
                    f"stages.{self.name}.{name}: end_bias: an endpoint does not say which token ends its model's replies",
                    "set sampling.end_bias: 0, or use the vllm engine",
                )
            check_sampling(engine, sampling, f"stages.{self.name}.{name}")
        if self.inputs:  # its first prompt needs documents that are not there yet
            self.check_templates()
        else:
            self.check_prompt()

    def _check_class(self) -> None:
        """Refuse a class whose settings or combinations are none: all that follows counts on them."""
        own = f"the class {type(self).__name__} of {Path(str(sys.modules[type(self).__module__].__file__)).name}"
        if not isinstance(self.settings, PromptSettings):
            raise RecipeError(
                f"stages.{self.name}: {own} has Settings = {type(self.settings).__name__}, not a subclass of PromptSettings",
                "write: class YourSettings(PromptSettings), with generators.prompted.PromptSettings",
            )
        with kind_error(self, "combinations"):
            found: object = self.combinations
        if found is not None and not (hasattr(found, "__len__") and hasattr(found, "__getitem__")):
            raise RecipeError(
                f"stages.{self.name}: combinations of {own} is {found!r:.200}, not a hornbook.plan.Combinations",
                "return Combinations(sizes of the axes, a seed), or leave the property out",
            )

    def check_prompt(self) -> None:
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
        except (RecipeError, *NOT_ITS_FAULT):
            raise
        except BaseException as error:
            raise RecipeError(
                f"stages.{self.name}: the kind {self.kind!r} fails to make its first prompt: {describe(error)}"
            ) from error
        try:
            if usable_prompt(prompt).schema:
                parse_schema(prompt.schema)
        except (Refused, EngineError) as wrong:
            said = wrong.detail if isinstance(wrong, Refused) else wrong.message
            raise RecipeError(f"stages.{self.name}: the first prompt of the kind {self.kind!r}: {said}") from None

    def refuse_unknown(self, setting: str, noun: str, asked: Iterable[str], known: Iterable[str]) -> None:
        """Raise RecipeError if a setting asks for a name (of a tool, say) that there is not; it says which is nearest."""
        there = list(dict.fromkeys(known))
        for name in asked:
            if name not in there:
                raise RecipeError(f"stages.{self.name}.{setting}: no {noun} {name!r}{nearest(name, there)}")

    def check_templates(self) -> None:
        """Compile the kind's templates: a mistake in their syntax is found before the inputs are made."""
        import jinja2

        try:
            _ = self._compiled
        except jinja2.TemplateError as error:
            raise RecipeError(f"stages.{self.name}: a prompt of kind {self.kind!r} is no template: {error}") from None

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Planned rows, and tokens at the kind's usual length."""
        return self.expected_of(self.most_rows)

    def expected_of(self, prompts: int) -> Expected:
        """Return what so many prompts are expected to give, each asked `samples` times."""
        rows = prompts * self.settings.samples
        rows = min(rows, self.settings.accepted or rows)
        tokens = rows * min(self.expected_tokens, self.settings.sampling.max_tokens)
        distinct = None if self.combinations is None else len(self.combinations)
        return Expected(planned=rows, rows=rows, tokens=tokens, distinct=distinct)

    @cached_property
    def templates(self) -> dict[str, str]:
        """The Jinja files beside the kind's module by name: "" is `<module>.jinja`, "x" is `<module>.x.jinja`.

        They travel with the stage: a worker need not have a user's files.
        """
        path = Path(str(sys.modules[type(self).__module__].__file__))
        found = {"": path.with_suffix(".jinja")}
        found |= {file.name.split(".")[1]: file for file in path.parent.glob(f"{path.stem}.*.jinja")}
        try:
            return {name: file.read_text(encoding="utf-8") for name, file in found.items() if file.exists()}
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"stages.{self.name}: a prompt of kind {self.kind!r} cannot be read: {error}") from None

    def prompt_versions(self) -> dict[str, dict[str, str]]:
        """Return what prompts are made of, by file name: version (the first digits of a SHA-256) and, of templates, text.

        Word lists and examples are data files or stand in the code, whose version is that of all that the kind imports of it.
        """
        path = Path(str(sys.modules[type(self).__module__].__file__))
        texts = {".".join(filter(None, (path.stem, name, "jinja"))): text for name, text in self.templates.items()}
        data = {file.name: file.read_bytes() for file in data_files(path) if file.suffix != ".jinja"}
        data |= {name: text.encode() for name, text in texts.items()}
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in data.items()}
        digests[path.name] = code_digest(type(self).__module__)
        shown = {name: {"text": text} for name, text in texts.items()}
        return {name: {"version": digests[name][:12], **shown.get(name, {})} for name in sorted(digests)}

    @cached_property
    def _compiled(self) -> dict[str, tuple[jinja2.Template, set[str]]]:
        """The templates, compiled, and the variables that each cannot do without, in whichever branch."""
        import jinja2
        from jinja2 import meta, nodes

        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        compiled = {}
        for name, text in self.templates.items():
            tree = environment.parse(text)
            optional = {test.node.name for test in tree.find_all(nodes.Test) if isinstance(test.node, nodes.Name)}
            needed = meta.find_undeclared_variables(tree) - optional
            compiled[name] = (environment.from_string(text), needed)
        return compiled

    def render(self, template: str = "", **seeds: Any) -> str:
        """Render one of the kind's templates; a variable that it names and `seeds` lack is an error."""
        if template not in self.templates:
            path = Path(str(sys.modules[type(self).__module__].__file__))
            name = f"{path.stem}.{template}.jinja" if template else f"{path.stem}.jinja"
            raise RecipeError(
                f"stages.{self.name}: the kind {self.kind!r} has no prompt {name}",
                f"write it as a Jinja template into {name} beside {path.name}",
            )
        compiled, needed = self._compiled[template]
        if missing := needed - seeds.keys():  # even in a branch that this row does not take
            raise RecipeError(
                f"stages.{self.name}: the prompt {template or self.kind} names {', '.join(sorted(missing))}, which the kind "
                f"does not give (it gives {', '.join(sorted(seeds))})",
                "mend the template",
            )
        return compiled.render(**seeds).strip()

    def ask(self, **seeds: Any) -> Messages:
        """Render the kind's template as a single user message."""
        return ({"role": "user", "content": self.render(**seeds)},)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_compiled"}  # it cannot be pickled

    def run(self, context: StageContext) -> StageResult:
        """Ask for every planned row that is not there yet, and sift the answers."""
        from generators.waves import run_waves

        return run_waves(self, context)
