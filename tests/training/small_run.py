"""A tiny training run in processes of its own, so that tests can kill it: two sources of random tokens, two phases."""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PhiForCausalLM  # noqa: F401 - loaded once in the fork server, not in each process

from training.archive import Archive
from training.loader import Loader
from training.loop import train
from training.mixture import Mixture, PhaseSettings
from training.model import LanguageModel
from training.parallel import join_world, leave_world
from training.presets import build_model, model_config
from training.settings import LoopSettings
from training.shards import ShardBuilder, TokenSource, write_shard_folder

VOCABULARY, LENGTH, GLOBAL_BATCH, STEPS = 512, 64, 8, 14


def write_data(folder: Path) -> None:
    """Write the two packed sources `a` and `b`."""
    for seed, name in enumerate("ab"):
        random = np.random.default_rng(seed)
        builders = [ShardBuilder(eos=0, vocabulary=VOCABULARY) for _ in range(3)]
        for number in range(300):
            ids = random.integers(1, 200, random.integers(20, 200))
            split: Any = "validation" if number % 20 == 0 else "train"
            builders[number % 3].add(number, number.to_bytes(16, "big"), name, split, ids)
        write_shard_folder(folder / "data" / name, builders)


def open_data(folder: Path, split: Any = "train") -> dict[str, TokenSource]:
    """Open the two sources."""
    return {name: TokenSource(folder / "data" / name, split, LENGTH) for name in "ab"}


def open_loader(folder: Path, microbatch: int = 2) -> Loader:
    """Return the loader of the run."""
    sources = open_data(folder)
    phases = [
        PhaseSettings(name="stable", steps=STEPS - 4, weights={"a": 1, "b": 2}),
        PhaseSettings(name="decay", steps=4, weights={"a": 1}),
    ]
    mixture = Mixture({name: len(source) for name, source in sources.items()}, phases, GLOBAL_BATCH, 4, seed=1)
    return Loader(sources, mixture, microbatch)


def small_model() -> LanguageModel:
    """Return a model of two narrow blocks, with dropout (its random numbers must resume, too)."""
    config = model_config(
        "phi-demo-3m", vocab_size=VOCABULARY, hidden_size=64, intermediate_size=256, num_attention_heads=2,
        num_hidden_layers=2, resid_pdrop=0.1,
    )  # fmt: skip
    return LanguageModel(build_model(config, seed=0), eos=0)


@contextmanager
def small_files(limit: int = 100_000) -> Iterator[None]:
    """Let no file of this process grow beyond a limit, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def machine(folder: Path, rank: int) -> Path:
    """Return the disk of a machine of its own."""
    return folder / f"machine-{rank}"


def work(
    folder: Path, rank: int, world: int, port: int, pause: float, archive: Archive | None, changes: dict[str, Any]
) -> None:
    """Be one worker: train with a pause after each step, so that a test can kill or stop in between.

    With an archive each rank is alone on a machine, whose disk no other one sees.
    """
    local_rank = 0 if archive else rank
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if rank == 1 and (folder / "stuck-disk").exists():  # what is written to it never arrives
        os.fsync = lambda file: time.sleep(1000)  # type: ignore[assignment]
    here = join_world()
    values = {"global_batch": GLOBAL_BATCH, "sequence_length": LENGTH, "microbatch": 2, "checkpoint_every": 4}
    settings = LoopSettings.model_validate({**values, "validate_every": 6, **changes})
    train(
        settings, small_model(), open_loader(folder), open_data(folder, "validation"),
        (machine(folder, rank) if archive else folder) / "run", here, seed=0,
        stop=(folder / "stop").exists, progress=lambda row: time.sleep(pause), archive=archive,
    )  # fmt: skip
    leave_world()


def start(
    folder: Path, world: int, pause: float = 0.0, archive: Archive | None = None, **changes: Any
) -> list[BaseProcess]:
    """Start the workers of the run, forked from a server that has the imports behind it; `changes` are settings."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small_run"])
    processes: list[BaseProcess] = [
        context.Process(target=work, args=(folder, rank, world, port, pause, archive, changes)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes
