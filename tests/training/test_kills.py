"""Training through Ray, by real kills: the driver and a worker die by SIGKILL after a checkpoint; the losses do not change."""

from __future__ import annotations

import copy
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from test_resume import deterministic

from hornbook.artifact import Artifact
from hornbook.errors import TrainingError
from hornbook.pipeline import run_recipe
from hornbook.recipe import check_recipe
from hornbook.store import Store
from training.checkpoint import newest
from training.metrics import read_metrics

STEPS, CHECKPOINT_EVERY = 30, 5
PATIENCE = 200.0  # seconds; other work may share the machine
RECIPE: dict[str, Any] = {
    "name": "kills",
    "seed": 7,
    "stages": {
        "web": {"kind": "installed-python", "files": 24, "part_rows": 12, "distributions": ["click", "jinja2"]},
        "tokenizer": {"kind": "tokenizer", "inputs": {"documents": ["web"]}, "vocabulary": 512},
        "pack": {"kind": "pack", "source": "web", "inputs": {"documents": "web", "tokenizer": "tokenizer"}},
        "pretrain": {
            "kind": "pretrain", "inputs": {"tokens": ["pack"], "tokenizer": "tokenizer"},
            "model": {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "num_hidden_layers": 2},
            "phases": [{"name": "stable", "steps": STEPS}], "max_epochs": 50,
            "loop": {
                "global_batch": 8, "sequence_length": 128, "microbatch": 4, "validate_every": 10,
                "checkpoint_every": CHECKPOINT_EVERY, "validation_rows": 4,
            },
        },
    },
}  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def run(store: Store, **pretrain: Any) -> Artifact:
    source = copy.deepcopy(RECIPE)
    source["stages"]["pretrain"] |= pretrain
    finished = run_recipe(check_recipe(source, "test recipe"), store, say=lambda line: None)
    return finished.artifacts["pretrain"]


def rows(artifact: Artifact) -> list[dict[str, Any]]:
    return list(read_metrics(artifact.local_folder() / "metrics.jsonl"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Artifact:
    return run(Store(str(tmp_path_factory.mktemp("store"))))


@pytest.fixture
def untrained(tmp_path: Path, uninterrupted: Artifact) -> Artifact:
    """The artifact to train, in a copy of the store that holds all before it."""
    store = Store(str(tmp_path / "store"))
    shutil.copytree(Path(str(uninterrupted.store.local)) / "artifacts", tmp_path / "store" / "artifacts")
    artifact = Artifact(store, uninterrupted.folder)
    shutil.rmtree(artifact.local_folder())
    return artifact


def saved(artifact: Artifact) -> int:
    """Return the step of the newest checkpoint."""
    found = newest(artifact.local_folder() / "checkpoints")
    return found.step if found else 0


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


class killer:
    """Kills one of this process's Ray Train workers once there is a checkpoint."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact, self.killed_after = artifact, -1
        self.thread = threading.Thread(target=self.work)

    def work(self) -> None:
        wait(lambda: saved(self.artifact) >= CHECKPOINT_EVERY)
        victim = next(process for process in psutil.Process().children(recursive=True) if is_train_worker(process))
        victim.kill()
        self.killed_after = saved(self.artifact)

    def __enter__(self) -> killer:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.thread.join()


def is_train_worker(process: psutil.Process) -> bool:
    try:
        return "TrainWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_a_killed_worker_is_replaced_and_the_losses_stay(uninterrupted: Artifact, untrained: Artifact) -> None:
    with killer(untrained) as kill:
        run(untrained.store)
    assert CHECKPOINT_EVERY <= kill.killed_after < STEPS
    assert deterministic(rows(untrained)) == deterministic(rows(uninterrupted))


def test_a_run_whose_workers_keep_dying_fails_with_a_cure(uninterrupted: Artifact, untrained: Artifact) -> None:
    with killer(untrained) as kill, pytest.raises(TrainingError, match="failed more than 0 times") as raised:
        run(untrained.store, max_failures=0)
    assert "checkpoints are kept in" in raised.value.cure and kill.killed_after < STEPS
    assert not untrained.complete and saved(untrained) >= CHECKPOINT_EVERY


@contextmanager
def driver_of(recipe: dict[str, Any], store: Store, folder: Path) -> Iterator[psutil.Popen]:
    """Run a recipe in a process of its own; kill it and its children at the end, as a power cut does."""
    file, output = folder / "recipe.yaml", folder / "output.txt"
    file.write_text(yaml.safe_dump(recipe))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with output.open("ab") as stream:
        driver = psutil.Popen(
            [sys.executable, "-m", "hornbook.cli", "run", str(file)],
            env={**environment, "HORNBOOK_STORE": store.url},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        yield driver
    finally:
        for process in [driver, *(driver.children(recursive=True) if driver.is_running() else [])]:
            with suppress(psutil.NoSuchProcess):  # a worker that lives on may finish
                process.kill()
        driver.wait()


def test_a_killed_driver_run_again_gives_the_same_losses(
    uninterrupted: Artifact, untrained: Artifact, tmp_path: Path
) -> None:
    with driver_of(RECIPE, untrained.store, tmp_path) as driver:
        wait(lambda: saved(untrained) >= CHECKPOINT_EVERY or driver.poll() is not None)
        assert driver.poll() is None, (tmp_path / "output.txt").read_text()[-3000:]
    killed_after = saved(untrained)
    assert CHECKPOINT_EVERY <= killed_after < STEPS and not untrained.complete
    before = [row for row in rows(untrained) if row["step"] <= killed_after]
    run(untrained.store)
    assert rows(untrained)[:killed_after] == before, "steps of the checkpoint were done again"
    assert deterministic(rows(untrained)) == deterministic(rows(uninterrupted))


def test_sigterm_to_the_driver_saves_and_ends_the_run(untrained: Artifact, tmp_path: Path) -> None:
    """As `ray job stop` sends it. Without it the run would go on for hours, and nothing be saved before."""
    recipe = copy.deepcopy(RECIPE)
    recipe["stages"]["pretrain"] |= {"max_epochs": 10**6, "phases": [{"name": "stable", "steps": 100_000}]}
    recipe["stages"]["pretrain"]["loop"] |= {"checkpoint_every": 100_000, "validate_every": 100_000}
    store = untrained.store

    def metrics() -> list[Path]:
        return list((Path(str(store.local)) / "artifacts").glob("pretrain-*/metrics.jsonl"))

    with driver_of(recipe, store, tmp_path) as driver:
        wait(lambda: any(map(os.path.getsize, metrics())) or driver.poll() is not None)
        assert driver.poll() is None, (tmp_path / "output.txt").read_text()[-3000:]
        driver.terminate()
        driver.wait(PATIENCE)
        assert "stopped: pretrain was stopped after step" in (tmp_path / "output.txt").read_text()
    (file,) = metrics()
    found = newest(file.parent / "checkpoints")
    assert found is not None and found.step == [row["step"] for row in read_metrics(file)][-1]
