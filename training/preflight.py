"""What a run will take, said before it takes it: memory, disk, time, and whether the loader keeps up.

What cannot fit is refused before the first step, with the settings that would fit. Speed is measured on the real workers over
the first ten steps. `python -m training.preflight --preset ...` does it without Ray and without data, on made-up tokens (or under
torchrun, on as many workers as a node has).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
import torch.distributed as dist

from hornbook.errors import TrainingError
from hornbook.progress import duration, size
from training.memory import Memory, MemoryModel, shape_of

if TYPE_CHECKING:
    from training.loader import Loader
    from training.model import LanguageModel
    from training.parallel import World
    from training.settings import LoopSettings

STEPS = 10
"""Steps that speed is measured over; the first one, which compiles, does not count."""
BATCHES = 4
"""Batches that the loader's own speed is measured over."""
MOST_WORKERS = 64
LONG_SECONDS = 600.0
"""A run that takes longer is told of on the terminal."""


class Enough(Exception):
    """All that a preflight wants to know is known."""


@dataclass(frozen=True)
class Preflight:
    """What was found before the first step, on rank 0.

    Attributes:
        memory: foretold, of one worker.
        held: bytes that the process had before (on a GPU: not counted).
        free: bytes that one worker can have.
        workers: how many there are.
        steps: of the whole run, and those still to do.
        checkpoint: bytes of one checkpoint.
        checkpoints: how many there will be at a time, the one being written among them.
        disk: bytes free where they go.
        loader: tokens a second that the loaders of all workers can read.
    """

    memory: Memory
    held: float
    free: float
    workers: int
    steps: int
    left: int
    checkpoint: float
    checkpoints: int
    disk: float
    loader: float

    def row(self, steps: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Return all of it with what the first steps measured, JSON-ready."""
        counted = steps[1:] or steps
        seconds = sum(step["seconds"] for step in counted)
        return asdict(self) | {
            "foretold": self.memory.total + self.held,
            "measured": max(step["memory_bytes"] for step in steps),
            "tokens_per_second": sum(step["tokens"] for step in counted) / seconds,
            "mfu": sum(step.get("mfu", 0.0) * step["seconds"] for step in counted) / seconds,
            "seconds": self.left * seconds / len(counted),
            "tokens": self.left * sum(step["tokens"] for step in counted) / len(counted),
        }


def look_ahead(
    settings: LoopSettings,
    model: LanguageModel,
    loader: Loader,
    folder: Path,
    world: World,
    first: int,
    archived: bool = False,
) -> Preflight:
    """Return what a run will take from step `first` on; all ranks call it, before the model is laid over them.

    `archived`: checkpoints last on an object store, and `folder` keeps the newest one alone.

    Raises:
        TrainingError: it cannot fit, into the memory of a worker or the disk; the message says what would.
    """
    each = loader.sources[0].rows_per_draw
    foretell = MemoryModel(shape_of(model), world.device, each)
    memory = foretell(settings, world.size)
    shape, steps = foretell.shape, loader.mixture.steps
    resident = 0.0 if world.device.type == "cuda" else float(psutil.Process().memory_info().rss)
    held = -_least(-max(0.0, resident - 4 * shape.parameters), world)  # the model lies in memory already
    state = memory.weights + memory.optimizer + memory.average
    folder.mkdir(parents=True, exist_ok=True)
    most = 2 if archived else most_checkpoints(settings, steps)
    found = Preflight(
        memory=memory,
        held=held,
        free=_least(free_memory(world) + resident, world),
        workers=world.size,
        steps=steps,
        left=steps - first,
        checkpoint=state * world.size,
        checkpoints=max(1, most - len(list((folder / "checkpoints").glob("step-*")))),
        disk=_least(float(shutil.disk_usage(folder).free), world),
        loader=_loader_speed(loader, first, world),
    )
    copy = 0.0 if world.device.type == "cuda" else state  # which a checkpoint is written from while training goes on
    if memory.total + held + copy > found.free:
        plain = 4 * shape.parameters
        options = "; or ".join(what_fits(foretell, settings, world.size, found.free - held - copy))
        raise TrainingError(
            f"the model does not fit: a worker needs {size(memory.total + held + copy)} and can have {size(found.free)} "
            f"({_largest(memory)}; {shape.parameters:,} parameters are {size(plain)})",
            f"{options or 'nothing here fits: take a smaller model or shorter rows'}; preflight: off begins nevertheless",
        )
    if found.checkpoint * found.checkpoints > found.disk:
        raise TrainingError(
            f"the checkpoints do not fit: {found.checkpoints} of {size(found.checkpoint)} on {size(found.disk)} free at {folder}",
            "free space, lower loop.keep_checkpoints, raise loop.milestone_every, or move the store (HORNBOOK_STORE); "
            "preflight: off begins nevertheless",
        )
    return found


def most_checkpoints(settings: LoopSettings, steps: int) -> int:
    """Return how many checkpoints of a run lie on the disk at a time, at most: kept ones, and the one being written."""
    newest = settings.keep_checkpoints + 1
    milestones = 0
    if settings.milestone_every is not None:
        apart = math.lcm(settings.milestone_every, settings.checkpoint_every)
        milestones = max(0, steps - newest * settings.checkpoint_every) // apart  # older than the newest ones
    return newest + milestones + (settings.best_by is not None)


def what_fits(foretell: MemoryModel, settings: LoopSettings, workers: int, free: float) -> Iterator[str]:
    """Yield the smallest changes of the settings that let a worker's part fit into `free` bytes."""

    def fits(changes: Mapping[str, Any], count: int = workers) -> float | None:
        needed = foretell(settings.model_copy(update=changes), count).total
        return needed if needed <= free else None

    halves = [settings.microbatch >> shift for shift in range(1, settings.microbatch.bit_length())]
    modes = ["none", "selective", "full"]
    for mode in modes[modes.index(settings.activation_checkpointing) :]:
        also: dict[str, Any] = {"activation_checkpointing": mode}
        said = "" if mode == settings.activation_checkpointing else f"loop.activation_checkpointing: {mode}"
        if said and (needed := fits(also)):
            yield f"set {said} ({size(needed)})"
            break
        smaller = next(((rows, needed) for rows in halves if (needed := fits(also | {"microbatch": rows}))), None)
        if smaller:
            yield f"set loop.microbatch to {smaller[0]}{' and ' + said if said else ''} ({size(smaller[1])})"
    full: dict[str, Any] = {"sharding": "full"}
    less = foretell(settings.model_copy(update=full), workers).total < foretell(settings, workers).total
    if less and (needed := fits(full)):
        yield f"set loop.sharding: full ({size(needed)})"
    count = 2 * workers
    while count <= MOST_WORKERS:
        if needed := fits({}, count):
            yield f"take {count} workers, each with as much memory ({size(needed)})"
            break
        count *= 2


def free_memory(world: World) -> float:
    """Return the bytes that this worker can still have: of its GPU, or its share of the machine's, or of its container's."""
    if world.device.type == "cuda":
        return float(torch.cuda.mem_get_info(world.device)[0])
    free = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    with_limit = [group / "memory.max", group / "memory.current"]
    if all(path.exists() for path in with_limit):
        most, used = (path.read_text().strip() for path in with_limit)
        if most != "max":
            free = min(free, float(most) - float(used))
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", str(world.size)))


def table(row: Mapping[str, Any]) -> list[list[str]]:
    """Return what a preflight found as lines of a table: what, how much, and what it is made of or means."""
    memory: dict[str, float] = row["memory"]
    parts = [f"{name} {size(value)}" for name, value in sorted(memory.items(), key=lambda part: -part[1]) if value]
    spare = row["loader"] / row["tokens_per_second"]
    keeps_up = "the loader keeps up" if spare >= 2 else "THE LOADER IS THE BRAKE: more processors, or a nearer store"
    of = f"{row['left']:,} of {row['steps']:,} steps" if row["left"] < row["steps"] else f"{row['steps']:,} steps"
    return [
        ["time", duration(row["seconds"]), f"{of}, {row['tokens']:,.0f} tokens; validation and checkpoints come on top"],
        ["speed", f"{row['tokens_per_second']:,.0f} tokens/s", f"MFU {row['mfu']:.1%}, {row['workers']} workers, {STEPS} steps"],
        ["memory per worker", size(row["measured"]), f"measured; of {size(row['free'])} it can have"],
        ["", size(row["foretold"]), "foretold: " + ", ".join(parts[:4]) + (f", process {size(row['held'])}" if row["held"] else "")],
        ["checkpoint", size(row["checkpoint"]), f"{row['checkpoints']} more at a time, {size(row['disk'])} free"],
        ["loader", f"{row['loader']:,.0f} tokens/s", f"{spare:,.0f} times the speed: {keeps_up}"],
    ]  # fmt: skip


def lines(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table as lines of text."""
    found = table(row)
    wide = [max(len(line[column]) for line in found) for column in range(2)]
    for what, value, remark in found:
        yield f"{what:<{wide[0]}}  {value:>{wide[1]}}  {remark}"


def _largest(memory: Memory) -> str:
    parts = sorted(vars(memory).items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {size(value)}" for name, value in parts[:3])


def _least(value: float, world: World) -> float:
    least = torch.tensor([value], dtype=torch.float64, device=world.device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return float(least.item())


def _loader_speed(loader: Loader, first: int, world: World) -> float:
    """Return tokens a second of all loaders together, as rank 0's share is read twice: the first time fills the page cache."""
    last = min(first + BATCHES, loader.mixture.steps)
    tokens, seconds = 0, 1e-9
    for _ in range(2):
        began = time.perf_counter()
        tokens = sum(loader.batch(step, world.rank, world.size).tokens for step in range(first, last))
        seconds = time.perf_counter() - began
    return world.size * tokens / max(seconds, 1e-9)


class Watch:
    """Gathers the first steps of a run; behind the last of them it knows what the run will take.

    Args:
        found: by `look_ahead`.
        only: whether the run is a preflight and nothing else; it then ends with `Enough`.
    """

    def __init__(self, found: Preflight, only: bool = False) -> None:
        self._found, self._only = found, only
        self._rows: list[Mapping[str, Any]] = []

    def step(self, row: dict[str, Any]) -> None:
        """Take a step's row in; the tenth one is given `preflight`. Raises Enough."""
        self._rows.append(row)
        if len(self._rows) == min(STEPS, self._found.left):
            row["preflight"] = self._found.row(self._rows)

    def end(self) -> None:
        """Raise Enough, if there is no more to know."""
        if self._only and len(self._rows) >= min(STEPS, self._found.left):
            raise Enough


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run ten steps of a preset on made-up tokens; return what a run of `arguments.steps` will take."""
    from training.bench import synthetic_shards
    from training.loader import Loader
    from training.loop import train
    from training.mixture import Mixture, PhaseSettings
    from training.model import LanguageModel
    from training.parallel import join_world, leave_world
    from training.presets import build_model, model_config
    from training.settings import LoopSettings
    from training.shards import TokenSource

    world = join_world()
    config = model_config(arguments.preset)
    names = ("global_batch", "sequence_length", "microbatch", "precision", "activation_checkpointing")
    never = 10**9
    settings = LoopSettings.model_validate(
        {name: getattr(arguments, name) for name in names} | {"validate_every": never, "checkpoint_every": never}
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder or None) as scratch:
        folder = Path(scratch)
        synthetic_shards(
            folder, config.vocab_size, min(2 * STEPS * settings.global_batch * settings.sequence_length, 10**7)
        )
        source = TokenSource(folder, "train", settings.sequence_length)
        phases = [PhaseSettings(name="preflight", steps=arguments.steps)]
        mixture = Mixture({"made-up": len(source)}, phases, settings.global_batch, 1e9, seed=0)
        loader = Loader({"made-up": source}, mixture, settings.microbatch)
        model = LanguageModel(build_model(config, seed=0), source.eos)
        watch = Watch(look_ahead(settings, model, loader, folder / "run", world, 0), only=True)

        def progress(row: dict[str, Any]) -> None:
            watch.step(row)
            found.update(row.get("preflight", {}))
            watch.end()

        with contextlib.suppress(Enough):
            train(settings, model, loader, {}, folder / "run", world, seed=0, progress=progress)
    leave_world()
    return found


def main() -> None:
    """Entry point."""
    from hornbook.cli import guarded

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="phi-demo-3m")
    parser.add_argument("--steps", type=int, default=1000, help="Of the run that is asked about.")
    parser.add_argument("--global-batch", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--microbatch", type=int, default=16)
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    modes = ["none", "selective", "full"]
    parser.add_argument("--activation-checkpointing", default="none", choices=modes)
    parser.add_argument(
        "--folder", default="", help="Where checkpoints would go; its disk is the one that is looked at."
    )
    parser.add_argument("--json", action="store_true", help="One JSON line instead of a table.")
    arguments = parser.parse_args()

    def tell() -> None:
        found = measure(arguments)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(found) if arguments.json else "\n".join(lines(found)), flush=True)

    guarded(tell)


if __name__ == "__main__":
    main()
