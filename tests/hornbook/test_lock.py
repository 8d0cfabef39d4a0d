"""Locks: one holder at a time however many race, on a disk and on an object store; who loses one notices."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from hornbook import lock
from hornbook.errors import StoreError
from hornbook.lock import Holder, hold, read_holder, try_hold
from hornbook.runs import all_runs, load_run, new_run
from hornbook.store import Store

NAME = "locks/x.json"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.8, raising=False)


@pytest.fixture
def s3(s3_url: str, tmp_path: Path) -> Store:
    return Store(s3_url.replace("STORE", tmp_path.name))


def quiet(line: str) -> None:
    pass


def plant(store: Store, name: str, **values: object) -> Holder:
    """Write a lock file as another process left it; by default one that died on this host."""
    holder = Holder(**{**asdict(Holder.here("the-other")), "pid": 2**22 - 1, "started": 0.0, **values})  # type: ignore[arg-type]
    store.write(name, json.dumps(asdict(holder)).encode())
    return holder


def race(store: Store, threads: int, seconds: float) -> int:
    """Let threads take the lock once each, all at the same moment; return how many held it at the same time at most."""
    start, guard = threading.Barrier(threads), threading.Lock()
    inside, most, failures = 0, 0, []

    def work() -> None:
        nonlocal inside, most
        mine = Store(store.url)
        start.wait()
        try:
            with hold(mine, NAME, "racer", quiet):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(seconds)
                with guard:
                    inside -= 1
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not failures
    return most


def test_a_dead_holder_s_lock_goes_to_one_of_those_who_wait(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for _ in range(15):
        plant(store, NAME)
        assert race(store, threads=6, seconds=0.01) == 1
    assert read_holder(store, NAME) is None


def test_an_object_store_admits_one_of_those_who_come_at_once(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 6.0)  # the tests' server may answer slowly beside other work
    plant(s3, NAME)
    assert race(s3, threads=3, seconds=0.6) == 1


def test_a_lock_that_another_took_is_not_written_over_and_its_loser_notices(tmp_path: Path) -> None:
    store, said = Store(str(tmp_path)), []
    with hold(store, NAME, "mine", said.append) as held:
        held.check()
        other = plant(store, NAME, pid=1)
        while not held.lost:
            time.sleep(0.01)
        with pytest.raises(StoreError, match="was taken from this run") as caught:
            held.check()
        assert "run the same command again" in caught.value.cure
        time.sleep(0.1)  # some beats
        assert read_holder(store, NAME) == other
    assert read_holder(store, NAME) == other
    assert "was taken from this run" in said[0]


def test_check_looks_into_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 3600)
    store = Store(str(tmp_path))
    with hold(store, NAME, "mine", quiet) as held:
        store.delete(NAME)
        assert not held.lost
        with pytest.raises(StoreError):
            held.check()


def test_trying_does_not_wait(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with hold(store, NAME, "mine", quiet), try_hold(store, NAME, "another") as held:
        assert held is None
    with try_hold(store, NAME, "another") as held:
        assert held is not None
    assert read_holder(store, NAME) is None


def test_a_damaged_lock_is_named_instead_of_waited_for(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write(NAME, b"{")
    with pytest.raises(StoreError, match=r"locks/x\.json is damaged"), hold(store, NAME, "mine", quiet):
        raise AssertionError("held")


def test_a_run_is_alive_as_long_as_its_heartbeat_wherever_it_runs(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with new_run(store, "small", {"stages": {}}) as run:
        assert load_run(store, "latest").state() == "running"
        beat = f"{run.folder}/alive.json"
        first = read_holder(store, beat)
        time.sleep(0.1)
        again = read_holder(store, beat)
        assert first is not None and again is not None and again.beat > first.beat
        plant(store, beat, host="elsewhere", beat=time.time() - 10)
        assert load_run(store, "latest").state() == "running"
        plant(store, beat, host="elsewhere", beat=time.time() - 100)
        assert load_run(store, "latest").state() == "dead"
        store.delete(beat)
        assert [found.state() for found in all_runs(store)] == ["dead"]
        record = load_run(store, "latest")
        run.update(state="succeeded")
        assert record.state() == "succeeded"  # read before it ended, asked after
