"""Tests that mount a small disk; test_small_disk.py runs them where they may: in a mount namespace of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Answer, write_recipe

from hornbook.artifact import Artifact
from hornbook.errors import StoreError
from hornbook.store import Store


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder to mount on; the mounts end with the namespace."""
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def mount(disk: Path, options: str) -> None:
    """Mount a tmpfs with options, or remount it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)


def test_a_full_disk_is_said_and_nothing_half_written_counts(disk: Path) -> None:
    mount(disk, "size=256k")
    store = Store(str(disk))
    store.write("kept", b"x" * 1000)
    with pytest.raises(StoreError, match="No space left") as caught:
        store.write("kept", b"y" * 1_000_000)
    assert "hornbook gc" in caught.value.cure
    assert store.read("kept") == b"x" * 1000
    assert store.names("") == ["kept"]


def test_a_read_only_store_is_said(
    hornbook: Callable[..., Answer],
    tmp_path: Path,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mount(disk, "size=400k")
    mount(disk, "remount,ro")
    monkeypatch.setenv("HORNBOOK_STORE", str(disk / "store"))
    answer = hornbook("run", write_recipe(tmp_path))
    assert answer.code == 1
    assert "the file system is read-only: choose another HORNBOOK_STORE" in answer.err
    assert "Traceback" not in answer.err


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(
    hornbook: Callable[..., Answer],
    tmp_path: Path,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    ray_cluster: None,
) -> None:
    mount(disk, "size=400k")
    monkeypatch.setenv("HORNBOOK_STORE", str(disk / "store"))
    recipe = write_recipe(tmp_path, parts_in_flight=3)
    answer = hornbook("run", recipe)
    assert answer.code == 1
    assert "the disk is full: free space" in answer.err
    assert "Traceback" not in answer.err
    store = Store(str(disk / "store"))
    (name,) = store.names("artifacts")
    kept = store.names(f"artifacts/{name}/drafts/parts")
    assert 0 < len(kept) < 20
    assert not Artifact(store, f"artifacts/{name}").complete
    mount(disk, "remount,size=64m")
    assert hornbook("run", recipe).code == 0
    artifact = Artifact(store, f"artifacts/{name}")
    rows = [identifier >> 16 for table in artifact.tables(columns=["id"]) for identifier in table["id"].to_pylist()]
    rejects = [identifier for table in artifact.tables("rejects") for identifier in table["id"].to_pylist()]
    assert sorted(rows + rejects) == list(range(400))
    assert set(kept) <= set(store.names(f"artifacts/{name}/parts"))
    for part in artifact.parts:
        for file in part.files:
            assert store.size(f"{artifact.folder}/{file.name}") == file.size
    assert not list(disk.rglob(".writing-*"))
