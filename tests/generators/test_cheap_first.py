"""Cheap checks come first: a refusal is called one by every kind, and neither sandbox nor judge sees what is refused anyway."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from document_inputs import corpus

from generators.checks import sure_language
from generators.documents import DocumentStage, SourcedPrompt
from generators.prompted import Parsed, Prompt, PromptedStage, Refused
from hornbook.chat import Message, chat_meta
from hornbook.engines.interface import Reply
from hornbook.settings import validate
from hornbook.stages import STAGES, stage_class

ECHO = {"kind": "echo"}
REFUSAL = "As an AI language model, I cannot write that. Please ask me for something else."
ENGLISH = (
    "Bees visit flowers to drink nectar. While a bee drinks, yellow pollen sticks to its legs. At the next flower some of the "
    "pollen falls off, and that flower can make seeds. Without bees, many plants would bear no fruit."
)
GERMAN = (
    "Die Bienen besuchen jeden Morgen die Blumen im Garten und trinken dort den Nektar. Beim Trinken bleibt der Pollen an "
    "ihren Beinen hängen. Ein Teil davon fällt an der nächsten Blume wieder ab, und so kann diese Blume ihre Samen bilden. "
    "Ohne die Bienen hätten viele Pflanzen keine Frucht."
)
TEXT_KINDS = [kind for kind, place in STAGES.items() if place.startswith("generators.") and kind != "judge"]


def made(kind: str, folder: Path, text: str = ENGLISH, answer: str = "", **settings: Any) -> PromptedStage:
    """A stage of a kind over one document: a text, or a chat where `answer` is what it says."""
    found = stage_class(kind, "test")
    assert issubclass(found, PromptedStage)
    stage = found("s", validate(found.Settings, {"engine": ECHO, "rows": 100, **settings}, "s"), 3)
    chat = [Message(role="user", content=text), Message(role="assistant", content=answer or text)]
    if isinstance(stage, DocumentStage):
        stage.open({"documents": [corpus(folder, [text], meta=chat_meta(chat))]})
    return stage


class Engine:
    """Answers every call alike, or each engine's calls in turn, and counts them."""

    def __init__(self, *replies: str, **others: str) -> None:
        self.replies, self.others = replies, others
        self.asked: list[str] = []

    async def __call__(self, messages: Any, *, engine: str = "engine", **options: Any) -> Reply:
        self.asked.append(engine)
        if engine in self.others:
            return Reply(self.others[engine], "stop")
        return Reply(self.replies[(self.asked.count(engine) - 1) % len(self.replies)], "stop")


def outcome(stage: PromptedStage, engine: Engine, row: int = 0) -> str:
    """What becomes of a row, as `generators.writing` makes it: the reason for its refusal, or `accepted`."""
    try:
        prompt = stage.prompt(row)
        parsed = asyncio.run(stage.write(prompt, engine))
        assert isinstance(parsed, Parsed)
        stage.check_text(prompt, parsed.text)
    except Refused as refused:
        return refused.reason
    return "accepted"


def asking_row(stage: PromptedStage) -> int:
    """The first row that asks anything: a story instruction without a summary does not."""
    return next(row for row in range(15) if stage.prompt(row).messages)


# --- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_a_refusal_is_called_one_by_every_kind(kind: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"chosen_engine": ECHO} if kind == "preferences" else {}
    more |= {"per_document": 15} if kind == "story-instructions" else {}
    stage = made(kind, tmp_path, **more)
    assert outcome(stage, Engine(REFUSAL), asking_row(stage)) == "refusal"
    careless = made(kind, tmp_path / "careless", checks={"refusal": False}, **more)
    assert outcome(careless, Engine(REFUSAL), asking_row(careless)) != "refusal"


@pytest.mark.parametrize(
    ("kind", "settings", "replies", "calls"),
    [
        ("questions", {}, [f"Question: What do bees drink?\nAnswer: {REFUSAL}"], 1),
        (
            "chats",
            {"calls": "one"},
            [f"User: What do bees drink?\nAssistant: {REFUSAL}\nUser: And why?\nAssistant: For the nectar of flowers."],
            1,
        ),
        ("chats", {"calls": "each-turn"}, ["What do bees drink?", REFUSAL], 2),
    ],
)
def test_an_answer_within_a_reply_may_not_be_a_refusal(
    kind: str, settings: Any, replies: list[str], calls: int, tmp_path: Path
) -> None:
    engine = Engine(*replies)
    assert outcome(made(kind, tmp_path, **settings), engine) == "refusal"
    assert len(engine.asked) == calls, "nothing is asked after it"


# --- what costs something comes last ------------------------------------------------------------------------------------

LOOP = "Bees like the nectar of flowers. " * 12


def no_sandbox(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("the sandbox was asked")


def exercise(docstring: str) -> str:
    code = f'def double(numbers):\n    """{docstring}"""\n    return [2 * number for number in numbers]\n\n\n'
    return f"```python\n{code}assert double([1]) == [2]\nassert double([]) == []\n```"


@pytest.mark.parametrize(
    ("docstring", "reason"),
    [
        ("Return the numbers doubled, in their order.", "sandbox"),
        ("Return the numbers and return the numbers and return the numbers and return the numbers doubled.", "repetition"),
        ("Gib eine Liste zurück, in der jede Zahl der übergebenen Liste verdoppelt ist.", "wrong-language"),
        ("Devuelve las cifras.", "sandbox"),
    ],
)  # fmt: skip
def test_an_exercise_is_read_before_it_is_run(docstring: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = made("exercises", Path())
    monkeypatch.setattr("generators.exercises.try_function", no_sandbox)
    asked = Prompt(
        ({"role": "user", "content": "?"},), {"name": "double", "takes": "", "concept": "", "difficulty": ""}
    )
    with pytest.raises(AssertionError if reason == "sandbox" else Refused) as caught:
        stage.parse(asked, exercise(docstring))
    assert getattr(caught.value, "reason", "sandbox") == reason


@pytest.mark.parametrize(
    ("prose", "reason"), [(ENGLISH + " Here it is:", ""), (LOOP, "repetition"), (GERMAN, "wrong-language")]
)
def test_a_section_is_read_before_its_snippets_are_run(
    prose: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = made("code-textbooks", Path(), min_words=20)
    monkeypatch.setattr("generators.code_textbooks.try_pieces", no_sandbox)
    engine = Engine(f"{prose}\n\n```python\nprint(1)\n```")
    if reason:
        assert outcome(stage, engine) == reason
        return
    with pytest.raises(AssertionError, match="the sandbox was asked"):
        outcome(stage, engine)


def test_the_judge_of_rewrites_is_not_asked_about_a_loop(tmp_path: Path) -> None:
    stage = made("rewrites", tmp_path, forms=["prose"], judge={**ECHO, "model": "judge"})
    looping = Engine(LOOP, judge="Yes")
    assert outcome(stage, looping) == "repetition" and looping.asked == ["engine"]
    plain = Engine(
        "Bees drink the nectar of flowers. Pollen sticks to their legs, and so plants bear seeds.", judge="Yes"
    )
    assert outcome(stage, plain) == "accepted" and plain.asked == ["engine", "judge"]


def test_a_conversation_ends_with_the_turn_that_loops(tmp_path: Path) -> None:
    stage = made("chats", tmp_path, calls="each-turn", rounds=[3])
    engine = Engine("What do bees like?", LOOP, "Why?", "For the nectar of flowers.")
    assert outcome(stage, engine) == "repetition" and len(engine.asked) == 2


def test_a_documents_own_answer_is_read_before_the_model_is_asked(tmp_path: Path) -> None:
    for number, (answer, reason) in enumerate([(REFUSAL, "refusal"), (LOOP, "repetition")]):
        engine = Engine("Stones and birds.")
        assert outcome(made("preferences", tmp_path / str(number), answer=answer), engine) == reason
        assert engine.asked == []


# --- the language of documents ------------------------------------------------------------------------------------------

QUESTIONS = {
    "English": "Question: What do bees drink in the flowers?\nAnswer: They drink the sweet nectar that is inside of them.",
    "German": "Question: Was trinken die Bienen im Garten?\nAnswer: Sie trinken dort jeden Morgen den Nektar der Blumen.",
    "short": "Question: Why so?\nAnswer: Nectar is very good.",
}
CHATS = {
    "English": "User: What do the bees drink there?\nAssistant: They drink the nectar of the flowers in the garden.\n"
    "User: And how does the pollen travel?\nAssistant: It sticks to their legs and falls off at the next flower.",
    "German": "User: Was trinken die Bienen?\nAssistant: Die Bienen trinken den Nektar der Blumen im Garten.\n"
    "User: Und wie reist der Pollen?\nAssistant: Er bleibt an den Beinen hängen und fällt an der nächsten Blume ab.",
}
REWRITES = {
    "English": "Every morning the bees fly to the flowers. They drink nectar there, and dust sticks to their legs. "
    "So the flowers can make seeds. There would be less fruit without them.",
    "German": "Jeden Morgen trinken die Bienen den Nektar der Blumen. Der Pollen bleibt dabei an den Beinen hängen. "
    "So kann die nächste Blume Samen bilden, und viele Pflanzen tragen dann Frucht.",
}
SUMMARIES = {
    "English": "Summary: The bees drink nectar in the garden and help all of the flowers to make their seeds.",
    "German": "Summary: Weil Bienen beim Trinken Pollen weitertragen, haben die Blumen Samen und die Pflanzen Frucht.",
    "short": "Summary: Bees go, a flower is so glad, and so on.",
}
ANSWERS = {
    "English": "They drink the nectar of the flowers and carry the pollen from one of them to the next one.",
    "German": "Sie trinken den Nektar der Blumen und tragen dabei den Pollen von einer zur nächsten weiter.",
    "short": "Nectar.",
}
REPLIES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "questions": (QUESTIONS, {"least_drawn": 0}),
    "chats": (CHATS, {"calls": "one", "rounds": [2]}),
    "rewrites": (REWRITES, {"forms": ["prose"], "new_names": 9}),
    "story-instructions": (SUMMARIES, {"per_document": 15, "least_drawn": 0}),
    "preferences": (ANSWERS, {"chosen_engine": ECHO}),
}


@pytest.mark.parametrize(
    ("kind", "reply"), [(kind, reply) for kind, (replies, _) in REPLIES.items() for reply in replies]
)
def test_a_text_is_in_the_language_of_its_document(kind: str, reply: str, tmp_path: Path) -> None:
    replies, settings = REPLIES[kind]
    stage = made(kind, tmp_path, GERMAN, **settings)
    engine = Engine(replies[reply]) if kind != "preferences" else Engine("Steine.", chosen_engine=replies[reply])
    assert outcome(stage, engine, asking_row(stage)) == ("wrong-language" if reply == "English" else "accepted")
    careless = made(kind, tmp_path / "careless", GERMAN, **settings, checks={"language": False})
    assert outcome(careless, engine, asking_row(careless)) != "wrong-language"


def test_a_document_whose_language_is_not_sure_asks_for_none(tmp_path: Path) -> None:
    half = GERMAN[: len(GERMAN) // 2] + " " + ENGLISH
    mostly_markup = (
        "\n".join(
            f'<a href="https://pakete.example/p/{name}?alter=86400"><img alt="{name}" src="https://bilder.example/{name}.svg" />'
            for name in ("version", "status", "tests", "chat", "docs", "score")
        )
        + "\n\nDer Hund schläft im Garten und träumt dort von einem großen Knochen."
    )
    for number, text in enumerate(("Bienen.", half, mostly_markup, "x = [1, 2, 3]\n" * 20)):
        assert sure_language(text) == ""
        stage = made("questions", tmp_path / str(number), text, least_drawn=0)
        for reply in ("English", "German"):
            assert outcome(stage, Engine(QUESTIONS[reply])) == "accepted"
    assert (sure_language(GERMAN), sure_language(ENGLISH)) == ("de", "en")
    assert outcome(made("questions", tmp_path / "en"), Engine(QUESTIONS["German"])) == "wrong-language"


def test_a_chat_may_answer_in_another_language_than_it_was_asked_in(tmp_path: Path) -> None:
    """Translations do: the wanted answer is in the language of the document's own one."""
    stage = made("preferences", tmp_path, f"Translate this into German: {ENGLISH}", GERMAN, chosen_engine=ECHO)
    assert outcome(stage, Engine("Stones.", chosen_engine=ANSWERS["German"])) == "accepted"


def test_a_kind_with_a_language_of_its_own_keeps_it(tmp_path: Path) -> None:
    stage = made("web-textbooks", tmp_path, GERMAN)
    assert stage.language_of(SourcedPrompt((), {}, quoted=GERMAN)) == "en"
    assert outcome(stage, Engine(GERMAN.replace("Bienen", "Hummeln"))) == "wrong-language"
