"""Checkpoints that are whole or absent, of any world size, and never pickled.

Every rank writes its shards as safetensors (torch.distributed.checkpoint) into a folder that only this attempt uses; then
rank 0 writes `checkpoint.json`, atomically, naming each file with its size and digest. No `checkpoint.json`, no checkpoint;
a file that does not match makes it torn, and the one before is taken. What is saved: weights, optimizer moments, the step,
and what the data and the model are. Nothing else is state: batches, learning rate and random numbers follow from the step.

The folder must be one that all ranks see; or there is an `Archive` on an object store, and the folder is only its cache on
each node.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from hornbook.errors import StoreError, TrainingError
from training.archive import Archive, file_digest
from training.metrics import METRICS
from training.optimizer import Average, Optimizer

FORMAT_VERSION = 1
MANIFEST = "checkpoint.json"
FOLDER = re.compile(r"step-(\d{8})-[0-9a-f]{8}")
TORN = (OSError, ValueError, KeyError, TypeError)
"""What reading a checkpoint that is not whole raises."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's manifest, and where it lies."""

    step: int
    """Optimizer steps done."""
    data: str
    """Fingerprint of the data and its order."""
    model: str
    """Fingerprint of the architecture."""
    world: int
    files: dict[str, tuple[int, str]]
    """Size in bytes and blake2b digest by file name."""
    extra: dict[str, Any]
    """Counters of the loop (skipped steps, ...)."""
    path: Path
    format_version: int = FORMAT_VERSION


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    average: Average,
    data: str,
    architecture: str,
    extra: dict[str, Any],
    keep: int,
    archive: Archive | None = None,
) -> Path:
    """Write a checkpoint and delete all but the last `keep`; all ranks call it. Returns its folder.

    Args:
        archive: where it lasts, with the metrics that lie beside `folder`, if that is only this node's cache (which then
            keeps the newest checkpoint alone).

    Raises:
        TrainingError: it could not be written (no space); earlier checkpoints are untouched.
    """
    path = folder / f"step-{step:08d}-{_shared_attempt()}"
    problem: Exception | None = None
    mine: dict[str, tuple[int, str]] = {}
    try:
        path.mkdir(parents=True, exist_ok=True)
        with _quiet():
            dcp.save(
                _tensors(model, optimizer, average),
                storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True),
            )
        shards = sorted(path.glob(f"shard-{dist.get_rank() + 1:05d}-*"))  # the writer counts ranks from one
        mine = {file.name: (file.stat().st_size, file_digest(file)) for file in shards}
        if archive:
            archive.put_shards(shards, path.name)
    except Exception as error:  # dcp wraps whatever a rank met; all ranks must learn of it
        problem = error
    _raise_together(problem, path)
    everyones: list[dict[str, tuple[int, str]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyones, mine)  # behind it every shard is where it lasts
    if dist.get_rank() == 0:
        files = {name: entry for each in everyones for name, entry in sorted(each.items())}
        try:
            if archive:
                archive.put_metrics(folder.parent / METRICS)
            _write_manifest(Checkpoint(step, data, architecture, len(everyones), files, extra, path), archive)
            _prune(folder, keep, archive)
        except (OSError, StoreError) as error:
            problem = error
    _raise_together(problem, path)
    if archive:
        for other in _folders(folder):
            if other != path:
                shutil.rmtree(other, ignore_errors=True)
    return path


def newest(folder: Path, archive: Archive | None = None) -> Checkpoint | None:
    """Return the last checkpoint that has a manifest, its files unseen: cheap, for whoever asks how far a run came."""
    for name in _names(folder, archive):
        with contextlib.suppress(*TORN):
            return _read_manifest(folder / name, archive)
    return None


def latest(folder: Path, archive: Archive | None = None) -> Checkpoint | None:
    """Return the last whole checkpoint, or None; warns of torn ones. With an archive it then lies in `folder`.

    Raises:
        StoreError: the archive cannot be read.
    """
    for name in _names(folder, archive):
        try:
            return _whole(folder / name, archive)
        except TORN as error:
            _warn(folder / name, error)
    return None


def latest_of_all(folder: Path, archive: Archive | None = None) -> Checkpoint | None:
    """Return what `latest` does, the same on all ranks, which all call it; one rank of each node checks or fetches it.

    Raises:
        TrainingError: the archive cannot be read.
    """
    names: list[Any] = [[]]
    problem: Exception | None = None
    if dist.get_rank() == 0:
        try:
            names = [_names(folder, archive)]
        except (OSError, StoreError) as error:
            problem = error
    if _anywhere(problem):
        raise TrainingError(f"the checkpoints could not be listed: {problem}", "run again") from problem
    dist.broadcast_object_list(names, src=0)
    first_on_node = os.environ.get("LOCAL_RANK", "0") == "0"
    for name in names[0]:
        found: Checkpoint | None = None
        torn: Exception | None = None
        try:
            found = _whole(folder / name, archive) if first_on_node else _read_manifest(folder / name, archive)
        except TORN as error:
            torn = error
        except StoreError as error:
            problem = error
        if _anywhere(problem):
            raise TrainingError(f"checkpoint {name} could not be fetched: {problem}", "run again") from problem
        if not _anywhere(torn):
            return found
        if dist.get_rank() == 0:
            _warn(folder / name, torn)
    return None


def load(
    checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, average: Average, data: str, architecture: str
) -> None:
    """Load weights and optimizer state in place, whatever world size wrote them; all ranks call it.

    Raises:
        TrainingError: the checkpoint belongs to other data or to another architecture.
    """
    require_same(checkpoint, data, architecture)
    _fill_state(optimizer)
    with _quiet():
        dcp.load(_tensors(model, optimizer, average), storage_reader=HuggingFaceStorageReader(str(checkpoint.path)))


def load_weights(checkpoint: Checkpoint, model: nn.Module, averaged: bool = False) -> None:
    """Load the weights alone, or their average, into a plain or sharded model, in place."""
    prefix = "average" if averaged else "model"
    tensors = {f"{prefix}.{name}": tensor for name, tensor in _weights(model).items()}
    with _quiet():
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(checkpoint.path)))


def require_same(checkpoint: Checkpoint, data: str, architecture: str) -> None:
    """Raise TrainingError unless a checkpoint belongs to this data and architecture."""
    for what, found, wanted in (("model", checkpoint.model, architecture), ("data", checkpoint.data, data)):
        if found != wanted:
            raise TrainingError(
                f"checkpoint {checkpoint.path} belongs to another {what} ({found[:12]} there, {wanted[:12]} here)",
                f"restore the {what} settings it was trained with, or move the checkpoint folder away to start anew",
            )


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters by name, tied ones once (buffers here are constants of the architecture)."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _tensors(model: nn.Module, optimizer: Optimizer, average: Average) -> dict[str, torch.Tensor]:
    """Return everything to save as one flat dict; the tensors are views of the model's and the optimizer's memory."""
    tensors = {f"model.{name}": tensor for name, tensor in _weights(model).items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.weights.items()}
    states = optimizer.state
    for name, parameter in model.named_parameters():
        for key, value in states.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = (
                value.view(1) if value.ndim == 0 else value
            )  # a shard needs a dimension
    return tensors


def _fill_state(optimizer: Optimizer) -> None:
    """Make an optimizer allocate its state, by one step that changes nothing."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _write_manifest(checkpoint: Checkpoint, archive: Archive | None) -> None:
    value = asdict(checkpoint)
    path = value.pop("path")
    text = json.dumps(value, indent=1)
    if archive:
        archive.publish(f"{path.name}/{MANIFEST}", text.encode())
        return
    temporary = path / f".{MANIFEST}"
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path / MANIFEST)


def _read_manifest(path: Path, archive: Archive | None) -> Checkpoint:
    value = json.loads(archive.read(f"{path.name}/{MANIFEST}") if archive else (path / MANIFEST).read_text())
    if value["format_version"] > FORMAT_VERSION:
        raise ValueError("it was written by a newer hornbook")
    value["files"] = {name: (int(size), str(digest)) for name, (size, digest) in value["files"].items()}
    return Checkpoint(path=path, **value)


def _whole(path: Path, archive: Archive | None) -> Checkpoint:
    """Read a checkpoint and compare every file with its digest; raises one of TORN."""
    found = _read_manifest(path, archive)
    if archive:
        archive.get_shards(path.name, found.files, path)
        return found
    for name, (size, digest) in found.files.items():
        file = path / name
        if not file.exists() or file.stat().st_size != size or file_digest(file) != digest:
            raise ValueError(f"{name} is missing or not what was written")
    return found


def _warn(path: Path, error: Exception | None) -> None:
    warnings.warn(f"checkpoint {path} is torn and passed over: {error or 'on another node'}", stacklevel=3)


def _prune(folder: Path, keep: int, archive: Archive | None) -> None:
    """Delete all but the newest `keep` whole checkpoints, and the attempts that never became one."""
    kept = _names(folder, archive)[: max(keep, 1)]
    if archive:
        archive.keep(kept, MANIFEST)
        return
    for path in _folders(folder):
        if path.name not in kept:
            (path / MANIFEST).unlink(missing_ok=True)  # first, so that a kill leaves no manifest of deleted files
            shutil.rmtree(path, ignore_errors=True)


def _names(folder: Path, archive: Archive | None) -> list[str]:
    """Return the names of the checkpoints that have a manifest, newest first."""
    if archive:
        whole, _ = archive.checkpoints(MANIFEST)
    else:
        whole = [path.name for path in _folders(folder) if (path / MANIFEST).exists()]
    return sorted((name for name in whole if FOLDER.fullmatch(name)), reverse=True)


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if FOLDER.fullmatch(path.name)] if folder.exists() else []


def _shared_attempt() -> str:
    """Return a random name that all ranks agree on (rank 0 draws it)."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    name = torch.tensor([int(uuid.uuid4().hex[:8], 16)], dtype=torch.int64, device=device)
    dist.broadcast(name, src=0)
    return f"{int(name.item()):08x}"


def _anywhere(problem: Exception | None) -> bool:
    """Tell whether any rank has a problem; all call it."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    failed = torch.tensor([problem is not None], dtype=torch.int32, device=device)
    dist.all_reduce(failed, op=dist.ReduceOp.MAX)
    return bool(failed.item())


def _raise_together(problem: Exception | None, path: Path) -> None:
    """Raise on every rank if any rank has a problem, so that none waits in the next collective."""
    if _anywhere(problem):
        shutil.rmtree(path, ignore_errors=True)
        raise TrainingError(
            f"checkpoint {path} could not be written: {problem!r}"
            if problem
            else f"another worker could not write {path}",
            "free space or make the folder writable, then run again: training goes on from the checkpoint before",
        ) from problem


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's notes about its own deprecated storages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
