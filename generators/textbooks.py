"""Textbook sections: a topic, an audience with its rule, and a format (phi-1, arXiv 2306.11644; Cosmopedia).

Topics are nested, field > topic > subtopic, in `textbooks.topics.txt`: 2,450 subtopics of 70 fields, so that there are
49,000 sections to write before two share all their seeds.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from generators.audiences import AUDIENCES, DIFFICULTIES, FORMATS, Audience, Difficulty, Format
from generators.overlap import is_about
from generators.prompted import Prompt, PromptSettings, Refused
from generators.taxonomy import TopicStage


class TextbookSettings(PromptSettings):
    """Settings of the kind `textbooks`; of a setting with several values each row has one, in balance."""

    words: tuple[int, ...] = Field((150,), min_length=1, description="Lengths that prompts ask for, in words.")
    audiences: tuple[Audience, ...] = Field(tuple(AUDIENCES), min_length=1, description="Whom to write for.")
    formats: tuple[Format, ...] = Field(tuple(FORMATS), min_length=1, description="How a section is built.")
    difficulties: tuple[Difficulty, ...] = Field(
        ("introduction",), min_length=1, description="What the reader is assumed to know."
    )
    fields: tuple[str, ...] = Field((), description="Write about these fields of the taxonomy only; empty takes all.")
    on_topic: bool = Field(
        True, description="Refuse sections that hold no word of their field, topic and subtopic (`off-topic`)."
    )


class Textbooks(TopicStage):
    """Textbook sections, one a planned row."""

    kind: ClassVar[str] = "textbooks"
    expected_tokens: ClassVar[int] = 260
    topics_file: ClassVar[str] = "textbooks.topics.txt"
    Settings = TextbookSettings
    settings: TextbookSettings

    def prompt(self, row: int) -> Prompt:
        """Row `row` of the balanced walk through all combinations of seeds."""
        seeds = self.seeds(row)
        rules = {
            "rule": AUDIENCES[seeds["audience"]],
            "style": FORMATS[seeds["format"]],
            "assumption": DIFFICULTIES[seeds["difficulty"]],
        }
        return Prompt(self.ask(**seeds, **rules), seeds)

    def check_text(self, prompt: Prompt, text: str) -> None:
        """As for all kinds, and a section must name something of what it is to be about."""
        subject = " ".join(prompt.seeds[name] for name in ("field", "topic", "subtopic"))
        if self.settings.on_topic and not is_about(text, subject):
            raise Refused("off-topic", f"no word of: {subject}")
        super().check_text(prompt, text)
