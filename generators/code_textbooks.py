"""Textbook sections on Python whose snippets were run (the code side of phi-1's textbooks, arXiv 2306.11644).

Topics are nested, field > topic > subtopic, in `code_textbooks.topics.txt`: 392 subtopics of 11 fields. The snippets of a
section run in the sandbox in order, in one process and one namespace, as a reader would type them; those with `>>>` prompts
are checked as doctests.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from generators.checks import check_blocks, check_text
from generators.exercises import STOPPED, require_code_runs
from generators.prompted import Messages, Parsed, Prompt, PromptSettings, Refused
from generators.python_code import (
    has_open_span,
    is_session,
    only_defined,
    python_blocks,
    repeated,
    statements,
    without_blocks,
)
from generators.said_output import wrong_output
from generators.taxonomy import TopicStage
from hornbook.sandbox import SandboxLimits
from hornbook.syntax import NotPython
from hornbook.trial import Trial, try_pieces

Audience = Literal["beginners", "students", "scientists", "programmers"]
Format = Literal["explanation", "problem", "mistake", "comparison", "session"]
Difficulty = Literal["introduction", "consolidation", "challenge"]

AUDIENCES: dict[Audience, tuple[str, str]] = {
    "beginners": (
        "people who have never programmed",
        "Explain every new word, and use examples from daily life.",
    ),
    "students": (
        "high-school students",
        "Define each new term when it first appears, and use examples from school and games.",
    ),
    "scientists": (
        "college students of science",
        "Be precise, say why things are so, and use examples with measurements.",
    ),
    "programmers": (
        "programmers who know another language",
        "Be brief, and say where Python differs from what they expect.",
    ),
}
FORMATS: dict[Format, str] = {
    "explanation": "Explain the idea, show a snippet, and say what it prints and why.",
    "problem": "State a small problem, and solve it in two or three steps with a snippet each.",
    "mistake": "Show a mistake that people often make, as code that runs but gives a wrong result, then put it right.",
    "comparison": "Show two ways to do it, and say when each one is better.",
    "session": "Show it as a session with >>> prompts and the printed results.",
}
DIFFICULTIES: dict[Difficulty, str] = {
    "introduction": "",
    "consolidation": "Assume that the reader knows the basics, and go one step further.",
    "challenge": "Assume that the reader knows it well, and treat a difficult case.",
}


class Example(NamedTuple):
    """A worked section that is shown before the request."""

    seeds: dict[str, Any]
    text: str


class CodeTextbookSettings(PromptSettings):
    """Settings of the kind `code-textbooks`; of a setting with several values each row has one, in balance."""

    words: tuple[int, ...] = Field((150,), min_length=1, description="Lengths that prompts ask for, in words of prose.")
    audiences: tuple[Audience, ...] = Field(tuple(AUDIENCES), min_length=1, description="Whom to write for.")
    formats: tuple[Format, ...] = Field(tuple(FORMATS), min_length=1, description="How a section is built.")
    difficulties: tuple[Difficulty, ...] = Field(
        ("introduction",), min_length=1, description="What the reader is assumed to know."
    )
    fields: tuple[str, ...] = Field((), description="Write about these fields of the taxonomy only; empty takes all.")
    examples: int = Field(1, ge=0, le=2, description="Worked sections shown as chat turns before the request.")
    run: Literal["all", "none"] = Field(
        "all", description="all: run every snippet in the sandbox. none: only check that each one is Python."
    )
    min_words: int = Field(
        40, ge=0, description="Words of prose, outside of the snippets, that a section has at least."
    )
    limits: SandboxLimits = Field(
        SandboxLimits(seconds=20, cpu_seconds=3, memory_mib=256, processes=4, scratch_mib=4),
        description="What a section may use.",
    )


class CodeTextbooks(TopicStage):
    """Sections on Python with snippets that run, one a planned row."""

    kind: ClassVar[str] = "code-textbooks"
    expected_tokens: ClassVar[int] = 300
    topics_file: ClassVar[str] = "code_textbooks.topics.txt"
    slow_parse: ClassVar[bool] = True
    Settings = CodeTextbookSettings
    settings: CodeTextbookSettings

    @cached_property
    def examples(self) -> list[Example]:
        """The worked sections of `code_textbooks.examples.txt`."""
        found = []
        names = ("field", "topic", "subtopic", "audience", "format", "difficulty")
        for part in _data("code_textbooks.examples.txt"):
            head, _, text = part.partition("\n")
            found.append(Example(dict(zip(names, head.split(" | "), strict=True)), text.strip()))
        return found

    def ready(self) -> None:
        """Refuse to begin where the snippets that the model writes cannot be run."""
        if self.settings.run == "all":
            require_code_runs(self.name, self.kind)

    def prompt(self, row: int) -> Prompt:
        """Row `row` of the balanced walk through all combinations of seeds."""
        seeds = self.seeds(row)
        shown = [
            turn
            for example in self.examples[: self.settings.examples]
            for turn in (
                *self._request({**example.seeds, "words": seeds["words"]}),
                {"role": "assistant", "content": example.text},
            )
        ]
        return Prompt((*shown, *self._request(seeds)), seeds)

    def _request(self, seeds: dict[str, Any]) -> Messages:
        audience, rule = AUDIENCES[seeds["audience"]]
        rules = {
            "audience": audience,
            "rule": rule,
            "style": FORMATS[seeds["format"]],
            "assumption": DIFFICULTIES[seeds["difficulty"]],
        }
        return self.ask(**{**seeds, **rules})

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        """Run a section's snippets in order and refuse the section if one fails, or if there is none.

        Raises:
            Refused: with one of the reasons that docs/generators/code_textbooks.md lists.
            SandboxError: code cannot be run here.
        """
        snippets = python_blocks(text)
        check_blocks(text)
        if not snippets:
            raise Refused("no-snippet")
        words = len(without_blocks(text).split())
        if words < self.settings.min_words:
            raise Refused("no-prose", f"{words} words beside the snippets")
        if has_open_span(text):
            raise Refused("unclosed-code", text[-200:])
        self.check_text(prompt, text)  # before anything runs
        sessions = [snippet for snippet in snippets if is_session(snippet)]
        check_snippets(snippets)
        if self.settings.run == "all":
            trial = run_snippets(snippets, self.settings.limits)
            wrong = wrong_output(text, snippets, trial.printed)
            if wrong:
                raise Refused("wrong-output", wrong)
        return Parsed(text, {"snippets": len(snippets), "sessions": len(sessions), "ran": self.settings.run == "all"})

    def check_text(self, prompt: Prompt, text: str) -> None:
        """As for all kinds, but of the prose alone: code may repeat itself."""
        check_text(without_blocks(text), self.settings.checks, prompt.required, self.language_of(prompt))


def _data(name: str) -> list[str]:
    """Return the `##` parts of a data file beside this module."""
    text = importlib.resources.files("generators").joinpath(name).read_text(encoding="utf-8")
    return [part.strip() for part in text.split("\n## ")[1:]]


def check_snippets(snippets: Sequence[str]) -> None:
    """Refuse snippets that are no Python, that hold nothing but comments, that come twice, or whose definitions nothing uses:
    nothing has to run for that."""
    bodies = []
    for number, snippet in enumerate(snippets, 1):
        try:
            bodies.append(statements(snippet))
        except NotPython as error:
            raise Refused("snippet-fails", f"snippet {number}: SyntaxError: {error}") from None
    if not any(bodies) and not any(map(is_session, snippets)):
        raise Refused("no-snippet", "only comments")
    same = repeated(bodies)
    if same:
        raise Refused("repeated-code", f"snippet {same[0] + 1} is snippet {same[1] + 1}")
    unused = only_defined(bodies)
    if unused:
        raise Refused("never-called", ", ".join(unused))


def run_snippets(snippets: Sequence[str], limits: SandboxLimits) -> Trial:
    """Run snippets in order in one namespace. Raises Refused for the first that fails, with its traceback's last line."""
    trial = try_pieces(snippets, limits)
    number = f"snippet {trial.done + 1}"
    if trial.stopped:
        raise Refused(STOPPED[trial.stopped], number)
    if trial.error:
        raise Refused(
            "wrong-output" if trial.error.startswith("DocTestFailure") else "snippet-fails", f"{number}: {trial.error}"
        )
    return trial
