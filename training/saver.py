"""Saves checkpoints while training goes on: a step waits for a copy of the tensors, a thread of each rank does the rest.

The threads use no collectives, which training's own could cross: each writes its rank's shard, and tells the loop when it is
done or has failed. What the loop sums over the ranks in every step anyway says when all shards are there; then rank 0's
thread writes the manifest, which makes them a checkpoint. So all ranks learn of a failure at the same step.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from hornbook.errors import StoreError, TrainingError
from training import checkpoint as checkpoints
from training.archive import Archive
from training.checkpoint import Checkpoint
from training.checkpoint_shard import ShardBuffer
from training.metrics import METRICS
from training.optimizer import Average, Optimizer
from training.settings import LoopSettings


class Saver:
    """Saves the checkpoints of one run, one at a time; all ranks call every method, `state` and `close` aside.

    Args:
        folder: for checkpoints; metrics lie beside it.
        settings: of the loop: which checkpoints stay, and what happens when one cannot be written.
        data, architecture: fingerprints of what the run trains, on what.
        mixture: what the batches are planned from, for branches.
        archive: where checkpoints last, with the metrics, if `folder` is only this node's cache (which then keeps the newest
            checkpoint alone).
        parent: the checkpoint that the run branched off from, if it did.
    """

    def __init__(
        self,
        folder: Path,
        settings: LoopSettings,
        data: str,
        architecture: str,
        mixture: Mapping[str, Any],
        archive: Archive | None = None,
        parent: str = "",
    ) -> None:
        self._folder, self._settings, self._archive = folder, settings, archive
        self._run: dict[str, Any] = {"data": data, "model": architecture, "mixture": dict(mixture), "parent": parent}
        self._phase: Literal["idle", "writing", "publishing"] = "idle"
        self._thread: threading.Thread | None = None
        self._problem: Exception | None = None
        self._buffer: ShardBuffer | None = None
        self._path = folder
        self._obstacle: OSError | None = None
        self._files: dict[str, tuple[int, str]] = {}
        self._fields: dict[str, Any] = {}
        self._metrics_size = 0
        self._figures: dict[str, Any] = {}

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: Optimizer,
        average: Average,
        counters: dict[str, Any],
        losses: Mapping[str, float],
        last: bool,
        hurry: bool = False,
        obstacle: OSError | None = None,
    ) -> None:
        """Copy what a checkpoint holds and begin to write it; wait for the one before, if that is still under way.

        Args:
            step: optimizer steps done.
            counters: of the loop, to restore.
            losses: validation losses by source at this step, if it may be the best one: not if somebody just said stop.
            last: nothing is trained after this one: wait until it is whole, and whatever the settings say, fail if it cannot be.
            hurry: wait until it is whole: this machine may soon be gone.
            obstacle: what kept this rank from writing the figures of the steps; a checkpoint without them is none.

        Raises:
            TrainingError: it, or the one before, could not be written; earlier checkpoints are untouched.
        """
        began = time.perf_counter()
        self.finish()
        waited = time.perf_counter() - began
        tensors = checkpoints.tensors(model, optimizer, average)
        if self._buffer is None or not self._buffer.fits(tensors):
            self._buffer = ShardBuffer(tensors, dist.get_rank())
        self._buffer.fill(tensors)
        self._path = self._folder / f"step-{step:08d}-{checkpoints.shared_attempt()}"
        metrics = self._folder.parent / METRICS
        self._metrics_size = metrics.stat().st_size if metrics.exists() else 0  # later rows are of later steps
        self._fields = {"step": step, "extra": counters, "score": self._score(losses)}
        self._obstacle = obstacle
        self._phase = "writing"
        self._start(self._write)
        if last or hurry or not self._settings.asynchronous_checkpoints:
            self.finish(must=last)
        self._figures |= {"checkpoint_seconds": time.perf_counter() - began, "checkpoint_wait": waited}

    def state(self) -> tuple[int, int]:
        """Return whether this rank's thread is at work, and whether it failed; the loop sums both over the ranks."""
        running = self._thread is not None and self._thread.is_alive()
        return int(running), int(not running and self._problem is not None)

    def advance(self, running: int, failed: int, must: bool = False) -> None:
        """Go on with the save under way, given the sums of all ranks' `state`.

        Raises:
            TrainingError: a rank could not write, and the settings say to stop (or it `must` be written).
        """
        if self._phase == "idle" or running:
            return
        if failed:
            self._give_up(must)
        elif self._phase == "writing":
            everyones: list[dict[str, tuple[int, str]]] = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(everyones, self._files)
            self._fields["files"] = {name: entry for each in everyones for name, entry in sorted(each.items())}
            self._phase = "publishing"
            if dist.get_rank() == 0:
                self._start(self._publish)
        else:
            self._phase = "idle"
            if self._archive:
                checkpoints.clear_cache(self._folder, self._path)

    def finish(self, must: bool = False) -> None:
        """Wait until the save under way is whole. Raises TrainingError as `advance` does."""
        while self._phase != "idle":
            self.close()
            sums = torch.tensor(self.state(), dtype=torch.int32)
            dist.all_reduce(sums)
            running, failed = sums.tolist()
            self.advance(running, failed, must)

    def close(self) -> None:
        """Wait for this rank's thread alone: whoever leaves after an error leaves nobody writing."""
        if self._thread is not None:
            self._thread.join()

    def figures(self) -> dict[str, Any]:
        """Return, once, what saving cost since this was asked last, for the metrics: seconds in all, and of these waiting
        for the save before; and why one failed."""
        found, self._figures = self._figures, {}
        return found

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:  # all ranks must learn of it, whatever it is
                self._problem = error

        self._problem = None
        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def _write(self) -> None:
        """Write this rank's shard, to where it lasts."""
        assert self._buffer is not None
        self._files = {}
        if self._obstacle is not None:
            raise self._obstacle
        self._path.mkdir(parents=True, exist_ok=True)
        if not self._buffer.size:
            return
        shard = self._path / f"shard-{dist.get_rank() + 1:05d}.safetensors"
        self._files[shard.name] = self._buffer.size, self._buffer.write(shard)
        if self._archive:
            self._archive.put_shards([shard], self._path.name)

    def _publish(self) -> None:
        """Make the shards a checkpoint, and delete those that need not stay."""
        if self._archive:
            self._archive.put_metrics(self._folder.parent / METRICS, self._metrics_size)
        found = Checkpoint(world=dist.get_world_size(), path=self._path, **self._run, **self._fields)
        checkpoints.write_manifest(found, self._archive)
        keep, milestones = self._settings.keep_checkpoints, self._settings.milestone_every
        with contextlib.suppress(OSError, StoreError):  # it is whole by now: a leftover is not its failure
            checkpoints.prune(self._folder, self._path.name, keep, milestones, self._archive)

    def _give_up(self, must: bool) -> None:
        reasons: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(reasons, repr(self._problem) if self._problem else "")
        problem, self._problem, self._phase = self._problem, None, "idle"
        shutil.rmtree(self._path, ignore_errors=True)
        message = f"checkpoint {self._path} could not be written: {next(filter(None, reasons))}"
        if must or self._settings.on_failed_checkpoint == "stop":
            raise TrainingError(
                message,
                "free space or make the folder writable, then run again: training goes on from the checkpoint before",
            ) from problem
        self._figures["checkpoint_failed"] = message
        if dist.get_rank() == 0:
            warnings.warn(f"{message}; training goes on, the checkpoint before is whole", stacklevel=2)

    def _score(self, losses: Mapping[str, float]) -> float | None:
        """Return what the best checkpoint is chosen by; None if it was not measured here."""
        by = self._settings.best_by
        if by is None or not losses:
            return None
        return losses.get(by) if by != "mean" else sum(losses.values()) / len(losses)


def wants_validation(settings: LoopSettings, step: int) -> bool:
    """Tell whether a step is saved and may be the best one, so that it must be validated."""
    return settings.best_by is not None and step % settings.checkpoint_every == 0


def check_best_by(settings: LoopSettings, sources: Mapping[str, Sized]) -> None:
    """Raise TrainingError if the best checkpoint is to be chosen by a source that is not validated, or by nothing held out."""
    if settings.best_by not in (None, "mean", *sources):
        raise TrainingError(
            f"loop.best_by is {settings.best_by!r}, which no source is called",
            f"choose mean, {', '.join(sources)}",
        )
    names = [*sources] if settings.best_by == "mean" else [settings.best_by] if settings.best_by else []
    if settings.best_by and not any(len(sources[name]) for name in names):
        raise TrainingError(
            f"loop.best_by is {settings.best_by!r}, and nothing is held out to tell the best by",
            "raise validation_share of the pack stage until whole rows are held out, or leave best_of and loop.best_by out",
        )
