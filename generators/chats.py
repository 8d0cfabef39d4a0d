"""Conversations of several turns about documents, as chat records: a user with a character and a goal, and an assistant.

Single questions and answers are the kind `questions`. Here a user comes back: each row plans who asks, why, and how often.
A conversation is written in one call, or turn by turn: a model that loses the thread keeps it when it is handed to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field

from generators.checks import check_answer, check_language
from generators.documents import DocumentPromptSettings, DocumentStage, SourcedPrompt, extract
from generators.overlap import alike, drawn_share, repeated_sentence, speaks_of_text, words
from generators.prompted import Ask, Messages, Parsed, Prompt, Refused
from generators.sentences import unquoted
from hornbook.chat import Message, chat_meta, plain_text
from hornbook.errors import RecipeError
from hornbook.plan import Combinations, derive_seed

PERSONAS = (
    "a curious child",
    "a high-school student",
    "a busy parent",
    "a teacher who prepares a lesson",
    "somebody new to the subject",
    "a careful reader who doubts things",
    "a friend who likes short answers",
    "an older person who asks politely",
)
GOALS = (
    "wants to understand the main idea",
    "wants an example",
    "asks why things are so",
    "wants to know what it is good for",
    "is confused by one detail",
    "wants to explain it to somebody else",
)
EXAMPLES = (
    (
        "Bees visit flowers to drink nectar. While a bee drinks, yellow pollen sticks to its legs. At the next flower "
        "some of the pollen falls off, and that flower can make seeds. Without bees, many plants would have no fruit.",
        "a curious child",
        "asks why things are so",
        "User: Why do bees visit flowers?\n"
        "Assistant: Bees visit flowers to drink the nectar inside.\n"
        "User: And what is the yellow stuff on their legs?\n"
        "Assistant: That is pollen. It sticks to a bee's legs while the bee drinks.\n"
        "User: Does the flower need it?\n"
        "Assistant: Yes. Some of the pollen falls off at the next flower, and only then can that flower make seeds.",
    ),
    (
        "A lever is a bar that rests on a point. When you push one end down, the other end goes up. If your end is "
        "longer, a small push lifts a heavy load. A seesaw is a lever, and so is a bottle opener.",
        "somebody new to the subject",
        "wants an example",
        "User: I have never heard of levers. What is one?\n"
        "Assistant: A lever is a bar that rests on a point. You push one end down, and the other end goes up.\n"
        "User: Can you name one that I have seen?\n"
        "Assistant: A seesaw is a lever. A bottle opener in your kitchen is one, too.\n"
        "User: So why is it useful?\n"
        "Assistant: If your end of the bar is longer, a small push is enough to lift a heavy load.",
    ),
)
"""Shown before each request, as turns, each of three rounds; a row that asks for two sees them without the last."""
BEGINNINGS = ("What", "Why", "How", "Can you")
FIRST_QUESTIONS = (
    (
        "What sticks to the legs of a bee?",
        "Why do bees visit flowers?",
        "How do bees help flowers to make seeds?",
        "Can you tell me what would happen without bees?",
    ),
    (
        "What is a lever?",
        "Why can a small push lift a heavy load?",
        "How does a lever move when I push one end down?",
        "Can you name two levers?",
    ),
)
"""What a user asks about each of EXAMPLES, beginning in each of BEGINNINGS: shown where turns are asked for one by one. A small
model that may begin as it likes asks the same again."""
EXAMPLE_TURNS = frozenset(
    frozenset(words(turn))
    for turn in (
        *(line.split(": ", 1)[1] for *_, conversation in EXAMPLES for line in conversation.split("\n")),
        *(question for questions in FIRST_QUESTIONS for question in questions),
    )
)
LABEL = re.compile(r"^[\s*_#>-]*(?P<role>user|assistant)[\s\d*_]*:[\s*_]*", re.IGNORECASE | re.MULTILINE)
TURN_LABEL = re.compile(r"^[\W_]*(?:user|assistant|question|answer)[\s\d*_]*:[\s*_]*", re.IGNORECASE)
ROLES = ("user", "assistant")
LEAST_ROUNDS = 2
SENTENCE_WORDS = 4


class ChatSettings(DocumentPromptSettings):
    """Settings of the kind `chats`; of a setting with several values each row has one, in balance."""

    calls: Literal["one", "each-turn"] = Field(
        "one", description="one: a call writes the conversation. each-turn: a call for each turn, for small models."
    )
    rounds: tuple[int, ...] = Field(
        (2, 3, 4), min_length=1, description="How often the user speaks, and the assistant answers: 2 to 8."
    )
    personas: tuple[str, ...] = Field(PERSONAS, min_length=1, description="Who the user is.")
    goals: tuple[str, ...] = Field(GOALS, min_length=1, description="What the user wants.")
    extract_characters: int = Field(1200, ge=100, description="How much of a document the prompt quotes.")
    least_words: int = Field(3, ge=1, description="Fewest words of an assistant's turn: else `short-answer`.")
    least_drawn: float = Field(
        0.4,
        ge=0,
        le=1,
        description="Least share of the content words of the assistant's turns, taken together, that the extract holds: "
        "else `off-document`.",
    )


class Chats(DocumentStage):
    """Conversations of two or more rounds, `per_document` about each document."""

    kind: ClassVar[str] = "chats"
    document_kind: ClassVar[str] = "chat"
    expected_tokens: ClassVar[int] = 150
    cells: ClassVar[tuple[str, ...]] = ("persona",)
    Settings = ChatSettings
    settings: ChatSettings

    @cached_property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """What is combined, by name."""
        return {"rounds": self.settings.rounds, "persona": self.settings.personas, "goal": self.settings.goals}

    @cached_property
    def choices(self) -> Combinations:
        """The walk through all combinations; rows go round it."""
        return Combinations([len(choices) for choices in self.axes.values()], derive_seed(self.seed, self.kind))

    def check(self) -> None:
        """Refuse single rounds, and more rows of a document than there are combinations."""
        if not all(LEAST_ROUNDS <= rounds <= 8 for rounds in self.settings.rounds):
            raise RecipeError(
                f"stages.{self.name}.rounds: {self.settings.rounds}: a chat has 2 to 8 rounds",
                "for single questions and answers take the kind `questions`",
            )
        if self.settings.per_document > len(self.choices):
            raise RecipeError(
                f"stages.{self.name}.per_document: {self.settings.per_document} asked, but there are "
                f"{len(self.choices)} combinations of rounds, persona and goal",
                "add personas or goals",
            )
        super().check()

    def prompt(self, row: int) -> SourcedPrompt:
        """Ask for a conversation about the row's document, or for the first question of one."""
        source, _ = self.source(row)
        chosen = zip(self.axes.items(), self.choices[row % len(self.choices)], strict=True)
        seeds: dict[str, Any] = {name: choices[index] for (name, choices), index in chosen}
        quoted = extract(source.text, self.settings.extract_characters)
        if not quoted:
            raise Refused("empty-document", "only white space")
        prompt = SourcedPrompt((), seeds, parents=(source.key,), quoted=quoted)
        if self.settings.calls == "each-turn":
            prompt = replace(prompt, seeds={**seeds, "begins": row % len(BEGINNINGS)})
            return replace(prompt, messages=self._ask_question(prompt, ()))
        return replace(prompt, messages=(*self._examples(seeds["rounds"]), *self.ask(extract=quoted, **seeds)))

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        """Read the turns; more rounds than asked for are left away, fewer are kept from two on. Or read one turn."""
        if "turn" in prompt.seeds:
            return Parsed(one_turn(text, prompt.seeds["turn"]))
        messages: list[Message] = []
        for turn in turns(text)[: 2 * prompt.seeds["rounds"]]:
            try:
                self._check_turn(prompt, [*messages, turn])
            except Refused as refused:
                messages = whole_rounds(messages, refused)
                break
            messages.append(turn)
        return self._conversation(prompt, messages)

    async def write(self, prompt: Prompt, ask: Ask) -> Parsed:
        """Ask once, or for turn after turn until the rounds are full, or until one fails after two good rounds."""
        if self.settings.calls == "one":
            return await super().write(prompt, ask)
        messages: list[Message] = []
        while len(messages) < 2 * prompt.seeds["rounds"]:
            role = ROLES[len(messages) % 2]
            asked = self._ask_answer(prompt, messages) if len(messages) % 2 else self._ask_question(prompt, messages)
            reply = await ask(asked)
            try:
                said = self.accept(replace(prompt, seeds={**prompt.seeds, "turn": role}), reply).text
                self.check_text(prompt, said)  # a turn that loops is not worth the calls after it
                turn = Message(role=role, content=said)
                self._check_turn(prompt, [*messages, turn])
            except Refused as refused:
                messages = whole_rounds(messages, refused)
                break
            messages.append(turn)
        return self._conversation(prompt, messages)

    def _check_turn(self, prompt: Prompt, messages: Sequence[Message]) -> None:
        """Refuse the last turn if an earlier one or an example said it, or it speaks of the document as a text; and an answer
        that declines, chats, is too short or has a sentence of an earlier answer."""
        *earlier, last = messages
        if frozenset(words(last["content"])) in EXAMPLE_TURNS:
            raise Refused("copies-example", last["content"][:200])
        for message in earlier:
            if alike(last["content"], message["content"]):
                raise Refused("repeated-turn", last["content"][:200])
        if said := speaks_of_text(last["content"], self.quoted(prompt)):
            raise Refused("speaks-of-text", said)
        if last["role"] == "assistant":
            check_answer(last["content"], self.settings.checks)
            if len(last["content"].split()) < self.settings.least_words:
                raise Refused("short-answer", last["content"][:200])
            answers = "\n".join(message["content"] for message in earlier if message["role"] == "assistant")
            if again := repeated_sentence(last["content"], answers, SENTENCE_WORDS):
                raise Refused("repeated-turn", again[:200])

    def _conversation(self, prompt: Prompt, messages: Sequence[Message]) -> Parsed:
        if len(messages) < 2 * LEAST_ROUNDS:
            raise Refused("too-few-turns", f"{len(messages)} turns")
        text = plain_text(messages)
        check_language(text, self.settings.checks, self.language_of(prompt))  # in another one no word is the document's
        answers = " ".join(message["content"] for message in messages if message["role"] == "assistant")
        if (share := drawn_share(answers, self.quoted(prompt))) < self.settings.least_drawn:
            raise Refused("off-document", f"{share:.0%} of the answers' content words are the document's")
        return Parsed(text, chat_meta(messages))

    def _ask_question(self, prompt: Prompt, said: Sequence[Message]) -> Messages:
        """Ask for the user's next question; each round of a conversation begins with another word."""
        begins = (prompt.seeds["begins"] + len(said) // 2) % len(BEGINNINGS)
        found: list[dict[str, str]] = []
        for (text, persona, goal, _), questions in zip(EXAMPLES, FIRST_QUESTIONS, strict=True):
            asked = {"extract": text, "persona": persona, "goal": goal, "said": "", "begins": BEGINNINGS[begins]}
            found.append({"role": "user", "content": self.render("question", **asked)})
            found.append({"role": "assistant", "content": questions[begins]})
        before_this = "\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in said)
        about = {"extract": self.quoted(prompt), "persona": prompt.seeds["persona"], "goal": prompt.seeds["goal"]}
        last = self.render("question", **about, said=before_this, begins=BEGINNINGS[begins])
        return (*found, {"role": "user", "content": last})

    def _ask_answer(self, prompt: Prompt, said: Sequence[Message]) -> Messages:
        """Ask for the answer to the last question: the document and the conversation, as the chat that it is."""
        first, *others = said
        opening = self.render("answer", extract=self.quoted(prompt), question=first["content"])
        return (
            {"role": "user", "content": opening},
            *({"role": turn["role"], "content": turn["content"]} for turn in others),
        )

    def _examples(self, rounds: int) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        for example, persona, goal, conversation in EXAMPLES:
            lines = conversation.split("\n")[: 2 * rounds]
            found += self.ask(extract=example, persona=persona, goal=goal, rounds=len(lines) // 2)
            found.append({"role": "assistant", "content": "\n".join(lines)})
        return found


def whole_rounds(messages: list[Message], refused: Refused) -> list[Message]:
    """Return the rounds before a turn that was refused. Raises that refusal where they are too few for a conversation."""
    whole = messages[: len(messages) // 2 * 2]
    if len(whole) < 2 * LEAST_ROUNDS:
        raise refused
    return whole


def turns(text: str) -> list[Message]:
    """Return the turns of a conversation, the user's first and the assistant's last.

    What stands before the first label is no turn, and a last turn of the user, which nobody answers, is left away.

    Raises:
        Refused: `unparsable` (no labels, an empty turn, or the assistant begins), `one-sided` (one speaks twice in a row, or
            alone).
    """
    labels = list(LABEL.finditer(text))
    if not labels:
        raise Refused("unparsable", "no User: and Assistant: in the reply")
    ends = [*(label.start() for label in labels[1:]), len(text)]
    found = [
        Message(role=label["role"].lower(), content=text[label.end() : end].strip(" \t\n*_#"))
        for label, end in zip(labels, ends, strict=True)
    ]
    if found[-1]["role"] == "user":
        found.pop()
    if not found or found[-1]["role"] == "user":
        raise Refused("one-sided", "only the user speaks, or twice in a row")
    for number, message in enumerate(found):
        if not message["content"]:
            raise Refused("unparsable", f"turn {number} is empty")
        if message["role"] != ROLES[number % 2]:
            raise Refused("one-sided" if number else "unparsable", f"the {message['role']} at turn {number}")
    return found


def one_turn(text: str, role: str) -> str:
    """Return a turn that was asked for alone: its first paragraph, without a label.

    Raises:
        Refused: `unparsable` (nothing is left, or an announcement), or `no-question` (a user's turn that asks nothing).
    """
    said = " ".join(TURN_LABEL.sub("", text.strip()).split("\n\n")[0].split()).strip(" *_#")
    said = unquoted(said).strip(" *_#")
    if not said or said.endswith(":"):  # "The answer is:", and what it is stands elsewhere
        raise Refused("unparsable", text[:200])
    if role == "user" and not (said.rstrip('"') if said.count('"') % 2 == 0 else said).endswith("?"):
        raise Refused("no-question", said[:200])
    return said
