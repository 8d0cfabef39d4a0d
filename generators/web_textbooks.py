"""Textbook sections seeded by extracts of documents (phi-1.5, arXiv 2309.05463; Cosmopedia): the web gives the variety.

The prompt quotes an extract and asks for a section about what it is about; the topic is named half of the time, so that the
other half wanders. The documents are recorded as parents, and a section that copies its extract is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from pydantic import Field

from generators.audiences import AUDIENCES, DIFFICULTIES, FORMATS, Audience, Difficulty, Format
from generators.checks import check_language
from generators.documents import (
    DocumentPromptSettings,
    DocumentStage,
    SourceDocument,
    SourcedPrompt,
    cut_passages,
    extract,
    without_markup,
)
from generators.overlap import copied_share, copies_run, drawn_share, words
from generators.prompted import Parsed, Prompt, Refused
from generators.quotations import SPOKEN_WORDS, quotations
from hornbook.errors import RecipeError
from hornbook.plan import Combinations, derive_seed

TopicSource = Literal["meta", "heading", "path"]

COPIED_WORDS = 8
EXTRACT_WORDS = 20
MENTION = re.compile(
    r"\b(?:(?:the|this|that|your|above)\s+(?:\w+\s+)?(?:extract|excerpt)"
    r"|the\s+text\s+I|the\s+(?:provided|given|original)\s+(?:text|passage)|(?:in|from)\s+the\s+passage(?!\s+of\s+time))\b",
    re.IGNORECASE,
)
"""Talk of the extract itself. "The text" alone is none: sections about texts say it."""
SPEAKER = re.compile(r"^[ \t*_]*[A-Z]\w*\.?(?: [\w.]+){0,2}[ \t]*[*_]*:", re.MULTILINE)
SPOKEN_TURNS = 2
TOPIC_CHARACTERS = range(3, 81)
TITLE = re.compile(r"^(?:#[ \t]+(?P<marked>.+?)[ \t#]*|(?P<lined>\S.*)\n={4,}[ \t]*)$", re.MULTILINE)
HEADING = re.compile(r"^(?:##+[ \t]+(?P<marked>.+?)[ \t#]*|(?P<lined>\S.*)\n-{4,}[ \t]*)$", re.MULTILINE)
MARKS = re.compile(r"[*`_#]+")
PACKAGE = re.compile(r"-[\d.]+\w*\.dist-info$")
EMPTY_HEADINGS = {
    "about", "contents", "contributing", "features", "getting started", "install", "installation", "introduction", "license",
    "overview", "quick start", "quickstart", "readme", "requirements", "sponsors", "table of contents", "usage",
}  # fmt: skip
EMPTY_NAMES = {"__init__", "__main__", "index", "readme", "metadata", "main", "utils", "test", "tests", "init"}


class WebTextbookSettings(DocumentPromptSettings):
    """Settings of the kind `web-textbooks`; of a setting with several values each row has one, in balance."""

    extract_characters: int = Field(1000, ge=100, description="Longest extract that a prompt quotes, in characters.")
    least_letters: float = Field(
        0.6,
        ge=0,
        le=1,
        description="Least share of letters and spaces in an extract; a document without such a passage is `no-prose`.",
    )
    topic_named: tuple[bool, ...] = Field(
        (True, False), min_length=1, description="Whether the prompt names the document's topic."
    )
    topic_from: tuple[TopicSource, ...] = Field(
        ("meta", "heading", "path"),
        min_length=1,
        description="Where the topic comes from, first found: `topic_fields`, the first heading, the file's name.",
    )
    topic_fields: tuple[str, ...] = Field(
        ("topic", "title", "subtopic"),
        description="Keys of `meta`, or of a generated document's seeds, that name a topic.",
    )
    words: tuple[int, ...] = Field((150,), min_length=1, description="Lengths that prompts ask for, in words.")
    min_words: int = Field(40, ge=1, description="Fewest words of a section: else `too-short`.")
    audiences: tuple[Audience, ...] = Field(tuple(AUDIENCES), min_length=1, description="Whom to write for.")
    formats: tuple[Format, ...] = Field(tuple(FORMATS), min_length=1, description="How a section is built.")
    difficulties: tuple[Difficulty, ...] = Field(
        ("introduction",), min_length=1, description="What the reader is assumed to know."
    )
    copied_run: int = Field(
        25, ge=3, description="A section with so many words in a row from its extract is a copy: `copies-extract`."
    )
    copied_share: float = Field(
        0.2, gt=0, le=1, description="So is one with more than this share of its eight-word runs from the extract."
    )
    least_drawn: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Least share of a section's content words that extract or topic hold: else `off-extract`.",
    )


class WebTextbooks(DocumentStage):
    """Textbook sections about what documents are about, `per_document` of each."""

    kind: ClassVar[str] = "web-textbooks"
    expected_tokens: ClassVar[int] = 260
    cells: ClassVar[tuple[str, ...]] = ("audience", "format")
    language: ClassVar[str] = "en"
    Settings = WebTextbookSettings
    settings: WebTextbookSettings

    @cached_property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """What is combined, by name."""
        settings = self.settings
        return {
            "named": settings.topic_named,
            "audience": settings.audiences,
            "format": settings.formats,
            "difficulty": settings.difficulties,
            "words": settings.words,
        }

    @cached_property
    def choices(self) -> Combinations:
        """The walk through all combinations; rows go round it, so that a document's rows differ."""
        return Combinations([len(choices) for choices in self.axes.values()], derive_seed(self.seed, self.kind))

    def check(self) -> None:
        """Refuse more rows of a document than there are ways to ask about it."""
        if self.settings.per_document > len(self.choices):
            raise RecipeError(
                f"stages.{self.name}.per_document: {self.settings.per_document} asked, but there are {len(self.choices)} "
                "ways to ask about a document",
                "add audiences, formats, difficulties or lengths",
            )
        super().check()

    def prompt(self, row: int) -> SourcedPrompt:
        """Quote a passage of the row's document; another row of the same document quotes the next one."""
        source, variant = self.source(row)
        chosen = zip(self.axes.items(), self.choices[row % len(self.choices)], strict=True)
        seeds: dict[str, Any] = {name: choices[index] for (name, choices), index in chosen}
        passage, quoted = self._extract(source.text, variant)
        seeds |= {"passage": passage, "topic": self._topic(source) if seeds["named"] else ""}
        rules = {
            "rule": AUDIENCES[seeds["audience"]],
            "style": FORMATS[seeds["format"]],
            "assumption": DIFFICULTIES[seeds["difficulty"]],
        }
        return SourcedPrompt(self.ask(extract=quoted, **seeds, **rules), seeds, parents=(source.key,), quoted=quoted)

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        """Refuse a section that is too short, copies its extract, speaks of it or strays from it, or is not in the form asked."""
        quoted = self.quoted(prompt)
        check_language(text, self.settings.checks, self.language_of(prompt))  # in another one no word is the extract's
        if (count := len(words(text))) < self.settings.min_words:
            raise Refused("too-short", f"{count} words, at least {self.settings.min_words} wanted")
        if run := copies_run(text, quoted, self.settings.copied_run):
            raise Refused("copies-extract", run)
        if (share := copied_share(text, quoted, COPIED_WORDS)) > self.settings.copied_share:
            raise Refused("copies-extract", f"{share:.0%} of its {COPIED_WORDS}-word runs")
        if said := MENTION.search(text):
            raise Refused("mentions-extract", said[0])
        if prompt.seeds["format"] == "dialogue" and not is_dialogue(text):
            raise Refused("wrong-form", "a talk was asked for, and nobody speaks twice")
        if (share := drawn_share(text, f"{quoted} {prompt.seeds['topic']}")) < self.settings.least_drawn:
            raise Refused("off-extract", f"{share:.0%} of its content words are the extract's")
        return Parsed(text)

    def _extract(self, text: str, variant: int) -> tuple[int, str]:
        """Return the number and the text of an extract: the `variant`-th passage that is prose. Raises Refused."""
        size = self.settings.extract_characters
        text = without_markup(text)
        passages = [passage.strip() for passage in cut_passages(text, max(1, -(-len(text) // size)))]
        prose = [
            number
            for number, passage in enumerate(passages)
            if len(passage.split()) >= EXTRACT_WORDS and letters(passage) >= self.settings.least_letters
        ]
        if not prose:
            raise Refused("no-prose", f"no passage of the document has {EXTRACT_WORDS} words and is mostly letters")
        number = prose[variant % len(prose)]
        return number, extract(passages[number], size)

    def _topic(self, source: SourceDocument) -> str:
        """Return the document's topic, from the first place that has one; empty if none does."""
        return next((topic for place in self.settings.topic_from if (topic := self._topic_in(place, source))), "")

    def _topic_in(self, place: TopicSource, source: SourceDocument) -> str:
        if place == "heading":
            return heading_topic(source.text)
        if place == "path":
            return path_topic(source.meta)
        for held in (source.meta, source.seeds):
            for field in self.settings.topic_fields:
                if isinstance(held.get(field), str) and (topic := plain_topic(held[field])):
                    return topic
        return ""


def is_dialogue(text: str) -> bool:
    """Tell whether a text looks like a talk: two lines that begin with a name and a colon, or two quotations of a few words."""
    spoken = [found for found in quotations(text) if len(words(found.inner)) >= SPOKEN_WORDS]
    return max(len(SPEAKER.findall(text)), len(spoken)) >= SPOKEN_TURNS


def letters(text: str) -> float:
    """Return the share of letters and white space in a text; 0 for an empty one."""
    return sum(character.isalpha() or character.isspace() for character in text) / len(text) if text else 0.0


def plain_topic(text: str) -> str:
    """Return a title without markup; empty where it is too short or long to be a topic, or has no letters."""
    topic = " ".join(MARKS.sub("", without_markup(text)).split()).strip(" .:-")
    return topic if len(topic) in TOPIC_CHARACTERS and any(map(str.isalpha, topic)) else ""


def heading_topic(text: str) -> str:
    """Return the first heading of a text that names a topic, one of the highest level before others; empty without one."""
    for pattern in (TITLE, HEADING):
        for found in pattern.finditer(text):
            topic = plain_topic(found["marked"] or found["lined"])
            if topic and topic.casefold() not in EMPTY_HEADINGS:
                return topic
    return ""


def path_topic(meta: Mapping[str, Any]) -> str:
    """Return what the file's name says, in words: `net/http_client.py` is "http client"; empty where it says nothing."""
    path = meta.get("path")
    if not isinstance(path, str):
        return ""
    parts = [PACKAGE.sub("", part) for part in PurePosixPath(path).with_suffix("").parts]
    named = next((part for part in reversed(parts) if part.strip("_").lower() not in EMPTY_NAMES), "")
    return plain_topic(re.sub(r"[\W_]+", " ", named).strip())
