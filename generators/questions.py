"""Question and answer pairs from documents, as chat records: what the small model is tuned on after pretraining."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import pyarrow as pa
from pydantic import Field

from generators.prompted import Parsed, Prompt, PromptedStage, PromptSettings, Refused, to_last_sentence
from hornbook.artifact import Artifact
from hornbook.chat import Message, chat_meta, plain_text
from hornbook.stage import Expected, Input, StageContext

ASKS = (
    "Write one question about this text and its answer.",
    'Write one question that begins with "Why" about this text, and its answer.',
    'Write one question that begins with "What" about this text, and its answer.',
    'Write one question that begins with "How" about this text, and its answer.',
)
EXAMPLES = (
    (
        "Bees visit flowers to drink nectar. While a bee drinks, yellow pollen sticks to its legs. At the next flower "
        "some of the pollen falls off, and that flower can make seeds. Without bees, many plants would have no fruit.",
        "Question: How do bees help plants to make seeds?\n"
        "Answer: Pollen sticks to a bee's legs while it drinks nectar. Some of it falls off at the next flower, and "
        "that flower can make seeds.",
    ),
    (
        "A lever is a bar that rests on a point. When you push one end down, the other end goes up. If your end is "
        "longer, a small push lifts a heavy load. A seesaw is a lever, and so is a bottle opener.",
        "Question: Why can a small push on a lever lift a heavy load?\n"
        "Answer: Your end of the lever is longer than the other end. That makes a small push strong enough to lift a "
        "heavy load.",
    ),
)
"""Shown before each request, as turns: without them SmolLM2-135M keeps to the form in 6 of 216 answers, with them in 31 of 32."""
MIN_ANSWER_WORDS = 4


def _label(word: str) -> str:
    """Match a label before its text, `**Question 1:**`, or alone on its line."""
    return rf"(?:\b{word}[\s\d*_]*:|^[\W_]*\b{word}[^\w\n]*$)"


FLAGS = re.IGNORECASE | re.DOTALL | re.MULTILINE
QUESTION = re.compile(_label("question"), FLAGS)
PAIR = re.compile(rf"{_label('question')}(?P<question>.+?){_label('answer')}(?P<answer>.+)", FLAGS)
MARKS = re.compile(r"^[\s*_#:]+|[\s*_#]+$")


class QuestionSettings(PromptSettings):
    """Settings of the kind `questions`; `rows` is the most to ask, whatever `per_document` allows."""

    rows: int | None = Field(1_000_000_000, ge=1, description="At most so many questions.")
    per_document: int = Field(2, ge=1, le=len(ASKS), description="Questions asked of each document.")
    extract_characters: int = Field(1200, ge=100, description="How much of a document the prompt quotes.")


class Questions(PromptedStage):
    """Question and answer pairs, `per_document` of each input document."""

    kind: ClassVar[str] = "questions"
    document_kind: ClassVar[str] = "chat"
    expected_tokens: ClassVar[int] = 90
    Settings = QuestionSettings
    settings: QuestionSettings
    inputs: ClassVar[Mapping[str, Input]] = {"documents": Input("documents")}

    def planned(self, context: StageContext) -> int:
        """Each document `per_document` times, within `rows`."""
        documents = int(context.input("documents").manifest.counts["rows"])
        return min(self.settings.planned_rows, documents * self.settings.per_document)

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """As `planned`, from what the input is expected to hold."""
        documents = sum(found.rows or 0 for found in inputs.get("documents", ()))
        return self.expected_of(min(self.settings.planned_rows, documents * self.settings.per_document))

    def open(self, inputs: Mapping[str, Sequence[Artifact]]) -> None:
        """Remember where each document lies: parts and the number of documents before each."""
        self._artifact = inputs["documents"][0]
        self._parts = [part for part in self._artifact.parts if part.rows]
        self._before = [0, *itertools.accumulate(part.rows for part in self._parts)]
        self._loaded: tuple[int, pa.Table] | None = None

    def prompt(self, row: int) -> Prompt:
        """Ask the (row mod per_document)-th way about the (row div per_document)-th document."""
        document, way = divmod(row, self.settings.per_document)
        text, key = self._document(document)
        extract = text if len(text) <= self.settings.extract_characters else text[: self.settings.extract_characters]
        seeds = {"document": document, "ask": ASKS[(way + document) % len(ASKS)]}
        examples = [
            turn
            for example, answer in EXAMPLES
            for turn in (*self.ask(extract=example, ask=ASKS[0]), {"role": "assistant", "content": answer})
        ]
        asked = self.ask(extract=to_last_sentence(extract) or extract, ask=seeds["ask"])
        return Prompt((*examples, *asked), seeds, parents=(key,))

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        """Find the question and the answer. Refuses answers without both, and too short ones."""
        match = PAIR.search(text)
        if match is None:
            raise Refused("unparsable", "no Question: and Answer: in the reply")
        question = _clean(match["question"])
        answer = _clean(QUESTION.split(match["answer"])[0])
        if not question.endswith("?"):
            raise Refused("no-question", question[:200])
        if answer.casefold().startswith(question.rstrip("?").casefold()):
            raise Refused("repeats-question", answer[:200])
        if len(answer.split()) < MIN_ANSWER_WORDS:
            raise Refused("short-answer", answer[:200])
        messages = [Message(role="user", content=question), Message(role="assistant", content=answer)]
        return Parsed(plain_text(messages), chat_meta(messages))

    def _document(self, ordinal: int) -> tuple[str, bytes]:
        """Return text and key of the `ordinal`-th document of the input; keeps one part in memory."""
        index = bisect.bisect_right(self._before, ordinal) - 1
        if self._loaded is None or self._loaded[0] != index:
            self._loaded = (index, self._artifact.read(self._parts[index], columns=["text", "key"]))
        row = ordinal - self._before[index]
        table = self._loaded[1]
        return table.column("text")[row].as_py(), table.column("key")[row].as_py()


def _clean(text: str) -> str:
    """Take away Markdown marks and the quotation marks around the whole."""
    text = MARKS.sub("", text)
    if text[:1] in ('"', "'") and text.endswith(text[0]) and text.count(text[0]) == 2:
        text = text[1:-1]
    return text.strip()
