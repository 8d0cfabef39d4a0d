"""Checkpoints that are whole or absent, of any world size, and never pickled.

Every rank writes its shard as safetensors (`training.checkpoint_shard`) into a folder that only this attempt uses; then
rank 0 writes `checkpoint.json`, atomically, naming each file with its size and digest (`training.saver` does both beside
training). No `checkpoint.json`, no checkpoint; a file that does not match makes it torn, and the one before is taken. What is
saved: weights, optimizer moments, the step, and what the data and the model are. Nothing else is state: batches, learning rate
and random numbers follow from the step.

The folder must be one that all ranks see; or there is an `Archive` on an object store, and the folder is only its cache on
each node.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from hornbook.errors import StoreError, TrainingError
from training.archive import Archive
from training.checkpoint_shard import file_digest
from training.optimizer import Average, Optimizer

FORMAT_VERSION = 2
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
    """Size in bytes and digest by file name."""
    extra: dict[str, Any]
    """Counters of the loop (skipped steps, ...)."""
    path: Path
    score: float | None = None
    """Validation loss that the best one is chosen by, if it was measured."""
    mixture: dict[str, Any] = field(default_factory=dict)
    """What the batches are planned from: `Mixture.plan`."""
    parent: str = ""
    """The checkpoint that the run branched off from: `artifacts/NAME/checkpoints/NAME`."""
    format_version: int = FORMAT_VERSION


def newest(folder: Path, archive: Archive | None = None) -> Checkpoint | None:
    """Return the last checkpoint that has a manifest, its files unseen: cheap, for whoever asks how far a run came."""
    for name in _names(folder, archive):
        with contextlib.suppress(*TORN):
            return read_manifest(folder / name, archive)
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


def kept(folder: Path, archive: Archive | None = None) -> list[Checkpoint]:
    """Return all checkpoints that have a manifest, newest first, their files unseen."""
    found = []
    for name in _names(folder, archive):
        with contextlib.suppress(*TORN):
            found.append(read_manifest(folder / name, archive))
    return found


def whole(found: Checkpoint, archive: Archive | None = None) -> Checkpoint | None:
    """Return a checkpoint if its files are as it says; None, with a warning, if it is torn. With an archive it then lies here.

    Raises:
        StoreError: the archive cannot be read.
    """
    try:
        return _whole(found.path, archive)
    except TORN as error:
        _warn(found.path, error)
        return None


def latest_of_all(folder: Path, archive: Archive | None = None, only: str = "") -> Checkpoint | None:
    """Return what `latest` does, the same on all ranks, which all call it; one rank of each node checks or fetches it.

    `only`: look at the checkpoint of this name alone.

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
    names = [[name for name in names[0] if only in ("", name)]]
    if _anywhere(problem):
        raise TrainingError(f"the checkpoints could not be listed: {problem}", "run again") from problem
    dist.broadcast_object_list(names, src=0)
    first_on_node = os.environ.get("LOCAL_RANK", "0") == "0"
    for name in names[0]:
        found: Checkpoint | None = None
        torn: Exception | None = None
        try:
            found = _whole(folder / name, archive) if first_on_node else read_manifest(folder / name, archive)
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
        TrainingError: the checkpoint belongs to other data, to another architecture or to another optimizer.
    """
    require_same(checkpoint, data, architecture)
    reader = HuggingFaceStorageReader(str(checkpoint.path))
    there = set(reader.read_metadata().state_dict_metadata)
    if any(name.startswith("optimizer.") for name in there):  # else the guard left out every step before it
        _fill_state(optimizer)
    wanted = tensors(model, optimizer, average)
    if lacking := sorted(set(wanted) - there):
        raise TrainingError(
            f"checkpoint {checkpoint.path} holds no {lacking[0]} ({len(lacking)} such): it was trained otherwise",
            "set loop.optimizer and loop.average as they were",
        )
    with _quiet():
        dcp.load(wanted, storage_reader=reader)


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


def tensors(model: nn.Module, optimizer: Optimizer, average: Average) -> dict[str, torch.Tensor]:
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


def write_manifest(checkpoint: Checkpoint, archive: Archive | None) -> None:
    """Make the files of a folder a checkpoint. Raises OSError or StoreError."""
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
    for folder in (path, path.parent):  # the names, too, must outlive a power cut
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def read_manifest(path: Path, archive: Archive | None) -> Checkpoint:
    """Read a checkpoint's manifest, its files unseen; raises one of TORN, or StoreError."""
    value = json.loads(archive.read(f"{path.name}/{MANIFEST}") if archive else (path / MANIFEST).read_text())
    if value["format_version"] != FORMAT_VERSION:
        raise ValueError("it was written by another version of hornbook")
    value["files"] = {name: (int(size), str(digest)) for name, (size, digest) in value["files"].items()}
    return Checkpoint(path=path, **value)


def _whole(path: Path, archive: Archive | None) -> Checkpoint:
    """Read a checkpoint and compare every file with its digest; raises one of TORN."""
    found = read_manifest(path, archive)
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


def prune(folder: Path, written: str, keep: int, milestone_every: int | None, archive: Archive | None) -> None:
    """Delete whole checkpoints but the newest `keep`, milestones and the best one, and attempts that never became one.

    `written`: the name of the one just made. Others of its step or of later ones were found torn when this run began, or it
    would have gone on from them: they are deleted, too, and take nobody's place.

    Raises:
        StoreError: the archive cannot be listed.
    """
    names = [name for name in _names(folder, archive) if name == written or _step(name) < _step(written)]
    stay = {*names[: max(keep, 1)], *(name for name in names if milestone_every and _step(name) % milestone_every == 0)}
    scored = [
        found
        for found in kept(folder, archive)
        if found.path.name in names and found.score is not None and math.isfinite(found.score)
    ]
    if scored:
        stay.add(min(reversed(scored), key=lambda found: found.score or 0.0).path.name)  # of equals the first one made
    if archive:
        archive.keep(sorted(stay), MANIFEST)
        return
    for path in _folders(folder):
        if path.name in stay:
            continue
        with contextlib.suppress(OSError):  # a leftover costs space; the next checkpoint tries again
            (path / MANIFEST).unlink(missing_ok=True)  # first, so that a kill leaves no manifest of deleted files
            shutil.rmtree(path, ignore_errors=True)


def clear_cache(folder: Path, kept: Path) -> None:
    """Delete all checkpoints in a node's cache but one."""
    for other in _folders(folder):
        if other != kept:
            shutil.rmtree(other, ignore_errors=True)


def _names(folder: Path, archive: Archive | None) -> list[str]:
    """Return the names of the checkpoints that have a manifest, newest first."""
    if archive:
        whole, _ = archive.checkpoints(MANIFEST)
    else:
        whole = [path.name for path in _folders(folder) if (path / MANIFEST).exists()]
    return sorted((name for name in whole if FOLDER.fullmatch(name)), reverse=True)


def _step(name: str) -> int:
    return int(name.split("-")[1])


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if FOLDER.fullmatch(path.name)] if folder.exists() else []


def shared_attempt() -> str:
    """Return a random name that all ranks agree on (rank 0 draws it)."""
    name = torch.tensor([int(uuid.uuid4().hex[:8], 16)], dtype=torch.int64)
    dist.broadcast(name, src=0)
    return f"{int(name.item()):08x}"


def _anywhere(problem: Exception | None) -> bool:
    """Tell whether any rank has a problem; all call it."""
    failed = torch.tensor([problem is not None], dtype=torch.int32)
    dist.all_reduce(failed, op=dist.ReduceOp.MAX)
    return bool(failed.item())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's notes about its own deprecated storages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
