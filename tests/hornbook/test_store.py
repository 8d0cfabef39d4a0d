"""The store: the same promises on a local disk and on an object store (a real S3 server on loopback)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hornbook.errors import StoreError
from hornbook.lock import hold, read_holder
from hornbook.store import Store, open_store


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store(str(tmp_path / "store"))
    return Store(request.getfixturevalue("s3_url").replace("STORE", tmp_path.name))


def test_files_round_trip(store: Store, tmp_path: Path) -> None:
    assert not store.exists("a/b.json")
    assert store.names("a") == []
    store.write_json("a/b.json", {"x": [1, "é"]})
    store.write("a/c.bin", b"\x00" * 70_000)
    assert store.read_json("a/b.json") == {"x": [1, "é"]}
    assert store.names("a") == ["b.json", "c.bin"]
    assert store.size("a/c.bin") == 70_000
    store.write("a/c.bin", b"shorter")
    assert store.read("a/c.bin") == b"shorter"
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "one.txt").write_text("one")
    store.upload(folder, "copied")
    assert store.files("copied") == [("inner/one.txt", 3)]
    assert (store.download("copied", tmp_path / "down") / "inner" / "one.txt").read_text() == "one"
    store.delete("a")
    assert not store.exists("a/b.json")


def test_create_never_replaces(store: Store) -> None:
    assert store.create("record", b"first")
    assert not store.create("record", b"second")
    assert store.read("record") == b"first"


def test_a_missing_file_is_named(store: Store) -> None:
    with pytest.raises(StoreError, match=r"there is no .*nothing/here"):
        store.read("nothing/here")


def test_what_cannot_be_looked_at_is_said_with_a_cure(tmp_path: Path) -> None:
    store, name = Store(str(tmp_path)), "x" * 300  # longer than a file's name may be
    for look in (store.exists, store.size, store.names, store.files, store.read, store.open_input, store.delete):
        with pytest.raises(StoreError, match=r"cannot be read.*too long") as caught:
            look(name)
        assert "HORNBOOK_STORE" in caught.value.cure


def test_a_bucket_out_of_reach_is_said_with_a_cure() -> None:
    store = Store("s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1")
    with pytest.raises(StoreError, match="s3://bucket/x/artifacts cannot be read") as caught:
        store.names("artifacts")  # pyarrow tries for six seconds
    assert "network" in caught.value.cure


def test_damaged_json_is_named(store: Store) -> None:
    store.write("bad.json", b"{ torn")
    with pytest.raises(StoreError, match=r"bad\.json is damaged"):
        store.read_json("bad.json")


def test_json_that_comes_torn_from_an_object_store_is_read_again(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pyarrow gives a file that is replaced between its two requests; a store out of reach is asked once."""
    store = Store(s3_url.replace("STORE", tmp_path.name))
    store.write("x.json", b'{"a": 1}')
    failed = "AWS Error INTERNAL_FAILURE during GetObject operation: Failed to flush response stream"
    answers: list[bytes | OSError] = [b'{"a', b'{"a": 1}\xb1', OSError(failed)]
    read = Store.read

    def torn(self: Store, name: str) -> bytes:
        answer = answers.pop(0) if answers else read(self, name)
        if isinstance(answer, bytes):
            return answer
        raise StoreError(f"{name} cannot be read: {answer}") from answer

    monkeypatch.setattr(Store, "read", torn)
    assert store.read_json("x.json") == {"a": 1}
    answers[:] = [OSError("AWS Error NETWORK_CONNECTION during GetObject operation"), b"{}"]
    with pytest.raises(StoreError, match="NETWORK_CONNECTION"):
        store.read_json("x.json")


def test_a_lock_is_held_by_one_and_taken_over_from_the_dead(store: Store) -> None:
    said: list[str] = []
    with hold(store, "locks/x.json", "run-1", said.append):
        holder = read_holder(store, "locks/x.json")
        assert holder is not None and holder.alive() and holder.pid == os.getpid()
        holder.pid, holder.started = 2**22 - 1, 0.0  # nobody
        store.write("locks/x.json", __import__("json").dumps(vars(holder)).encode())
    with hold(store, "locks/x.json", "run-2", said.append):
        current = read_holder(store, "locks/x.json")
        assert current is not None and current.run == "run-2"
    assert read_holder(store, "locks/x.json") is None


def test_waiting_says_who_holds_the_lock(tmp_path: Path) -> None:
    store, said = Store(str(tmp_path)), []
    script = (
        "import sys, time\nfrom hornbook.lock import hold\nfrom hornbook.store import Store\n"
        "with hold(Store(sys.argv[1]), 'lock', 'run-of-the-other', print):\n    print('held', flush=True)\n    time.sleep(3)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    began = time.monotonic()
    with hold(store, "lock", "mine", said.append):
        assert time.monotonic() - began > 1
    assert f"held by run-of-the-other (process {other.pid}" in said[0]
    other.wait()


def test_relative_stores_are_refused_in_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HORNBOOK_STORE", raising=False)
    assert open_store().local == tmp_path / "hornbook-store"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(StoreError, match="temporary copy") as caught:
        open_store()
    assert "HORNBOOK_STORE" in caught.value.cure
    monkeypatch.setenv("HORNBOOK_STORE", "/somewhere")
    assert open_store().url == "/somewhere"
