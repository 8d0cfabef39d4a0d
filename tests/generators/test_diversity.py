"""The diversity controller, against a model of a model: openings drawn word by word from logits that it can shift."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generators.diversity import EVERYWHERE, DiversitySettings, Steering, Wave, cell_of, steer_next, text_figures
from generators.stories import Stories, StorySettings
from hornbook.engines.interface import Sampling

TREE: dict[str, dict[str, float]] = {
    "": {"Once": 0.45, "One": 0.2, "The": 0.15, "In": 0.1, "It": 0.05, "Lily": 0.05},
    "Once": {"upon": 0.98, "there": 0.02},
    "Once upon": {"a": 1.0},
    "One": {"day": 0.7, "sunny": 0.2, "cold": 0.1},
}
"""Probabilities of the next word after the words so far; after others, one of 40 words alike."""
OTHERS = {f"word{number}": 1 / 40 for number in range(40)}


def write(steering: Steering, dice: random.Random, temperature: float = 1.0) -> str:
    """Draw the first three words of a text as a model would that takes the steering's biases."""
    words: list[str] = []
    for _ in range(3):
        logits = {word: math.log(share) for word, share in TREE.get(" ".join(words), OTHERS).items()}
        for avoided, bias in steering.avoid:
            *before, last = avoided.split()
            if before == words and last in logits:
                logits[last] += bias
        heat = temperature + steering.temperature
        weights = [math.exp(value / heat) for value in logits.values()]
        words += dice.choices(list(logits), weights)
    return " ".join(words) + " and so on, to the end of it."


def commonest(wave: Wave, name: str = EVERYWHERE) -> float:
    return wave.cells[name].top_openers(1)[0][1]


@pytest.mark.parametrize("seed", range(3))
def test_a_collapsed_opener_comes_down_and_stays_down(seed: int) -> None:
    dice, wanted = random.Random(seed), DiversitySettings(steer=True, means=("decoding",), embedded=0)
    steer: dict[str, Any] = {}
    shares = []
    for _ in range(8):
        wave = Wave()
        for _ in range(1500):
            wave.add(write(Steering.of({"steer": steer}, ""), dice), "")
        shares.append(commonest(wave))
        steer = steer_next(steer, wave, wave.figures(wanted), wanted, 1.0)
    assert shares[0] > 0.3
    assert max(shares[4:]) <= 0.05, shares


def test_a_cell_that_collapses_is_steered_alone() -> None:
    dice, wanted = (
        random.Random(1),
        DiversitySettings(steer=True, means=("decoding", "temperature", "prompt"), embedded=0),
    )
    wave = Wave()
    for number in range(400):
        wave.add(f"Opening{number} is new.", "rain")
        wave.add(write(Steering(), dice), "sun")
    steer = steer_next({}, wave, wave.figures(wanted), wanted, 1.0)
    assert set(steer) == {"*", "sun"}
    sun = Steering.of({"steer": steer}, "sun")
    assert sun.temperature > 0 and sun.notes[0] == "Once upon a" and "Once" in dict(sun.avoid)
    assert dict(sun.avoid)["Once"] < dict(Steering.of({"steer": steer}, "rain").avoid)["Once"] < 0


def test_it_pushes_where_the_model_has_a_choice() -> None:
    wave = Wave()
    for number in range(100):
        wave.add("Once upon a time." if number < 40 else f"Word{number} was there.", "")
        wave.add("The little girl ran." if number < 10 else f"The thing{number} ran.", "")
    wanted = DiversitySettings(steer=True, means=("decoding",), embedded=0)
    avoid = dict(steer_next({}, wave, {}, wanted, 1.0)[EVERYWHERE]["avoid"])
    assert set(avoid) == {"Once", "The little"}  # not "Once upon a", which would leave "Once upon the"


def test_few_texts_decide_nothing_and_a_rested_cell_is_tried_again() -> None:
    wave = Wave()
    for _ in range(39):
        wave.add("Once upon a time.", "")
    wanted = DiversitySettings(steer=True)
    assert steer_next({}, wave, {}, wanted, 1.0) == {}
    before = {"sun": {"avoid": [["Once", -2.0]], "rest": True}}
    assert steer_next(before, wave, {}, wanted, 1.0) == {"sun": {"avoid": [["Once", -2.0]]}}


def test_steering_reaches_the_prompt_and_the_sampling() -> None:
    steer = {"*": {"notes": ["Once upon a"]}, "sun": {"temperature": 0.2, "avoid": [["One day", -1.5]]}}
    steering = Steering.of({"steer": steer}, "sun")
    asked = ({"role": "user", "content": "Write."},)
    assert steering.messages(asked)[-1]["content"] == 'Write. Do not begin with "Once upon a".'
    assert steering.sampling(Sampling(temperature=0.6)).temperature == 0.8
    assert steering.avoid == (("One day", -1.5),)
    assert Steering.of({}, "sun") == Steering()
    assert Steering().messages(asked) is asked


def test_the_cells_of_stories_are_their_openings() -> None:
    stage = Stories("stories", StorySettings(rows=16, engine={"kind": "echo"}), 0)
    cells = Counter(cell_of(stage.cells, stage.prompt(row).seeds) for row in range(16))
    assert set(cells.values()) == {2} and len(cells) == 8


def test_a_model_behind_an_endpoint_is_asked_instead() -> None:
    def means(**engine: Any) -> tuple[str, ...]:
        return Stories("stories", StorySettings(rows=1, engine=engine), 0).diversity.means

    assert means(kind="vllm") == ("decoding", "temperature")
    assert means(kind="openai", base_url="http://x/v1") == ("decoding", "temperature", "prompt")
    assert means(kind="vllm", speculation="ngram") == ("decoding", "temperature", "prompt")


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text("ab c.", min_size=1, max_size=30), min_size=1, max_size=40))
def test_figures_are_shares(texts: list[str]) -> None:
    wave = Wave()
    for text in texts:
        wave.add(text, "")
    found = text_figures(wave.cells[EVERYWHERE])
    assert found["texts"] == len(texts)
    assert all(0 <= found[f"distinct_{size}"] <= 1 for size in (1, 2, 3))
    assert sum(share for _, share in found["openers"]) <= 1.0001
    assert all(a[1] >= b[1] for a, b in itertools.pairwise(found["openers"]))


def test_copies_are_less_diverse_than_different_texts() -> None:
    dice = random.Random(0)
    words = [f"w{number}" for number in range(3000)]
    different, alike = Wave(), Wave()
    for _ in range(100):
        different.add(" ".join(dice.choices(words, k=50)), "")
        alike.add(" ".join(words[:45] + dice.choices(words, k=5)), "")
    one, other = (text_figures(wave.cells[EVERYWHERE]) for wave in (different, alike))
    assert other["distinct_3"] < 0.3 < one["distinct_3"]
    assert other["compression_ratio"] > 2 * one["compression_ratio"]
