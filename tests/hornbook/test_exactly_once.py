"""Exactly once, by real kills: driver, worker and engine die by SIGKILL, and every planned row is there once.

The evidence for what was redone is the engine's own append-only request log, not hornbook's books.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from hornbook.artifact import Artifact
from hornbook.parts import read_commits
from hornbook.store import Store

KILLS = 10
ROWS, PART_ROWS, PARTS_IN_FLIGHT = 360, 4, 3
IN_FLIGHT = PART_ROWS * PARTS_IN_FLIGHT
SLOW_START_SECONDS = 240.0  # other work may share the machine

pytestmark = pytest.mark.slow


class Place:
    """A store, a recipe of one stage with a request log, and the drivers that were started on them."""

    def __init__(self, folder: Path, rows: int, engine: dict[str, Any], **settings: Any) -> None:
        self.store = Store(str(folder / "store"))
        self.log = folder / "requests.txt"
        self.output = folder / "output.txt"
        self.recipe = folder / "recipe.yaml"
        self.started: list[psutil.Process] = []
        stage = {
            "kind": "stories",
            "rows": rows,
            "part_rows": PART_ROWS,
            "parts_in_flight": PARTS_IN_FLIGHT,
            "engine": {"request_log": str(self.log), **engine},
            **settings,
        }
        self.recipe.write_text(yaml.safe_dump({"name": "kills", "stages": {"stories": stage}}))

    def start(self) -> psutil.Popen:
        """Start `hornbook run` as a user would, in a process group of its own, with its own Ray."""
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with self.output.open("ab") as output:
            return psutil.Popen(
                [sys.executable, "-m", "hornbook.cli", "run", str(self.recipe)],
                env={**environment, "HORNBOOK_STORE": self.store.url},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def finish(self, driver: psutil.Popen) -> None:
        """Wait for the driver's success."""
        code = driver.wait(SLOW_START_SECONDS)
        assert code == 0, self.output.read_text()[-3000:]

    def wait(self, driver: psutil.Popen, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; the driver must still be at work then."""
        end = time.monotonic() + SLOW_START_SECONDS
        while not condition():
            assert driver.poll() is None, f"the driver ended early:\n{self.output.read_text()[-3000:]}"
            assert time.monotonic() < end, f"waited in vain:\n{self.output.read_text()[-3000:]}"
            time.sleep(0.02)

    def processes(self, driver: psutil.Popen) -> list[psutil.Process]:
        """Return the processes below a driver, and remember them for `leftovers`."""
        found = driver.children(recursive=True)
        self.started += [process for process in found if process not in self.started]
        return found

    def leftovers(self, seconds: float = 120) -> list[str]:
        """Return the command lines of remembered processes that do not end by themselves.

        Ray's own agents look for their dead head for a minute before they give up; all else must go at once.
        """
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            alive = [" ".join(_command(process))[:60].strip() for process in self.started if _alive(process)]
            heavy = [command for command in alive if not command.endswith("Agent")]
            if not alive or (heavy and time.monotonic() - began > seconds / 4):
                break
            time.sleep(0.2)
        return alive

    def taken(self) -> Counter[str]:
        """Return how often the engine took each row."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return Counter(line.split()[1] for line in lines if line.startswith("taken "))

    def engine_at_work(self, driver: psutil.Popen) -> bool:
        """Tell whether an engine below this very driver has taken rows; an orphan of the last one may still write."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        below = {process.pid for process in driver.children(recursive=True)}
        return bool(lines) and int(lines[-1].split()[2]) in below

    @property
    def folder(self) -> str:
        """The artifact's folder; empty before there is one."""
        names = self.store.names("artifacts")
        assert len(names) <= 1
        return f"artifacts/{names[0]}" if names else ""

    def committed(self) -> int:
        """Return the number of committed drafts."""
        return len(self.store.names(f"{self.folder}/drafts/parts")) if self.folder else 0


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Place]]:
    places: list[Place] = []

    def make(*arguments: Any, **settings: Any) -> Place:
        places.append(Place(tmp_path, *arguments, **settings))
        return places[-1]

    yield make
    for made in places:
        for process in made.started:
            if _alive(process):
                process.kill()


def test_ten_killed_drivers_leave_every_row_once(place: Callable[..., Place]) -> None:
    dice = random.Random(2)
    work = place(ROWS, {"kind": "echo", "echo_tokens_per_second": 150})
    for number in range(KILLS):
        driver = work.start()
        work.wait(driver, lambda: work.engine_at_work(driver))  # noqa: B023
        parts, wanted = work.committed(), dice.randint(0, 4)
        work.wait(driver, lambda: work.committed() >= parts + wanted)  # noqa: B023
        time.sleep(dice.uniform(0, 0.5))
        below = work.processes(driver)
        driver.kill()
        if number % 2:  # as a power cut does; else worker and engine live on for some seconds and may commit
            for process in below:
                process.kill()
        driver.wait()
        check_committed(work)
        check_torn(work)
    killed = sum(work.taken().values())
    assert work.committed() < ROWS / PART_ROWS, "the kills came too late to test anything"
    work.finish(work.start())
    rows_once(work, ROWS)
    assert work.leftovers() == []
    redone = sum(work.taken().values()) - ROWS
    assert 0 < redone <= KILLS * IN_FLIGHT
    print(f"{KILLS} kills: {killed} rows taken before the last run, {redone} redone of {KILLS * IN_FLIGHT} allowed")


def test_a_killed_worker_and_a_killed_engine_are_replaced_within_the_run(place: Callable[..., Place]) -> None:
    work = place(120, {"kind": "echo", "echo_tokens_per_second": 100})
    driver = work.start()
    work.wait(driver, lambda: work.committed() >= 2)
    kill_one(work, driver, "MapWorker")
    parts = work.committed()
    work.wait(driver, lambda: work.committed() >= parts + 4)
    kill_one(work, driver, "Replica")
    work.finish(driver)
    rows_once(work, 120)
    redone = sum(work.taken().values()) - 120
    assert 0 < redone <= 2 * IN_FLIGHT
    assert len({line.split()[2] for line in work.log.read_text().splitlines()}) == 2, "two engines have worked"
    assert work.leftovers() == []


def test_two_drivers_at_once_ask_for_each_row_once(place: Callable[..., Place]) -> None:
    work = place(120, {"kind": "echo", "echo_tokens_per_second": 100})
    drivers = [work.start(), work.start()]
    for driver in drivers:
        work.finish(driver)
    rows_once(work, 120)
    assert set(work.taken().values()) == {1}
    said = work.output.read_text()
    assert "is held by" in said, "the second driver did not say whom it waits for"
    assert "reused" in said


def test_a_killed_real_engine_is_replaced_within_the_run(place: Callable[..., Place]) -> None:
    work = place(
        24,
        {"kind": "vllm", "model": "smollm2-135m-instruct", "max_model_len": 512, "max_num_seqs": 16},
        sampling={"max_tokens": 40, "min_tokens": 40},
        truncated="keep",
    )
    driver = work.start()
    work.wait(driver, lambda: work.committed() >= 1)
    kill_one(work, driver, "EngineCore")
    work.finish(driver)
    rows_once(work, 24)
    assert sum(work.taken().values()) - 24 <= IN_FLIGHT
    assert work.leftovers() == []


# --- what is checked ----------------------------------------------------------------------------------------------------


def rows_once(work: Place, rows: int) -> None:
    """Every planned row is a document or a reject, once; the manifest says so, and every file is what it was."""
    artifact = Artifact(work.store, work.folder)
    counts = artifact.manifest.counts
    assert counts["planned"] == counts["succeeded"] + counts["rejected"] == rows
    kept = [identifier >> 16 for table in artifact.tables(columns=["id"]) for identifier in table["id"].to_pylist()]
    rejected = [identifier for table in artifact.tables("rejects") for identifier in table["id"].to_pylist()]
    assert sorted(kept + rejected) == list(range(rows))
    assert set(work.taken()) == {f"stories/{row}" for row in range(rows)}
    check_committed(work)


def check_committed(work: Place) -> None:
    """Every file that a commit record names is whole."""
    for record in read_commits(work.store, work.folder):
        for file in record.files:
            data = work.store.read(f"{work.folder}/{file.name}")
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.digest)


def check_torn(work: Place) -> None:
    """No run that was killed left a manifest: an artifact is complete or it is none."""
    assert not Artifact(work.store, work.folder).complete


def kill_one(work: Place, driver: psutil.Popen, title: str) -> None:
    """SIGKILL the one process below the driver whose title has this text."""
    (victim,) = [process for process in work.processes(driver) if title in " ".join(_command(process))]
    victim.kill()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
