"""Stories that follow instructions (TinyStories-Instruct, arXiv 2305.07759): what a story holds is listed before it.

A random subset, in random order, of `Words:`, `Features:`, `Summary:` and `Sentence:` lines, then `Story:` and the story as
it was written. Only a summary is asked of a model. Words and sentence are read off the story; features are what its seeds asked
for, and but for dialogue nobody looks whether it obeyed: `features` says which may be listed. A row without a summary asks
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from itertools import combinations
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
from pydantic import Field

from generators.checks import CheckSettings, NearDuplicateSieve
from generators.documents import (
    SENTENCE_END,
    DocumentPromptSettings,
    DocumentStage,
    SourceDocument,
    SourcedPrompt,
    extract,
)
from generators.overlap import COMMON, LIST_MARK, copied_share, copies_run, drawn_share, held_words, words
from generators.prompted import Parsed, Prompt, Refused, Sieve
from generators.quotations import quotations, somebody_speaks
from generators.stories import FEATURES, word_lists
from hornbook.plan import derive_seed, permute, row_random

Feature = Literal["Dialogue", "Twist", "MoralValue", "Problem", "Foreshadowing", "Conflict", "BadEnding"]

LINES = ("Words", "Features", "Summary", "Sentence")
SUBSETS = tuple(chosen for size in range(1, len(LINES) + 1) for chosen in combinations(LINES, size))
SENTENCE_WORDS = range(4, 31)
PICKED_WORDS = 3
OPENING_QUOTES = "\"“„«'‘¿¡"  # and what Spanish opens a sentence with
LABEL = re.compile(r"^[\W_]*\w+(?: summary)?[*_]*:", re.IGNORECASE)
ENDED = re.compile(r"(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bSt)[.!?](?:\s|$|[\"”](?:$|\s+(?![a-z\s])))")
"""A sentence's end; within a quotation after which it goes on in lower case there is none."""
EXAMPLES = (
    (
        "Nina had a red kite. One windy day the string broke, and the kite flew over the fence into the garden of old Mr. "
        "Bell. Nina was afraid of him, because he never smiled. But she knocked. Mr. Bell looked at the broken string and "
        'said, "I know a good knot." He tied it and showed her how. Now Nina knocks every Sunday, and they fly the kite '
        "together.",
        "A girl loses her kite in the garden of a neighbour whom she fears, and he turns out to be kind and becomes her "
        "friend.",
    ),
    (
        "A small frog wanted to sing like the birds. Every morning he sat on a stone and tried, but only croaks came out. "
        "The ducks laughed. One night a fox crept to the pond. The frog croaked as loud as he could, and all the ducks "
        "woke up and flew away. After that nobody laughed at his voice.",
        "The ducks laugh at a frog who cannot sing, until his loud croaking saves them from a fox.",
    ),
)
"""Shown before each request, as turns."""


class StoryInstructionSettings(DocumentPromptSettings):
    """Settings of the kind `story-instructions`."""

    per_document: int = Field(
        1, ge=1, le=len(SUBSETS), description="Rows made from each story, each with another subset of lines."
    )
    features: tuple[Feature, ...] = Field(
        get_args(Feature),
        description="Which features a `Features:` line may list; but for `Dialogue` nobody looks whether a story has them.",
    )
    summary_characters: int = Field(
        2400, ge=200, description="How much of a story the prompt for its summary quotes, in characters."
    )
    summary_words: tuple[int, int] = Field((8, 60), description="A summary's fewest and most words.")
    copied_run: int = Field(
        12, ge=3, description="A summary with so many words in a row from the story is a copy: `copies-story`."
    )
    copied_share: float = Field(
        0.5, gt=0, le=1, description="So is one with more than this share of its four-word runs from the story."
    )
    least_drawn: float = Field(
        0.2, ge=0, le=1, description="Least share of a summary's content words that the story holds: else `off-story`."
    )


class Instruction(NamedTuple):
    """What stands before a story: the lines' names in their order, and what each but the summary says."""

    order: tuple[str, ...]
    said: dict[str, str]


class StoryInstructions(DocumentStage):
    """Stories with a list of what they hold before them, `per_document` of each story."""

    kind: ClassVar[str] = "story-instructions"
    expected_tokens: ClassVar[int] = 40
    Settings = StoryInstructionSettings
    settings: StoryInstructionSettings

    def prompt(self, row: int) -> SourcedPrompt:
        """Choose the lines of row `row`; ask for a summary if one is among them."""
        story, variant = self.source(row)
        instruction = self._instruction(row, story)
        seeds = {"lines": instruction.order, **instruction.said, "variant": variant}
        messages = self._ask_summary(story.text) if "Summary" in instruction.order else ()
        return SourcedPrompt(messages, seeds, parents=(story.key,), quoted=story.text)

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        """Put the lines before the story. Refuses summaries that are a copy, no sentence, or of something else."""
        story = self.quoted(prompt)
        said = dict(prompt.seeds)
        if "Summary" in prompt.seeds["lines"]:
            said["Summary"] = self._summary(prompt, text)
        lines = [f"{name}: {said[name]}" for name in prompt.seeds["lines"]]
        meta = {name.lower(): said[name] for name in prompt.seeds["lines"]}
        return Parsed("\n".join([*lines, "Story:", "", story]), meta)

    def sieves(self) -> list[Sieve]:
        """A story may come back with other lines before it: only documents of the same lines are compared."""
        return [_SameLinesSieve(self.settings.checks)] if self.settings.checks.near_duplicates else []

    def _instruction(self, row: int, story: SourceDocument) -> Instruction:
        """Return the lines of a row, a function of (seed, row) and the story.

        Of every 15 rows each has another subset; of a story that has nothing to say for a line (no feature, no sentence of
        a fit length) the subsets without it take turns in the same way.
        """
        random = row_random(self.seed, self.kind, row)
        said = {
            "Words": ", ".join(self._words(story, random)),
            "Features": ", ".join(self._features(story)),
            "Summary": "?",
            "Sentence": self._sentence(story.text, random),
        }
        possible = [subset for subset in SUBSETS if all(said[name] for name in subset)]
        turn = permute(np.array([row % len(possible)]), len(possible), derive_seed(self.seed, self.kind, "subsets"))
        order = list(possible[int(turn[0])])
        random.shuffle(order)
        return Instruction(tuple(order), {name: said[name] for name in order if name != "Summary"})

    def _words(self, story: SourceDocument, random: Any) -> list[str]:
        """Return the words that were asked of a story and are in it; of a story from elsewhere, some that it holds."""
        asked = [story.seeds[name] for name in ("noun", "verb", "adjective") if isinstance(story.seeds.get(name), str)]
        if asked:
            found = held_words(story.text, asked)
            random.shuffle(found)
            return found
        held = list(dict.fromkeys(word for word in words(story.text) if word.isalpha() and len(word) > 2))
        lists = [[word for word in held if word in known] for known in self._known_words]
        picked = [random.choice(found) for found in lists if found]
        if len(picked) < PICKED_WORDS:
            others = [word for word in held if len(word) > 3 and word not in COMMON and word not in picked]
            picked += random.sample(others, min(PICKED_WORDS - len(picked), len(others)))
        random.shuffle(picked)
        return picked

    @cached_property
    def _known_words(self) -> list[set[str]]:
        return [set(found) for found in word_lists().values()]

    def _features(self, story: SourceDocument) -> list[str]:
        """Return the names of the features that a story was asked for and that may be listed; dialogue only if somebody speaks."""
        asked = story.seeds.get("features", ())
        names = {sentence: name for name, sentence in FEATURES.items()}
        found = [names[sentence] for sentence in asked if sentence in names] if isinstance(asked, list | tuple) else []
        listed = [name for name in found if name in self.settings.features]
        return [name for name in listed if name != "Dialogue" or somebody_speaks(story.text)]

    def _sentence(self, story: str, random: Any) -> str:
        """Return one of the story's sentences, verbatim, of a fit length and with whole quotations; empty without one."""
        fit = [
            sentence
            for sentence in dict.fromkeys(_whole_sentences(story))
            if len(sentence.split()) in SENTENCE_WORDS
            and sentence.endswith((".", "!", "?", '"', "”"))
            and sentence.count('"') % 2 == 0
            and sentence.count("“") == sentence.count("”")
        ]
        return random.choice(fit) if fit else ""

    def _ask_summary(self, story: str) -> tuple[dict[str, str], ...]:
        examples = [
            turn
            for example, summary in EXAMPLES
            for turn in (*self.ask(story=example), {"role": "assistant", "content": f"Summary: {summary}"})
        ]
        return (*examples, *self.ask(story=extract(story, self.settings.summary_characters)))

    def _summary(self, prompt: Prompt, text: str) -> str:
        story = self.quoted(prompt)
        summary = " ".join(re.sub(r"^[\W_]*summary[\W_]*:[\s*_]*", "", text.strip(), flags=re.IGNORECASE).split())
        fewest, most = self.settings.summary_words
        count = len(summary.split())
        if not fewest <= count <= most:
            raise Refused("short-summary" if count < fewest else "long-summary", summary[:200])
        if (sentences := len(ENDED.findall(summary))) > 1:  # one was asked for
            raise Refused("long-summary", f"{sentences} sentences: {summary[:200]}")
        if label := LABEL.match(summary):
            raise Refused("wrong-form", f"begins with a label: {label[0]}")
        # Here, since checked with the story, which is most of the document, it would tell nothing about the summary.
        self.check_text(prompt, summary)
        if run := copies_run(summary, story, self.settings.copied_run):
            raise Refused("copies-story", run)
        if (share := copied_share(summary, story, 4)) > self.settings.copied_share:
            raise Refused("copies-story", f"{share:.0%} of its four-word runs")
        if (share := drawn_share(summary, story)) < self.settings.least_drawn:
            raise Refused("off-story", f"{share:.0%} of its content words are the story's")
        if quoted := _foreign_quotation(summary, story):
            raise Refused("off-story", f"the story does not hold what it quotes: {quoted[:200]}")
        return summary


def _whole_sentences(story: str) -> list[str]:
    """Return what stands between sentence ends in a story and begins as a sentence does: no item of a list, no rest of one."""
    whole = []
    for line in story.split("\n"):
        if LIST_MARK.match(line):
            continue
        before = ""
        for piece in SENTENCE_END.sub("\\g<0>\x00", line).split("\x00"):
            sentence = piece.strip()
            first = sentence.lstrip(OPENING_QUOTES)[:1]  # lower case, not "no capital": not all scripts have capitals
            if first.isalnum() and not first.islower() and not before.endswith(("..", "…")):
                whole.append(sentence)
            before = sentence
    return whole


def _foreign_quotation(summary: str, story: str) -> str:
    """Return what a summary quotes that the story does not hold, word for word; empty if there is no such thing."""
    held = f" {' '.join(words(story))} "
    return next((found.inner for found in quotations(summary) if f" {' '.join(words(found.inner))} " not in held), "")


class _SameLinesSieve:
    """Refuses a story that an earlier document tells, almost word for word, behind lines of the same names."""

    reason = "near-duplicate"

    def __init__(self, settings: CheckSettings) -> None:
        share = max(1, settings.remembered // len(SUBSETS))  # all sieves together remember what one may
        self._settings = settings.model_copy(update={"remembered": share})
        self._sieves: dict[frozenset[str], NearDuplicateSieve] = {}

    def refuses(self, text: str, meta: Mapping[str, Any]) -> str:
        """Return what the sieve of these lines says."""
        return self._of(meta).refuses(text, meta)

    def add(self, text: str, meta: Mapping[str, Any]) -> None:
        """Remember a document."""
        self._of(meta).add(text, meta)

    def _of(self, meta: Mapping[str, Any]) -> NearDuplicateSieve:
        lines = frozenset(name for name in LINES if name.lower() in meta)
        return self._sieves.setdefault(lines, NearDuplicateSieve(self._settings))
