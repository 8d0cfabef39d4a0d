"""Stories for small children: a word triple, a random subset of features and a way to open (TinyStories, arXiv 2305.07759).

The openings are varied on purpose: over half of the published TinyStories begin "Once upon a time".
"""

from __future__ import annotations

import importlib.resources
from functools import cached_property
from typing import ClassVar

from pydantic import Field

from generators.prompted import Prompt, PromptedStage, PromptSettings
from hornbook.plan import Combinations, derive_seed

FEATURES = (
    "The people in the story talk to each other.",
    "Something surprising happens.",
    "Somebody learns to be kind.",
    "There is a small problem that friends solve together.",
    "Something at the start turns out to be important at the end.",
    "Two friends want different things at first.",
)
MAX_FEATURES = 1
OPENINGS = (
    "Begin with the name of a child.",
    "Begin with the weather.",
    "Begin with somebody who says something.",
    "Begin with an animal.",
    "Begin with a sound.",
    "Begin with a place.",
    "Begin with a question.",
    "Begin with what somebody is doing.",
)


class StorySettings(PromptSettings):
    """Settings of the kind `stories`."""

    openings: tuple[str, ...] = Field(OPENINGS, min_length=1, description="Ways to open a story, one a prompt.")


class Stories(PromptedStage):
    """TinyStories-like stories, one a planned row."""

    kind: ClassVar[str] = "stories"
    too_many_rows: ClassVar[str] = "ask for fewer rows or add openings"
    Settings = StorySettings
    settings: StorySettings

    @cached_property
    def words(self) -> dict[str, list[str]]:
        """Nouns, verbs and adjectives that a small child knows: `stories.words.txt`, a line each."""
        text = importlib.resources.files("generators").joinpath("stories.words.txt").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return {name: words.split() for name, _, words in (line.partition(":") for line in lines)}

    @cached_property
    def feature_sets(self) -> list[tuple[int, ...]]:
        """All sets of at most MAX_FEATURES features, as indices."""
        from itertools import combinations

        return [chosen for size in range(MAX_FEATURES + 1) for chosen in combinations(range(len(FEATURES)), size)]

    @cached_property
    def combinations(self) -> Combinations:
        """Which noun, verb, adjective, features and opening a row has; no two rows share all of them."""
        words = self.words
        axes = (
            len(words["nouns"]),
            len(words["verbs"]),
            len(words["adjectives"]),
            len(self.feature_sets),
            len(self.settings.openings),
        )
        return Combinations(axes, derive_seed(self.seed, self.kind))

    def prompt(self, row: int) -> Prompt:
        """Row `row` of the seeded walk through all combinations of seeds."""
        noun, verb, adjective, feature_set, opening = self.combinations[row]
        seeds = {
            "noun": self.words["nouns"][noun],
            "verb": self.words["verbs"][verb],
            "adjective": self.words["adjectives"][adjective],
            "features": [FEATURES[index] for index in self.feature_sets[feature_set]],
            "opening": self.settings.openings[opening],
        }
        return Prompt(self.ask(**seeds), seeds)
