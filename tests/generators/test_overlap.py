"""What counts as a copy, as drawn from a text, as new to it."""

from __future__ import annotations

import pytest

from generators.overlap import (
    copied_share,
    copies_run,
    drawn_share,
    held_words,
    new_names,
    new_numbers,
    repeats_question,
    speaks_of_text,
)

SOURCE = (
    "In 1903 the Wright brothers flew 120 feet near Kitty Hawk. Their plane, the Flyer, stayed up for 12.5 seconds."
)


def test_copies_are_measured_in_runs_of_words() -> None:
    assert copied_share(SOURCE.upper(), SOURCE, 4) == 1
    assert copied_share("A plane was in the air for a short time.", SOURCE, 4) == 0
    assert copied_share("Too short", SOURCE, 4) == 0
    assert copies_run("Yes: the Wright brothers flew, 120 feet!", SOURCE, 6) == "the wright brothers flew 120 feet"
    assert copies_run("Yes: the Wright brothers flew, 120 feet!", SOURCE, 7) == ""


def test_a_text_draws_on_another_by_its_content_words() -> None:
    assert drawn_share("Two brothers were flying a plane", SOURCE) == pytest.approx(2 / 3)
    assert drawn_share("Bananas grow slowly", SOURCE) == 0
    assert drawn_share("It is so.", SOURCE) == 0


@pytest.mark.parametrize(
    ("text", "numbers", "names"),
    [
        ("1. The Wrights flew in 1903.\n2. It took 12.5 seconds.", [], []),
        ("They flew 1,200 feet in 1904.", ["1200", "1904"], []),
        ("The brothers flew to Paris with Amelia's plane.", [], ["Paris", "Amelia's"]),
        ("Main Idea: flying\nPlace | near Kitty Hawk", [], []),
        ('"Bob," she said, "and I flew."', [], []),
    ],
)
def test_numbers_and_names_that_are_new_are_found(text: str, numbers: list[str], names: list[str]) -> None:
    assert new_numbers(text, SOURCE) == numbers
    assert new_names(text, SOURCE) == names


def test_inflections_of_a_word_count() -> None:
    text = "The ponies begged, and the biggest one ran."
    assert held_words(text, ["pony", "beg", "big", "run", "sleep", "on"]) == ["pony", "beg", "big", "run"]


@pytest.mark.parametrize(
    ("text", "source", "said"),
    [
        ("The text is attempting to explain flight.", SOURCE, "The text"),
        ("What happens in this story?", SOURCE, "this story"),
        ("In this  passage, we learn of it.", SOURCE, "this  passage"),
        ("This essay will explore how planes fly.", SOURCE, "This essay"),
        ("What do these paragraphs say, and that article?", SOURCE, "these paragraphs"),
        ("The story tells of planes.", SOURCE, "The story"),
        ("This story of two brothers is old.", SOURCE, "This story"),
        ("Who told the story of the Flyer, and the story about Kitty Hawk?", SOURCE, ""),
        ("The texture of the storybook is documented. A text is short.", SOURCE, ""),
        ("What does the document say?", "Sign both documents here.", ""),
        ("What does the story mean?", "A story's end is its moral.", ""),
        ("What does the text mean?", "A story's end is its moral.", "the text"),
    ],
)
def test_words_about_a_text_that_nobody_sees_are_found(text: str, source: str, said: str) -> None:
    assert speaks_of_text(text, source) == said


@pytest.mark.parametrize(
    ("answer", "repeats"),
    [
        ("The sun.", False),
        ("In 1860.", False),
        ("It does.", True),
        ("The earth.", True),
        ("You see, it is the one.", True),
    ],
)
def test_a_short_answer_may_say_something_new(answer: str, repeats: bool) -> None:
    assert repeats_question(answer, "What warms the earth?") == repeats
