"""Estimates: a pilot that touches nothing, figures that follow from it, intervals that cover, and a report that compares."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import Answer

from hornbook.cluster import cluster
from hornbook.errors import RecipeError
from hornbook.estimate import FIGURES, StageEstimate, estimates_of, fullness, per_planned, total, wilson
from hornbook.estimate_table import remarks, table
from hornbook.pilot import Chunk, Pilot, Piloted, run_pilot
from hornbook.pipeline import plan_recipe, run_recipe
from hornbook.recipe import check_recipe, load_recipe
from hornbook.report import render_report
from hornbook.store import Store

STAGES: dict[str, Any] = {
    "textbooks": {"kind": "textbooks", "rows": 64, "sampling": {"max_tokens": 60}},  # echo writes 20 to 110 words
    "questions": {"kind": "questions", "inputs": {"documents": "textbooks"}, "per_document": 2},
}
PACED = {"kind": "echo", "echo_tokens_per_second": 20}
MINE = """
from pydantic import Field
from generators.stories import Stories, StorySettings


class WantedSettings(StorySettings):
    rows: int | None = None
    accepted: int | None = None
    over_generation: float = 4.0


class Mine(Stories):
    Settings = WantedSettings

    def check(self): ...

    def expected(self, inputs):
        from hornbook.stage import Expected
        return Expected(planned=int(self.settings.accepted * self.settings.over_generation), rows=self.settings.accepted)
"""


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for all runs of this file."""
    with cluster():
        yield


def recipe_file(folder: Path, stages: dict[str, Any], engine: dict[str, Any] | None = None) -> str:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "engine": engine or {"kind": "echo"}, "stages": stages}))
    return str(path)


def pilot(rows: int = 4, accepted: int = 3, tokens: float = 800, seconds: float = 2, **options: Any) -> Pilot:
    """25 like chunks."""
    chunk = Chunk(planned=rows, rows=accepted, prompt_tokens=200, completion_tokens=tokens, disk=1000, seconds=seconds)
    return Pilot([chunk] * 25, start_seconds=30.0, **options)


def estimated(tmp_path: Path, shown: Pilot, gpus: tuple[int, ...] = (1, 8), **stage: Any) -> StageEstimate:
    engine = stage.pop("engine", {"kind": "echo"})
    source = {"name": "r", "engine": engine, "stages": {"stories": {"kind": "stories", "rows": 1000, **stage}}}
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "mine.jinja").write_text("Write.")
    recipe = check_recipe(source, "r", tmp_path)
    (found,) = estimates_of(
        Piloted(recipe, plan_recipe(recipe, Store(str(tmp_path / "none"))), pilots={"stories": shown}), gpus
    )
    return found


def test_an_estimate_then_a_run_then_both_in_the_report(
    hornbook: Callable[..., Answer], tmp_path: Path, ray_here: None
) -> None:
    recipe = recipe_file(tmp_path, {**STAGES, "tokenizer": {"kind": "tokenizer", "inputs": {"documents": "textbooks"}}})
    answer = hornbook("estimate", recipe, "--rows", "32", "--seconds", "60")
    assert answer.code == 0, answer.err
    store = Store(str(tmp_path / "store"))
    assert [name for name, _ in store.files("")] == ["estimates/small.json"]
    assert "not estimated: tokenizer (tokenizer)" in answer.out
    assert "no hours per GPU: the engine is echo" in answer.out
    kept = json.loads((tmp_path / "store" / "estimates" / "small.json").read_text())["stages"]
    assert set(kept) == {"textbooks", "questions"}
    assert kept["textbooks"]["figures"]["planned"]["value"] == 64
    assert kept["textbooks"]["pilot"]["rows"] == 32
    # 64 textbooks at two questions each, of those that are accepted
    accepted = kept["textbooks"]["figures"]["rows"]
    assert kept["questions"]["figures"]["planned"]["value"] == pytest.approx(2 * accepted["value"], abs=1)
    run = run_recipe(load_recipe(recipe), store, only=["questions"], say=lambda line: None)
    for name, told in kept.items():
        counts = run.artifacts[name].manifest.counts
        assert told["figures"]["rows"]["low"] <= counts["rows"] <= told["figures"]["rows"]["high"]
        assert told["figures"]["completion_tokens"]["value"] == pytest.approx(counts["completion_tokens"], rel=0.35)
    disk = sum(size for _, size in store.files(run.artifacts["textbooks"].folder))
    assert kept["textbooks"]["figures"]["disk"]["value"] == pytest.approx(disk, rel=0.25)
    page = render_report(store, run.run.id)
    assert "Estimate against actual" in page and page.count("<td>yes</td>") >= 4
    # what is finished costs nothing any more, feeds the rest, and its estimate stays for the report
    before = store.state("artifacts")
    again = hornbook("estimate", recipe, "--rows", "16", "--set", "stages.questions.per_document=1")
    assert again.code == 0, again.err
    assert "finished already, nothing to pay: textbooks" in again.out
    assert "questions: piloted on finished artifacts: textbooks" in again.out
    assert store.state("artifacts") == before
    kept = json.loads((tmp_path / "store" / "estimates" / "small.json").read_text())["stages"]
    assert set(kept) == {"textbooks", "questions"} and kept["questions"]["pilot"]["rows"] == 16
    assert "estimated with other settings than it was made with" in render_report(store, run.run.id)


def test_a_pilot_ends_with_its_time_and_feeds_the_next_stage(tmp_path: Path, ray_here: None) -> None:
    stages = {**STAGES, "textbooks": {**STAGES["textbooks"], "rows": 30_000, "truncated": "trim"}}
    store = Store(str(tmp_path / "store"))
    found = run_pilot(recipe_file(tmp_path, stages, PACED), [], store, seconds=0.5, say=lambda line: None)
    assert set(found.pilots) == {"textbooks", "questions"}
    assert found.pilots["textbooks"].cut
    assert 0 < found.pilots["textbooks"].sum("planned") < 100
    assert found.pilots["questions"].sum("planned") > 0
    estimates = estimates_of(found, [1])
    assert [stage.state for stage in estimates] == ["estimated"] * 2
    assert "time limit cut the pilot" in "\n".join(remarks(estimates))
    assert not store.names("")


def test_a_stage_whose_input_takes_training_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        MINE
        + "\nfrom hornbook.stage import Input\nclass After(Stories):\n    inputs = {'tokenizer': Input('tokenizer')}\n"
    )
    (tmp_path / "mine.jinja").write_text("Write.")
    stages = {
        "web": {"kind": "installed-python", "files": 3},
        "tokenizer": {"kind": "tokenizer", "inputs": {"documents": "web"}},
        "after": {"kind": "mine.py:After", "rows": 5, "inputs": {"tokenizer": "tokenizer"}},
    }
    found = run_pilot(recipe_file(tmp_path, stages), [], Store(str(tmp_path / "store")), say=lambda line: None)
    assert not found.pilots
    assert "after: its input tokenizer (tokenizer) is not made yet" in "\n".join(remarks(estimates_of(found, [1])))


def test_figures_follow_from_the_pilot(tmp_path: Path) -> None:
    made = estimated(tmp_path, pilot())
    value = {name: made.figures[name].value for name in FIGURES}
    assert value == {
        "planned": 1000, "rows": 750, "prompt_tokens": 50_000, "completion_tokens": 200_000,
        "seconds": 530, "money": 0, "disk": 250_000,
    }  # fmt: skip
    assert made.figures["rows"].low < 750 < made.figures["rows"].high
    assert made.figures["planned"].low == made.figures["planned"].high == 1000
    text = [" ".join(row) for row in table([made])]
    assert "stories planned rows 1,000  " in text and " disk 244.1 KiB  " in text


def test_rows_wanted_after_checks_plan_for_the_rejects(tmp_path: Path) -> None:
    wanted = {"kind": "mine.py:Mine", "rows": None, "accepted": 300}
    made = estimated(tmp_path, pilot(), **wanted)
    assert made.figures["planned"].value == 400
    assert made.figures["planned"].low < 400 < made.figures["planned"].high
    assert made.figures["rows"].value == 300
    poor = estimated(tmp_path, pilot(rows=10, accepted=1), **wanted)
    assert poor.figures["planned"].value == 1200 and poor.figures["rows"].value == pytest.approx(120)
    assert "need more than the 1,200" in "\n".join(poor.notes)


@pytest.mark.parametrize(
    ("model", "shown", "hours", "told"),
    [
        ("smollm2-135m-instruct", pilot(gpus=2.0), {1: 1000 / 3600, 8: 125 / 3600}, "measured on 2"),
        ("smollm2-135m-instruct", pilot(), {1: 200_000 / 9200 / 3600, 8: 200_000 / 9200 / 8 / 3600}, "FinePhrase"),
        ("all-minilm-l6-v2", pilot(), {}, "no published throughput of all-minilm-l6-v2"),
    ],
)
def test_hours_per_gpu_are_measured_or_assumed_or_left_out(
    tmp_path: Path, model: str, shown: Pilot, hours: dict[int, float], told: str
) -> None:
    made = estimated(tmp_path, shown, engine={"kind": "vllm", "model": model})
    assert {count: found.value for count, found in made.gpu_hours.items()} == pytest.approx(hours)
    assert told in "\n".join(made.notes)


def test_intervals_cover_what_they_should() -> None:
    dice = np.random.default_rng(7)
    covered = {"acceptance": 0, "tokens": 0}
    for _ in range(300):
        rows = dice.binomial(4, 0.8, size=25)
        tokens = dice.lognormal(5, 0.6, size=(25, 4)).sum(axis=1)
        shown = Pilot([Chunk(4, int(got), 1, float(each), 1, 1) for got, each in zip(rows, tokens, strict=True)], 0)
        share, length = wilson(shown.sum("rows"), 100), per_planned(shown, "completion_tokens")
        covered["acceptance"] += share.low <= 0.8 <= share.high
        covered["tokens"] += length.low <= np.exp(5 + 0.6**2 / 2) <= length.high
    assert 0.85 <= covered["acceptance"] / 300 <= 0.95
    assert 0.82 <= covered["tokens"] / 300 <= 0.95
    # Brown, Cai and DasGupta 2001: Wilson at 0 of n ends at z^2 / (n + z^2)
    assert wilson(0, 20).high == pytest.approx(1.6449**2 / (20 + 1.6449**2))


def test_how_full_an_engine_was() -> None:
    at_once = Pilot([Chunk(4, 4, 1, 1, 1, 0 if number else 10) for number in range(4)], 0)
    assert fullness(at_once, 16) == pytest.approx(1)
    assert fullness(at_once, 64) == pytest.approx(0.25)
    one_by_one = Pilot([Chunk(1, 1, 1, 1, 1, 2)] * 10, 0)
    assert fullness(one_by_one, 1) == pytest.approx(1)


def test_totals_add_half_widths_in_quadrature(tmp_path: Path) -> None:
    one = estimated(tmp_path, pilot())
    both = total([one, one])
    width = one.figures["rows"].high - one.figures["rows"].value
    assert both.figures["rows"].value == 1500
    assert both.figures["rows"].high == pytest.approx(1500 + width * 2**0.5)


def test_numbers_of_gpus_that_are_none(hornbook: Callable[..., Answer], tmp_path: Path) -> None:
    answer = hornbook("estimate", recipe_file(tmp_path, STAGES), "--gpus", "1,many")
    assert answer.code == RecipeError.exit_code and "--gpus 1,8,64" in answer.err
