"""The training loop: pretraining and tuning are this one function over different batches.

It runs in one plain process, under torchrun, or in a Ray Train worker; it knows of none of them. Everything that a step
does follows from the step's number, so a resumed run repeats an uninterrupted one bit for bit on the same world.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hornbook.errors import TrainingError
from training import checkpoint as checkpoints
from training.archive import Archive
from training.loader import DIGEST_BITS, Batch, Loader
from training.metrics import METRICS, MetricsFile, json_ready
from training.model import LanguageModel
from training.parallel import World, parallelize
from training.schedule import learning_rate_share
from training.settings import LoopSettings
from training.shards import TokenSource
from training.validation import Validation


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    step: int
    stopped: bool
    """Asked to stop before the last step; the checkpoint is saved."""


def train(
    settings: LoopSettings,
    model: LanguageModel,
    loader: Loader,
    validation: Mapping[str, TokenSource],
    folder: Path,
    world: World,
    seed: int,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[dict[str, Any]], None] = lambda row: None,
    archive: Archive | None = None,
) -> Outcome:
    """Train a model over all steps of the loader's mixture, from the latest checkpoint if there is one.

    Args:
        model: plain, freshly initialised or loaded; it is sharded in place.
        validation: held-out rows by source; validated by name.
        folder: for `checkpoints/` and `metrics.jsonl` (written by rank 0); one that all ranks see, or with an archive
            any folder of this node.
        seed: of dropout.
        stop: asked once a step on rank 0; true: finish the step, save, return.
        progress: given each metrics row on every rank.
        archive: where checkpoints and metrics last, if not in `folder`.

    Raises:
        TrainingError: `settings.patience` non-finite steps in a row, an unwritable checkpoint, or a checkpoint of other
            data or of another model.
    """
    architecture = model_fingerprint(model)
    on_gpu = world.device.type == "cuda"
    compiled = on_gpu if settings.compile is None else settings.compile
    parallelize(model, world, settings.precision, compiled, settings.checkpoint_blocks)
    optimizer = make_optimizer(model, settings)
    data = loader.fingerprint()
    first, skipped, in_a_row = 0, 0, 0
    if found := checkpoints.latest_of_all(folder / "checkpoints", archive):
        checkpoints.load(found, model, optimizer, data, architecture)
        first, skipped, in_a_row = found.step, found.extra["skipped"], found.extra["in_a_row"]
    dist.barrier()
    metrics = None
    if world.rank == 0:
        if archive:
            archive.get_metrics(folder / METRICS)
        metrics = MetricsFile(folder / METRICS, first)
    held_out = Validation(validation, settings.validation_rows, settings.microbatch)
    steps = loader.mixture.steps
    batches = loader.batches(first, steps, world.rank, world.size)
    done, stopped = first, False
    began, waited = time.perf_counter(), 0.0
    try:
        for batch in batches:
            rate = settings.learning_rate * learning_rate_share(settings.schedule, batch.step, steps)
            stopping, targets, tokens, digest = _agree(batch, stop() if world.rank == 0 else False, world)
            loss, norm = _gradients(model, optimizer, batch, targets, settings.clip, world, seed)
            finite = math.isfinite(loss) and math.isfinite(norm)
            if finite:
                _step(optimizer, rate)
            optimizer.zero_grad()
            done = batch.step + 1
            skipped, in_a_row = (skipped, 0) if finite else (skipped + 1, in_a_row + 1)
            row: dict[str, Any] = {"step": done, "phase": batch.phase, "loss": loss, "lr": rate, "grad_norm": norm}
            if done % settings.validate_every == 0 or done == steps:
                row["validation"] = held_out(model, world)
            now = time.perf_counter()
            row |= {"tokens": tokens, "seconds": now - began, "tokens_per_second": tokens / (now - began)}
            row |= {"loader_wait_share": (batches.waited - waited) / (now - began)}
            row |= {"batch_digest": f"{digest:012x}", "skipped": skipped}
            began, waited = now, batches.waited
            if metrics is not None:
                metrics.append(json_ready(row))
            progress(row)
            if in_a_row >= settings.patience:
                raise TrainingError(
                    f"step {done}: the loss or its gradient was not finite {in_a_row} steps in a row",
                    "lower learning_rate, lengthen schedule.warmup_steps, or set precision to fp32; then run again",
                )
            stopped = stopping and done < steps
            if done % settings.checkpoint_every == 0 or done == steps or stopped:
                counters = {"skipped": skipped, "in_a_row": in_a_row}
                checkpoints.save(
                    folder / "checkpoints", done, model, optimizer, data, architecture, counters,
                    settings.keep_checkpoints, archive,
                )  # fmt: skip
            if stopped:
                break
    finally:
        batches.close()
    return Outcome(done, stopped)


def make_optimizer(model: LanguageModel, settings: LoopSettings) -> torch.optim.AdamW:
    """Return AdamW (arXiv 1711.05101) over the model's parameters; only matrices decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=True,
    )


def model_fingerprint(model: LanguageModel) -> str:
    """Return a hash of what a checkpoint must fit: the names and shapes of all parameters, and the attention's mask."""
    shapes = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    return hashlib.sha256(repr((model.model.config.model_type, shapes, model.document_mask)).encode()).hexdigest()


def _agree(batch: Batch, stop: bool, world: World) -> tuple[bool, int, int, int]:
    """Sum what each rank knows of the global batch: (stop?, targets, tokens, digest)."""
    sums = torch.tensor([stop, batch.targets, batch.tokens, batch.digest], dtype=torch.int64, device=world.device)
    dist.all_reduce(sums)
    stopping, targets, tokens, digest = sums.tolist()
    return bool(stopping), targets, tokens, digest % (1 << DIGEST_BITS)


def _gradients(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    targets: int,
    clip: float,
    world: World,
    seed: int,
) -> tuple[float, float]:
    """Accumulate the gradients of the mean loss over the global batch, clipped; returns (loss, norm before clipping)."""
    torch.manual_seed(hash((seed, batch.step, world.rank)) % (1 << 63))  # integers hash alike in every process
    total = torch.zeros((), device=world.device)
    last = len(batch.microbatches) - 1
    for number, (tokens, wanted) in enumerate(batch.microbatches):
        model.set_requires_gradient_sync(number == last)  # type: ignore[operator] # FSDP2's; one reduction a step
        loss = model(tokens.to(world.device), wanted.to(world.device)) / max(targets, 1)
        (loss * world.size).backward()  # FSDP takes the mean over ranks, the loss is a sum over them
        total += loss.detach()
    dist.all_reduce(total)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return total.item(), norm.item()


def _step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
