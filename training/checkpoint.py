"""Checkpoints that are whole or absent, of any world size, and never pickled.

Every rank writes its shards as safetensors (torch.distributed.checkpoint) into a folder that only this attempt uses; then
rank 0 writes `checkpoint.json`, atomically, naming each file with its size and digest. No `checkpoint.json`, no checkpoint;
a file that does not match makes it torn, and the one before is taken. What is saved: weights, optimizer moments, the step,
and what the data and the model are. Nothing else is state: batches, learning rate and random numbers follow from the step.

The folder must be one that all ranks see.
"""

from __future__ import annotations

import contextlib
import hashlib
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

from hornbook.errors import TrainingError

FORMAT_VERSION = 1
MANIFEST = "checkpoint.json"
FOLDER = re.compile(r"step-(\d{8})-[0-9a-f]{8}")


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
    optimizer: torch.optim.Optimizer,
    data: str,
    architecture: str,
    extra: dict[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint and delete all but the last `keep`; all ranks call it. Returns its folder.

    Raises:
        TrainingError: it could not be written (no space); earlier checkpoints are untouched.
    """
    path = folder / f"step-{step:08d}-{_shared_attempt()}"
    problem: Exception | None = None
    try:
        path.mkdir(parents=True, exist_ok=True)
        with _quiet():
            dcp.save(
                _tensors(model, optimizer),
                storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True),
            )
    except Exception as error:  # dcp wraps whatever a rank met; all ranks must learn of it
        problem = error
    _raise_together(problem, path)
    if dist.get_rank() == 0:
        try:
            _write_manifest(path, step, data, architecture, extra)
            _prune(folder, keep)
        except OSError as error:
            problem = error
    _raise_together(problem, path)
    return path


def latest(folder: Path) -> Checkpoint | None:
    """Return the last whole checkpoint of a folder, or None; warns of torn ones. Every rank finds the same."""
    for path in sorted(_folders(folder), key=lambda path: path.name, reverse=True):
        if not (path / MANIFEST).exists():
            continue  # an attempt that died while writing: never counted as one
        try:
            found = _read_manifest(path)
            _verify(found)
            return found
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"checkpoint {path} is torn and passed over: {error}", stacklevel=2)
    return None


def load(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, data: str, architecture: str
) -> None:
    """Load weights and optimizer state in place, whatever world size wrote them; all ranks call it.

    Raises:
        TrainingError: the checkpoint belongs to other data or to another architecture.
    """
    require_same(checkpoint, data, architecture)
    _fill_state(optimizer)
    with _quiet():
        dcp.load(_tensors(model, optimizer), storage_reader=HuggingFaceStorageReader(str(checkpoint.path)))


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Load the weights alone, into a plain or sharded model, in place."""
    tensors = {f"model.{name}": tensor for name, tensor in _weights(model).items()}
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


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return everything to save as one flat dict; the tensors are views of the model's and the optimizer's memory."""
    tensors = {f"model.{name}": tensor for name, tensor in _weights(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = (
                value.view(1) if value.ndim == 0 else value
            )  # a shard needs a dimension
    return tensors


def _fill_state(optimizer: torch.optim.Optimizer) -> None:
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


def _write_manifest(path: Path, step: int, data: str, architecture: str, extra: dict[str, Any]) -> None:
    files = {file.name: (file.stat().st_size, _digest(file)) for file in sorted(path.iterdir())}
    manifest = Checkpoint(step, data, architecture, dist.get_world_size(), files, extra, path)
    value = asdict(manifest)
    del value["path"]
    temporary = path / f".{MANIFEST}"
    with temporary.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path / MANIFEST)


def _read_manifest(path: Path) -> Checkpoint:
    value = json.loads((path / MANIFEST).read_text())
    if value["format_version"] > FORMAT_VERSION:
        raise ValueError("it was written by a newer hornbook")
    value["files"] = {name: (int(size), str(digest)) for name, (size, digest) in value["files"].items()}
    return Checkpoint(path=path, **value)


def _verify(checkpoint: Checkpoint) -> None:
    for name, (size, digest) in checkpoint.files.items():
        file = checkpoint.path / name
        if not file.exists() or file.stat().st_size != size or _digest(file) != digest:
            raise ValueError(f"{name} is missing or not what was written")


def _prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` whole checkpoints, and the attempts that never became one."""
    whole = sorted(path for path in _folders(folder) if (path / MANIFEST).exists())
    torn = [path for path in _folders(folder) if not (path / MANIFEST).exists()]
    for path in whole[: -max(keep, 1)]:
        (path / MANIFEST).unlink()  # first, so that a kill leaves no manifest of deleted files
        shutil.rmtree(path, ignore_errors=True)
    for path in torn:
        shutil.rmtree(path, ignore_errors=True)


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if FOLDER.fullmatch(path.name)] if folder.exists() else []


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _shared_attempt() -> str:
    """Return a random name that all ranks agree on (rank 0 draws it)."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    name = torch.tensor([int(uuid.uuid4().hex[:8], 16)], dtype=torch.int64, device=device)
    dist.broadcast(name, src=0)
    return f"{int(name.item()):08x}"


def _raise_together(problem: Exception | None, path: Path) -> None:
    """Raise on every rank if any rank has a problem, so that none waits in the next collective."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    failed = torch.tensor([problem is not None], dtype=torch.int32, device=device)
    dist.all_reduce(failed, op=dist.ReduceOp.MAX)
    if failed.item():
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
