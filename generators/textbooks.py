"""Textbook sections: a topic, an audience with its rule, and a format (phi-1, arXiv 2306.11644; Cosmopedia).

Topics are nested, field > topic, in `textbooks.topics.txt`.
"""

from __future__ import annotations

import importlib.resources
from functools import cached_property
from typing import ClassVar

from pydantic import Field

from generators.prompted import Prompt, PromptedStage, PromptSettings
from hornbook.plan import Combinations, derive_seed

AUDIENCES = (
    ("young children", "Use everyday words and short sentences, and compare new things with things at home."),
    ("high-school students", "Define each new term when it first appears."),
    ("college students", "Be precise, and say why things are so, not only that they are."),
    ("curious adults", "Use a friendly tone and an example from daily life."),
)
FORMATS = (
    "Explain it step by step.",
    "Begin with a question that a student may ask, then answer it.",
    "Begin with a small everyday scene, then explain what is behind it.",
)


class TextbookSettings(PromptSettings):
    """Settings of the kind `textbooks`."""

    words: int = Field(150, ge=20, description="Length that the prompt asks for, in words.")


class Textbooks(PromptedStage):
    """Textbook sections, one a planned row."""

    kind: ClassVar[str] = "textbooks"
    expected_tokens: ClassVar[int] = 260
    Settings = TextbookSettings
    settings: TextbookSettings

    @cached_property
    def topics(self) -> list[tuple[str, str]]:
        """(field, topic) pairs of `textbooks.topics.txt`: a line a field, its topics behind the colon, split by commas."""
        text = importlib.resources.files("generators").joinpath("textbooks.topics.txt").read_text(encoding="utf-8")
        pairs = []
        for line in text.splitlines():
            field, colon, topics = line.partition(":")
            if colon and not line.startswith("#"):
                pairs += [(field.strip(), topic.strip()) for topic in topics.split(",")]
        return pairs

    @cached_property
    def combinations(self) -> Combinations:
        """Which topic, audience and format a row has; no two rows share all three."""
        axes = (len(self.topics), len(AUDIENCES), len(FORMATS))
        return Combinations(axes, derive_seed(self.seed, self.kind))

    def prompt(self, row: int) -> Prompt:
        """Row `row` of the seeded walk through all combinations of seeds."""
        topic, audience, style = self.combinations[row]
        seeds = {
            "field": self.topics[topic][0],
            "topic": self.topics[topic][1],
            "audience": AUDIENCES[audience][0],
            "style": FORMATS[style],
        }
        messages = self.ask(**seeds, rule=AUDIENCES[audience][1], words=self.settings.words)
        return Prompt(messages, seeds)
