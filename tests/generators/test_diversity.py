"""The diversity controller, against a model of a model: openings drawn word by word from logits that it can shift."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from typing import Any

import pytest
from diversity_kinds import PetsThenAll
from hypothesis import given, settings
from hypothesis import strategies as st

from generators.diversity import (
    EVERYWHERE,
    SAMPLED_TEXTS,
    Cell,
    DiversitySettings,
    Ends,
    Wave,
    cell_of,
    text_figures,
)
from generators.prompted import PromptSettings
from generators.steering import Steering, steer_next
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


def test_a_cell_that_stays_collapsed_rests_but_never_all() -> None:
    wanted = DiversitySettings(steer=True, means=("temperature", "cells"))
    hot = {name: {"temperature": wanted.temperature_rise} for name in ("*", "sun", "rain")}
    wave = Wave()
    for number in range(50):
        wave.add("Once upon a time.", "sun")
        wave.add(f"Opening{number} is new.", "rain")
    steer = steer_next(hot, wave, {}, wanted, 1.0)
    assert [name for name in steer if steer[name].get("rest")] == ["sun"]
    alike = Wave()
    for _ in range(50):
        alike.add("Once upon a time.", "sun")
        alike.add("Once upon a time.", "rain")
    assert not any(entry.get("rest") for entry in steer_next(hot, alike, {}, wanted, 1.0).values())


def test_cells_rest_only_where_other_rows_are_asked_for_instead() -> None:
    def means(**values: Any) -> tuple[str, ...]:
        diversity = {"means": ["cells"]}
        return Stories("s", StorySettings(**values, diversity=diversity, engine={"kind": "echo"}), 0).diversity.means

    assert means(rows=8) == () and means(accepted=8) == ("cells",)


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


@settings(max_examples=30)
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


def cell_of_source(texts: int, seed: int) -> Cell:
    """Return texts of one source: 40 of 300 words, the commoner ones oftener, as in prose."""
    dice, cell = random.Random(seed), Cell()
    words = [f"w{number}" for number in range(300)]
    weights = [1 / (number + 5) for number in range(300)]
    for _ in range(texts):
        cell.add(" ".join(dice.choices(words, weights, k=40)))
    return cell


@pytest.mark.parametrize("sizes", [(45, 1000), (110, 150), (300, 60)])
def test_waves_of_one_source_look_alike_whatever_their_size(sizes: tuple[int, int]) -> None:
    ends = Ends()
    for number, size in enumerate(sizes):
        ends.add(cell_of_source(size, number))
    found = ends.figures(DiversitySettings())
    first, last = found["first_wave"], found["last_wave"]
    assert (first["texts"], last["texts"]) == sizes
    assert first["compared"] == last["compared"] == min(*sizes, SAMPLED_TEXTS)
    for name in ("distinct_1", "distinct_2", "distinct_3", "compression_ratio"):
        assert last[name] == pytest.approx(first[name], rel=0.06), name


def test_more_texts_of_one_source_have_more_in_common() -> None:
    few, many = (text_figures(cell_of_source(size, size)) for size in (45, 1000))
    assert many["distinct_2"] < 0.85 * few["distinct_2"]  # hence `compared`


def test_small_waves_are_compared_together_with_their_neighbours() -> None:
    ends = Ends()
    assert ends.figures(DiversitySettings()) == {}
    for size in (6, 12, 5, 50, 3):
        ends.add(Cell(texts=size, sample=["A text."] * size, planned=2 * size, near_duplicates=1))
    found = ends.figures(DiversitySettings())
    assert (found["first_wave"]["texts"], found["last_wave"]["texts"]) == (18, 53)
    assert found["first_wave"]["near_duplicates"] == pytest.approx(2 / 36, abs=1e-4)
    assert found["last_wave"]["near_duplicates"] == pytest.approx(2 / 106, abs=1e-4)
    assert found["near_duplicates"] == pytest.approx(5 / 152, abs=1e-4)
    alone = Ends()
    alone.add(Cell(texts=6, sample=["A text."] * 6))
    assert alone.figures(DiversitySettings())["all"]["texts"] == 6


def test_what_is_remembered_of_many_texts_is_bounded_and_drawn_from_all() -> None:
    cell = Cell()
    for number in range(120_000):
        cell.add("Once upon a time." if number % 5 == 0 else f"Text {number} is new.")
    assert len(cell.sample) == SAMPLED_TEXTS and len(cell.openers) <= 50_000
    assert cell.top_openers(1) == [("Once upon a", 0.2)]
    late = sum(int(text.split()[1]) >= 60_000 for text in cell.sample if text.startswith("Text"))
    assert 0.3 < late / SAMPLED_TEXTS < 0.5  # 0.4 expected


@pytest.mark.usefixtures("ray_cluster")
def test_embeddings_say_before_and_after_how_alike_meanings_are(stage_context: Any) -> None:
    stage = PetsThenAll(
        "pets",
        PromptSettings(
            rows=160,
            part_rows=40,
            wave_rows=80,
            checks={"near_duplicates": False},
            diversity={"steer": True, "embedded": 32},
            engine={"kind": "echo"},
        ),
        3,
    )
    metrics = stage_context.finished(stage).manifest.metrics
    first, last = metrics["diversity"]["first_wave"], metrics["diversity"]["last_wave"]
    assert first["texts"] == last["texts"] == 80
    assert -0.1 < last["embedding_similarity"] < 0.5 < first["embedding_similarity"] < 1
    waves = [wave["figures"]["embedding_similarity"] for wave in metrics["waves"]]
    assert waves == pytest.approx([first["embedding_similarity"], last["embedding_similarity"]], abs=0.1)


def test_what_echo_writes_is_not_embedded_unasked() -> None:
    def embedded(**engine: Any) -> int | None:
        return Stories("stories", StorySettings(rows=1, engine=engine), 0).diversity.embedded

    assert embedded(kind="echo") == 0 and embedded(kind="vllm") == 32
