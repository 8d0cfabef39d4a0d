"""Deduplication killed by SIGKILL in each of its rounds, run again each time: the same comes out."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest
from in_process import context_of, corpus, finished

import classifiers.dedup
from classifiers.dedup import Dedup, DedupSettings
from hornbook.artifact import Artifact
from hornbook.store import Store

STEPS = ("sketches", "candidates", "edges", "links", "large-00", "small-00", "members", "clusters", "")
"""Folders of steps in which a run is killed; the last one is the attributes' own."""
SLOW_START_SECONDS = 240.0  # other work may share the machine
WORDS = [first + vowel + last for first in "bdfgh" for vowel in "aeiou" for last in "lmnprst"]


def stage(name: str) -> Dedup:
    """Return a stage of little memory: more than 4,096 pairs are joined in rounds."""
    settings = DedupSettings(worker_memory=1, largest_loss=1, largest_cluster=10**6, workers=1)
    return Dedup(name, settings, seed=1)


def texts() -> list[str]:
    """Return 250 texts, of each an edited one, and 5,000 copies of all, mixed."""
    rng = random.Random(1)
    originals = [rng.choices(WORDS, k=40) for _ in range(250)]
    edited = [[*words[:-1], "other"] for words in originals]
    found = [" ".join(words) for words in originals + edited]
    found += rng.choices(found, k=5000)
    rng.shuffle(found)
    return found


@contextmanager
def cut_small() -> Iterator[None]:
    """Let a small corpus be treated as a large one: each step by itself, of several parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers.dedup, "SMALL_CORPUS", 0)
        patch.setattr(classifiers.dedup, "RANGE_DOCUMENTS", 500)
        patch.setattr(classifiers.dedup, "BLOCK_DOCUMENTS", 1000)
        yield


def run(url: str, name: str) -> None:
    """Run the stage in this process, which is going to be killed."""
    store = Store(url)
    made = stage(name)
    with cut_small():
        made.run(context_of(made, store, documents=[Artifact(store, "artifacts/web")]))


def committed(store: Store, folder: str, step: str) -> int:
    return len(store.names(f"{folder}/work/{step}/parts" if step else f"{folder}/parts"))


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SLOW_START_SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Artifact]:
    """The corpus, and what comes out where nobody kills."""
    store = Store(str(tmp_path_factory.mktemp("kills")))
    web = corpus(store, "web", texts(), 500)
    with cut_small():
        return store, finished(stage("whole"), store, documents=[web])


def kill_in(store: Store, name: str, step: str) -> int:
    """Run the stage in a process, kill that as soon as a part of the step is there, return how many are."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["classifiers.dedup", "in_process", "scipy.sparse.csgraph"])
    process = server.Process(target=run, args=(store.url, name))
    process.start()
    wait(lambda: committed(store, f"artifacts/{name}", step) > 0 or not process.is_alive())
    process.kill()
    process.join()
    assert process.exitcode == -9, f"it ended before it could be killed in {step!r}"
    return committed(store, f"artifacts/{name}", step)


def test_killed_in_each_step_it_goes_on(whole: tuple[Store, Artifact]) -> None:
    store, expected = whole
    made = {step: kill_in(store, "killed", step) for step in STEPS}
    with cut_small():
        again = finished(stage("killed"), store, documents=[Artifact(store, "artifacts/web")])
    assert again.manifest.digest == expected.manifest.digest
    assert again.manifest.metrics == expected.manifest.metrics
    assert store.names(again.folder) == store.names(expected.folder)
    cut_short = [step for step, parts in made.items() if parts < 5]  # most have 11 or 12, or 26
    assert len(cut_short) >= 6, f"the kills came too late to test anything: {made}"


def test_a_killed_worker_is_replaced(whole: tuple[Store, Artifact], ray_cluster, stage_context) -> None:
    store, expected = whole
    kill_in(store, "there", "large-00")
    killed: list[int] = []
    over = threading.Event()

    def kill_a_worker() -> None:
        wait(lambda: committed(store, "artifacts/there", "small-00") > 0 or over.is_set())
        below = psutil.Process().children(recursive=True)
        for victim in [process for process in below if "MapWorker" in " ".join(_command(process))][:1]:
            victim.kill()
            killed.append(victim.pid)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    stage_context.store = store
    try:
        with cut_small():
            there = stage_context.finished(stage("there"), documents=[Artifact(store, "artifacts/web")])
    finally:
        over.set()
        killer.join()
    assert there.manifest.digest == expected.manifest.digest
    assert len(killed) == 1, "the kills came too late to test anything"


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
