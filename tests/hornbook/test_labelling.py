"""Grading by people: nothing that was graded is lost, nobody sees the judge's grade too soon, other files are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from annotated import READ, annotated
from hypothesis import given
from hypothesis import strategies as st

from hornbook.artifact import Artifact
from hornbook.errors import DataError, RecipeError, StoreError
from hornbook.grade_file import BadLine, GradeLine, append_grade_line, parse_grade_line, read_grade_lines
from hornbook.labelling import Labelling
from hornbook.store import Store

TEXTS = [f"Document {row} says {'something long, ' * (row % 3 * 4)}and ends." for row in range(14)]


@pytest.fixture
def labels(tmp_path: Path) -> Artifact:
    return annotated(Store(str(tmp_path / "store")), TEXTS, ungraded=[3])


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def grade_all(labelling: Labelling, grade: int = 2) -> list[int]:
    """Grade until nothing is open; return the places in the order in which they came."""
    came = []
    while (place := labelling.state()["next"]) is not None:
        came.append(place)
        labelling.grade(place, grade)
    return came


def test_every_document_comes_once_in_an_order_that_mixes_sources(labels: Artifact, tmp_path: Path) -> None:
    anna = Labelling(labels, tmp_path / "grades.jsonl", "anna")
    assert grade_all(anna) == list(range(14))
    written = lines(tmp_path / "grades.jsonl")
    assert sorted(line["id"] for line in written) == [row << 16 for row in range(14)]
    assert [line["id"] for line in written] != sorted(line["id"] for line in written)
    first = written[0]
    row = first["id"] >> 16
    assert (first["grade"], first["grader"], first["source"], first["input"]) == (2, "anna", f"source-{row % 2}", "web")
    assert bytes.fromhex(first["key"]) and first["time"].endswith("+00:00")
    # Who stops early has graded the same documents as the others.
    ben = Labelling(labels, tmp_path / "bens.jsonl", "ben")
    assert [ben.document(place)["text"] for place in range(14)] == [anna.document(place)["text"] for place in range(14)]


def test_what_the_judge_read_is_shown_and_the_whole_on_demand(labels: Artifact, tmp_path: Path) -> None:
    labelling = Labelling(labels, tmp_path / "grades.jsonl", "anna")
    for place in range(14):
        shown, whole = labelling.document(place), labelling.whole(place)
        assert whole["text"] in TEXTS and shown["text"] == whole["text"][:READ]
        assert shown["characters"] == whole["characters"] == len(whole["text"])


def test_the_whole_text_of_documents_that_are_gone_is_an_error_and_grading_goes_on(
    labels: Artifact, tmp_path: Path
) -> None:
    labels.store.delete("artifacts/web")
    labelling = Labelling(labels, tmp_path / "grades.jsonl", "anna")
    with pytest.raises(StoreError, match="no longer in the store"):
        labelling.whole(0)
    assert labelling.grade(0, 4)["graded"] == 1


def test_the_judge_and_the_source_are_told_only_after_the_grade(labels: Artifact, tmp_path: Path) -> None:
    curious = Labelling(labels, tmp_path / "grades.jsonl", "anna", show_judge=True)
    for place in range(14):
        assert not {"judge", "source"} & curious.document(place).keys()
        row = TEXTS.index(curious.whole(place)["text"])
        said = curious.grade(place, 1)
        assert said["source"] == f"source-{row % 2}"
        assert said["judge"] == (None if row == 3 else {"score": float(row % 6), "judge": "a small model"})
        assert curious.document(place)["judge"] == said["judge"]
    curious.undo()
    assert "judge" not in curious.document(13)
    assert Labelling(labels, tmp_path / "grades.jsonl", "anna").document(0)["judge"] is None


def test_reopening_goes_on_where_it_stood(labels: Artifact, tmp_path: Path) -> None:
    file = tmp_path / "grades.jsonl"
    before = Labelling(labels, file, "anna")
    before.grade(0, 5)
    before.grade(1, None)
    before.grade(2, 0)
    before.grade(0, 4)
    before.grade(3, 3)
    before.undo()
    after = Labelling(labels, file, "anna")
    assert after.state() == before.state() == {"total": 14, "graded": 2, "skipped": [1], "next": 3, "last": 0}
    assert (after.document(0)["grade"], after.document(2)["grade"], after.document(3)["grade"]) == (4, 0, None)
    assert after.document(1)["skipped"] and not after.document(3)["skipped"]
    assert Labelling(labels, file, "ben").state()["graded"] == 0  # another one grades for himself


def test_undo_takes_back_one_after_the_other(labels: Artifact, tmp_path: Path) -> None:
    labelling = Labelling(labels, tmp_path / "grades.jsonl", "anna")
    labelling.grade(0, 5)
    labelling.grade(1, None)
    assert labelling.undo()["next"] == 1
    assert labelling.undo() == {"total": 14, "graded": 0, "skipped": [], "next": 0, "last": None}
    with pytest.raises(DataError, match="nothing to take back"):
        labelling.undo()
    assert [line["grade"] for line in lines(tmp_path / "grades.jsonl")] == [5, None, None, None]  # only appended to


def test_after_a_grade_comes_the_next_open_document_then_what_was_left_out(labels: Artifact, tmp_path: Path) -> None:
    labelling = Labelling(labels, tmp_path / "grades.jsonl", "anna")
    assert labelling.grade(12, 1)["next"] == 13
    assert labelling.grade(13, 1)["next"] == 0


KILLED = """
import os, sys
from pathlib import Path
from hornbook.artifact import Artifact
from hornbook.labelling import Labelling
from hornbook.store import Store
labelling = Labelling(Artifact(Store(sys.argv[1]), "artifacts/labels"), Path(sys.argv[2]), "anna")
for place in range(int(sys.argv[3])):
    labelling.grade(place, 3)
os.kill(os.getpid(), 9)
"""


def test_a_kill_loses_nothing_that_was_answered(labels: Artifact, tmp_path: Path) -> None:
    file = tmp_path / "grades.jsonl"
    command = [sys.executable, "-c", KILLED, labels.store.url, str(file), "5"]
    assert subprocess.run(command, timeout=60).returncode == -9
    assert Labelling(labels, file, "anna").state()["graded"] == 5
    with file.open("ab") as torn:  # as a kill in the middle of a write leaves it
        torn.write(b'{"id": 65536, "key": "00')
    again = Labelling(labels, file, "anna")
    assert again.state()["graded"] == 5 and "1 lines of grades.jsonl are no grades" in again.remarks[0]
    again.grade(5, 1)
    good = [line for _, line in read_grade_lines(file) if isinstance(line, GradeLine)]
    assert len(good) == 6 and good[-1].grade == 1  # not glued to the torn one
    assert Labelling(labels, file, "anna").state()["graded"] == 6


def test_a_file_that_cannot_be_written_is_said_and_nothing_counts(labels: Artifact, tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "nowhere" / "grades.jsonl", Path("/proc/grades.jsonl")):
        with pytest.raises(RecipeError, match="cannot be written"):
            Labelling(labels, wrong, "anna")
    labelling = Labelling(labels, tmp_path / "grades.jsonl", "anna")
    labelling.file = Path("/dev/full")
    with pytest.raises(DataError, match=r"not saved: .*No space left"):
        labelling.grade(0, 3)
    assert labelling.state()["graded"] == 0 and labelling.document(0)["grade"] is None


def test_a_partly_written_line_is_ended_before_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "grades.jsonl"
    file.write_bytes(b'{"id": 1')
    append_grade_line(file, GradeLine(1, "00" * 16, 3, "anna"))
    assert [type(line) for _, line in read_grade_lines(file)] == [BadLine, GradeLine]


def test_other_files_and_other_artifacts_are_refused(labels: Artifact, tmp_path: Path) -> None:
    stories = tmp_path / "stories.jsonl"
    stories.write_text('{"text": "Once"}\n{"text": "upon"}\n')
    with pytest.raises(DataError, match="no file of grades: it has no id, key, grade, grader"):
        Labelling(labels, stories, "anna")
    assert stories.read_text() == '{"text": "Once"}\n{"text": "upon"}\n'
    one_line = tmp_path / "one.json"
    one_line.write_text('["one line"]')
    with pytest.raises(DataError, match="no file of grades: it is no JSON object"):
        Labelling(labels, one_line, "anna")
    others = tmp_path / "others.jsonl"
    append_grade_line(others, GradeLine(7, "ab" * 16, 3, "anna"))
    with pytest.raises(DataError, match="1 grades of other documents"):
        Labelling(labels, others, "anna")
    with pytest.raises(DataError, match="is of the kind files: it does not hold what a judge read"):
        Labelling(Artifact(labels.store, "artifacts/web"), tmp_path / "grades.jsonl", "anna")
    for name in ("", "  ", "a\nb", "x" * 101):
        with pytest.raises(RecipeError, match="is no name"):
            Labelling(labels, tmp_path / "grades.jsonl", name)


@pytest.mark.parametrize("grade", [6, -1, 2.5, True, "3", float("nan")])
def test_only_whole_grades_from_0_to_5_are_taken(labels: Artifact, tmp_path: Path, grade: Any) -> None:
    labelling = Labelling(labels, tmp_path / "grades.jsonl", "anna")
    with pytest.raises(DataError, match="is no grade"):
        labelling.grade(0, grade)
    for place in (-1, 14, "0"):
        with pytest.raises(DataError, match="no document"):
            labelling.grade(place, 3)  # type: ignore[arg-type]
    assert (tmp_path / "grades.jsonl").read_bytes() == b""


GOOD = {"id": 65536, "key": "0a" * 16, "grade": 3, "grader": "anna"}


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"id": 65536, "key": "00', "not-json"),
        (b"\x00\x00\x00", "not-json"),
        (b'{"id": 1, "grader": "a\x00b"}', "not-json"),
        (b"\xff\xfe", "not-utf8"),
        (b"[" * 10_000, "not-json"),
        (b"[1, 2]", "wrong-type"),
        ({"grade": float("nan")}, "out-of-range"),
        ({"grade": float("inf")}, "out-of-range"),
        ({"grade": 10**400}, "out-of-range"),
        ({"grade": 5.01}, "out-of-range"),
        ({"grade": "3"}, "wrong-type"),
        ({"grade": True}, "wrong-type"),
        ({"id": "1"}, "wrong-type"),
        ({"id": 1 << 63}, "wrong-type"),
        ({"id": 1.0}, "wrong-type"),
        ({"key": "0a"}, "wrong-type"),
        ({"key": "zz" * 16}, "wrong-type"),
        ({"key": None}, "wrong-type"),
        ({"grader": ""}, "wrong-type"),
        ({"grader": "a\u0000b"}, "wrong-type"),
        ({"grader": "\ud800"}, "wrong-type"),
        ({"skipped": 1}, "wrong-type"),
        ({"source": 7}, "wrong-type"),
    ],
)
def test_a_line_that_is_no_grade_says_why(line: Any, reason: str) -> None:
    found = parse_grade_line(line if isinstance(line, bytes) else json.dumps({**GOOD, **line}).encode())
    assert isinstance(found, BadLine) and found.reason == reason and found.detail


def test_a_line_of_another_program_needs_no_more_than_four_keys() -> None:
    assert parse_grade_line(json.dumps({**GOOD, "grade": 2.5, "mood": "good"}).encode()) == GradeLine(
        65536, "0a" * 16, 2.5, "anna"
    )


@given(st.binary(max_size=200))
def test_no_line_whatever_breaks_the_reader(data: bytes) -> None:
    assert isinstance(parse_grade_line(data), GradeLine | BadLine)


def test_a_line_without_end_is_one_reject(tmp_path: Path) -> None:
    file = tmp_path / "grades.jsonl"
    file.write_bytes(b"x" * 3_000_000 + b"\n\n" + json.dumps(GOOD).encode())
    found = list(read_grade_lines(file))
    assert [(number, type(line)) for number, line in found] == [(1, BadLine), (3, GradeLine)]
    assert found[0][1].reason == "too-long" and len(found[0][1].text) == 200


def test_the_command_serves_the_page_until_ctrl_c(labels: Artifact, tmp_path: Path) -> None:
    def command(*words: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "HORNBOOK_STORE": labels.store.url, "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "hornbook.cli", "label", *words],
            env=environment,
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    refused = command("web", "--file", "grades.jsonl")
    _, error = refused.communicate(timeout=60)
    assert refused.returncode == 1 and "error: artifacts/web is of the kind files" in error and "cure:" in error
    page = command("labels", "--file", "grades.jsonl", "--grader", "anna", "--no-browser")
    assert page.stdout.readline() == "0 of 14 documents are graded by anna, in grades.jsonl\n"
    address = page.stdout.readline().split(": ", 1)[1].strip()
    with urllib.request.urlopen(f"{address}api/state", timeout=10) as answer:
        assert json.load(answer)["total"] == 14
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert b"label.js" in answer.read()
    page.send_signal(signal.SIGINT)
    _, error = page.communicate(timeout=20)
    assert (page.returncode, error) == (0, "")
