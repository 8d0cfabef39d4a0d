"""Question and answer pairs from documents, as chat records: what the small model is tuned on after pretraining."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field

from generators.checks import check_answer, check_language
from generators.documents import DocumentPromptSettings, DocumentStage, SourcedPrompt, extract
from generators.overlap import drawn_share, repeats_question, speaks_of_text
from generators.prompted import Parsed, Prompt, Refused
from generators.sentences import unquoted
from hornbook.chat import Message, chat_meta, plain_text

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
        (
            (
                "Do flowers need bees?",
                "Yes. Bees carry pollen from flower to flower, and a flower makes seeds from it.",
            ),
            ("Why do bees visit flowers?", "They come to drink the nectar that is inside of the flowers."),
            ("What sticks to a bee's legs?", "Yellow pollen sticks to them while the bee drinks nectar."),
            (
                "How do bees help plants to make seeds?",
                "Pollen sticks to a bee's legs while it drinks nectar. Some of it falls off at the next flower, and "
                "that flower can make seeds.",
            ),
        ),
    ),
    (
        "A lever is a bar that rests on a point. When you push one end down, the other end goes up. If your end is "
        "longer, a small push lifts a heavy load. A seesaw is a lever, and so is a bottle opener.",
        (
            ("Can you name two levers?", "A seesaw is a lever, and so is a bottle opener."),
            (
                "Why can a small push on a lever lift a heavy load?",
                "Your end of the bar is longer than the other end. That makes a small push strong enough.",
            ),
            (
                "What is a lever?",
                "It is a bar that rests on a point, so that one end goes up when the other goes down.",
            ),
            ("How do you lift a load with a lever?", "You push the longer end down, and the other end goes up."),
        ),
    ),
)
"""Shown before each request, as turns: a text, and what to answer to each of ASKS. Without them SmolLM2-135M keeps to the form
in 6 of 216 answers, with them in 31 of 32."""
MIN_ANSWER_WORDS = 4


def _label(word: str) -> str:
    """Match a label before its text, `**Question 1:**`, or alone on its line."""
    return rf"(?:\b{word}[\s\d*_]*:|^[\W_]*\b{word}[^\w\n]*$)"


FLAGS = re.IGNORECASE | re.DOTALL | re.MULTILINE
QUESTION = re.compile(_label("question"), FLAGS)
PAIR = re.compile(rf"{_label('question')}(?P<question>.+?){_label('answer')}(?P<answer>.+)", FLAGS)
MARKS = re.compile(r"^[\s*_#:]+|[\s*_#]+$")


class QuestionSettings(DocumentPromptSettings):
    """Settings of the kind `questions`; `rows` is the most to ask, whatever `per_document` allows."""

    per_document: int = Field(2, ge=1, le=len(ASKS), description="Questions asked of each document.")
    extract_characters: int = Field(1200, ge=100, description="How much of a document the prompt quotes.")
    least_drawn: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Least share of the content words of question and answer, taken together, that the extract holds: "
        "else `off-document`.",
    )


class Questions(DocumentStage):
    """Question and answer pairs, `per_document` of each input document."""

    kind: ClassVar[str] = "questions"
    document_kind: ClassVar[str] = "chat"
    expected_tokens: ClassVar[int] = 90
    Settings = QuestionSettings
    settings: QuestionSettings

    def prompt(self, row: int) -> SourcedPrompt:
        """Ask the (row mod per_document)-th way about the (row div per_document)-th document."""
        source, way = self.source(row)
        document = row // self.settings.per_document
        ask = (way + document) % len(ASKS)
        seeds = {"document": document, "ask": ASKS[ask]}
        examples = [turn for text, pairs in EXAMPLES for turn in self._example(text, *pairs[ask], ASKS[ask])]
        quoted = extract(source.text, self.settings.extract_characters)
        asked = self.ask(extract=quoted, ask=seeds["ask"])
        return SourcedPrompt((*examples, *asked), seeds, parents=(source.key,), quoted=quoted)

    def _example(self, text: str, question: str, answer: str, ask: str) -> tuple[dict[str, str], ...]:
        reply = {"role": "assistant", "content": f"Question: {question}\nAnswer: {answer}"}
        return (*self.ask(extract=text, ask=ask), reply)

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        """Find the question and the answer. Refuses what is no such pair, or not about the document."""
        match = PAIR.search(text)
        if match is None:
            raise Refused("unparsable", "no Question: and Answer: in the reply")
        question = _clean(match["question"])
        answer = _clean(QUESTION.split(match["answer"])[0].strip().split("\n\n")[0])  # what follows comments on it
        if not question.endswith("?"):
            raise Refused("no-question", question[:200])
        check_answer(answer, self.settings.checks)
        if len(answer.split()) < MIN_ANSWER_WORDS:
            raise Refused("short-answer", answer[:200])
        if repeats_question(answer, question):
            raise Refused("repeats-question", answer[:200])
        if answer.endswith("?"):
            raise Refused("no-answer", answer[:200])
        source, pair = self.quoted(prompt), f"{question}\n{answer}"
        if said := speaks_of_text(pair, source):
            raise Refused("speaks-of-text", said)
        check_language(pair, self.settings.checks, self.language_of(prompt))  # in another one no word is the document's
        if (share := drawn_share(pair, source)) < self.settings.least_drawn:
            raise Refused("off-document", f"{share:.0%} of its content words are the document's")
        messages = [Message(role="user", content=question), Message(role="assistant", content=answer)]
        return Parsed(plain_text(messages), chat_meta(messages))


def _clean(text: str) -> str:
    """Take away Markdown marks and the quotation marks around the whole."""
    return unquoted(MARKS.sub("", text)).strip()
