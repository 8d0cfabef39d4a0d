"""Textbook sections: a topic, an audience with its rule, and a format (phi-1, arXiv 2306.11644; Cosmopedia).

Topics are nested, field > topic > subtopic, in `textbooks.topics.txt`: 2,450 subtopics of 70 fields, so that there are
49,000 sections to write before two share all their seeds.
"""

from __future__ import annotations

import importlib.resources
from functools import cached_property
from typing import ClassVar, NamedTuple

from pydantic import Field

from generators.audiences import AUDIENCES, DIFFICULTIES, FORMATS, Audience, Difficulty, Format
from generators.prompted import Prompt, PromptedStage, PromptSettings
from hornbook.errors import RecipeError
from hornbook.plan import Combinations, derive_seed
from hornbook.settings import nearest


class Topic(NamedTuple):
    """A leaf of the taxonomy."""

    field: str
    topic: str
    subtopic: str


class TextbookSettings(PromptSettings):
    """Settings of the kind `textbooks`; of a setting with several values each row has one, in balance."""

    words: tuple[int, ...] = Field((150,), min_length=1, description="Lengths that prompts ask for, in words.")
    audiences: tuple[Audience, ...] = Field(tuple(AUDIENCES), min_length=1, description="Whom to write for.")
    formats: tuple[Format, ...] = Field(tuple(FORMATS), min_length=1, description="How a section is built.")
    difficulties: tuple[Difficulty, ...] = Field(
        ("introduction",), min_length=1, description="What the reader is assumed to know."
    )
    fields: tuple[str, ...] = Field((), description="Write about these fields of the taxonomy only; empty takes all.")


class Textbooks(PromptedStage):
    """Textbook sections, one a planned row."""

    kind: ClassVar[str] = "textbooks"
    expected_tokens: ClassVar[int] = 260
    cells: ClassVar[tuple[str, ...]] = ("audience", "format")
    language: ClassVar[str] = "en"
    too_many_rows: ClassVar[str] = "ask for fewer rows or add audiences, formats, difficulties, lengths or fields"
    Settings = TextbookSettings
    settings: TextbookSettings

    @cached_property
    def taxonomy(self) -> list[Topic]:
        """All leaves of `textbooks.topics.txt`: `## field`, then a line a topic with its subtopics behind the colon."""
        text = importlib.resources.files("generators").joinpath("textbooks.topics.txt").read_text(encoding="utf-8")
        leaves = []
        field = ""
        for line in text.splitlines():
            if line.startswith("## "):
                field = line.removeprefix("## ")
            elif line and not line.startswith("#"):
                topic, _, subtopics = line.partition(": ")
                leaves += [Topic(field, topic, subtopic) for subtopic in subtopics.split(", ")]
        return leaves

    @cached_property
    def topics(self) -> list[Topic]:
        """The leaves of the fields asked for."""
        wanted = self.settings.fields
        return [leaf for leaf in self.taxonomy if not wanted or leaf.field in wanted]

    def check(self) -> None:
        """Refuse fields that the taxonomy does not have."""
        known = list(dict.fromkeys(leaf.field for leaf in self.taxonomy))
        for field in self.settings.fields:
            if field not in known:
                raise RecipeError(f"stages.{self.name}.fields: no field {field!r}{nearest(field, known)}")
        super().check()

    @cached_property
    def combinations(self) -> Combinations:
        """Which topic, audience, format, difficulty and length a row has; no two rows share all of them."""
        settings = self.settings
        axes = (self.topics, settings.audiences, settings.formats, settings.difficulties, settings.words)
        return Combinations([len(choices) for choices in axes], derive_seed(self.seed, self.kind))

    def prompt(self, row: int) -> Prompt:
        """Row `row` of the balanced walk through all combinations of seeds."""
        topic, audience, style, difficulty, words = self.combinations[row]
        seeds = {
            **self.topics[topic]._asdict(),
            "audience": self.settings.audiences[audience],
            "format": self.settings.formats[style],
            "difficulty": self.settings.difficulties[difficulty],
            "words": self.settings.words[words],
        }
        rules = {
            "rule": AUDIENCES[seeds["audience"]],
            "style": FORMATS[seeds["format"]],
            "assumption": DIFFICULTIES[seeds["difficulty"]],
        }
        return Prompt(self.ask(**seeds, **rules), seeds)
