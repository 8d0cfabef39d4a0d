"""Story instructions: what the lines promise, the story holds; subsets and orders are planned and balanced."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
from document_inputs import corpus

from generators.prompted import Refused
from generators.stories import FEATURES
from generators.story_instructions import LINES, SUBSETS, Feature, StoryInstructions, StoryInstructionSettings
from hornbook.recipe import load_recipe

STORY = (
    "A small pony lived by the pond. He begged for apples every day.\n\n"
    '"You are a wobbly one," said the duck. The pony laughed, and they shared an apple.'
)
SEEDS = {
    "noun": "pond",
    "verb": "beg",
    "adjective": "purple",
    "features": [FEATURES["Dialogue"], FEATURES["Conflict"]],
}
SUMMARY = "A pony who wants apples becomes the friend of a duck."


def stage(folder: Path, texts: Any = (STORY,), seeds: Any = SEEDS, **settings: Any) -> StoryInstructions:
    made = StoryInstructions("i", StoryInstructionSettings(engine={"kind": "echo"}, **settings), 3)  # type: ignore[arg-type]
    made.open({"documents": [corpus(folder, texts, seeds=seeds)]})
    return made


def test_the_lines_are_true_and_the_sentence_stands_in_the_story(tmp_path: Path) -> None:
    made = stage(tmp_path, per_document=15)
    for row in range(15):
        prompt = made.prompt(row)
        text = made.parse(prompt, SUMMARY).text
        head, story = text.split("\nStory:\n\n")
        assert story == STORY
        said = dict(line.split(": ", 1) for line in head.split("\n"))
        assert tuple(said) == prompt.seeds["lines"]
        assert bool(prompt.messages) == ("Summary" in said)
        assert said.get("Summary", SUMMARY) == SUMMARY
        assert said.get("Sentence", STORY) in STORY
        assert set(said.get("Words", "beg").split(", ")) <= {"pond", "beg"}, "purple is not in the story"
        assert said.get("Features", "Dialogue, Conflict") == "Dialogue, Conflict"


def test_subsets_are_balanced_and_orders_vary(tmp_path: Path) -> None:
    made = stage(tmp_path, [STORY] * 60, per_document=15)
    lines = [made.prompt(row).seeds["lines"] for row in range(900)]
    for rows in (40, 333, 900):
        taken = Counter(frozenset(found) for found in lines[:rows])
        assert len(taken) == len(SUBSETS) == 15
        assert max(taken.values()) - min(taken.values()) <= 1
    assert all(len({frozenset(found) for found in lines[row : row + 15]}) == 15 for row in range(0, 900, 15))
    assert len({found for found in lines if len(found) == 4}) > 15, "of the 24 orders of four lines"
    again = stage(tmp_path / "again", [STORY] * 60, per_document=15)
    assert [again.prompt(row).seeds["lines"] for row in (77, 5, 800)] == [lines[row] for row in (77, 5, 800)]


def test_what_a_story_does_not_have_is_not_promised(tmp_path: Path) -> None:
    plain = stage(tmp_path, ["The cat sat. " * 2], seeds={**SEEDS, "features": []}, per_document=3)
    found = [plain.prompt(row).seeds["lines"] for row in range(3)]
    assert set(found) == {("Summary",)}, "no word of the seeds, no feature, no sentence of a fit length"
    silent = stage(tmp_path / "silent", [STORY.replace('"', "")], per_document=15)
    features = [silent.prompt(row).seeds.get("Features", "Conflict") for row in range(15)]
    assert set(features) == {"Conflict"}, "nobody speaks"


def test_a_name_in_quotation_marks_is_no_dialogue(tmp_path: Path) -> None:
    named = STORY.replace(
        '"You are a wobbly one," said the duck.', 'A duck had a game called "markers," and nobody lost.'
    )
    made = stage(tmp_path, [named], per_document=15)
    assert {made.prompt(row).seeds.get("Features", "Conflict") for row in range(15)} == {"Conflict"}


def test_features_that_may_not_be_listed_are_left_out_and_no_row_is_lost(tmp_path: Path) -> None:
    made = stage(tmp_path, features=["Dialogue"], per_document=15)
    listed = [made.prompt(row).seeds.get("Features") for row in range(15)]
    assert set(listed) == {None, "Dialogue"} and listed.count("Dialogue") == 8, "in as many subsets as ever"
    without = stage(tmp_path / "none", features=["Twist"], per_document=15)
    prompts = [without.prompt(row) for row in range(15)]
    assert all(prompt.seeds["lines"] and "Features" not in prompt.seeds["lines"] for prompt in prompts)
    assert len({frozenset(prompt.seeds["lines"]) for prompt in prompts}) == 7, "all subsets of the other three lines"
    again = stage(tmp_path / "again", features=["Twist"], per_document=15)
    assert [again.prompt(row) for row in (9, 4)] == [prompts[9], prompts[4]]


def test_the_recipe_lists_only_the_feature_that_is_looked_for() -> None:
    assert set(get_args(Feature)) == set(FEATURES)
    recipe = load_recipe(str(Path(__file__).parents[2] / "recipes" / "story-instructions.yaml"))
    settings = recipe.stages["instructions"].stage.settings
    assert isinstance(settings, StoryInstructionSettings) and settings.features == ("Dialogue",)


def test_the_sentence_begins_as_one_and_is_no_item_of_a_list(tmp_path: Path) -> None:
    story = (
        "The pony loved apples ... and that is what everyone loved! so did the duck by the old pond.\n"
        "- A magical object called a bell.\n1. Then they went home again.\n"
        "They waited all night... Nobody came to the old pond.\n"
        "“We will come back,” said the wise old duck. 12 apples lay in the grass."
    )
    made = stage(tmp_path, [story], per_document=15)
    taken = {made.prompt(row).seeds.get("Sentence") for row in range(15)} - {None}
    fit = {
        "They waited all night...",
        "“We will come back,” said the wise old duck.",
        "12 apples lay in the grass.",
        "The pony loved apples ...",
    }
    assert taken <= fit and len(taken) > 1
    none = stage(
        tmp_path / "none", ["- A magical object called a bell.\n- and a pond with ducks in it."], per_document=15
    )
    assert not any("Sentence" in none.prompt(row).seeds["lines"] for row in range(15))


def test_words_of_a_story_from_elsewhere_are_picked_from_it(tmp_path: Path) -> None:
    made = stage(tmp_path, [STORY] * 20, seeds=None, per_document=7)
    picked = [made.prompt(row).seeds.get("Words", "") for row in range(140)]
    assert all(re.search(rf"\b{word}\b", STORY.lower()) for words in picked if words for word in words.split(", "))
    assert all(len(set(words.split(", "))) == 3 for words in picked if words)
    assert len(set(picked)) > 10
    assert not any("Features" in made.prompt(row).seeds["lines"] for row in range(140))


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (SUMMARY, None),
        (f"**Summary:** {SUMMARY}\n", None),
        ("A pony begs.", "short-summary"),
        ("A pony and a duck become friends. " * 12, "long-summary"),
        ("A small pony lived by the pond and he begged for apples every day.", "copies-story"),
        ("A pony wants apples every day. In the end he becomes the friend of a duck.", "long-summary"),
        ("Summination: A pony who wants apples becomes the friend of a duck.", "wrong-form"),
        ("Summersonic summary: A pony who wants apples becomes the friend of a duck.", "wrong-form"),
        ('A pony who wants apples is "the wobbly" friend of a duck.', "off-story"),
        ("Two bold children build a rocket and travel through space to find treasure.", "off-story"),
    ],
)
def test_summaries_are_checked(tmp_path: Path, reply: str, outcome: str | None) -> None:
    made = stage(tmp_path, per_document=15)
    prompt = next(found for row in range(15) if (found := made.prompt(row)).messages)
    if outcome is None:
        assert f"Summary: {SUMMARY}\n" in made.parse(prompt, reply).text
        return
    with pytest.raises(Refused) as caught:
        made.parse(prompt, reply)
    assert caught.value.reason == outcome


@pytest.mark.parametrize(
    "summary",
    [
        "Mr. Pony wants apples of Mrs. Duck and becomes a friend of hers.",
        "A pony hears “You are a wobbly one!” from a duck and becomes her friend.",
        'A duck calls the pony a "Wobbly One", and he becomes a friend of hers',
    ],
)
def test_one_sentence_with_titles_and_quotations_of_the_story_is_a_summary(tmp_path: Path, summary: str) -> None:
    made = stage(tmp_path, per_document=15)
    prompt = next(found for row in range(15) if (found := made.prompt(row)).messages)
    assert f"Summary: {summary}\n" in made.parse(prompt, summary).text


def test_a_story_may_come_back_with_other_lines_only(tmp_path: Path) -> None:
    made = stage(tmp_path, per_document=15)
    parsed = [made.parse(made.prompt(row), SUMMARY) for row in range(15)]
    (sieve,) = made.sieves()
    for document in parsed:
        assert sieve.refuses(document.text, document.meta) == ""
        sieve.add(document.text, document.meta)
    assert all(sieve.refuses(document.text, document.meta) for document in parsed)


def test_all_lines_are_known() -> None:
    assert set().union(*SUBSETS) == set(LINES)


def test_a_run_asks_for_summaries_only(tmp_path: Path, stage_context: Any, ray_cluster: None) -> None:
    documents = corpus(tmp_path, [STORY, STORY.replace("pony", "goat")], seeds=SEEDS)
    settings = StoryInstructionSettings(engine={"kind": "echo"}, per_document=15)  # type: ignore[arg-type]
    artifact = stage_context.finished(StoryInstructions("i", settings, 3), documents=[documents])
    counts = artifact.manifest.counts
    assert counts["planned"] == 30 and counts["finish_stop"] == 16, "8 of the 15 subsets have a summary"
    assert counts["rows"] == 14 and counts["rejected"] == 16, "an echo is no summary"
    rows = [row for table in artifact.tables() for row in table.to_pylist()]
    assert {row["parents"][0] for row in rows} == {
        key for table in documents.tables() for key in table["key"].to_pylist()
    }
    assert len({row["key"] for row in rows}) == 14
    assert all(json.loads(row["made_by"]["seeds"])["lines"] for row in rows)
