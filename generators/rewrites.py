"""Documents rephrased as questions and answers, lists, notes or simpler prose, facts kept (as Nemotron-CC and FinePhrase do).

Long documents are cut into passages, and every passage is planned in the forms asked for, so that nothing of a document is
left out. Whether the facts are kept is checked cheaply, by numbers and names that the passage does not hold, and, where the
recipe names a judge, by asking it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cached_property
from typing import ClassVar, Literal

from pydantic import Field

from generators.checks import check_language
from generators.documents import DocumentPromptSettings, DocumentStage, SourcedPrompt
from generators.overlap import LIST_MARK, alike, copied_share, drawn_share, new_names, new_numbers, repeats_question
from generators.prompted import Ask, Messages, Parsed, Prompt, Refused
from hornbook.engines.interface import EngineSettings, Reply
from hornbook.errors import RecipeError
from hornbook.judge import ONE_TOKEN, Rubric, grade
from hornbook.plan import derive_seed, permute

Form = Literal["questions", "list", "notes", "prose"]

ASKS: dict[Form, str] = {
    "questions": 'Rewrite this text as three questions and answers. Begin each question with "Q:" and each answer with "A:".',
    "list": 'Rewrite this text as a list of its facts, a short sentence a line. Begin each line with "- ".',
    "notes": 'Rewrite this text as notes. Each line is a keyword, then " | ", then what the text says about it.',
    "prose": "Rewrite this text in simpler words and short sentences, so that a child understands it.",
}
EXAMPLES = (
    "Bees visit flowers to drink nectar. While a bee drinks, yellow pollen sticks to its legs. At the next flower some of the "
    "pollen falls off, and that flower can make seeds. One bee may visit 2,000 flowers in a day. Without bees, many plants "
    "would bear no fruit.",
    "A lever is a bar that rests on a point. When you push one end down, the other end goes up. If your end is longer, a small "
    "push lifts a heavy load. Archimedes wrote about the lever in the third century before Christ. A seesaw is a lever, and so "
    "is a bottle opener.",
)
REWRITTEN: dict[Form, tuple[str, str]] = {
    "questions": (
        "Q: Why do bees visit flowers?\n"
        "A: They come to drink nectar.\n"
        "Q: How do bees help flowers to make seeds?\n"
        "A: Pollen sticks to a bee's legs, and some of it falls off at the next flower.\n"
        "Q: How many flowers may a bee visit in a day?\n"
        "A: One bee may visit 2,000 flowers in a day.",
        "Q: What is a lever?\n"
        "A: It is a bar that rests on a point.\n"
        "Q: When does a small push lift a heavy load?\n"
        "A: It does when your end of the bar is longer.\n"
        "Q: Which things are levers?\n"
        "A: A seesaw and a bottle opener are levers.",
    ),
    "list": (
        "- Bees drink nectar from flowers.\n"
        "- Yellow pollen sticks to a bee's legs.\n"
        "- Some pollen falls off at the next flower.\n"
        "- With this pollen the flower can make seeds.\n"
        "- A bee may visit 2,000 flowers in a day.\n"
        "- Many plants would have no fruit without bees.",
        "- A lever is a bar on a point.\n"
        "- When one end goes down, the other goes up.\n"
        "- A small push on a longer end lifts a heavy load.\n"
        "- Archimedes wrote about levers in the third century before Christ.\n"
        "- Seesaws and bottle openers are levers.",
    ),
    "notes": (
        "bees | visit flowers to drink nectar\n"
        "pollen | sticks to a bee's legs, falls off at the next flower\n"
        "seeds | a flower makes them when pollen comes to it\n"
        "a day | up to 2,000 flowers for one bee\n"
        "fruit | many plants would bear none without bees",
        "lever | a bar that rests on a point\n"
        "ends | one goes down, the other goes up\n"
        "longer end | a small push there lifts a heavy load\n"
        "Archimedes | wrote about the lever in the third century before Christ\n"
        "seesaw, bottle opener | both are levers",
    ),
    "prose": (
        "Bees like the sweet juice in flowers. It is called nectar. When a bee drinks, a yellow dust sticks to its legs. "
        "This dust is pollen. The bee flies on, and some pollen drops onto the next flower. Now that flower can make seeds. "
        "A bee can go to 2,000 flowers in one day. If there were no bees, many plants would have no fruit.",
        "Take a bar and lay it on a point. Now you have a lever. Push one end down, and the other end goes up. Is your end the "
        "longer one? Then you can lift a heavy load with a small push. Archimedes wrote about this in the third century before "
        "Christ. You have seen levers: a seesaw is one, and a bottle opener, too.",
    ),
}
"""Shown before each request, as turns: without them a small model does not keep to the form, with one alone it copies it."""
QUESTION = re.compile(r"^[\W_]*(?:Q|Question)[\s\d]*[*_]*[:.][*_]*[ \t]*(?P<text>.+)$", re.IGNORECASE | re.MULTILINE)
ANSWER = re.compile(r"^[\W_]*(?:A|Answer)[\s\d]*[*_]*[:.][*_]*[ \t]*(?P<text>.+)$", re.IGNORECASE | re.MULTILINE)
NOTE = re.compile(r"^[\s|*-]*[^\s|:][^|:\n]{0,60}?\s*[|:]\s*[^\s|][^|]*\|?$")
ANSWERS = ("No", "Yes")
FACTS = Rubric("facts", "", ANSWERS, (0.0, 1.0))
COPIED_WORDS = 8
LEAST_LINES = {"questions": 2, "list": 3, "notes": 3}
ITEM_WORDS = 3


class RewriteSettings(DocumentPromptSettings):
    """Settings of the kind `rewrites`; rows are counted through the passages of documents."""

    forms: tuple[Form, ...] = Field(tuple(ASKS), min_length=1, description="Forms to rewrite into.")
    per_document: int = Field(1, ge=1, description="Rows planned for each passage, each in another form.")
    passage_characters: int = Field(
        1000, ge=200, description="Documents are cut into passages of about so many characters, all of them planned."
    )
    least_drawn: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Least share of a rewrite's content words that the passage holds: else `off-source`.",
    )
    most_copied: float = Field(
        0.7, ge=0, le=1, description="Largest share of its eight-word runs from the passage: else `copies-source`."
    )
    least_length: float = Field(
        0.3, ge=0, le=1, description="Least length of a rewrite into prose, of the passage's words: else `too-short`."
    )
    new_names: int = Field(
        0,
        ge=0,
        description="How many names (capitalised words) a rewrite may have that the passage lacks: else "
        "`invents-names`. New numbers are never allowed: `invents-numbers`.",
    )
    judge: EngineSettings | None = Field(
        None,
        description="An engine that is asked whether the rewrite says anything else than the passage; default: none.",
    )
    judge_least: float = Field(
        0.5, ge=0, le=1, description="With a judge: least probability of Yes (all facts kept), else `facts-not-kept`."
    )


class Rewrites(DocumentStage):
    """Passages of documents in other forms, `per_document` forms of each."""

    kind: ClassVar[str] = "rewrites"
    expected_tokens: ClassVar[int] = 160
    cells: ClassVar[tuple[str, ...]] = ("form",)
    request_words: ClassVar[int] = 5  # of "Rewrite this text as notes."
    Settings = RewriteSettings
    settings: RewriteSettings

    @property
    def passage_characters(self) -> int:
        """Rows are counted through passages of this length."""
        return self.settings.passage_characters

    def check(self) -> None:
        """Refuse more rows of a passage than there are forms."""
        if self.settings.per_document > len(self.settings.forms):
            raise RecipeError(
                f"stages.{self.name}.per_document: {self.settings.per_document} asked, but there are "
                f"{len(self.settings.forms)} forms",
                "ask for fewer rows of a passage, or add forms",
            )
        super().check()

    @cached_property
    def order(self) -> list[Form]:
        """The forms, shuffled by the seed; rows take them in turn."""
        import numpy as np

        count = len(self.settings.forms)
        return [self.settings.forms[i] for i in permute(np.arange(count), count, derive_seed(self.seed, self.kind))]

    def prompt(self, row: int) -> SourcedPrompt:
        """Ask for the row's passage in the row's form."""
        source, _ = self.source(row)
        passage = source.text.strip()
        if not passage:
            raise Refused("empty-passage", "only white space")
        form = self.order[row % len(self.order)]  # no two rows of a passage have the same, nor two passages in a row
        examples = [
            turn
            for text, rewritten in zip(EXAMPLES, REWRITTEN[form], strict=True)
            for turn in (*self.ask(text=text, ask=ASKS[form]), {"role": "assistant", "content": rewritten})
        ]
        asked = self.ask(text=passage, ask=ASKS[form])
        seeds = {"form": form, "passage": source.passage, "passages": source.passages}
        return SourcedPrompt((*examples, *asked), seeds, parents=(source.key,), quoted=passage)

    def accept(self, prompt: Prompt, reply: Reply) -> Parsed:
        """As every kind, but a reply in lines that was cut is trimmed to its last whole line."""
        cut = reply.finish_reason == "length" and self.settings.truncated == "trim"
        if cut and prompt.seeds["form"] != "prose":
            reply = replace(reply, text=reply.text[: reply.text.rfind("\n") + 1], finish_reason="stop")
        return super().accept(prompt, reply)

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        """Check the form, then what the rewrite says against the passage."""
        form: Form = prompt.seeds["form"]
        source = self.quoted(prompt)
        rewritten = shaped(form, text)
        if form == "questions":
            _check_pairs(rewritten)
        if form == "prose" and len(rewritten.split()) < self.settings.least_length * len(source.split()):
            raise Refused("too-short", f"{len(rewritten.split())} words of {len(source.split())}")
        # Before the words are compared: in another language none is the passage's.
        check_language(rewritten, self.settings.checks, self.language_of(prompt))
        if (share := copied_share(rewritten, source, COPIED_WORDS)) > self.settings.most_copied:
            raise Refused("copies-source", f"{share:.0%} of its {COPIED_WORDS}-word runs")
        if (share := drawn_share(rewritten, source)) < self.settings.least_drawn:
            raise Refused("off-source", f"{share:.0%} of its content words are the passage's")
        if numbers := new_numbers(rewritten, source):
            raise Refused("invents-numbers", ", ".join(numbers[:10]))
        if len(names := new_names(rewritten, source)) > self.settings.new_names:
            raise Refused("invents-names", ", ".join(names[:10]))
        return Parsed(rewritten, {"form": form})

    async def write(self, prompt: Prompt, ask: Ask) -> Parsed:
        """Ask for the rewrite, then the judge, if there is one, whether it keeps the facts."""
        parsed = await super().write(prompt, ask)
        if self.settings.judge is None:
            return parsed
        self.check_text(prompt, parsed.text)  # before the judge is paid
        messages = self._ask_judge(self.quoted(prompt), parsed.text)
        reply = await ask(messages, choices=ANSWERS, engine="judge", sampling=ONE_TOKEN)
        found = grade(reply, FACTS)
        if found.reason:
            raise Refused(found.reason.replace("_", "-"), found.detail)
        if found.score < self.settings.judge_least:
            raise Refused("facts-not-kept", f"the judge's probability of Yes is {found.score:.2f}")
        return Parsed(parsed.text, {**parsed.meta, "facts_kept": round(found.score, 4)})

    def _ask_judge(self, source: str, rewrite: str) -> Messages:
        return ({"role": "user", "content": self.render("judge", source=source, rewrite=rewrite)},)


def shaped(form: Form, text: str) -> str:
    """Return a rewrite in its form, with what is said before and after it left away, and all from a line on that was there.

    Raises:
        Refused: `wrong-form`, or `repeated-lines` where a line, or nearly the same item or answer, comes again before there are
            enough of them.
    """
    if form == "prose":
        if len(LIST_MARK.findall(text)) > 2 or QUESTION.search(text):
            raise Refused("wrong-form", "a list, or questions, not prose")
        return text
    lines = _pairs(text) if form == "questions" else _lines(form, text)
    firsts = [line.split("\n")[0] for line in lines]  # of a pair, its question
    lasts = [line.split("\n")[-1].removeprefix("A: ") for line in lines]  # of a pair, its answer
    whole = next(
        (
            number
            for number, (first, last) in enumerate(zip(firsts, lasts, strict=True))
            if first in firsts[:number] or any(alike(last, earlier) for earlier in lasts[:number])
        ),
        len(lines),
    )
    least = LEAST_LINES[form]
    if len(lines) < least:
        raise Refused("wrong-form", f"{len(lines)} {form} in the reply, at least {least} wanted")
    if whole < least:
        raise Refused("repeated-lines", lines[whole][:200])
    return "\n".join(lines[:whole])


def _check_pairs(text: str) -> None:
    """Refuse a rewrite into questions of which one has an answer that says nothing but the question: `repeats-question`."""
    lines = text.split("\n")
    for question, answer in zip(lines[::2], lines[1::2], strict=True):
        if repeats_question(answer.removeprefix("A: "), question.removeprefix("Q: ")):
            raise Refused("repeats-question", f"{question} {answer}"[:200])


def _pairs(text: str) -> list[str]:
    """Return the questions that are followed by an answer, each with it."""
    pairs = []
    question = ""
    for line in text.split("\n"):
        if found := QUESTION.match(line):
            question = found["text"].strip()
        elif question.endswith("?") and (found := ANSWER.match(line)):
            pairs.append(f"Q: {question}\nA: {found['text'].strip()}")
            question = ""
    return pairs


def _lines(form: Form, text: str) -> list[str]:
    """Return the lines that are items of a list, or notes."""
    lines = [line.strip() for line in text.split("\n")]
    if form == "list":
        return [
            f"- {item}"
            for line in lines
            if (item := LIST_MARK.sub("", line)) != line and len(item.split()) >= ITEM_WORDS
        ]
    notes = [LIST_MARK.sub("", line) for line in lines if NOTE.match(line)]
    return [note for note in notes if len(note.split()) >= ITEM_WORDS and any(map(str.isalpha, note))]
