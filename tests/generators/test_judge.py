"""The judge grades documents beside the documents: filtering works on its scores, and what it says wrongly is a reject."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from finished_artifact import finish
from judge_endpoint import JudgeEndpoint

from generators.judge import Judge, columns, is_chosen
from generators.judge_figures import judge_figures
from hornbook.artifact import THRESHOLD, Artifact
from hornbook.documents import Document, content_key, document_id, documents_table
from hornbook.errors import EngineError, RecipeError
from hornbook.jobs import staged_code
from hornbook.parts import PartContent, PartRange, commit_part, same_ids
from hornbook.recipe import check_recipe, load_recipe
from hornbook.settings import validate
from hornbook.store import Store
from training.pack import Pack, PackSettings
from training.tokenizer import TokenizerStage

ROWS, PART_ROWS = 12, 5
ECHO = {"kind": "echo"}
SOUP = "name: soup\ninstruction: Taste.\ncriteria:\n  - {name: salt, question: 'Salty?', minimum: 0, maximum: 3}\n"


def judge(name: str = "grades", **settings: Any) -> Judge:
    stage = Judge(name, validate(Judge.Settings, {"engine": ECHO, **settings}, "grades"), 3)
    stage.check()
    return stage


def corpus(store: Store, texts: list[str], name: str = "tales", part_rows: int = PART_ROWS) -> Artifact:
    artifact = Artifact(store, f"artifacts/{name}")
    for start in range(0, len(texts), part_rows):
        documents = [
            Document(document_id(row), content_key(text.encode()), text, ("hill", "valley")[row % 2], "story")
            for row, text in list(enumerate(texts))[start : start + part_rows]
        ]
        commit_part(
            store, artifact.folder, PartRange(start, start + len(documents)), PartContent(documents_table(documents))
        )
    return finish(artifact, "documents")


def rows(artifact: Artifact, role: str = "data") -> list[dict[str, Any]]:
    return [row for table in artifact.tables(role) for row in table.to_pylist()]


TEXTS = [f"Tale {row} of a fox who learned to count to {row}." for row in range(ROWS)]


def number_of(message: str) -> int:
    """The number of the tale in a request."""
    return int(re.findall(r"Tale (\d+)", message)[0])


def by_number(message: str) -> tuple[int, str, str]:
    """Grade a tale by its number, and some of them wrongly."""
    number = number_of(message)
    grade = {"reason": f"It counts to {number}.", "educational_value": number % 6}
    wrong = {
        2: ({**grade, "educational_value": 9}, "stop"),
        4: ("I give it a 5 of 5.", "stop"),
        6: (json.dumps(grade)[:-5], "length"),
        7: ({**grade, "reason": "long " * 200}, "stop"),
    }
    said, reason = wrong.get(number, (grade, "stop"))
    return 200, said if isinstance(said, str) else json.dumps(said), reason


@pytest.fixture
def endpoint() -> Iterator[JudgeEndpoint]:
    endpoint = JudgeEndpoint(by_number)
    yield endpoint
    endpoint.close()


def test_scores_lie_beside_the_documents_in_their_order(ray_cluster, stage_context):
    tales = corpus(stage_context.store, TEXTS)
    stage = judge(rubric="stories", threshold=5.5)
    graded = stage_context.finished(stage, documents=[tales])
    assert [part.start for part in graded.parts] == [part.start for part in tales.parts]
    found = rows(graded)
    assert [(row["id"], row["key"], row["source"]) for row in found] == [
        (row["id"], row["key"], row["source"]) for row in rows(tales)
    ]
    numbers = ("grammar", "creativity", "consistency", "plot")
    for row in found:
        assert all(1 <= row[name] <= 10 and row[name].is_integer() for name in numbers)
        assert row["age_group"] in "ABCDEF" and row["reason"]
        assert row["score"] == pytest.approx(sum(row[name] for name in numbers) / 4)
    assert graded.manifest.inputs["documents"][0].digest == tales.manifest.digest
    metrics = graded.manifest.metrics
    assert metrics["graded"] == ROWS and metrics["rejected_share"] == 0
    assert sum(metrics["grades"]["plot"]["counts"].values()) == ROWS
    assert sum(map(sum, metrics["histogram"]["counts"].values())) == ROWS
    assert metrics["kept"]["hill"]["kept"] == sum(row["score"] >= 5.5 for row in found[::2])
    assert set(metrics["mean_by_source"]) == {"hill", "valley"}
    assert -1 <= metrics["correlation"]["grammar"]["plot"] <= 1
    assert json.loads(json.dumps(metrics)) == metrics
    digest = graded.manifest.digest
    graded.store.delete(graded.folder)
    assert stage_context.finished(stage, documents=[tales]).manifest.digest == digest


def test_a_judge_that_answers_nobody_is_no_finished_artifact(ray_cluster, stage_context, endpoint):
    endpoint.answer = lambda text: (400, "", "")
    tales = corpus(stage_context.store, [f"Tale {number}." for number in range(24)], part_rows=12)
    with pytest.raises(EngineError, match=r"all rows from \d+ to \d+ failed alike: .*400") as caught:
        stage_context.finished(judge(engine=endpoint.engine), documents=[tales])
    assert "endpoint" in caught.value.cure


def test_a_wrong_answer_is_a_reject_that_says_what_the_judge_said(ray_cluster, stage_context, endpoint):
    tales = corpus(stage_context.store, TEXTS)
    graded = stage_context.finished(judge(engine=endpoint.engine), documents=[tales])
    counts = graded.manifest.counts
    assert counts["planned"] == ROWS == counts["succeeded"] + counts["rejected"]
    assert graded.manifest.reasons == {"invalid-json": 2, "out-of-range": 1, "truncated": 1}
    rejects = {row["id"] >> 16: row for row in rows(graded, "rejects")}
    assert "educational_value is 9, not a whole number from 0 to 5" in rejects[2]["detail"]
    assert json.loads(rejects[2]["text"])["educational_value"] == 9
    assert rejects[4]["text"] == "I give it a 5 of 5."
    assert "length" in endpoint.asked[0] or endpoint.asked[0]["response_format"]["json_schema"]["strict"]
    good = {row["id"] >> 16: row for row in rows(graded)}
    assert all(
        row["score"] == number % 6 and row["reason"] == f"It counts to {number}." for number, row in good.items()
    )
    assert graded.manifest.metrics["rejected_share"] == pytest.approx(4 / ROWS, abs=1e-4)


def test_grading_that_died_asks_only_for_what_is_missing(ray_cluster, stage_context, endpoint):
    tales = corpus(stage_context.store, TEXTS)
    answered: Counter[int] = Counter()
    refused = {8}
    grade = {"reason": "Because.", "educational_value": 3}

    def refuses(message: str) -> tuple[int, str, str]:
        number = number_of(message)
        if number in refused:
            time.sleep(0.3)
            return 401, "", "stop"
        answered[number] += 1
        return 200, json.dumps(grade), "stop"

    endpoint.answer = refuses
    stage = judge(engine=endpoint.engine, parts_in_flight=1)
    with pytest.raises(EngineError, match="401"):
        stage_context.finished(stage, documents=[tales])
    committed = {part.start for part in Artifact(tales.store, "artifacts/grades").parts}
    assert 5 not in committed
    assert answered.keys() >= {5, 6, 7, 9}, "the part's others were answered"
    assert not answered.keys() & {10, 11}, "a worker that failed begins no other part"
    refused.clear()
    graded = stage_context.finished(stage, documents=[tales])
    assert answered == Counter(range(ROWS)), "what was answered, and paid for, is asked once"
    counts = graded.manifest.counts
    assert (counts["planned"], counts["rows"], counts["reused"]) == (ROWS, ROWS, 0)
    assert counts["completion_tokens"] == 3 * ROWS
    assert not tales.store.names("artifacts/grades/saved")


def test_another_threshold_asks_nobody_and_needs_no_engine(ray_cluster, stage_context, endpoint):
    tales = corpus(stage_context.store, TEXTS)
    engine = {**endpoint.engine, "max_restarts": 0}
    grade = {"reason": "Because.", "educational_value": 3}
    endpoint.answer = lambda _: (200, json.dumps(grade), "stop")
    first = stage_context.finished(judge("judge-one", engine=engine, threshold=2), documents=[tales])
    asked = len(endpoint.asked)
    stage_context.close_engines()
    endpoint.answer = lambda _: (401, "", "stop")
    second = stage_context.finished(judge("judge-two", engine=engine, threshold=4), documents=[tales])
    assert asked == len(endpoint.asked) == ROWS
    assert rows(first) == rows(second)
    assert second.manifest.counts["reused"] == ROWS
    (pool,) = stage_context.pools.values()
    assert pool.stats().starts == 0, "an engine that is asked nothing does not start"


def test_a_pack_stage_keeps_what_reaches_the_threshold(ray_cluster, stage_context, endpoint):
    tales = corpus(stage_context.store, TEXTS)
    graded = stage_context.finished(judge(engine=endpoint.engine, threshold=3), documents=[tales])
    assert graded.store.read_json(f"{graded.folder}/{THRESHOLD}") == {"threshold": 3}
    tokenizer = stage_context.finished(
        TokenizerStage("tokenizer", validate(TokenizerStage.Settings, {"vocabulary": 512}, "tokenizer"), 3),
        documents=[tales],
    )
    inputs = {"documents": [tales], "tokenizer": [tokenizer], "scores": [graded]}
    good = {row["key"] for row in rows(graded) if row["score"] >= 3}
    packed = stage_context.finished(Pack("kept", PackSettings(validation_share=0), 3), **inputs)
    assert {row["key"] for row in rows(packed)} == good
    assert packed.manifest.metrics["minimum_score"] == 3
    assert packed.manifest.metrics["below_threshold"] == ROWS - len(good)


def test_a_share_is_part_of_a_larger_one_and_the_rest_is_declared(ray_cluster, stage_context):
    keys = [content_key(str(number).encode()) for number in range(2000)]
    tenth, half = ({key for key in keys if is_chosen(key, share, 1)} for share in (0.1, 0.5))
    assert tenth < half and 120 < len(tenth) < 290 and 850 < len(half) < 1150
    graded = stage_context.finished(judge(share=0.4), documents=[corpus(stage_context.store, TEXTS)])
    counts = graded.manifest.counts
    assert 0 < counts["rows"] < ROWS and counts["rows"] + counts["empty"] == ROWS


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rubric": "storys"}, r"stages\.grades\.rubric: there is no rubric 'storys' \(did you mean 'stories'"),
        ({"rubric": {"name": "x"}}, "instruction"),
        ({"rubric": "stories", "score": "plots"}, "did you mean 'plot'"),
        ({"rubric": "stories", "score": "age_group"}, "grades no number 'age_group'"),
        ({"threshold": 6}, "6 is not a score, those are 0 to 5"),
        ({"score": "educational_values"}, "did you mean 'educational_value'"),
    ],
)
def test_wrong_settings_are_found_before_anything_runs(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        judge(**settings)


def test_the_mean_of_different_scales_is_refused() -> None:
    criteria = [
        {"name": "one", "question": "?", "minimum": 0, "maximum": 1},
        {"name": "ten", "question": "?", "minimum": 1, "maximum": 10},
    ]
    rubric = {"name": "mixed", "instruction": "Judge.", "criteria": criteria}
    judge(rubric=rubric, score="ten", threshold=10)
    with pytest.raises(RecipeError, match="different scales"):
        judge(rubric=rubric)


def test_a_job_takes_the_rubric_along_and_finds_it_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "soup.yaml").write_text(SOUP)
    stages = {
        "tales": {"kind": "stories", "rows": 1, "engine": ECHO},
        "grades": {"kind": "judge", "inputs": {"documents": "tales"}, "rubric": "soup.yaml", "engine": ECHO},
        "more": {"kind": "judge", "inputs": {"documents": "tales"}, "rubric": "stories", "engine": ECHO},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps({"name": "recipe", "stages": stages}))
    with staged_code(tmp_path / "recipe.yaml") as (folder, recipe):
        (tmp_path / "soup.yaml").unlink()
        grades = load_recipe(str(folder / recipe)).stages["grades"].stage
        assert isinstance(grades, Judge) and grades.asking.rubric.name == "soup"


def test_a_rubric_file_is_part_of_what_is_made(tmp_path: Path) -> None:
    path = tmp_path / "soup.yaml"
    path.write_text(SOUP)
    stages = {
        "tales": {"kind": "stories", "rows": 1, "engine": ECHO},
        "grades": {"kind": "judge", "inputs": {"documents": "tales"}, "rubric": str(path), "engine": ECHO},
    }
    before, again = (check_recipe({"name": "x", "stages": stages}, "x").stages["grades"].stage for _ in range(2))
    assert before.extra_identity() == again.extra_identity() != {}
    path.write_text(SOUP.replace("Salty?", "Too salty?"))
    changed = check_recipe({"name": "x", "stages": stages}, "x").stages["grades"].stage
    assert changed.extra_identity() != before.extra_identity()


@pytest.mark.parametrize(
    ("grade", "reasons", "said"),
    [
        (lambda number: 3, ["It is good."], "100% of the scores lie between 3"),
        (lambda number: number % 6, ["It is good."], ""),
        (
            lambda number: number % 6,
            ["It is good.", "Well, it is advertising and explains nothing!"],
            "50% of the reasons",
        ),
        (lambda number: number // 5, ["It is good."], r"goes with the documents' length"),
    ],
)
def test_a_judge_that_tells_nothing_apart_measures_length_or_copies_reasons_is_warned_of(
    tmp_path: Path, grade: Any, reasons: list[str], said: str
) -> None:
    graded = Artifact(Store(str(tmp_path)), "artifacts/grades")
    rubric = judge().asking.rubric
    rows = [
        {
            "id": number, "key": bytes(16), "source": "s", "score": grade(number), "educational_value": grade(number),
            "reason": reasons[number % len(reasons)], "characters": 10 * number, "judge": "j", "revision": "v",
        }
        for number in range(30)
    ]  # fmt: skip
    content = PartContent(pa.Table.from_pylist(rows, schema=columns(rubric)), unit_of=same_ids)
    commit_part(graded.store, graded.folder, PartRange(0, 30), content)
    figures = judge_figures(graded, rubric, "mean", None)
    assert figures["copied_reasons"] == (0.5 if len(reasons) == 2 else 0)
    assert figures["graded"] == 30 and figures["kept"] == {}
    assert bool(figures["warnings"]) == bool(said) and re.search(said, " ".join(figures["warnings"]))
