"""Plans run in waves: the first N accepted in plan order, decisions committed before they count, replies kept for reruns."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from wave_kinds import Broken, Learners, Numbers, NumberSettings, Sayings, Twelve, Wordy

from generators.stories import Stories, StorySettings
from generators.writing import sampling_seed
from hornbook.artifact import Artifact
from hornbook.documents import planned_row
from hornbook.errors import DataError, EngineError, RecipeError
from hornbook.pipeline import run_recipe
from hornbook.recipe import load_recipe
from hornbook.store import Store

pytestmark = pytest.mark.usefixtures("ray_cluster")


def numbers(cls: type[Numbers] = Numbers, seed: int = 3, **values: Any) -> Numbers:
    engine = {"kind": "echo", **values.pop("engine", {})}
    return cls(cls.kind, NumberSettings(**{"part_rows": 4, "engine": engine, **values}), seed)


def kept_rows(artifact: Artifact) -> list[int]:
    return [planned_row(number) for table in artifact.tables() for number in table["id"].to_pylist()]


def rejects(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for table in artifact.tables("rejects") for row in table.to_pylist()]


def documents(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for table in artifact.tables() for row in table.to_pylist()]


def lines(log: Path, word: str = "taken") -> list[str]:
    return [line.split()[1] for line in log.read_text().splitlines() if line.startswith(word)]


# --- N accepted rows ----------------------------------------------------------------------------------------------------


def test_the_first_accepted_rows_in_plan_order_are_kept(stage_context: Any) -> None:
    artifact = stage_context.finished(numbers(accepted=30, refused=5, wave_rows=40))
    counts = artifact.manifest.counts
    kept = kept_rows(artifact)
    assert len(kept) == counts["rows"] == 30
    assert counts["planned"] == counts["rows"] + counts["rejected"]
    assert kept == [row for row in range(int(counts["planned"])) if lucky(row)][:30]
    reasons = Counter(row["reason"] for row in rejects(artifact))
    assert set(reasons) <= {"unlucky", "surplus"} and reasons["unlucky"]
    assert all(row["id"] > max(kept) for row in rejects(artifact) if row["reason"] == "surplus")


def lucky(row: int) -> bool:
    from hornbook.plan import derive_seed

    return derive_seed(row, "refused") % 10 >= 5


def test_a_budget_too_small_says_so_and_a_larger_one_goes_on(stage_context: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    values: dict[str, Any] = {"accepted": 20, "refused": 5, "wave_rows": 40, "engine": {"request_log": str(log)}}
    with pytest.raises(
        DataError, match=r"(?s)of 20 rows were accepted after 20 planned .* unlucky \d+, as '"
    ) as caught:
        stage_context.finished(numbers(over_generation=1, **values))
    assert "over_generation" in caught.value.cure
    artifact = stage_context.finished(numbers(over_generation=5, **values))
    assert artifact.manifest.counts["rows"] == 20
    assert max(Counter(lines(log)).values()) == 1, "a row was asked twice"


@pytest.mark.parametrize("over_generation", [1, 4])
def test_a_plan_ends_where_the_distinct_prompts_do(stage_context: Any, over_generation: int) -> None:
    few = numbers(Twelve, accepted=12, refused=5, over_generation=over_generation)
    few.check()
    assert few.most_rows == 12
    with pytest.raises(DataError, match=r"after 12 planned ones: there are no more distinct prompts") as caught:
        stage_context.finished(few)
    assert "over_generation" not in caught.value.cure and caught.value.cure.startswith(Twelve.too_many_rows)


@pytest.mark.parametrize(
    ("kind", "values", "error", "said"),
    [
        (Broken, {}, DataError, r"all rows from \d+ to \d+ failed alike: RuntimeError: no luck"),
        (
            Wordy,
            {"engine": {"max_model_len": 16}},
            EngineError,
            r"all rows from \d+ to \d+ failed alike: prompt has",
        ),
    ],
)
def test_what_fails_every_row_alike_is_no_finished_artifact(
    stage_context: Any, kind: Any, values: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        stage_context.finished(numbers(kind, rows=24, part_rows=12, **values))
    assert "run again" in caught.value.cure  # type: ignore[attr-defined]


def test_rows_or_accepted_must_be_said() -> None:
    with pytest.raises(ValueError, match="say how many: rows"):
        NumberSettings(engine={"kind": "echo"})
    with pytest.raises(RecipeError, match=r"there are .* distinct prompts"):
        Stories("stories", StorySettings(accepted=10**12, engine={"kind": "echo"}), 0).check()


# --- waves and what they learn -------------------------------------------------------------------------------------------


def test_a_wave_knows_the_waves_before_it_and_no_more(stage_context: Any) -> None:
    artifact = stage_context.finished(numbers(Learners, rows=24, wave_rows=8))
    heard = {
        planned_row(row["id"]): json.loads(row["made_by"]["prompt"])[0]["content"].split("having ")[1]
        for row in documents(artifact)
    }
    assert [heard[row] for row in (0, 7)] == ["heard nothing."] * 2
    assert [heard[row] for row in (8, 15)] == ["heard 8 up to 7."] * 2
    assert [heard[row] for row in (16, 23)] == ["heard 8 up to 15."] * 2
    assert {json.loads(row["meta"])["wave"] for row in documents(artifact)} == {0, 1, 2}
    assert [wave["start"] for wave in artifact.manifest.metrics["waves"]] == [0, 8, 16]


def test_a_committed_decision_holds_after_a_crash(stage_context: Any) -> None:
    stage = numbers(Learners, rows=16, wave_rows=8)
    decided = {"start": 8, "stop": 16, "decisions": {"heard": "a whisper"}}
    stage_context.store.write_json("artifacts/learners/waves/00001.json", decided)
    artifact = stage_context.finished(stage)
    prompts = [json.loads(row["made_by"]["prompt"])[0]["content"] for row in documents(artifact)]
    assert prompts[8:] == [f"Row {row}, having heard a whisper." for row in range(8, 16)]


def test_near_duplicates_of_earlier_rows_are_rejected(stage_context: Any) -> None:
    artifact = stage_context.finished(numbers(Sayings, rows=12))
    assert kept_rows(artifact) == [0, 1, 2]
    assert [row["reason"] for row in rejects(artifact)] == ["near-duplicate"] * 9
    diversity = artifact.manifest.metrics["diversity"]
    assert diversity["near_duplicates"] == diversity["all"]["near_duplicates"] == 0.75
    assert all("They say" in row["text"] and row["unit"].startswith("Row ") for row in rejects(artifact))
    kept = stage_context.finished(
        Sayings("all", NumberSettings(rows=12, engine={"kind": "echo"}, checks={"near_duplicates": False}), 3)
    )
    assert len(kept_rows(kept)) == 12


# --- several models, samples and calls ----------------------------------------------------------------------------------


def test_several_models_share_the_rows_by_weight(stage_context: Any) -> None:
    engines = [
        {"engine": {"kind": "echo", "model": "a"}, "weight": 3},
        {"engine": {"kind": "echo", "model": "b"}, "sampling": {"temperature": 0.1, "max_tokens": 20}},
    ]
    artifact = stage_context.finished(numbers(rows=80, engines=engines, truncated="keep"))
    writers = [row["made_by"]["model"] for row in documents(artifact)]
    for prefix in (8, 20, 80):
        assert abs(writers[:prefix].count("a") - 0.75 * prefix) <= 2
    assert {row["made_by"]["revision"] for row in documents(artifact)} == {"echo:a", "echo:b"}
    assert all(('"temperature":0.1' in row["made_by"]["sampling"]) == (row["made_by"]["model"] == "b")
               for row in documents(artifact))  # fmt: skip
    acceptance = artifact.manifest.metrics["acceptance"]
    assert acceptance["a"]["planned"] + acceptance["b"]["planned"] == 80
    assert acceptance["a"]["accepted"] == writers.count("a")


def test_samples_of_a_prompt_are_rows_of_their_own(stage_context: Any) -> None:
    artifact = stage_context.finished(numbers(rows=5, samples=3))
    rows = documents(artifact)
    assert len(rows) == len({row["text"] for row in rows}) == len({row["key"] for row in rows}) == 15
    assert Counter(row["made_by"]["prompt"] for row in rows).most_common(1)[0][1] == 3
    assert artifact.manifest.counts["planned"] == 15


def test_every_call_of_a_row_is_kept_and_named(stage_context: Any) -> None:
    second = {"kind": "echo", "model": "judge"}
    artifact = stage_context.finished(numbers(rows=6, second=second))
    for row in documents(artifact):
        meta = json.loads(row["meta"])
        assert meta["judged"] in ("1", "2")
        assert meta["calls"][0]["model"] == "judge"
        assert row["made_by"]["row_seed"] == sampling_seed(numbers(rows=6), planned_row(row["id"]))
    replies = [row for table in artifact.tables("replies") for row in table.to_pylist()]
    assert len(replies) == len({row["key"] for row in replies}) == 12


# --- replies that are kept ------------------------------------------------------------------------------------------------

KIND = """
from typing import ClassVar
from generators.prompted import Parsed, Prompt, PromptedStage, PromptSettings, Refused

READERS = ("children", "students", "teachers", "others")


class Notes(PromptedStage):
    kind: ClassVar[str] = "notes"
    Settings = PromptSettings

    def prompt(self, row):
        seeds = {"reader": READERS[row % 4], "number": row}
        return Prompt(self.ask(**seeds), seeds)

    def parse(self, prompt, text):
        if prompt.seeds["number"] % 5 == 0:
            raise Refused("five")
        return Parsed(text)
"""
TEMPLATE = "A note {{ number }} for {{ reader }}."


class NotesPlace:
    """A recipe of one own kind whose files can be changed between runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.store = Store(str(folder / "store"))

    def run(self, kind: str = KIND, template: str = TEMPLATE, remake: str | None = None, **settings: Any) -> Artifact:
        import yaml

        stage = {"kind": "notes.py:Notes", "rows": 40, "part_rows": 4, **settings}
        stage["engine"] = {"kind": "echo", "request_log": str(self.log)}
        (self.folder / "notes.py").write_text(kind)
        (self.folder / "notes.jinja").write_text(template)
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "notes", "stages": {"notes": stage}}))
        self.log.write_text("")
        recipe = load_recipe(str(self.folder / "recipe.yaml"))
        return run_recipe(recipe, self.store, remake_from=remake, say=lambda line: None).artifacts["notes"]

    def asked(self) -> set[int]:
        return {int(tag.split("/")[1]) for tag in lines(self.log)}


def test_a_changed_prompt_asks_again_for_the_rows_it_changes_alone(tmp_path: Path) -> None:
    place = NotesPlace(tmp_path)
    before = place.run()
    assert place.asked() == set(range(40))
    changed = TEMPLATE + "{% if reader == 'students' %} Be short.{% endif %}"
    after = place.run(template=changed)
    assert place.asked() == {row for row in range(40) if row % 4 == 1}
    assert after.manifest.counts["reused"] == 30
    assert after.manifest.counts["planned"] == 40
    texts = {row["id"]: row["text"] for row in documents(before)}
    same = [row for row in documents(after) if row["text"] == texts[row["id"]]]
    assert {planned_row(row["id"]) % 4 for row in same} == {0, 2, 3}
    prompts = [artifact.manifest.metrics["prompts"]["notes.jinja"] for artifact in (before, after)]
    assert prompts[0]["text"] == TEMPLATE and prompts[0]["version"] != prompts[1]["version"]
    assert {row["key"] for row in same} < {row["key"] for row in documents(before)}


def test_another_parser_part_size_or_plan_length_asks_for_nothing_known(tmp_path: Path) -> None:
    place = NotesPlace(tmp_path)
    place.run()
    milder = place.run(kind=KIND.replace("% 5 == 0", "% 10 == 0"), rows=50, part_rows=7)
    assert place.asked() == set(range(40, 50))
    assert (milder.manifest.counts["reused"], milder.manifest.counts["rows"]) == (40, 45)
    place.run(sampling={"temperature": 0.1})
    assert place.asked() == set(range(40))


def test_what_is_to_be_made_anew_takes_nothing_over(tmp_path: Path) -> None:
    place = NotesPlace(tmp_path)
    place.run()
    assert place.run(remake="notes", template=TEMPLATE + "{% if number == 3 %} Now.{% endif %}").complete
    assert place.asked() == set(range(40))


def test_steered_waves_begin_small_and_grow(stage_context: Any) -> None:
    stage = numbers(rows=1200, part_rows=40, wave_rows=640, diversity={"steer": True, "embedded": 0})
    artifact = stage_context.finished(stage)
    waves = artifact.manifest.metrics["waves"]
    assert [wave["planned"] for wave in waves] == [80, 160, 320, 640]
    assert waves[0]["steered"] == {} and waves[1]["steered"]
    assert sum(wave["planned"] for wave in waves) == artifact.manifest.counts["planned"]
    assert {"first_wave", "last_wave", "near_duplicates"} == set(artifact.manifest.metrics["diversity"])


def test_a_sifter_that_dies_is_replaced_and_told_what_it_knew(stage_context: Any, monkeypatch: Any) -> None:
    from generators import waves

    concluded: list[int] = []
    sift = waves._RemoteSifter._sift

    def kill_after_the_first_wave(self: Any, wave: Any) -> Any:
        import ray

        if wave.number == 1 and not concluded:
            concluded.append(wave.number)
            ray.kill(self._actor)
        return sift(self, wave)

    monkeypatch.setattr(waves._RemoteSifter, "_sift", kill_after_the_first_wave)
    stage = Sayings(
        "sayings", NumberSettings(accepted=3, rows=12, wave_rows=2, part_rows=2, engine={"kind": "echo"}), 3
    )
    artifact = stage_context.finished(stage)
    assert kept_rows(artifact) == [0, 1, 2] and concluded == [1]
