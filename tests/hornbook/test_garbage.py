"""Deleting: a kill in between leaves no torn artifact; what a running run may want stays; damaged records harm nobody."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import FileSelector, FileType, LocalFileSystem
from small_artifacts import make, stories

from hornbook.artifact import Artifact, delete_artifact, lock_name
from hornbook.garbage import collect, plan_collection
from hornbook.inspection import list_runs
from hornbook.lock import hold
from hornbook.parts import read_commits
from hornbook.runs import load_run, new_run, run_ids
from hornbook.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def stage(kind: str, artifact: Artifact | None = None) -> dict[str, Any]:
    return {"kind": kind, "folder": artifact.folder if artifact else "", "state": "pending"}


def garbage(store: Store, keep: int = 1) -> set[str]:
    return {name for name, _, _ in plan_collection(store, keep).garbage}


class Killed(Exception):
    pass


class KilledWhileDeleting:
    """A file system that deletes some files, one by one, and then nothing any more, as if the process had been killed."""

    def __init__(self, deletions: int) -> None:
        self.real, self.left = LocalFileSystem(), deletions

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def delete_file(self, path: str) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1
        self.real.delete_file(path)

    def delete_dir(self, path: str) -> None:
        for info in sorted(self.real.get_file_info(FileSelector(path, recursive=True)), key=lambda info: info.path):
            if info.type == FileType.File:
                self.delete_file(info.path)
        self.real.delete_dir(path)


def test_no_kill_while_deleting_leaves_an_artifact_that_is_taken_for_whole(tmp_path: Path) -> None:
    for deletions in range(9):
        store = Store(str(tmp_path / str(deletions)))
        store.write("artifacts/stories-a000000000000000/steps/1/checkpoint.json", b"{}")
        store.write("artifacts/stories-a000000000000000/steps/1/data", b"data")
        artifact = make(store, "a", "stories", "documents", [stories(["one"]), stories(["two"], start=1)])
        store._filesystem = KilledWhileDeleting(deletions)
        files = len(store.files(artifact.folder))
        assert files == 7
        if deletions < files:
            with pytest.raises(Killed):
                delete_artifact(artifact)
        else:
            delete_artifact(artifact)
        found = dict(store.files(artifact.folder))
        assert len(found) == max(0, files - deletions)
        assert artifact.complete == (deletions == 0)
        for record in read_commits(store, artifact.folder):
            assert all(file.name in found for file in record.files), f"torn after {deletions} deletions"
        assert "steps/1/data" in found or "steps/1/checkpoint.json" not in found


def test_a_running_run_keeps_what_its_later_stages_may_reuse(store: Store) -> None:
    books = make(store, "a", "textbooks", "documents", [stories(["one"])])
    tales = make(store, "b", "stories", "documents", [stories(["one"])])
    with new_run(store, "small", {"stages": {"textbooks": stage("textbooks")}}) as run:
        assert garbage(store) == {tales.folder}
        run.update_stage("textbooks", folder="artifacts/textbooks-another")
        assert garbage(store) == {tales.folder, books.folder}


def test_what_a_kept_artifact_was_made_from_stays(store: Store) -> None:
    books = make(store, "a", "textbooks", "documents", [stories(["one"])])
    questions = make(store, "b", "questions", "documents", [stories(["q"])], {"documents": [books]})
    with new_run(store, "small", {"stages": {"questions": stage("questions", questions)}}) as run:
        run.update(state="succeeded")
    assert garbage(store) == set()


def test_who_comes_between_listing_and_deleting_keeps_what_he_needs(store: Store) -> None:
    held, wanted, reusable, useless = (make(store, name, f"kind{name}", "documents") for name in "abcd")
    plan = plan_collection(store, keep=1)
    assert {name for name, _, _ in plan.garbage} == {held.folder, wanted.folder, reusable.folder, useless.folder}
    stages = {"one": stage("kindb", wanted), "two": stage("kindc")}
    with hold(store, lock_name(held.folder), "other", print), new_run(store, "small", {"stages": stages}):
        left = collect(store, plan)
    assert set(left) == {held.folder, wanted.folder, reusable.folder}
    assert all(Artifact(store, folder).complete for folder in left)
    assert not store.exists(useless.folder)


def test_files_of_lost_attempts_are_collected_and_nothing_else(store: Store) -> None:
    artifact = make(store, "a", "stories", "documents", [stories(["one"]), stories(["two"], start=1)])
    whole = store.files(artifact.folder)
    with new_run(store, "small", {"stages": {"stories": stage("stories", artifact)}}) as run:
        run.update(state="succeeded")
    for name in ("data/000000000000-0123456789ab.parquet", "parts/.writing-0123"):
        store.write(f"{artifact.folder}/{name}", b"lost")
    store.write(f"{artifact.folder}/notes.txt", b"not ours")
    plan = plan_collection(store, keep=1)
    assert plan.garbage == []
    assert plan.leftovers == [(artifact.folder, "2 files of lost attempts in it", 8)]
    assert plan.rows()[0][0] == artifact.folder
    assert collect(store, plan) == []
    assert sorted(store.files(artifact.folder)) == sorted([*whole, ("notes.txt", 8)])
    assert plan_collection(store, keep=1).leftovers == []


def test_one_damaged_record_is_passed_over_by_name(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with new_run(store, "small", {"stages": {}}) as run:
            run.update(state="succeeded")
    store.write("runs/broken/run.json", b"{ torn")
    store.write("runs/odd/run.json", b"[1]")
    assert load_run(store, "latest").id == run.id
    assert [row[0] for row in list_runs(store)][-1] == run.id
    assert len(plan_collection(store, keep=1).garbage) == 1
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 6
    assert "runs/broken/run.json is damaged" in warnings[0] and "runs/odd/run.json is damaged" in warnings[1]
    assert "broken" in run_ids(store)


def test_a_dead_run_elsewhere_is_collected(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    with new_run(store, "small", {"stages": {}}) as run:
        monkeypatch.undo()
        assert garbage(store, keep=0) == set()
        monkeypatch.setattr("hornbook.lock.STALE_SECONDS", 0.0)
        time.sleep(0.01)
        assert garbage(store, keep=0) == {run.folder}
