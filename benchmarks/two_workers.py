"""The training loop beside transformers' Trainer: same model, batch, precision and processors, one after the other.

    python benchmarks/two_workers.py [--steps 24]

Sides alternate, several rounds; ratios are taken within a round, since a shared machine's speed drifts between rounds.
The Trainer packs no documents and so has no document mask; ours keeps it on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from workers import environment_with, run_workers

GLOBAL_BATCH, LENGTH, MICROBATCH = 32, 256, 16


def hornbook_side(workers: int, steps: int, data: Path) -> dict[str, Any]:
    """Run training.bench with some workers."""
    command = [
        sys.executable, "-m", "training.bench", "--steps", str(steps), "--global-batch", str(GLOBAL_BATCH),
        "--sequence-length", str(LENGTH), "--microbatch", str(MICROBATCH), "--data", str(data),
    ]  # fmt: skip
    return run_workers(command, workers)


def trainer_side(steps: int) -> dict[str, Any]:
    """Run transformers' Trainer in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--side", "trainer", "--steps", str(steps)]
    done = subprocess.run(command, env=environment_with({}), capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.decode()[-4000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_trainer(steps: int) -> None:
    """Be the Trainer: bf16 autocast, fused AdamW, SDPA, the same number of microbatches."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from training.parallel import resolve_precision
    from training.presets import build_model, model_config

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = model_config("phi-demo-3m")
    rows = torch.randint(1, config.vocab_size, (GLOBAL_BATCH * steps, LENGTH))
    data = [{"input_ids": row, "labels": row} for row in rows]
    times: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            times.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch, max_steps=steps, per_device_train_batch_size=MICROBATCH, use_cpu=True,
            gradient_accumulation_steps=GLOBAL_BATCH // MICROBATCH, optim="adamw_torch_fused", report_to=[],
            bf16=resolve_precision("auto", torch.device("cpu")) == "bf16", save_strategy="no",
            logging_steps=10**6, disable_tqdm=True,
        )  # fmt: skip
        Trainer(model=build_model(config, 0), args=arguments, train_dataset=data, callbacks=[Clock()]).train()
    warm = times[steps // 3 :]
    steps_seconds = [later[0] - sooner[0] for sooner, later in pairwise(warm)]
    processor = (warm[-1][1] - warm[0][1]) / (len(warm) - 1)
    tokens = GLOBAL_BATCH * LENGTH
    figures = {"tokens_per_second": round(tokens / median(steps_seconds), 1)}
    print(json.dumps(figures | {"tokens_per_processor_second": round(tokens / processor, 1)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["all", "trainer"], default="all")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.side == "trainer":
        run_trainer(arguments.steps)
        return
    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        from training.bench import synthetic_shards

        data = Path(scratch) / "data"
        synthetic_shards(data, 4096, GLOBAL_BATCH * arguments.steps * (LENGTH + 1))
        for number in range(arguments.rounds):
            sides = {
                "1 worker": hornbook_side(1, arguments.steps, data),
                "Trainer": trainer_side(arguments.steps),
                "2 workers": hornbook_side(2, arguments.steps, data),
            }
            rounds.append(sides)
            print(f"round {number + 1}", json.dumps(sides), flush=True)
    speed = "tokens_per_second"
    for name in ("1 worker", "2 workers"):
        ratio = median(sides[name][speed] / sides["Trainer"][speed] for sides in rounds)
        wait = max(sides[name]["loader_wait_share"] for sides in rounds)
        rate = median(sides[name][speed] for sides in rounds)
        print(f"{name}: {rate:,.0f} tokens/s, {ratio:.2f} x Trainer, loader wait at most {100 * wait:.3f}%")
    processor = median(
        sides["1 worker"]["tokens_per_processor_second"] / sides["Trainer"]["tokens_per_processor_second"]
        for sides in rounds
    )
    print(f"per processor second, 1 worker: {processor:.2f} x Trainer")


if __name__ == "__main__":
    main()
