"""Stories for small children: a word triple, a random subset of features and a way to open (TinyStories, arXiv 2305.07759).

The openings are varied on purpose: over half of the published TinyStories begin "Once upon a time".
"""

from __future__ import annotations

import importlib.resources
import sys
from functools import cache, cached_property
from itertools import combinations
from typing import Any, ClassVar, Literal

from pydantic import Field

from generators.overlap import held_words
from generators.prompted import Parsed, Prompt, PromptedStage, PromptSettings, Refused
from hornbook.plan import Combinations, derive_seed
from hornbook.settings import nearest

FEATURES = {
    "Dialogue": "The people in the story talk to each other.",
    "Twist": "Something surprising happens.",
    "MoralValue": "Somebody learns to be kind.",
    "Problem": "There is a small problem that friends solve together.",
    "Foreshadowing": "Something at the start turns out to be important at the end.",
    "Conflict": "Two friends want different things at first.",
    "BadEnding": "The story does not end well.",
}
"""What may be asked of a story: the name that instructions list it by, and the sentence that a prompt says."""
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
ENGLISH = "English"
WORD_CLASSES = ("noun", "verb", "adjective")
READERS = {"3-4": "small children", "5-6": "children of five or six", "7-9": "children who can read"}
LENGTHS = {
    "any": "",
    "paragraph": "of one paragraph",
    "paragraphs": "of three to five paragraphs",
    "page": "of a whole page",
}


class StorySettings(PromptSettings):
    """Settings of the kind `stories`; of a setting with several values each row has one, in balance."""

    openings: tuple[str, ...] = Field(OPENINGS, min_length=1, description="Ways to open a story, one a prompt.")
    max_features: int = Field(2, ge=0, le=len(FEATURES), description="Largest subset of features asked of a story.")
    ages: tuple[Literal["3-4", "5-6", "7-9"], ...] = Field(
        ("3-4",), min_length=1, description="Age bands of the readers."
    )
    lengths: tuple[Literal["any", "paragraph", "paragraphs", "page"], ...] = Field(
        ("paragraphs",), min_length=1, description="Lengths asked for; `paragraphs` is three to five."
    )
    languages: tuple[str, ...] = Field(("English",), min_length=1, description="Languages, by their English names.")
    required_words: int = Field(
        len(WORD_CLASSES),
        ge=0,
        le=len(WORD_CLASSES),
        description="How many of its three words an English story must hold, inflections counting: else `missing-words`.",
    )


class Stories(PromptedStage):
    """TinyStories-like stories, one a planned row."""

    kind: ClassVar[str] = "stories"
    cells: ClassVar[tuple[str, ...]] = ("opening",)
    too_many_rows: ClassVar[str] = "ask for fewer rows or add openings, ages, lengths or features"
    Settings = StorySettings
    settings: StorySettings

    @cached_property
    def words(self) -> dict[str, list[str]]:
        """Nouns, verbs and adjectives that a small child knows."""
        return word_lists()

    @cached_property
    def feature_sets(self) -> list[tuple[str, ...]]:
        """All sets of at most `max_features` features."""
        sizes = range(self.settings.max_features + 1)
        return [chosen for size in sizes for chosen in combinations(FEATURES.values(), size)]

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """What is combined: the choices by name; no two rows share all of them."""
        settings = self.settings
        return {
            "noun": [*self.words["nouns"]],
            "verb": [*self.words["verbs"]],
            "adjective": [*self.words["adjectives"]],
            "features": [*self.feature_sets],
            "opening": [*settings.openings],
            "age": [*settings.ages],
            "length": [*settings.lengths],
            "language": [*settings.languages],
        }

    @cached_property
    def combinations(self) -> Combinations:
        """Which choice of each axis a row has."""
        return Combinations([len(choices) for choices in self.axes.values()], derive_seed(self.seed, self.kind))

    def prompt(self, row: int) -> Prompt:
        """Row `row` of the balanced walk through all combinations of seeds."""
        chosen = zip(self.axes.items(), self.combinations[row], strict=True)
        seeds = {name: choices[index] for (name, choices), index in chosen}
        messages = self.ask(**seeds, reader=READERS[seeds["age"]], form=LENGTHS[seeds["length"]])
        every = self.settings.required_words == len(WORD_CLASSES) and seeds["language"] == ENGLISH
        return Prompt(messages, seeds, required=tuple(seeds[name] for name in WORD_CLASSES) if every else ())

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        """Refuse a story that holds too few of its words; where all three are required the base looks for them."""
        wanted = self.settings.required_words
        if (
            0 < wanted < len(WORD_CLASSES)
            and prompt.seeds["language"] == ENGLISH
            and self.settings.checks.missing_words
        ):
            held = held_words(text, (prompt.seeds[name] for name in WORD_CLASSES))
            if len(held) < wanted:
                raise Refused("missing-words", f"{len(held)} of three words: {', '.join(held) or 'none'}")
        return Parsed(text)

    def language_of(self, prompt: Prompt) -> str:
        """The language that the prompt asks for, where the identifier knows its name."""
        import pycld2

        return str(dict(pycld2.LANGUAGES).get(_identifiers_name(prompt.seeds["language"]), ""))

    def check(self) -> None:
        """As for any kind, and say of which languages nothing will be checked: what is asked for may be any language."""
        import pycld2

        super().check()
        known = dict(pycld2.LANGUAGES)
        for language in self.settings.languages:
            if self.settings.checks.language and _identifiers_name(language) not in known:
                names = [name.replace("_", " ").title() for name in known if not name.startswith("X_")]
                close = nearest(language.title(), names)
                print(
                    f"warning: stages.{self.name}.languages: the identifier of languages does not know {language!r}"
                    f"{close if 'did you mean' in close else ''}: its stories are not checked for their language",
                    file=sys.stderr,
                    flush=True,
                )


def _identifiers_name(language: str) -> str:
    """Return how the identifier writes a language's English name."""
    return "_".join(language.upper().split())


@cache
def word_lists() -> dict[str, list[str]]:
    """Return nouns, verbs and adjectives that a small child knows: `stories.words.txt`, a paragraph each."""
    text = importlib.resources.files("generators").joinpath("stories.words.txt").read_text(encoding="utf-8")
    paragraphs = [paragraph for paragraph in text.split("\n\n") if not paragraph.startswith("#")]
    return {name: words.split() for name, _, words in (paragraph.partition(":") for paragraph in paragraphs)}
