"""Estimates: a pilot that touches nothing, figures that follow from it, intervals that cover, and a report that compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import Answer
from endpoint import Endpoint

from hornbook.cluster import cluster
from hornbook.errors import RecipeError
from hornbook.estimate import FIGURES, StageEstimate, estimate, estimates_of, fullness, total
from hornbook.estimate_table import remarks, table
from hornbook.foretold import foretold
from hornbook.intervals import per_planned, wilson
from hornbook.pilot import Chunk, Pilot, Piloted, run_pilot, without_gap
from hornbook.pipeline import plan_recipe, run_recipe
from hornbook.recipe import check_recipe, load_recipe
from hornbook.report import render_report
from hornbook.run_view import read_estimate, read_run
from hornbook.store import Store

STAGES: dict[str, Any] = {
    "textbooks": {"kind": "textbooks", "rows": 64, "sampling": {"max_tokens": 60}},  # echo writes 20 to 110 words
    "questions": {"kind": "questions", "inputs": {"documents": "textbooks"}, "per_document": 2},
}
PACED = {"kind": "echo", "echo_tokens_per_second": 60}
MINE = """
from generators.stories import Stories
from hornbook.stage import Input


class After(Stories):
    inputs = {"tokenizer": Input("tokenizer")}
"""
JUDGED = """
from functools import cached_property

from pydantic import Field

from generators.prompted import Parsed, Prompt, PromptedStage, PromptSettings
from hornbook.engines.interface import EngineSettings
from hornbook.plan import Combinations


class JudgedSettings(PromptSettings):
    judge: EngineSettings | None = Field(None, description="Who says whether a row is good.")


class Judged(PromptedStage):
    kind = "judged"
    Settings = JudgedSettings

    @cached_property
    def combinations(self):
        return Combinations((40,), self.seed)

    def prompt(self, row):
        return Prompt(({"role": "user", "content": f"Say something of {self.combinations[row][0]}."},), {})

    async def write(self, prompt, ask):
        parsed = await super().write(prompt, ask)
        await ask(({"role": "user", "content": f"Good? {parsed.text}"},), engine="judge")
        return parsed
"""
PRICES = {"price_per_million_prompt_tokens": 10_000, "price_per_million_completion_tokens": 30_000}
"""A reply of `endpoint.well`, 7 tokens read and 3 written, costs 0.16."""


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for all runs of this file."""
    with cluster():
        yield


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


def recipe_file(folder: Path, stages: dict[str, Any], engine: dict[str, Any] | None = None) -> str:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "engine": engine or {"kind": "echo"}, "stages": stages}))
    return str(path)


def kept(store: Store) -> dict[str, Any]:
    return dict(read_estimate(store, "small"))


def pilot(rows: int = 4, accepted: int = 3, tokens: float = 800, seconds: float = 2, **options: Any) -> Pilot:
    """25 like chunks."""
    written = options.pop("written", {"engine": tokens})
    chunk = Chunk(
        planned=rows,
        rows=accepted,
        prompt_tokens=200,
        completion_tokens=tokens,
        disk=1000,
        seconds=seconds,
        written=written,
    )
    return Pilot([chunk] * 25, start_seconds=30.0, **options)


def estimated(tmp_path: Path, shown: Pilot, gpus: tuple[int, ...] = (1, 8), **stage: Any) -> StageEstimate:
    engine = stage.pop("engine", {"kind": "echo"})
    source = {"name": "r", "engine": engine, "stages": {"stories": {"kind": "stories", "rows": 1000, **stage}}}
    recipe = check_recipe(source, "r", tmp_path)
    (found,) = estimates_of(
        Piloted(recipe, plan_recipe(recipe, Store(str(tmp_path / "none"))), pilots={"stories": shown}), gpus
    )
    return found


def test_an_estimate_then_a_run_then_both_in_the_report(
    hornbook: Callable[..., Answer], tmp_path: Path, ray_here: None
) -> None:
    textbooks = {"textbooks": STAGES["textbooks"]}
    tokenizer = {"kind": "tokenizer", "inputs": {"documents": "textbooks"}}
    recipe = recipe_file(tmp_path, {**textbooks, "tokenizer": tokenizer})
    answer = hornbook("estimate", recipe, "--rows", "32", "--seconds", "60")
    assert answer.code == 0, answer.err
    store = Store(str(tmp_path / "store"))
    assert [name for name, _ in store.files("")] == ["estimates/small.json"]
    assert "not estimated: tokenizer (tokenizer)" in answer.out
    assert "no hours per GPU: the engine is echo" in answer.out
    told = kept(store)["textbooks"]["figures"]
    assert (told["planned"]["value"], kept(store)["textbooks"]["pilot"]["rows"]) == (64, 32)
    run = run_recipe(load_recipe(recipe), store, only=["textbooks"], say=lambda line: None)
    counts = run.artifacts["textbooks"].manifest.counts
    assert told["rows"]["low"] <= counts["rows"] <= told["rows"]["high"]
    assert told["completion_tokens"]["value"] == pytest.approx(counts["completion_tokens"], rel=0.35)
    disk = sum(size for _, size in store.files(run.artifacts["textbooks"].folder))
    assert told["disk"]["value"] == pytest.approx(disk, rel=0.25)
    page = render_report(store, run.run.id)
    assert "Estimate against actual" in page and page.count("<td>yes</td>") >= 2  # one is of the units that add up
    # what is finished costs nothing any more, feeds the rest, and its estimate stays for the report
    before = store.state("artifacts")
    again = hornbook("estimate", recipe_file(tmp_path, STAGES), "--rows", "16")
    assert again.code == 0, again.err
    assert "finished already, nothing to pay: textbooks" in again.out
    assert "questions: piloted on finished artifacts: textbooks" in again.out
    assert store.state("artifacts") == before
    assert set(kept(store)) == {"textbooks", "questions"}
    assert kept(store)["questions"]["figures"]["planned"]["value"] == 2 * counts["rows"]
    # a run of other settings is not compared
    path = tmp_path / "store" / "estimates" / "small.json"
    path.write_text(path.read_text().replace('"max_tokens": 60', '"max_tokens": 61'))
    page = render_report(store, run.run.id)
    assert "estimated with other settings than it was made with" in page and page.count("<td>yes</td>") == 1


def test_a_pilot_ends_with_its_time_and_feeds_the_next_stage(tmp_path: Path, ray_here: None) -> None:
    # 16 rows at a time, 4 a part: 100 would take some ten seconds
    stages = {name: {**stage, "parts_in_flight": 1} for name, stage in STAGES.items()}
    stages["textbooks"] = {"kind": "textbooks", "rows": 30_000, "parts_in_flight": 1}
    stages["questions"]["rows"] = 4
    store = Store(str(tmp_path / "store"))
    found = run_pilot(recipe_file(tmp_path, stages, PACED), [], store, seconds=1, say=lambda line: None)
    assert set(found.pilots) == {"textbooks", "questions"}
    assert found.pilots["textbooks"].cut
    assert 0 < found.pilots["textbooks"].sum("planned") < 100
    assert found.pilots["questions"].sum("planned") > 0
    estimates = estimates_of(found, [1])
    assert [stage.state for stage in estimates] == ["estimated"] * 2
    assert "time limit cut the pilot" in "\n".join(remarks(estimates))
    assert not store.names("")


def test_only_what_has_no_gap_before_it_is_kept() -> None:
    assert without_gap({0: 4, 8: 4, 4: 4, 20: 4}) == 12
    assert without_gap({4: 4}) == 0


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


def test_a_stage_is_planned_from_what_its_inputs_will_hold(tmp_path: Path) -> None:
    recipe = check_recipe({"name": "r", "engine": {"kind": "echo"}, "stages": STAGES}, "r", tmp_path)
    planned = plan_recipe(recipe, Store(str(tmp_path / "none")))
    _, questions = estimates_of(Piloted(recipe, planned, pilots={name: pilot() for name in STAGES}), [1])
    assert questions.figures["planned"].value == 2 * 48  # of 64 textbooks three in four are accepted
    assert questions.figures["planned"].low < 96 < questions.figures["planned"].high


def test_rows_from_documents_are_planned_once_for_each_sample(tmp_path: Path) -> None:
    stages = {**STAGES, "questions": {**STAGES["questions"], "samples": 3}}
    recipe = check_recipe({"name": "r", "engine": {"kind": "echo"}, "stages": stages}, "r", tmp_path)
    planned = plan_recipe(recipe, Store(str(tmp_path / "none")))
    _, questions = estimates_of(Piloted(recipe, planned, pilots={name: pilot() for name in STAGES}), [1])
    assert questions.figures["planned"].value == 3 * 2 * 48


def judged(folder: Path, **stage: Any) -> str:
    (folder / "judged.py").write_text(JUDGED)
    checks = {"near_duplicates": False}
    return recipe_file(folder, {"judged": {"kind": "judged.py:Judged", "part_rows": 4, "checks": checks, **stage}})


def test_no_more_rows_are_planned_than_there_are_prompts(tmp_path: Path) -> None:
    recipe = load_recipe(judged(tmp_path, accepted=30, over_generation=10, samples=2))
    planned = plan_recipe(recipe, Store(str(tmp_path / "none")))
    poor = pilot(rows=10, accepted=1)
    (made,) = estimates_of(Piloted(recipe, planned, pilots={"judged": poor}), [1])
    assert made.figures["planned"].value == 2 * 40
    assert "need more than the 80" in "\n".join(made.notes)


def test_each_engine_is_priced_by_its_own_tokens(tmp_path: Path, ray_here: None, endpoint: Endpoint) -> None:
    asked = {"kind": "openai", "model": "m", "base_url": endpoint.url}
    free = {**asked, **PRICES, "kind": "echo"}  # as a recipe's `engine` with prices leaves it: only endpoints charge
    recipe = judged(tmp_path, rows=16, engine=free, judge={**asked, **PRICES})
    store = Store(str(tmp_path / "store"))
    (told,) = estimate(recipe, [], store, rows=8, seconds=60, say=lambda line: None)
    money = told.figures["money"]
    assert [money.value, money.low, money.high] == pytest.approx([16 * 0.16] * 3)
    assert "money 2.56" in "\n".join(" ".join(row) for row in table([told]))
    run = run_recipe(load_recipe(recipe), store, say=lambda line: None)
    counts = run.artifacts["judged"].manifest.counts
    assert counts["money"] == counts["money:judge"] == pytest.approx(2.56)
    assert counts["completion_tokens:judge"] == 48 and counts["completion_tokens:engine"] > 48
    (row,) = foretold(read_run(store, run.run.id))
    came = {figure["name"]: figure for figure in row["figures"]}
    assert list(came) == ["rows", "acceptance", "tokens read", "tokens written", "money", "time", "disk"]
    assert (came["money"]["told"], came["money"]["actual"], came["money"]["inside"]) == ("2.56", "2.56", True)
    assert (came["acceptance"]["told"], came["acceptance"]["actual"]) == ("100.0%", "100.0%")
    assert came["tokens read"]["share"] == pytest.approx(1, rel=0.3)
    page = render_report(store, run.run.id)
    spent = '<td>judge</td><td class="n">112</td><td class="n">48</td><td class="n">2.56</td>'
    assert "paid to endpoints" in page and spent in page


def test_rows_wanted_after_checks_plan_for_the_rejects(tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"rows": None, "accepted": 300}
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


SMALL, LARGE = ({"kind": "vllm", "model": name} for name in ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-1.7B"))


@pytest.mark.parametrize(
    ("judge", "shown", "hours", "told"),
    [
        (LARGE, {}, (200_000 + 2_000) / 9200 / 3600, "of the larger SmolLM2"),
        (
            {"kind": "openai", "base_url": "http://x/v1"},
            {},
            200_000 / 9200 / 3600,
            "of engine alone; openai is asked, too",
        ),
        (LARGE, {"gpus": 4.0}, 500 * 4 / 3600, "measured on 4"),
        ({**LARGE, "replicas": 1}, {"gpus": 4.0}, 500 * 2 / 3600, "measured on 2"),
    ],
)
def test_hours_per_gpu_count_each_engine_by_its_own_tokens(
    tmp_path: Path, judge: dict[str, Any], shown: dict[str, Any], hours: float, told: str
) -> None:
    (tmp_path / "judged.py").write_text(JUDGED.replace("(40,)", "(4000,)"))
    engine = {**SMALL, **({"replicas": 1} if "replicas" in judge else {})}
    stage = {"kind": "judged.py:Judged", "rows": 1000, "engine": engine, "judge": judge}
    recipe = check_recipe({"name": "r", "stages": {"judged": stage}}, "r", tmp_path)
    found = pilot(tokens=808, written={"engine": 800, "judge": 8}, **shown)
    planned = plan_recipe(recipe, Store(str(tmp_path / "none")))
    (made,) = estimates_of(Piloted(recipe, planned, pilots={"judged": found}), [1])
    assert made.gpu_hours[1].value == pytest.approx(hours)
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
