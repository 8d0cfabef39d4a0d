"""Conversations: turns that alternate, planned users, drawn from the document, in the record that training uses."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from document_inputs import corpus
from hypothesis import given
from hypothesis import strategies as st

from generators.chats import EXAMPLES, Chats, ChatSettings, one_turn, turns
from generators.documents import SourcedPrompt
from generators.prompted import Parsed, Refused
from hornbook.chat import chat_of
from hornbook.engines.interface import Reply
from hornbook.errors import RecipeError

TEXT, _, _, EXAMPLE = EXAMPLES[0]
CONVERSATION = """User: What do bees drink?
Assistant: Bees drink the nectar of flowers.
User: And how does pollen come to the next flower?
Assistant: It sticks to a bee's legs while the bee drinks, and some falls off.
User: What would plants lack without bees?
Assistant: Without bees many plants would have no fruit and make no seeds."""
PROMPT = SourcedPrompt((), {"rounds": 3}, quoted=TEXT)


def stage(**values: Any) -> Chats:
    return Chats("c", ChatSettings(engine={"kind": "echo"}, **values), 3)  # type: ignore[arg-type]


def reason(text: str, rounds: int = 3) -> str:
    with pytest.raises(Refused) as caught:
        stage().parse(SourcedPrompt((), {"rounds": rounds}, quoted=TEXT), text)
    return caught.value.reason


def test_users_and_rounds_are_planned_in_balance(tmp_path: Path) -> None:
    made = stage(per_document=3)
    made.open({"documents": [corpus(tmp_path, [TEXT] * 30)]})
    prompts = [made.prompt(row) for row in range(90)]
    for name, size in (("rounds", 3), ("persona", 8), ("goal", 6)):
        taken = Counter(prompt.seeds[name] for prompt in prompts)
        assert len(taken) == size and max(taken.values()) - min(taken.values()) <= 1
    asked = prompts[7].messages[-1]["content"]
    assert TEXT in asked and prompts[7].seeds["persona"] in asked and prompts[7].seeds["goal"] in asked
    assert len({json.dumps(prompt.seeds) for prompt in prompts[:3]}) == 3
    again = stage(per_document=3)
    again.open({"documents": [corpus(tmp_path / "again", [TEXT] * 30)]})
    assert again.prompt(88) == prompts[88]


@pytest.mark.parametrize("layout", ["{0}: {1}", "**{0}:** {1}\n", "{0} 1: {1}", "- {0}:\n{1}"])
def test_a_conversation_becomes_a_chat_record(layout: str) -> None:
    said = [line.split(": ", 1) for line in CONVERSATION.split("\n")]
    text = "Here it is.\n" + "\n".join(layout.format(role, words) for role, words in said)
    chat = chat_of(json.dumps(stage().parse(PROMPT, text).meta))
    assert [(turn["role"].capitalize(), turn["content"]) for turn in chat] == [tuple(turn) for turn in said]


def test_surplus_turns_and_a_question_without_an_answer_are_left_away() -> None:
    two = stage().parse(SourcedPrompt((), {"rounds": 2}, quoted=TEXT), CONVERSATION)
    assert len(two.meta["chat"]) == 4
    lines = CONVERSATION.split("\n")
    assert stage().parse(PROMPT, "\n".join([*lines[:4], *lines[:2]])).meta == two.meta, "the third round says the first"
    assert stage().parse(PROMPT, CONVERSATION + "\nUser: And then?").meta == stage().parse(PROMPT, CONVERSATION).meta


def test_others_are_refused_with_a_reason() -> None:
    lines = CONVERSATION.split("\n")
    assert reason("Bees visit flowers to drink nectar.") == "unparsable"
    assert reason("\n".join(lines[1:])) == "unparsable"
    assert reason("User:\nAssistant: Bees drink nectar.") == "unparsable"
    assert reason("\n".join(line for line in lines if line.startswith("User"))) == "one-sided"
    assert reason("\n".join([lines[0], lines[2], lines[3]])) == "one-sided"
    assert reason("\n".join(lines[:2])) == "too-few-turns"
    assert reason(EXAMPLE) == "copies-example"
    assert reason("\n".join([*lines[:2], *lines[:2]])) == "repeated-turn"
    assert reason("\n".join([*lines[:3], "Assistant: Pollen."])) == "short-answer"
    assert reason("\n".join([*lines[:3], "Assistant: You're right, pollen sticks to a bee's legs."])) == "chatter"
    assert reason(
        "\n".join(
            [lines[0], "Assistant: Rockets fly to planets.", lines[2], "Assistant: Astronauts explore them slowly."]
        )
    ) == ("off-document")


@pytest.mark.parametrize(
    ("reply", "turn"),
    [
        ('"Why do bees fly?"', "Why do bees fly?"),
        ("**User:** “Why do bees fly?”", "Why do bees fly?"),
        ('What is "pollen?"', 'What is "pollen?"'),
        ('*"Pollen" or "nectar?"*', '"Pollen" or "nectar?"'),
        ('Why "pollen?" Is it so?', 'Why "pollen?" Is it so?'),
    ],
)
def test_quotation_marks_are_taken_away_around_a_whole_turn_alone(reply: str, turn: str) -> None:
    assert one_turn(reply, "user") == turn
    assert one_turn('They are the "Zeno paradoxes."', "assistant") == 'They are the "Zeno paradoxes."'
    with pytest.raises(Refused, match="no-question"):
        one_turn('Why do bees fly?"', "user")


def test_an_answer_that_says_a_sentence_of_an_earlier_one_again_is_refused() -> None:
    lines = CONVERSATION.split("\n")
    again = "Assistant: Pollen sticks to legs. Bees drink the nectar of all flowers!"
    assert reason("\n".join([*lines[:3], again])) == "repeated-turn"
    two = stage().parse(SourcedPrompt((), {"rounds": 2}, quoted=TEXT), CONVERSATION)
    assert stage().parse(PROMPT, "\n".join([*lines[:5], again])).meta == two.meta, "two good rounds are kept"
    short = [lines[1] + " Yes, they do.", lines[3] + " Yes, they do."]
    assert len(stage().parse(PROMPT, "\n".join([lines[0], short[0], lines[2], short[1]])).meta["chat"]) == 4
    asked = "User: What do you say: how does the pollen stick to legs, fall off and come to the next flower?"
    told = "Assistant: It sticks to a bee's legs while the bee drinks. Why do bees visit flowers, it may ask?"
    assert len(stage().parse(PROMPT, "\n".join([lines[0], lines[1], asked, told])).meta["chat"]) == 4


def test_a_turn_that_speaks_of_the_text_is_refused() -> None:
    lines = CONVERSATION.split("\n")
    assert reason("\n".join(["User: What is this passage about?", *lines[1:]])) == "speaks-of-text"
    told = "Assistant: The text is attempting to explain that plants would have no fruit."
    assert reason("\n".join([*lines[:3], told])) == "speaks-of-text"
    assert len(stage().parse(PROMPT, "\n".join([*lines[:5], told])).meta["chat"]) == 4, "two good rounds are kept"
    of_texts = SourcedPrompt((), {"rounds": 2}, quoted=f"{TEXT} A text about bees says so.")
    assert len(stage().parse(of_texts, "\n".join([*lines[:3], told])).meta["chat"]) == 4


def test_a_chat_that_holds_its_own_request_is_refused(tmp_path: Path) -> None:
    made = stage()
    made.open({"documents": [corpus(tmp_path, [TEXT])]})
    prompt = made.prompt(0)
    made.check_text(prompt, CONVERSATION)
    with pytest.raises(Refused, match="copies-prompt"):
        made.check_text(prompt, f"{CONVERSATION} {prompt.messages[-1]['content'].removeprefix(TEXT)}")


@given(st.lists(st.sampled_from(["User: ", "Assistant: ", "Why?", "So. ", "\n", "*", ":"]), max_size=14).map("".join))
def test_any_answer_is_turns_or_refused(text: str) -> None:
    try:
        found = turns(text)
    except Refused:
        return
    assert [turn["role"] for turn in found] == ["user", "assistant"] * (len(found) // 2)
    assert found and all(turn["content"] for turn in found)


def test_a_chat_of_one_round_is_refused() -> None:
    with pytest.raises(RecipeError, match="2 to 8 rounds"):
        stage(rounds=[1, 2]).check()
    with pytest.raises(RecipeError, match="4 combinations"):
        stage(rounds=[2], personas=["a child", "a baker"], goals=["asks why", "asks how"], per_document=5).check()


def talk(made: Chats, prompt: SourcedPrompt, *replies: str) -> tuple[Parsed, list[Any]]:
    """What `write` makes of an engine that gives these replies, and what it was asked."""
    asked: list[Any] = []

    async def ask(messages: Any, **options: Any) -> Reply:
        asked.append(messages)
        return Reply(replies[len(asked) - 1], "stop")

    return asyncio.run(made.write(prompt, ask)), asked


def test_turn_by_turn_each_call_is_handed_the_conversation(tmp_path: Path) -> None:
    made = stage(calls="each-turn", rounds=[3])
    made.open({"documents": [corpus(tmp_path, [TEXT])]})
    prompt = made.prompt(0)
    said = [line.split(": ", 1)[1] for line in CONVERSATION.split("\n")]
    parsed, asked = talk(made, prompt, said[0], f"Answer: {said[1]}", f"**User:** {said[2]}\n\nMore.", *said[3:])
    assert [turn["content"] for turn in parsed.meta["chat"]] == said
    assert len(asked) == 6 and asked[0] == prompt.messages
    for number, messages in enumerate(asked):
        content = "\n".join(message["content"] for message in messages)
        assert all(turn in content for turn in said[:number]) and TEXT in content
    assert [message["role"] for message in asked[5]] == ["user", "assistant", "user", "assistant", "user"]


def test_a_bad_turn_ends_a_conversation_that_has_two_rounds(tmp_path: Path) -> None:
    made = stage(calls="each-turn", rounds=[4])
    made.open({"documents": [corpus(tmp_path, [TEXT])]})
    said = [line.split(": ", 1)[1] for line in CONVERSATION.split("\n")]
    for replies in ((*said[:4], said[2]), (*said[:4], "I see."), (*said[:5], said[3])):
        parsed, _ = talk(made, made.prompt(0), *replies)
        assert [turn["content"] for turn in parsed.meta["chat"]] == said[:4]
    for replies, why in (
        ((*said[:2], said[0]), "repeated-turn"),
        (("I see.",), "no-question"),
        ((said[0], "The answer is:"), "unparsable"),
        ((said[0], "Nectar."), "short-answer"),
    ):
        with pytest.raises(Refused) as caught:
            talk(made, made.prompt(0), *replies)
        assert caught.value.reason == why
