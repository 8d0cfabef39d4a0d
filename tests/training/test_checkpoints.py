"""Which checkpoints stay, what happens when one cannot be written, and runs that branch off from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_run import GLOBAL_BATCH, open_data, small_files, small_model, write_data
from test_resume import deterministic

from hornbook.artifact import Artifact
from hornbook.errors import DataError, RecipeError, TrainingError
from hornbook.store import Store
from training.checkpoint import Checkpoint, kept, latest
from training.checkpoint_shard import ShardBuffer, file_digest
from training.loader import Loader
from training.loop import train
from training.metrics import read_metrics
from training.mixture import Mixture, PhaseSettings
from training.parallel import World
from training.settings import LoopSettings
from training.trunk import NOTE, Trunk, branch_off, find_trunk, note_trunk

STABLE = PhaseSettings(name="stable", steps=6, weights={"a": 1, "b": 2})
DECAY = PhaseSettings(name="decay", steps=4, weights={"a": 1})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


def loop(**changes: Any) -> LoopSettings:
    values = {"global_batch": GLOBAL_BATCH, "sequence_length": 64, "microbatch": 8, "validation_rows": 4}
    values |= {"checkpoint_every": 2, "validate_every": 100, "precision": "fp32"}
    return LoopSettings.model_validate(values | changes)


def planned(folder: Path, *phases: PhaseSettings, seed: int = 1) -> Loader:
    sources = open_data(folder)
    sizes = {name: len(source) for name, source in sources.items()}
    return Loader(sources, Mixture(sizes, phases, GLOBAL_BATCH, 9, seed), 8)


def run(
    folder: Path,
    world: World,
    loader: Loader,
    trunk: Trunk | None = None,
    progress: Any = lambda row: None,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Train below `folder` with the data beside it; return the metrics."""
    train(
        loop(**changes), small_model(), loader, open_data(folder.parent, "validation"), folder, world, seed=0,
        trunk=trunk, progress=progress,
    )  # fmt: skip
    return list(read_metrics(folder / "metrics.jsonl"))


def steps(folder: Path) -> list[int]:
    return [found.step for found in reversed(kept(folder / "checkpoints"))]


def tensors(found: Checkpoint | None) -> dict[str, torch.Tensor]:
    assert found is not None
    (shard,) = found.path.glob("*.safetensors")
    return load_file(shard)


def test_what_is_written_beside_training_is_what_is_written_at_once(folder: Path, world: World) -> None:
    beside, at_once = folder / "beside", folder / "at-once"
    rows = [
        run(where, world, planned(folder, STABLE, DECAY), asynchronous_checkpoints=where == beside, keep_checkpoints=9)
        for where in (beside, at_once)
    ]
    assert deterministic(rows[0]) == deterministic(rows[1])
    assert steps(beside) == steps(at_once) == [2, 4, 6, 8, 10]
    for one, other in zip(kept(beside / "checkpoints"), kept(at_once / "checkpoints"), strict=True):
        assert one.files == other.files, "not the same bytes"
        assert (one.data, one.model, one.extra) == (other.data, other.model, other.extra)
    assert {name.split(".")[0] for name in tensors(latest(beside / "checkpoints"))} == {"model", "optimizer"}
    costs = [row["checkpoint_seconds"] for row in rows[0] if "checkpoint_seconds" in row]
    assert [row["step"] for row in rows[0] if "checkpoint_seconds" in row] == [3, 5, 7, 9] and min(costs) > 0


def test_milestones_and_the_best_checkpoint_stay(folder: Path, world: World) -> None:
    rows = run(
        folder / "run", world, planned(folder, STABLE, DECAY), learning_rate=3.0,
        schedule={"kind": "constant", "warmup_steps": 9}, keep_checkpoints=1, milestone_every=4, best_by="b",
    )  # fmt: skip
    losses = {row["step"]: row["validation"]["b"] for row in rows if row["step"] % 2 == 0}
    assert set(losses) == {2, 4, 6, 8, 10}, "a checkpoint that may be the best is validated"
    best = min(losses, key=losses.__getitem__)
    assert best == 2, "choose learning rates that spoil the model"
    assert steps(folder / "run") == [2, 4, 8, 10]
    scores = {found.step: found.score for found in kept(folder / "run" / "checkpoints")}
    assert scores == {step: pytest.approx(losses[step]) for step in scores}
    with pytest.raises(TrainingError, match="best_by is 'c'"):
        run(folder / "other", world, planned(folder, STABLE), best_by="c")


def test_a_full_disk_stops_the_run_or_not(folder: Path, world: World) -> None:
    """The disk is full from step 3 to step 6; the checkpoint of step 2 stays whole, those of 4 and 6 are none."""
    limit = small_files()

    def progress(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            limit.__enter__()
        if row["step"] == 5:
            assert latest(folder / "run" / "checkpoints").step == 2  # type: ignore[union-attr]
        if row["step"] == 7:
            limit.__exit__(None, None, None)

    with pytest.warns(UserWarning, match=r"step-00000004.*could not be written.*training goes on"):
        rows = run(
            folder / "run", world, planned(folder, STABLE, DECAY), progress=progress, on_failed_checkpoint="continue",
            keep_checkpoints=9,
        )  # fmt: skip
    assert steps(folder / "run") == [2, 8, 10]
    said = {row["step"]: row["checkpoint_failed"] for row in rows if "checkpoint_failed" in row}
    assert len(said) == 2 and all("File too large" in text for text in said.values())
    assert not [path for path in (folder / "run" / "checkpoints").iterdir() if not (path / "checkpoint.json").exists()]

    with small_files(), pytest.raises(TrainingError, match="could not be written"):  # the last one must be written
        run(folder / "last", world, planned(folder, STABLE), checkpoint_every=99, on_failed_checkpoint="continue")
    done: list[int] = []
    with small_files(), pytest.raises(TrainingError, match="could not be written"):
        run(folder / "stop", world, planned(folder, STABLE, DECAY), progress=lambda row: done.append(row["step"]))
    assert done[-1] < 6, "it stopped at the checkpoint after the one that failed, at the latest"


def test_figures_wait_until_the_disk_has_room(folder: Path, world: World) -> None:
    """Full from step 3 to 6 for `metrics.jsonl`, too: its rows wait, and no checkpoint is made of steps without figures."""
    metrics = folder / "run" / "metrics.jsonl"
    told: list[str] = []
    limits: list[Any] = []

    def progress(row: dict[str, Any]) -> None:
        told.extend(row.get("warnings", []))
        if row["step"] == 3:
            limits.append(small_files(metrics.stat().st_size + 100))
            limits[0].__enter__()
        if row["step"] == 6:
            assert [each["step"] for each in read_metrics(metrics)] == [1, 2, 3]
            limits[0].__exit__(None, None, None)

    with pytest.warns(UserWarning, match=r"step-00000004.*could not be written"):
        rows = run(
            folder / "run", world, planned(folder, STABLE, DECAY), progress=progress, on_failed_checkpoint="continue",
            keep_checkpoints=9, asynchronous_checkpoints=False,
        )  # fmt: skip
    assert [row["step"] for row in rows] == list(range(1, 11)) and steps(folder / "run") == [2, 6, 8, 10]
    assert len(told) == 1 and told[0].startswith("metrics.jsonl cannot be written")


def test_a_torn_checkpoint_does_not_stay_in_place_of_a_whole_one(folder: Path, world: World) -> None:
    run(folder / "run", world, planned(folder, STABLE), keep_checkpoints=1)
    (only,) = (folder / "run" / "checkpoints").iterdir()
    torn = only.rename(only.with_name("step-00000006-ffffffff"))  # attempts' names are random: this one is the last
    (shard,) = torn.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="is torn and passed over"):
        run(folder / "run", world, planned(folder, STABLE), keep_checkpoints=1)
    found = latest(folder / "run" / "checkpoints")
    assert found is not None and found.step == 6 and not torn.exists()


class Killed(Exception):
    """Ends a run as a kill would, behind a step whose checkpoint is whole."""


def killed_after(step: int) -> Any:
    def progress(row: dict[str, Any]) -> None:
        if row["step"] > step:
            raise Killed

    return progress


def test_a_torn_checkpoint_takes_no_whole_ones_place(folder: Path, world: World) -> None:
    """It is the newest by its step, and the only one; what is written after it was passed over must stay."""
    run(folder / "run", world, planned(folder, STABLE), keep_checkpoints=1)
    (last,) = kept(folder / "run" / "checkpoints")
    next(last.path.glob("*.safetensors")).write_bytes(b"torn")
    with pytest.warns(UserWarning, match="torn"), pytest.raises(Killed):
        run(
            folder / "run", world, planned(folder, STABLE), progress=killed_after(2), keep_checkpoints=1,
            asynchronous_checkpoints=False,
        )  # fmt: skip
    assert steps(folder / "run") == [2] and latest(folder / "run" / "checkpoints") is not None


def test_what_cannot_be_deleted_ends_no_run(folder: Path, world: World) -> None:
    """An old checkpoint's manifest that is a folder: it cannot be unlinked, whoever asks."""
    stuck = folder / "run" / "checkpoints" / "step-00000001-00000000"
    (stuck / "checkpoint.json").mkdir(parents=True)
    with pytest.warns(UserWarning, match="step-00000001.* torn"):
        rows = run(folder / "run", world, planned(folder, STABLE), keep_checkpoints=1)
    assert len(rows) == 6 and steps(folder / "run") == [6] and stuck.exists()


@pytest.mark.parametrize("where", [Path("/dev/shm"), Path()])
def test_a_shard_is_a_safetensors_file(tmp_path: Path, where: Path) -> None:
    """Through memory alone (no direct writes there), and through a disk; the size is no multiple of anything."""
    path = (where if where.is_dir() and where.is_absolute() else tmp_path) / f"hornbook-{tmp_path.name}.safetensors"
    values = {
        "b": torch.randn(1 << 22).bfloat16(), "a": torch.randn(1025, 3), "c": torch.arange(7), "d": torch.ones(1).bool(),
    }  # fmt: skip
    buffer = ShardBuffer(values, rank=0)
    buffer.fill(values)
    expected = {name: value.clone() for name, value in values.items()}
    values["a"].zero_()
    try:
        digest = buffer.write(path)
        assert path.stat().st_size == buffer.size and file_digest(path) == digest
        found = load_file(path)
        assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)
        with safe_open(path, framework="pt") as file:
            assert "DCP_SHARDING_INFO" in file.metadata()
        buffer.fill(values)
        assert buffer.write(path) != digest and load_file(path)["a"].abs().max() == 0
    finally:
        path.unlink(missing_ok=True)
    assert ShardBuffer(values, rank=1).size == 0, "plain tensors are the same everywhere: rank 0 writes them"
    assert buffer.fits(values) and not buffer.fits({**values, "a": torch.zeros(2)})


def test_another_optimizer_cannot_go_on(folder: Path, world: World) -> None:
    run(folder / "run", world, planned(folder, STABLE))
    newest = latest(folder / "run" / "checkpoints")
    assert newest is not None
    (newest.path / "checkpoint.json").unlink()
    with pytest.raises(TrainingError, match=r"holds no optimizer\..*momentum") as raised:
        run(folder / "run", world, planned(folder, STABLE), optimizer="muon")
    assert "loop.optimizer" in raised.value.cure


@pytest.fixture
def store(folder: Path) -> Store:
    return Store(str(folder))


def train_trunk(folder: Path, store: Store, world: World) -> Artifact:
    artifact = Artifact(store, "artifacts/pretrain-1")
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "data").symlink_to(folder / "data")
    run(artifact.local_folder(), world, planned(folder, STABLE, DECAY), milestone_every=2)
    return artifact


def branch(folder: Path, trunk: Trunk, *phases: PhaseSettings, seed: int = 1) -> Loader:
    sources = open_data(folder)
    sizes = {name: len(source) for name, source in sources.items()}
    return Loader(sources, branch_off(trunk, sources, sizes, phases, GLOBAL_BATCH, 9, seed), 8)


def test_a_branch_goes_on_where_its_trunk_was(folder: Path, store: Store, world: World) -> None:
    """With the trunk's own phase behind the step it is the trunk, bit for bit; with another it draws on, seeing nothing twice."""
    trunk = train_trunk(folder, store, world)
    whole = list(read_metrics(trunk.local_folder() / "metrics.jsonl"))
    same, other = Artifact(store, "artifacts/pretrain-2"), Artifact(store, "artifacts/pretrain-3")
    for artifact, phase in ((same, DECAY), (other, PhaseSettings(name="decay", steps=3, weights={"b": 1}))):
        found = find_trunk(artifact, "pretrain-1@6")
        note_trunk(artifact, found)
        assert store.exists(f"{artifact.folder}/{NOTE}")
        loader = branch(folder, found, phase)
        rows = run(artifact.local_folder(), world, loader, found)
        assert rows[:6] == whole[:6], "the steps before are the trunk's"
        assert [row["step"] for row in rows] == list(range(1, loader.mixture.steps + 1))
    assert deterministic(list(read_metrics(same.local_folder() / "metrics.jsonl"))) == deterministic(whole)
    ended, resumed = (tensors(latest(artifact.local_folder() / "checkpoints")) for artifact in (trunk, same))
    assert all(ended[name].equal(resumed[name]) for name in ended)
    last = latest(other.local_folder() / "checkpoints")
    assert last is not None and last.step == 9 and last.parent == found.name
    drawn = [loader.mixture.batch(step) for step in range(9)]
    assert [draws.phase for draws in drawn] == ["stable"] * 6 + ["decay"] * 3
    of_b = np.concatenate([draws.sequence[draws.source == 1] for draws in drawn])
    epochs = np.concatenate([draws.epoch[draws.source == 1] for draws in drawn])
    assert len(set(zip(epochs.tolist(), of_b.tolist(), strict=True))) == len(of_b), "a row came twice in one epoch"
    for step in range(6):
        assert planned(folder, STABLE, DECAY).batch(step, 0, 1).digest == loader.batch(step, 0, 1).digest

    again = find_trunk(Artifact(store, "artifacts/pretrain-4"), "pretrain-3@8")  # a branch of the branch
    twice = branch(folder, again, STABLE)
    assert [draws.phase for draws in map(twice.mixture.batch, (5, 6, 7, 8))] == ["stable", "decay", "decay", "stable"]
    store.delete("artifacts/pretrain-1")
    noted = find_trunk(other, "pretrain-1@6")
    assert (noted.name, noted.plan) == (found.name, found.plan), "a branch outlives its trunk"


def test_a_branch_that_would_change_the_past_is_refused(folder: Path, store: Store, world: World) -> None:
    train_trunk(folder, store, world)
    new = Artifact(store, "artifacts/pretrain-2")
    with pytest.raises(DataError, match="keeps no checkpoint of step 5; it keeps those of: 2, 4, 6, 8, 10"):
        find_trunk(new, "pretrain-1@5")
    with pytest.raises(DataError, match="it keeps those of: none"):
        find_trunk(new, "pretrain-9@5")
    trunk = find_trunk(new, "pretrain-1@6")
    with pytest.raises(RecipeError, match="another seed"):
        branch(folder, trunk, DECAY, seed=2)
    sources = open_data(folder)
    with pytest.raises(DataError, match="was trained on b, which is no input"):
        branch_off(trunk, {"a": sources["a"]}, {"a": 9}, [DECAY], GLOBAL_BATCH, 9, 1)
    with pytest.raises(DataError, match=r"would differ.*: a, b was packed"):
        branch_off(trunk, {"a": sources["b"], "b": sources["a"]}, {"a": 9, "b": 9}, [DECAY], GLOBAL_BATCH, 9, 1)
    with pytest.raises(TrainingError, match="belongs to another model"):
        model, loader = small_model(), branch(folder, trunk, DECAY)
        model.document_mask = not model.document_mask
        train(loop(), model, loader, {}, new.local_folder(), world, seed=0, trunk=trunk)
    store.delete(trunk.name)
    with pytest.raises(TrainingError, match="is gone or torn"):
        run(new.local_folder(), world, branch(folder, trunk, DECAY), trunk)
