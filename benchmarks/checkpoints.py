"""What a checkpoint costs the step: training of mobilellm-125m (124.6M parameters, AdamW: 1.5 GB a checkpoint) that saves every few
steps, beside a plain copy, write and fsync of the same bytes into the same folder.

A save's cost is the time of the steps from one save to the next, over as many times the median of those that no save touched. The
plain copy goes into memory that was used before, as ours does. Both sides alternate in one process; prints the ratio of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from training.bench import synthetic_shards
from training.checkpoint import latest
from training.loader import Loader
from training.loop import train
from training.mixture import Mixture, PhaseSettings
from training.model import LanguageModel
from training.parallel import join_world, leave_world
from training.presets import build_model, model_config
from training.settings import LoopSettings
from training.shards import TokenSource

GOAL = 0.3
AFTER = 3
"""Steps behind a save that it may touch; the others of a cycle are the measure."""


class Plain:
    """A copy, write and fsync of as many bytes, as a training loop would do it that waits for it."""

    def __init__(self, folder: Path, size: int) -> None:
        self.path = folder / "plain.bin"
        self.state = torch.ones(size, dtype=torch.uint8)
        self.copy = torch.zeros_like(self.state)

    def seconds(self) -> float:
        """Do it once."""
        self.path.unlink(missing_ok=True)
        began = time.perf_counter()
        self.copy.copy_(self.state)
        with self.path.open("wb", buffering=0) as file:
            content = memoryview(self.copy.numpy())  # type: ignore[arg-type]
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        return time.perf_counter() - began


def train_here(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train with saves; return the metrics rows."""
    config = model_config("mobilellm-125m")
    settings = LoopSettings(
        global_batch=arguments.rows, sequence_length=arguments.length, microbatch=arguments.rows,
        checkpoint_every=arguments.every, keep_checkpoints=1, validate_every=10**9, patience=1,
        asynchronous_checkpoints=not arguments.at_once,
    )  # fmt: skip
    steps = arguments.every * (arguments.saves + 2)  # before the first save, and behind the last one that counts
    synthetic_shards(folder / "data", config.vocab_size, arguments.rows * steps * (arguments.length + 1))
    source = TokenSource(folder / "data", "train", arguments.length)
    mixture = Mixture({"synthetic": len(source)}, [PhaseSettings(name="p", steps=steps)], arguments.rows, 1e9, seed=0)
    model = LanguageModel(build_model(config, seed=0), source.eos)
    found: list[dict[str, Any]] = []
    loader = Loader({"synthetic": source}, mixture, settings.microbatch)
    train(settings, model, loader, {}, folder / "run", join_world(), seed=0, progress=found.append)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saves", type=int, default=5, help="that count; one before them makes the buffer")
    parser.add_argument("--every", type=int, default=8, help="steps from save to save")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--at-once", action="store_true", help="without the thread, for comparison")
    parser.add_argument("--folder", default="", help="on the disk to measure; default: a temporary one")
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(dir=arguments.folder or None))
    try:
        plain = Plain(scratch, 12 * 124_635_456)
        plain.seconds()  # the first one pays for new memory
        before = [plain.seconds() for _ in range(3)]
        rows = train_here(scratch, arguments)
        found = latest(scratch / "run" / "checkpoints")
        assert found is not None and found.step == len(rows)
        size = sum(size for size, _ in found.files.values())
        plain_seconds = [*before, *(plain.seconds() for _ in range(3))]
        leave_world()
    finally:
        shutil.rmtree(scratch)
    every = arguments.every
    cycles = [rows[first : first + every] for first in range(2 * every, len(rows), every)]  # the first made the buffer
    usual = median(row["seconds"] for cycle in cycles for row in cycle[AFTER:])
    lost = [sum(row["seconds"] for row in cycle) - every * usual for cycle in cycles]
    waited = [cycle[0]["checkpoint_seconds"] for cycle in cycles]
    ratio = median(lost) / median(plain_seconds)
    print(json.dumps({
        "checkpoint_bytes": size, "step_seconds": round(usual, 3), "threads": torch.get_num_threads(),
        "lost_seconds": [round(each, 3) for each in lost], "of_these_the_loop_waited": [round(each, 3) for each in waited],
        "first_save_waited": round(rows[every]["checkpoint_seconds"], 3),
        "plain_seconds": [round(each, 3) for each in plain_seconds],
    }))  # fmt: skip
    print(
        f"a save costs {median(lost):.2f} s of training, a plain copy, write and fsync {median(plain_seconds):.2f} s: "
        f"{ratio:.2f} x (goal: {GOAL} or less); the loop itself waits {median(waited):.2f} s"
    )


if __name__ == "__main__":
    main()
