"""Textbook sections from documents: extracts, topics named half of the time, rules in balance, copies refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from document_inputs import corpus

from generators.documents import without_markup
from generators.prompted import Refused
from generators.web_textbooks import WebTextbooks, WebTextbookSettings, heading_topic, path_topic, plain_topic
from hornbook.errors import RecipeError

PARAGRAPH = (
    "Honey is what bees make of nectar. They dry it with their wings until it keeps for years without going bad. "
)
TEXT = f"[![build](https://x.org/a.svg)](https://x.org) \n\n# All about *honey*\n\n{PARAGRAPH * 12}\n\nThe end."


def stage(folder: Path, texts: Any = (TEXT,), meta: Any = None, seeds: Any = None, **settings: Any) -> WebTextbooks:
    made = WebTextbooks("w", WebTextbookSettings(engine={"kind": "echo"}, **settings), 3)  # type: ignore[arg-type]
    made.open({"documents": [corpus(folder, texts, meta=meta, seeds=seeds)]})
    return made


def test_the_prompt_quotes_an_extract_and_names_the_topic_half_of_the_time(tmp_path: Path) -> None:
    made = stage(tmp_path, [TEXT] * 10, per_document=8)
    prompts = [made.prompt(row) for row in range(80)]
    for prompt in prompts:
        (message,) = prompt.messages
        quoted = prompt.quoted
        assert quoted in without_markup(TEXT) and 100 < len(quoted) <= 1000 and quoted.endswith((".", "!", "?"))
        assert message["content"].startswith(quoted)
        assert ('about "All about honey"' in message["content"]) == prompt.seeds["named"] == bool(prompt.seeds["topic"])
        assert prompt.seeds["audience"] in message["content"] and len(prompt.parents) == 1
    assert Counter(prompt.seeds["named"] for prompt in prompts) == {True: 40, False: 40}
    for rows in (40, 77):
        for name, size in (("audience", 4), ("format", 5)):
            taken = Counter(prompt.seeds[name] for prompt in prompts[:rows])
            assert len(taken) == size and max(taken.values()) - min(taken.values()) <= 1
    assert len({(p.seeds["passage"], p.seeds["audience"], p.seeds["format"]) for p in prompts[:8]}) == 8
    assert len({prompt.seeds["passage"] for prompt in prompts[:8]}) > 1, "another row quotes another passage"
    again = stage(tmp_path / "again", [TEXT] * 10, per_document=8)
    assert [again.prompt(row) for row in (50, 3)] == [prompts[50], prompts[3]]


def test_topics_come_from_where_the_recipe_says(tmp_path: Path) -> None:
    meta = {"path": "bees/make_honey.py", "title": "Sweet things", "cluster": "Food"}

    def topic(name: str, text: str = TEXT, **settings: Any) -> str:
        made = stage(tmp_path / name, [text], meta, {"subtopic": "insects"}, topic_named=[True], **settings)
        return str(made.prompt(0).seeds["topic"])

    assert topic("a") == "Sweet things"
    assert topic("b", topic_fields=["cluster"]) == "Food"
    assert topic("c", topic_fields=["subtopic"]) == "insects"
    assert topic("d", topic_from=["heading"]) == "All about honey"
    assert topic("e", topic_from=["path", "heading"]) == "make honey"
    assert topic("f", text=PARAGRAPH, topic_from=["heading"]) == ""


@pytest.mark.parametrize(
    ("path", "topic"),
    [
        ("net/http_client.py", "http client"),
        ("bees/__init__.py", "bees"),
        ("ray_data-2.60.0.dist-info/METADATA", "ray data"),
        ("x.py", ""),
        (None, ""),
    ],
)
def test_a_path_gives_a_topic_in_words(path: str | None, topic: str) -> None:
    assert path_topic({"path": path}) == topic


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("## Sponsors\n\nx\n\n# Bees\n", "Bees"),
        ("Bees\n====\n\nUsage\n-----\n", "Bees"),
        ("# Introduction\n\n## The hive\n", "The hive"),
        ("Usage\n-----\n\nHow to keep bees\n----------------\n", "How to keep bees"),
        ("No heading at all", ""),
    ],
)
def test_the_heading_that_names_a_topic_is_found(text: str, topic: str) -> None:
    assert heading_topic(text) == topic


def test_titles_lose_their_markup() -> None:
    assert plain_topic("[![x](y)](z) **Ray** [Data](https://x.org) <b>now</b>:") == "Ray Data now"
    assert plain_topic("1.2.3") == plain_topic("x" * 90) == ""


def test_copies_of_the_extract_and_talk_of_it_are_refused(tmp_path: Path) -> None:
    made = stage(tmp_path, copied_run=12, copied_share=0.3, min_words=5, formats=["steps"])
    prompt = made.prompt(0)
    own = "Sugar keeps well when water is gone, which is why sealed honey may stand for a decade in a cupboard."
    assert made.parse(prompt, own).text == own
    run = "One more thing: they dry it with their wings until it keeps for years without going bad, " + own
    others = (
        (PARAGRAPH, "copies-extract"),
        (run, "copies-extract"),
        (f"As the original extract says: {own}", "mentions-extract"),
        (f"The text I am writing is about honey. {own}", "mentions-extract"),
        (f"{own} This is what the provided text is about.", "mentions-extract"),
        (f"{own} The original passage says so, too.", "mentions-extract"),
        (f"{own} From the passage we learn more.", "mentions-extract"),
        ("Rockets carry astronauts to distant planets, where they explore craters.", "off-extract"),
    )
    for text, reason in others:
        with pytest.raises(Refused) as caught:
            made.parse(prompt, text)
        assert caught.value.reason == reason
    for said in (
        "The text is about honey.",
        "In the text of a recipe honey is sugar.",
        "Honey stays in the passage of time.",
    ):
        assert made.parse(prompt, f"{own} {said}")


OWN = "Sugar keeps well when water is gone, so sealed honey of busy bees may stand for a decade in a dry cupboard."


def test_a_section_of_too_few_words_is_refused(tmp_path: Path) -> None:
    made = stage(tmp_path, formats=["steps"])
    prompt = made.prompt(0)
    assert made.parse(prompt, f"{OWN} Then {OWN}").text
    with pytest.raises(Refused) as caught:
        made.parse(prompt, OWN)
    assert caught.value.reason == "too-short"


@pytest.mark.parametrize(
    ("text", "talk"),
    [
        (f"{OWN} {OWN}", False),
        (f'"Why does honey keep?" asks Ann. {OWN} {OWN}', False),
        (f'A jar with the word "Honey" and a jar with "Bees". {OWN} {OWN}', False),
        (f"Note: {OWN} {OWN}", False),
        (f"1. **Keeping**: {OWN}\n2. **Selling**: {OWN}", False),
        (f"Teacher: {OWN}\n\nStudent: Why is it so? {OWN}", True),
        (f"**Mrs. Bell:** {OWN}\n**Ann**: Why is it so? {OWN}", True),
        (f'"Why does honey keep?" asks Ann. {OWN} {OWN} "There is no water in it."', True),
    ],
)
def test_a_talk_is_one_where_a_talk_was_asked_for(tmp_path: Path, text: str, talk: bool) -> None:
    made = stage(tmp_path, formats=["dialogue"])
    prompt = made.prompt(0)
    if talk:
        assert made.parse(prompt, text).text == text
    else:
        with pytest.raises(Refused) as caught:
            made.parse(prompt, text)
        assert caught.value.reason == "wrong-form"
    other = stage(tmp_path / "other", formats=["scene"])
    assert other.parse(other.prompt(0), text).text == text


def test_a_document_without_prose_is_a_reject(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        stage(tmp_path, ["|---|---|\n|1|2|\n" * 30]).prompt(0)
    assert caught.value.reason == "no-prose"


def test_no_more_rows_of_a_document_than_ways_to_ask() -> None:
    settings = WebTextbookSettings(engine={"kind": "echo"}, per_document=41)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="there are 40 ways to ask"):
        WebTextbooks("w", settings, 0).check()
