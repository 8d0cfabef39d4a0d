"""Topics to write sections about: a nested taxonomy in a data file, and the walk through it that all its kinds share."""

from __future__ import annotations

import importlib.resources
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from generators.prompted import PromptedStage
from hornbook.plan import Combinations, derive_seed


class Topic(NamedTuple):
    """A leaf of a taxonomy."""

    field: str
    topic: str
    subtopic: str


def read_topics(name: str) -> list[Topic]:
    """Return all leaves of a data file: `## field`, then a line a topic with its subtopics behind the colon."""
    text = importlib.resources.files("generators").joinpath(name).read_text(encoding="utf-8")
    leaves = []
    field = ""
    for line in text.splitlines():
        if line.startswith("## "):
            field = line.removeprefix("## ")
        elif line and not line.startswith("#"):
            topic, _, subtopics = line.partition(": ")
            leaves += [Topic(field, topic, subtopic) for subtopic in subtopics.split(", ")]
    return leaves


class TopicStage(PromptedStage):
    """A kind that writes sections on topics, for audiences in formats; subclasses name their data file.

    Their settings have `words`, `audiences`, `formats`, `difficulties` and `fields`.
    """

    topics_file: ClassVar[str]
    cells: ClassVar[tuple[str, ...]] = ("audience", "format")
    language: ClassVar[str] = "en"
    too_many_rows: ClassVar[str] = "ask for fewer rows or add audiences, formats, difficulties, lengths or fields"
    settings: Any

    @cached_property
    def taxonomy(self) -> list[Topic]:
        """All leaves of the data file."""
        return read_topics(self.topics_file)

    @cached_property
    def topics(self) -> list[Topic]:
        """The leaves of the fields asked for."""
        wanted = self.settings.fields
        return [leaf for leaf in self.taxonomy if not wanted or leaf.field in wanted]

    def check(self) -> None:
        """Refuse fields that the taxonomy does not have."""
        self.refuse_unknown("fields", "field", self.settings.fields, (leaf.field for leaf in self.taxonomy))
        super().check()

    @cached_property
    def combinations(self) -> Combinations:
        """Which topic, audience, format, difficulty and length a row has; no two rows share all of them."""
        settings = self.settings
        axes = (self.topics, settings.audiences, settings.formats, settings.difficulties, settings.words)
        return Combinations([len(choices) for choices in axes], derive_seed(self.seed, self.kind))

    def seeds(self, row: int) -> dict[str, Any]:
        """Return the seeds of row `row` of the balanced walk."""
        topic, audience, style, difficulty, words = self.combinations[row]
        return {
            **self.topics[topic]._asdict(),
            "audience": self.settings.audiences[audience],
            "format": self.settings.formats[style],
            "difficulty": self.settings.difficulties[difficulty],
            "words": self.settings.words[words],
        }
