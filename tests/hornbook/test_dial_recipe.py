"""A threshold is written where it applies, and nothing else of the recipe changes."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import yaml

from hornbook.dial_recipe import RecipeOnDisk, number_text
from hornbook.errors import RecipeError
from hornbook.recipe import load_recipe

RECIPE = """\
# What we pack, and why.
name: mine   # not yours
seed: 7

engine: {kind: echo}

stages:
  web: {kind: installed-python}
  tokenizer: {kind: tokenizer, inputs: {documents: [web]}}
  labels: {kind: annotate, inputs: {documents: web}}
  quality: {kind: quality, inputs: {documents: web, annotations: labels}}
  scores:
    kind: score
    inputs: {documents: web, scorer: quality}

  # Chosen in November.
  pack-web:
    kind: pack
    inputs: {documents: web, tokenizer: tokenizer, scores: scores}   # the good half
    minimum_score: 0.5   # see the dial

  pack-all: {kind: pack, inputs: {documents: web, tokenizer: tokenizer, scores: scores}, source: all}

  chosen:
    kind: select
    inputs:
      documents: web
      attributes: [scores]
    rules:
      - {column: score}          # the stage's own
      - column: score
        name: twice
        input: scores
        min: 0.25
      - {column: score, sources: [forum], min: 0.9, name: forums}
      - {column: score, max: 0.99}
      - {column: bytes, min: 10}

  pack-rest: {kind: pack, inputs: {documents: web, tokenizer: tokenizer}}
"""
PLACES = {
    "stages.pack-web.minimum_score": 0.5,
    "stages.pack-all.minimum_score": None,
    "stages.chosen.rules[0].min": None,
    "stages.chosen.rules[1].min": 0.25,
    "stages.chosen.rules[2].min": 0.9,
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def test_it_finds_every_place_and_no_other(recipe: Path) -> None:
    places = RecipeOnDisk(str(recipe)).places("scores")
    assert {place.name: place.now for place in places} == PLACES
    assert [place.name for place in places if place.sources] == ["stages.chosen.rules[2].min"]


def test_only_the_values_change(recipe: Path) -> None:
    opened = RecipeOnDisk(str(recipe))
    places = [place for place in opened.places("scores") if not place.sources]
    text = opened.changed(places, 0.6125)
    assert [line for line in opened.diff(text) if line[0] in "+-"] == [
        "--- mine.yaml",
        "+++ mine.yaml",
        "-    minimum_score: 0.5   # see the dial",
        "+    minimum_score: 0.6125   # see the dial",
        "-  pack-all: {kind: pack, inputs: {documents: web, tokenizer: tokenizer, scores: scores}, source: all}",
        "+  pack-all: {kind: pack, inputs: {documents: web, tokenizer: tokenizer, scores: scores}, minimum_score: 0.6125, "
        "source: all}",
        "-      - {column: score}          # the stage's own",
        "+      - {column: score, min: 0.6125}          # the stage's own",
        "-        min: 0.25",
        "+        min: 0.6125",
    ]
    opened.write(text)
    rules = load_recipe(str(recipe)).stages["chosen"].stage.settings.rules
    assert [rule.min for rule in rules] == [0.6125, 0.6125, 0.9, None, 10]
    assert load_recipe(str(recipe)).stages["pack-web"].stage.settings.minimum_score == 0.6125
    opened.write(opened.changed(opened.places("scores"), 0.5))  # and again
    assert load_recipe(str(recipe)).stages["chosen"].stage.settings.rules[2].min == 0.5


LAYOUTS = {
    "block, inputs in lines": (
        "  p:\n    kind: pack\n    inputs:\n      documents: web\n      tokenizer: tokenizer\n      scores: scores\n",
        "  p:\n    kind: pack\n    minimum_score: 0.7\n    inputs:\n      documents: web\n      tokenizer: tokenizer\n"
        "      scores: scores\n",
    ),
    "the last line has no end": (
        "  p:\n    kind: pack\n    inputs: {documents: web, tokenizer: tokenizer, scores: scores}",
        "  p:\n    kind: pack\n    inputs: {documents: web, tokenizer: tokenizer, scores: scores}\n    minimum_score: 0.7\n",
    ),
    "quoted keys": (
        '  "p": {"kind": "pack", "inputs": {"documents": "web", "tokenizer": "tokenizer", "scores": ["scores"]}}\n',
        '  "p": {"kind": "pack", "inputs": {"documents": "web", "tokenizer": "tokenizer", "scores": ["scores"]}, '
        "minimum_score: 0.7}\n",
    ),
    "an empty value": (
        "  p:\n    minimum_score:\n    kind: pack\n    inputs: {documents: web, tokenizer: tokenizer, scores: scores}\n",
        "  p:\n    minimum_score: 0.7\n    kind: pack\n    inputs: {documents: web, tokenizer: tokenizer, scores: scores}\n",
    ),
    "flow over lines": (
        "  p: {\n    kind: pack,  # packs\n    inputs: {documents: web, tokenizer: tokenizer,\n      scores: scores}\n  }\n",
        "  p: {\n    kind: pack, minimum_score: 0.7,  # packs\n    inputs: {documents: web, tokenizer: tokenizer,\n"
        "      scores: scores}\n  }\n",
    ),
    "a scalar before it with accents and an emoji": (
        "  # déjà vu 🙂\n  p: {kind: pack, inputs: {documents: web, tokenizer: tokenizer, scores: scores}}\n",
        "  # déjà vu 🙂\n  p: {kind: pack, inputs: {documents: web, tokenizer: tokenizer, scores: scores}, minimum_score: 0.7}\n",
    ),
}  # fmt: skip
HEAD = RECIPE[: RECIPE.index("  # Chosen")]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_stay(recipe: Path, layout: str, newline: str) -> None:
    before, after = (((HEAD + text).replace("\n", newline)).encode() for text in LAYOUTS[layout])
    recipe.write_bytes(before)
    opened = RecipeOnDisk(str(recipe))
    opened.write(opened.changed(opened.places("scores"), 0.7))
    assert recipe.read_bytes() == after


def test_what_an_anchor_shares_is_left_alone(recipe: Path) -> None:
    shared = "  p: &packing\n    kind: pack\n    inputs: {documents: web, tokenizer: tokenizer, scores: scores}\n  q: *packing\n"
    recipe.write_text(HEAD + shared)
    opened = RecipeOnDisk(str(recipe))
    p, q = opened.places("scores")
    for chosen in ([p], [q]):
        with pytest.raises(RecipeError, match="without changing more"):
            opened.changed(chosen, 0.7)
    merged = "  p: &packing\n    kind: pack\n    inputs: {documents: web, tokenizer: tokenizer, scores: scores}\n  q: {<<: *packing}\n"
    recipe.write_text(HEAD + merged)
    opened = RecipeOnDisk(str(recipe))
    with pytest.raises(RecipeError, match=r"(?s)stages.q.minimum_score cannot be added.*by hand"):
        opened.changed(opened.places("scores")[1:], 0.7)
    assert recipe.read_text() == HEAD + merged


def test_a_file_that_changed_is_not_overwritten(recipe: Path) -> None:
    opened = RecipeOnDisk(str(recipe))
    text = opened.changed(opened.places("scores"), 0.7)
    recipe.write_text(RECIPE + "# a note\n")
    with pytest.raises(RecipeError, match="has changed since"):
        opened.write(text)
    assert recipe.read_text() == RECIPE + "# a note\n"


def test_mode_and_links_stay_and_nothing_is_left_beside(recipe: Path, tmp_path: Path) -> None:
    recipe.chmod(0o640)
    (tmp_path / "here").mkdir()
    link = tmp_path / "here" / "link.yaml"
    link.symlink_to(recipe)
    opened = RecipeOnDisk(str(link))
    opened.write(opened.changed(opened.places("scores"), 0.7))
    assert link.is_symlink() and yaml.safe_load(recipe.read_text())["stages"]["pack-web"]["minimum_score"] == 0.7
    assert stat.S_IMODE(recipe.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "mine.yaml"]


def test_another_recipe_is_told_apart(recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"(?s)no stage 'score'.*did you mean.*scores"):
        RecipeOnDisk(str(recipe)).places("score")
    assert RecipeOnDisk(str(recipe)).places("quality") == []


@pytest.mark.parametrize("value", [0.0, 1.0, 0.6125, 1e-05, 0.1 + 0.2, 4.25, 1 / 3])
def test_numbers_are_read_back_exactly(value: float) -> None:
    found = yaml.safe_load(number_text(value))
    assert isinstance(found, float) and found == value
