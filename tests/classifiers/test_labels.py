"""People's grades as annotations: which lines count, which are refused, what they weigh and how far people agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from finished_artifact import finish
from in_process import context_of, corpus, finished

from classifiers.annotate import ANNOTATION_SCHEMA
from classifiers.labels import Labels
from hornbook.artifact import Artifact
from hornbook.documents import content_key
from hornbook.errors import DataError, RecipeError
from hornbook.grade_file import GradeLine, append_grade_line
from hornbook.parts import PartContent, PartRange, commit_part, same_ids
from hornbook.store import Store

TEXTS = [f"text {row} ".ljust(20 if row % 3 else 2000, "x") for row in range(30)]
SOURCES = ["rare" if row % 10 == 0 else "common" for row in range(30)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def web(store: Store) -> Artifact:
    return corpus(store, "web", TEXTS, part_rows=7, sources=SOURCES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "grades.jsonl"


def give(file: Path, row: int, grade: float | None, grader: str = "anna", corpus: str = "web") -> None:
    key = content_key(f"{corpus} {row}".encode()).hex()
    append_grade_line(file, GradeLine(row << 16, key, grade, grader, skipped=grade is None))


def labels_of(
    file: Path, store: Store, *documents: Artifact, judge: Sequence[Artifact] = (), **settings: Any
) -> Artifact:
    stage = Labels("people", Labels.Settings(file=str(file), **settings), seed=1)
    stage.check()
    return finished(stage, store, documents=documents, **({"judge": judge} if judge else {}))


def rows_of(artifact: Artifact) -> dict[int, dict[str, Any]]:
    return {row["id"] >> 16: row for table in artifact.tables() for row in table.to_pylist()}


def judged(store: Store, scores: dict[int, float], weight: float) -> Artifact:
    """Return a judge's annotations of the corpus `web`."""
    rows = [
        {
            "id": row << 16, "key": content_key(f"web {row}".encode()), "source": "web", "score": score,
            "score_a": score, "grade_a": "Yes", "judge": "small", "revision": "1", "weight": weight,
        }
        for row, score in scores.items()
    ]  # fmt: skip
    artifact = Artifact(store, "artifacts/judge")
    content = PartContent(
        pa.Table.from_pylist(rows, ANNOTATION_SCHEMA), planned=[row << 16 for row in scores], unit_of=same_ids
    )
    commit_part(store, artifact.folder, PartRange(0, len(rows)), content)
    finish(artifact, "attributes", kind="annotate")
    return artifact


def test_the_last_grade_of_a_grader_counts_and_several_make_a_mean(file, store, web):
    give(file, 3, 1)
    give(file, 3, 4)  # anna's mind changed
    give(file, 3, 5, "ben")
    give(file, 10, 2)
    give(file, 11, 3)
    give(file, 11, None)  # taken back
    give(file, 12, None, "ben")  # skipped
    found = labels_of(file, store, web)
    rows = rows_of(found)
    assert rows.keys() == {3, 10}
    assert (rows[3]["score"], rows[3]["score_a"], rows[3]["score_b"]) == (4.5, 4.0, 5.0)
    assert (rows[3]["judge"], rows[3]["grade_a"], rows[3]["grade_b"]) == ("anna + ben", "4", "5")
    assert (rows[10]["score"], rows[10]["score_b"], rows[10]["source"]) == (2.0, None, "rare")
    assert pa.Table.from_pylist(list(rows.values()), schema=ANNOTATION_SCHEMA).num_rows == 2
    counts = found.manifest.counts
    assert (counts["planned"], counts["rows"], counts["rejected"], counts["empty"]) == (2, 2, 0, 0)
    assert found.manifest.metrics["without_grade"] == 2
    assert found.manifest.metrics["graders"] == {"anna": 2, "ben": 1}


def test_only_named_graders_count(file, store, web):
    give(file, 3, 1)
    give(file, 3, 5, "ben")
    assert rows_of(labels_of(file, store, web, graders="ben"))[3]["score"] == 5.0
    with pytest.raises(RecipeError, match=r"'bin' graded nothing .*did you mean 'ben'"):
        labels_of(file, store, web, graders=("bin",))


def test_lines_that_are_no_grades_are_rejected_with_their_number(file, store, web):
    for row in range(5):
        give(file, row, 3)
    give(file, 77, 2)  # there is no such document
    give(file, 6, 2, corpus="other")  # there is one, with another key
    with file.open("ab") as end:
        end.write(b'{"id": 65536, "key": "\x00\x00", "grade": NaN}\n{"id": 65536, "gra')
    found = labels_of(file, store, web)
    counts = found.manifest.counts
    assert (counts["planned"], counts["rows"], counts["rejected"]) == (9, 5, 4)
    assert found.manifest.reasons == {"unknown-document": 2, "not-json": 2}
    rejects = [row for table in found.tables(role="rejects") for row in table.to_pylist()]
    assert [row["unit"] for row in rejects] == [f"grades.jsonl, line {number}" for number in (6, 7, 8, 9)]
    assert f"the id {6 << 16} and the key {content_key(b'other 6').hex()}" in rejects[1]["detail"]
    assert "4 of 9 lines count for nothing" in found.manifest.metrics["warnings"][0]


def test_weights_add_up_to_the_strata_that_were_graded(file, store, web):
    for row in (1, 2, 4, 3, 10):
        give(file, row, 3)
    rows = rows_of(labels_of(file, store, web))
    common = [row for row in range(30) if SOURCES[row] == "common"]
    short, long = ([row for row in common if (len(TEXTS[row]) < 100) is is_short] for is_short in (True, False))
    assert [rows[row]["weight"] for row in (1, 2, 4)] == pytest.approx([len(short) / 3] * 3)
    assert rows[3]["weight"] == len(long)
    assert rows[10]["weight"] == sum(source == "rare" and row % 3 > 0 for row, source in enumerate(SOURCES))


def test_beside_a_judge_they_weigh_the_same_and_their_agreement_is_measured(file, store, web):
    for row in range(8):
        give(file, row, row % 6)
    judge = judged(store, {row: 5 - row % 6 for row in range(1, 20)}, weight=1.5)
    found = labels_of(file, store, web, judge=[judge])
    with_judge = found.manifest.metrics["agreement_with_judge"]
    assert (with_judge["of"], with_judge["first"], with_judge["second"]) == ("people and judge", "anna", "judge")
    assert (with_judge["documents"], with_judge["spearman"]) == (7, -1.0)
    rows = rows_of(found)
    assert with_judge["bias"] == pytest.approx(np.mean([2 * (row % 6) - 5 for row in range(1, 8)]), abs=1e-3)
    assert {rows[row]["weight"] for row in range(1, 8)} == {1.5}
    assert found.manifest.columns == judge.manifest.columns  # what learns from one learns from the other
    assert rows[3]["key"] == rows_of(judge)[3]["key"]


def test_agreement_of_graders_is_measured_where_both_graded(file, store, web):
    for row in range(6):
        give(file, row, row % 6)
        give(file, row, min(5, row % 6 + 1), "ben")
    for row in (4, 5, 20):
        give(file, row, 1, "carl")
    metrics = labels_of(file, store, web).manifest.metrics
    assert metrics["agreement"]["of"] == "two people"
    assert (metrics["agreement"]["first"], metrics["agreement"]["second"]) == ("anna", "ben")
    assert (metrics["agreement"]["documents"], metrics["agreement"]["within_one"]) == (6, 1.0)
    assert [pair["documents"] for pair in metrics["agreement_of_graders"]] == [6, 2, 2]
    assert metrics["agreement_with_judge"] == {}


def test_grades_of_several_corpora_stay_apart(file, store, web):
    more = corpus(store, "more", TEXTS, part_rows=30, sources=SOURCES)
    for row in range(4):
        give(file, row, 1)
        give(file, row, 5, corpus="more")
    found = labels_of(file, store, web, more)
    assert [part.rows for part in found.parts] == [4, 4]
    assert [table["score"].to_pylist() for table in found.tables()] == [[1.0] * 4, [5.0] * 4]


def test_before_anybody_graded_the_error_says_how(file, store, web):
    with pytest.raises(DataError, match=r"nobody has graded yet\n.*hornbook label test/STAGE --file"):
        labels_of(file, store, web)
    stage = Labels("people", Labels.Settings(file=str(file)), seed=1)
    assert stage.extra_identity() == {"file": "none"}
    give(file, 1, 3)
    assert stage.extra_identity() != {"file": "none"}  # planned before, run after somebody graded
    assert rows_of(finished(stage, store, documents=[web])).keys() == {1}


def test_other_grades_are_another_artifact(file, store):
    def identity() -> dict[str, str]:
        return Labels("people", Labels.Settings(file=str(file)), seed=1).extra_identity()

    give(file, 1, 3)
    before = identity()
    assert before == identity()
    give(file, 1, 4)
    assert identity() != before


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "has no grade of any of these documents: it is empty"),
        (
            b'{"text": "a story"}\n{"text": "another"}\n',
            r"is no file of grades: line 1 \(wrong-type\): it has no id, key",
        ),
        (b"\x00" * 100_000 + b"\n" + b"\xff\n", "is no file of grades: line 1"),
        (b'{"id": 1, "key"', "line 1: .*a line that a kill tore"),
    ],
)
def test_files_of_something_else_are_errors(file, store, web, content, message):
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        labels_of(file, store, web)


def test_grades_of_other_documents_are_an_error_that_names_one(file, store, web):
    give(file, 5, 2, corpus="other")
    with pytest.raises(DataError, match=r"grades.jsonl, line 1: none of the 30 documents has the id"):
        labels_of(file, store, web)
    file.unlink()
    give(file, 5, None)
    with pytest.raises(DataError, match="all were taken back or skipped"):
        labels_of(file, store, web)


def test_a_folder_and_a_judge_without_scores_are_refused(file, store, web, tmp_path):
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        labels_of(tmp_path, store, web)
    give(file, 5, 2)
    with pytest.raises(RecipeError, match="has no scores"):
        labels_of(file, store, web, judge=[web])


def test_a_run_that_died_between_two_parts_goes_on(file, store, web):
    for row in range(5):
        give(file, row, 3)
    give(file, 77, 2)
    first = labels_of(file, store, web)
    store.delete(f"{first.folder}/manifest.json")
    store.delete(f"{first.folder}/parts/{5:012d}.json")
    again = labels_of(file, store, web)
    assert again.manifest.digest == first.manifest.digest and again.manifest.counts["rejected"] == 1


def test_no_documents_at_all(file, store):
    give(file, 1, 2)
    with pytest.raises(DataError, match="none of the 0 documents"):
        labels_of(file, store, corpus(store, "none", []))


def test_a_line_may_come_from_another_program(file, store, web):
    value = {"id": 4 << 16, "key": content_key(b"web 4").hex().upper(), "grade": 2.5, "grader": "spreadsheet"}
    file.write_text(f"\n{json.dumps(value)}\n\n")
    assert rows_of(labels_of(file, store, web))[4]["grade_a"] == "2.5"


def test_one_stage_of_the_table(tmp_path):
    from hornbook.stages import stage_class

    assert stage_class("labels", "test") is Labels
    assert context_of(Labels("people", Labels.Settings(file="x"), seed=1), Store(str(tmp_path))).stage == "people"
