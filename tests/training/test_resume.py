"""Training in real processes: killed, stopped and resumed, with one, two and three workers."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_run import STEPS, machine, start, write_data

from hornbook.store import Store
from training.archive import Archive
from training.checkpoint import latest, newest
from training.metrics import parse_metrics, read_metrics
from training.recorders import SPEED

Rows = list[dict[str, Any]]
PATIENCE = 200


def metrics(folder: Path) -> Rows:
    return list(read_metrics(folder / "run" / "metrics.jsonl"))


def run(folder: Path, world: int) -> Rows:
    """Run to the end; return the metrics rows."""
    finish(start(folder, world))
    return metrics(folder)


def finish(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0


def wait_for_step(folder: Path, step: int, processes: Sequence[BaseProcess]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(row["step"] >= step for row in metrics(folder)):
        assert time.monotonic() < deadline and all(process.is_alive() for process in processes)
        time.sleep(0.02)


def wait_for_checkpoint(folder: Path, processes: Sequence[BaseProcess], archive: Archive | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while newest(folder / "run" / "checkpoints", archive) is None:
        assert time.monotonic() < deadline and all(process.is_alive() for process in processes)
        time.sleep(0.02)


def saved_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint of one worker; its file's bytes say less, safetensors orders the header's metadata at random."""
    (shard,) = checkpoint.glob("*.safetensors")
    return load_file(shard)


def deterministic(rows: Rows) -> Rows:
    """Leave out what a clock or the machine's memory decides."""
    measured = {*SPEED, "checkpoint_seconds", "checkpoint_wait"} - {"tokens"}
    return [{key: value for key, value in row.items() if key not in measured} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two workers from beginning to end."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_data(folder)
    run(folder, 2)
    return folder


def test_a_killed_and_a_stopped_run_continue_bit_for_bit(tmp_path: Path, uninterrupted: Path) -> None:
    write_data(tmp_path)
    processes = start(tmp_path, 2, pause=0.2)
    wait_for_checkpoint(tmp_path, processes)  # that of step 4, while step 5 or 6 is done; they will be done again
    for process in processes:
        process.kill()
        process.join()
    processes = start(tmp_path, 2, pause=0.2)
    wait_for_step(tmp_path, 9, processes)
    (tmp_path / "stop").touch()
    finish(processes)
    stopped_at = metrics(tmp_path)[-1]["step"]
    assert 9 <= stopped_at < STEPS
    saved = latest(tmp_path / "run" / "checkpoints")
    assert saved is not None and saved.step == stopped_at
    (tmp_path / "stop").unlink()
    rows = run(tmp_path, 2)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert deterministic(rows) == deterministic(metrics(uninterrupted))


def test_a_worker_that_dies_while_it_saves_leaves_the_checkpoint_before(tmp_path: Path, uninterrupted: Path) -> None:
    """The disk of rank 1 hangs while the checkpoint of step 8 is written; training goes on meanwhile, until a worker dies."""
    write_data(tmp_path)
    processes = start(tmp_path, 2, pause=0.2)
    wait_for_step(tmp_path, 5, processes)
    (tmp_path / "stop").touch()
    finish(processes)
    (tmp_path / "stop").unlink()
    (tmp_path / "stuck-disk").touch()
    processes = start(tmp_path, 2, pause=0.2)
    wait_for_step(tmp_path, 10, processes)
    processes[1].kill()
    for process in processes:
        process.join(PATIENCE)
    assert processes[0].exitcode != 0, "a worker cannot train on alone"
    folder = tmp_path / "run" / "checkpoints"
    (torn,) = (path for path in folder.iterdir() if not (path / "checkpoint.json").exists())
    assert torn.name.startswith("step-00000008") and len(list(torn.iterdir())) == 2
    whole = latest(folder)
    assert whole is not None and 5 <= whole.step < 8
    (tmp_path / "stuck-disk").unlink()
    run(tmp_path, 2)
    assert deterministic(metrics(tmp_path)) == deterministic(metrics(uninterrupted))
    assert not torn.exists(), "what never became a checkpoint is cleared away"


def test_sigterm_to_one_worker_saves_and_ends_all(tmp_path: Path, uninterrupted: Path) -> None:
    write_data(tmp_path)
    processes = start(tmp_path, 2, pause=0.2)
    wait_for_step(tmp_path, 2, processes)
    processes[1].terminate()
    finish(processes)
    saved = latest(tmp_path / "run" / "checkpoints")
    assert saved is not None and saved.step == metrics(tmp_path)[-1]["step"] < STEPS
    run(tmp_path, 2)
    assert deterministic(metrics(tmp_path)) == deterministic(metrics(uninterrupted))


def test_a_run_on_an_object_store_outlives_its_machines(tmp_path: Path, uninterrupted: Path, s3_url: str) -> None:
    """Two machines share no disk; both are lost after a checkpoint, and new ones go on from it bit for bit."""
    write_data(tmp_path)
    archive = Archive(Store(s3_url.replace("STORE", "two-machines")), "artifacts/run")
    first = machine(tmp_path, 0)
    processes = start(tmp_path, 2, pause=0.4, archive=archive)
    wait_for_checkpoint(first, processes, archive)
    for process in processes:
        process.kill()
        process.join()
    saved = newest(first / "run" / "checkpoints", archive)
    assert saved is not None and saved.step == 4 and len(saved.files) == 2
    before = rows_on(archive)
    assert [row["step"] for row in before] == [1, 2, 3, 4]

    shard = archive.read(f"{saved.path.name}/{min(saved.files)}")
    checkpoints = f"{archive.folder}/checkpoints"
    archive.store.write(f"{checkpoints}/step-00000006-00000000/{min(saved.files)}", shard)  # died before its manifest
    lost = {**json.loads(archive.read(f"{saved.path.name}/checkpoint.json")), "step": 5}
    archive.store.write_json(f"{checkpoints}/step-00000005-00000000/checkpoint.json", lost)  # its shards are gone
    for rank in range(2):
        shutil.rmtree(machine(tmp_path, rank))

    finish(start(tmp_path, 2, archive=archive))
    rows = rows_on(archive)
    assert deterministic(rows) == deterministic(metrics(uninterrupted))
    assert rows[:4] == before, "steps of the checkpoint were done again"
    names = archive.store.names(checkpoints)
    assert [name[:13] for name in names] == ["step-00000012", "step-00000014"], "two are kept, and nothing torn"
    cached = [sorted(machine(tmp_path, rank).glob("run/checkpoints/*/*")) for rank in range(2)]
    assert [len(files) for files in cached] == [1, 1], "a machine keeps its own shard of the newest checkpoint"

    shutil.rmtree(first)
    found = latest(first / "run" / "checkpoints", archive)
    assert (
        found is not None and found.step == STEPS and set(found.files) == {file.name for file in found.path.iterdir()}
    )
    archive.store.delete(archive.folder)  # as `hornbook run --from` does
    assert latest(first / "run" / "checkpoints", archive) is None, "the cache is no authority"


def rows_on(archive: Archive) -> Rows:
    return list(parse_metrics(archive.store.read(f"{archive.folder}/metrics.jsonl").decode()))


@pytest.mark.parametrize("world", [1, 3])
def test_other_numbers_of_workers_continue_with_the_same_batches(
    tmp_path: Path, uninterrupted: Path, world: int
) -> None:
    """They take over a checkpoint of two workers; three do not divide a batch of eight."""
    expected = metrics(uninterrupted)
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    (finished,) = (tmp_path / "run" / "checkpoints").glob(f"step-{STEPS:08d}-*")
    shutil.rmtree(finished)
    rows = run(tmp_path, world)
    for name in ("step", "phase", "batch_digest", "tokens", "lr"):
        assert [row[name] for row in rows] == [row[name] for row in expected]
    # each rank drops out other units, so the losses agree closely, not exactly
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], abs=0.02)
    assert rows[-1]["validation"] == pytest.approx(expected[-1]["validation"], abs=0.02)


@pytest.mark.slow
def test_muon_the_average_and_the_guard_continue_bit_for_bit(tmp_path: Path) -> None:
    changes = {"optimizer": "muon", "average": 0.8, "leap": 50.0, "precision": "fp32"}
    whole, stopped, wider = tmp_path / "whole", tmp_path / "stopped", tmp_path / "wider"
    for folder in (whole, stopped, wider):
        write_data(folder)
    finish(start(whole, 1, **changes))
    processes = start(stopped, 1, pause=0.2, **changes)
    wait_for_step(stopped, 5, processes)
    (stopped / "stop").touch()
    finish(processes)
    assert 5 <= metrics(stopped)[-1]["step"] < STEPS
    (stopped / "stop").unlink()
    finish(start(stopped, 1, **changes))
    assert deterministic(metrics(stopped)) == deterministic(metrics(whole))
    last = {folder: latest(folder / "run" / "checkpoints") for folder in (whole, stopped)}
    ended, resumed = saved_tensors(last[whole].path), saved_tensors(last[stopped].path)
    assert ended.keys() == resumed.keys() and any(name.startswith("average.") for name in ended)
    assert [name for name in ended if not ended[name].equal(resumed[name])] == []
    assert last[whole].extra == last[stopped].extra
    assert last[whole].extra["steps"] == STEPS and last[whole].extra["mean"] > 0
    finish(start(wider, 2, **changes))  # whose shards of a matrix Muon must see whole
    losses = [[row["loss"] for row in metrics(folder)] for folder in (whole, wider)]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert losses[0][-1] < losses[0][0]


def test_a_torn_checkpoint_is_passed_over(uninterrupted: Path) -> None:
    folder = uninterrupted / "run" / "checkpoints"
    whole = latest(folder)
    assert whole is not None and whole.step == STEPS
    manifest = json.loads((whole.path / "checkpoint.json").read_text())
    assert set(manifest["files"]) == {path.name for path in whole.path.glob("*.safetensors")}
    shard = next(whole.path.glob("*.safetensors"))
    original = shard.read_bytes()
    for damaged in (original[:-1], original[:-1] + b"?"):
        shard.write_bytes(damaged)
        with pytest.warns(UserWarning, match="is torn and passed over"):
            before = latest(folder)
        assert before is not None and before.step == 12
    shard.write_bytes(original)
