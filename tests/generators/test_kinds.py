"""Kinds of generated text: plans are pure and never repeat, answers become documents or rejects with a reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from generators.documents import SourcedPrompt
from generators.overlap import content_words
from generators.prompted import Parsed, Prompt, Refused
from generators.questions import MIN_ANSWER_WORDS, Questions, QuestionSettings
from generators.sentences import to_last_sentence
from generators.stories import Stories, StorySettings
from generators.textbooks import Textbooks, TextbookSettings
from hornbook.chat import chat_of
from hornbook.engines.interface import Reply
from hornbook.errors import RecipeError
from hornbook.stage import Expected

ECHO = {"kind": "echo"}


def stories(seed: int = 0, **values: Any) -> Stories:
    return Stories("stories", StorySettings(**{"rows": 1_000_000, "engine": ECHO, **values}), seed)


def textbooks(seed: int = 0, **values: Any) -> Textbooks:
    return Textbooks("textbooks", TextbookSettings(**{"rows": 100, "engine": ECHO, **values}), seed)


ICE = SourcedPrompt((), {}, quoted="Ice floats because it is lighter than water, and trees grow.")


def questions(**values: Any) -> Questions:
    return Questions("questions", QuestionSettings(**{"engine": ECHO, **values}), 0)


# --- plans --------------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), first=st.integers(0, 30_000_000_000))
def test_no_two_rows_of_a_window_share_all_seeds(seed: int, first: int) -> None:
    stage = stories(seed)
    seen = {json.dumps(stage.prompt(row).seeds, sort_keys=True) for row in range(first, first + 1500)}
    assert len(seen) == 1500


def test_no_two_textbook_rows_share_all_seeds() -> None:
    stage = textbooks(5, fields=["algebra", "music"])
    rows = len(stage.combinations)
    assert len({json.dumps(stage.prompt(row).seeds, sort_keys=True) for row in range(rows)}) == rows


@pytest.mark.parametrize("make", [stories, textbooks])
def test_a_plan_is_a_function_of_seed_and_row(make: Any) -> None:
    rows = [77, 3, 500, 0, 77]
    assert [make(9).prompt(row) for row in rows] == [make(9).prompt(row) for row in rows]
    walked = make(9)
    assert [walked.prompt(row) for row in range(60)] == [make(9).prompt(row) for row in range(60)]
    assert [make(9).prompt(row).seeds for row in rows] != [make(8).prompt(row).seeds for row in rows]


@pytest.mark.parametrize(
    ("make", "quoted"),
    [
        (stories, ("noun", "verb", "adjective", "features", "opening")),
        (textbooks, ("field", "topic", "subtopic", "audience", "words")),
    ],
)
def test_a_prompt_holds_its_seeds(make: Any, quoted: Sequence[str]) -> None:
    prompt = make(1).prompt(42)
    (message,) = prompt.messages
    assert message["role"] == "user"
    for value in (prompt.seeds[name] for name in quoted):
        for text in value if isinstance(value, tuple) else [str(value)]:
            assert text in message["content"]
    assert "  " not in message["content"] and "{" not in message["content"]


def test_what_a_user_chooses_is_asked_for() -> None:
    asked = (
        stories(ages=["7-9"], lengths=["page"], languages=["German"], max_features=0).prompt(0).messages[0]["content"]
    )
    assert "Write a short story of a whole page for children who can read, in simple words, in German." in asked
    plain = stories(lengths=["any"]).prompt(0).messages[0]["content"]
    assert plain.startswith("Write a short story for small children, in simple words. Use the words")
    section = textbooks(difficulties=["challenge"], words=[400], formats=["dialogue"]).prompt(0).messages[0]["content"]
    for said in ("a difficult case", "about 400 words", "a talk between a teacher and a student"):
        assert said in section


def test_several_choices_are_asked_for_in_balance() -> None:
    stage = textbooks(words=[100, 200, 300], difficulties=["introduction", "challenge"])
    for size, name in ((4, "audience"), (5, "format"), (3, "words"), (2, "difficulty")):
        taken = Counter(stage.prompt(row).seeds[name] for row in range(61))
        assert len(taken) == size
        assert max(taken.values()) - min(taken.values()) <= 1


def test_the_seeds_are_as_many_as_promised() -> None:
    words = stories().words
    assert sum(len(set(found)) for found in words.values()) == sum(map(len, words.values())) >= 1500
    leaves = textbooks().taxonomy
    assert len(set(leaves)) == len(leaves) >= 2000
    assert len({leaf.field for leaf in leaves}) >= 60
    assert len(textbooks().combinations) >= 20_000


def test_a_field_that_the_taxonomy_lacks_is_refused() -> None:
    textbooks(rows=10, fields=["algebra"]).check()
    with pytest.raises(RecipeError, match=r"no field 'algebre' \(did you mean 'algebra'"):
        textbooks(rows=10, fields=["algebre"]).check()


@pytest.mark.parametrize("make", [stories, textbooks])
def test_more_rows_than_distinct_prompts_are_refused(make: Any) -> None:
    distinct = len(make().combinations)
    make(rows=distinct).check()
    with pytest.raises(RecipeError, match=r"rows: .* asked, but there are .* distinct prompts") as caught:
        make(rows=distinct + 1).check()
    assert "fewer rows" in caught.value.cure


def test_an_end_bias_that_an_endpoint_cannot_do_is_refused() -> None:
    with pytest.raises(RecipeError, match="end_bias"):
        stories(engine={"kind": "openai", "base_url": "http://x/v1"}, sampling={"end_bias": 2}).check()


# --- answers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("Ice is frozen water, and it floats.", False),
        ("A fraction is a part of a whole.", True),
        ("You halve a cake, and multiplied it is one again.", True),
        ("Arithmetical signs are old.", True),
    ],
)
def test_a_section_about_something_else_is_refused(text: str, about: bool) -> None:
    stage, loose = textbooks(), textbooks(on_topic=False)
    subject = {"field": "arithmetic", "topic": "fractions", "subtopic": "multiplying halves"}
    prompt = Prompt((), {**stage.prompt(0).seeds, **subject})
    loose.check_text(prompt, text)
    if about:
        stage.check_text(prompt, text)
    else:
        with pytest.raises(Refused, match="off-topic"):
            stage.check_text(prompt, text)


WORDS = st.lists(
    st.sampled_from(["ice", "floats", "because", "it", "is", "lighter", "than", "water", "and", "trees", "grow"]),
    min_size=4,
)


@given(
    question=WORDS.map(lambda words: " ".join(words).capitalize() + "?"),
    answer=WORDS.map(lambda words: " ".join(words).capitalize() + "."),
    layout=st.sampled_from(
        [
            "Question: {q}\nAnswer: {a}",
            "**Question:** {q}\n\n**Answer:** {a}",
            "Here is one.\n\nQuestion: {q}\nAnswer:\n{a}",
            "question: {q} answer: {a}",
            'Question: "{q}"\nAnswer: "{a}"',
            "**Question**\n{q}\n\n**Answer**\n{a}",
            "Question 1: {q}\nAnswer 1: {a}\n\nQuestion: What else? Answer: More of it.",
            "Question: {q}\nAnswer: {a}\n\nThis answer shows how important it is.",
        ]
    ),
)
def test_a_well_formed_pair_comes_through_whole(question: str, answer: str, layout: str) -> None:
    assume(set(content_words(answer)) - set(content_words(question)))
    assume(not answer.casefold().startswith(question.rstrip("?").casefold()))
    stage = questions()
    parsed = stage.parse(ICE, layout.format(q=question, a=answer))
    user, assistant = chat_of(json.dumps(parsed.meta))
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    assert user["content"] == question
    assert assistant["content"] == answer
    assert question in parsed.text and answer in parsed.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Ice floats because it is lighter.", "unparsable"),
        ("Question: Why does ice float?", "unparsable"),
        ("Question: ice floats\nAnswer: Because it is lighter than water.", "no-question"),
        ("Question: Why does ice float?\nAnswer: It is lighter.", "short-answer"),
        ("Question: Why does ice float?\nAnswer: Question: Why?", "short-answer"),
        ("Question: Why does the ice float?\nAnswer: The ice floats because it is floating.", "repeats-question"),
        ("Question: Why does ice float?\nAnswer: Why does ice float, and how?", "repeats-question"),
        ("Question: Why does ice float?\nAnswer: Do you mean that it is lighter?", "no-answer"),
        ("Question: Why does ice float?\nAnswer: Great question! It is lighter than water.", "chatter"),
        ("Question: Why does ice float?\nAnswer: The text says that it is lighter.", "speaks-of-text"),
        ("Question: Why does this story tell of ice?\nAnswer: Because it is lighter than water.", "speaks-of-text"),
        ("Question: Who flew to Paris first?\nAnswer: Two brothers from Holland, in a plane.", "off-document"),
    ],
)
def test_other_answers_are_refused_with_a_reason(text: str, reason: str) -> None:
    assert MIN_ANSWER_WORDS == 4
    with pytest.raises(Refused) as caught:
        questions().parse(ICE, text)
    assert caught.value.reason == reason


def test_how_much_of_a_pair_is_its_documents_can_be_set() -> None:
    text = "Question: What floats?\nAnswer: Ice, boats, barrels, bottles, timber and wooden rafts."
    assert questions(least_drawn=0.1).parse(ICE, text)
    with pytest.raises(Refused, match="off-document"):
        questions().parse(ICE, text)


@given(st.text())
def test_any_answer_is_parsed_or_refused(text: str) -> None:
    try:
        parsed = questions().parse(ICE, text)
    except Refused:
        return
    assert isinstance(parsed, Parsed)
    assert all(turn["content"].strip() for turn in chat_of(json.dumps(parsed.meta)))


# --- replies that were cut ----------------------------------------------------------------------------------------------


@given(st.text(alphabet="ab .!?\"')”\n", max_size=60))
def test_the_last_sentence_is_whole(text: str) -> None:
    cut = to_last_sentence(text)
    assert text.startswith(cut)
    if cut:
        assert cut.rstrip("\"')”")[-1] in ".!?"
    left = text[len(cut) :] + " "
    assert not any(mark + after in left for mark in ".!?" for after in " \n\"')”")
    assert to_last_sentence(cut) == cut


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("Bees fly. They were seen by Dr. Smith of", "Bees fly."),
        ("Bees fly. They were seen by Dr.", "Bees fly."),
        ("Plants need light, e.g. the sun", ""),
        ("It shines (as in St. Ives). It is vs. i.e. that", "It shines (as in St. Ives)."),
        ("Two things matter.\n1. Light is one.\n2.", "Two things matter.\n1. Light is one."),
        ("Two things matter.\n\n**1.** Light and", "Two things matter."),
        ("It was in 1903. The Flyer", "It was in 1903."),
        ("A load is heavy. It has 3.5 tons and", "A load is heavy."),
        ("See example.org for more", ""),
        ("Is it?! Then", "Is it?!"),
        ('She said "go." Then she', 'She said "go."'),
        ("**A lever.** It is", "**A lever.**"),
        ("Call self._name and", ""),
    ],
)
def test_abbreviations_list_marks_and_numbers_end_no_sentence(text: str, whole: str) -> None:
    assert to_last_sentence(text) == whole


@pytest.mark.parametrize(
    ("truncated", "reply", "outcome"),
    [
        ("reject", Reply("One. Two. Thr", "length"), "truncated"),
        ("trim", Reply("One. Two. Thr", "length"), Parsed("One. Two.")),
        ("trim", Reply('He said "no." Th', "length"), Parsed('He said "no."')),
        ("trim", Reply("no end at all", "length"), "empty"),
        ("keep", Reply("One. Two. Thr", "length"), Parsed("One. Two. Thr")),
        ("reject", Reply(" One. ", "stop"), Parsed("One.")),
        ("trim", Reply("whole without a mark", "stop"), Parsed("whole without a mark")),
        ("keep", Reply(" \n", "stop"), "empty"),
        ("keep", Reply("", "error", error="it broke"), "engine-error"),
    ],
)
def test_what_becomes_of_a_cut_reply(truncated: str, reply: Reply, outcome: Parsed | str) -> None:
    stage = stories(truncated=truncated)
    prompt = stage.prompt(0)
    if isinstance(outcome, Parsed):
        assert stage.accept(prompt, reply) == outcome
    else:
        with pytest.raises(Refused) as caught:
            stage.accept(prompt, reply)
        assert caught.value.reason == outcome


def test_an_answer_that_only_repeats_the_question_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        questions().parse(ICE, "Question: Why does ice float on water?\nAnswer: Why does ice float on water?")
    assert caught.value.reason == "repeats-question"


def test_the_number_of_distinct_prompts_is_known_beforehand() -> None:
    assert textbooks().expected({}).distinct == 49_000
    assert textbooks(fields=["algebra"]).expected({}).distinct == 20 * len(textbooks(fields=["algebra"]).topics)
    assert questions().expected({"documents": [Expected(rows=5)]}).distinct is None


def test_all_that_prompts_are_made_of_has_a_version() -> None:
    versions = stories().prompt_versions()
    assert set(versions) == {"stories.jinja", "stories.words.txt", "stories.py"}
    assert all(len(found["version"]) == 12 for found in versions.values())
    assert [name for name, found in versions.items() if "text" in found] == ["stories.jinja"]
    assert "{{ noun }}" in versions["stories.jinja"]["text"]
    assert "stories.py" not in questions().prompt_versions()
