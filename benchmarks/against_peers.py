"""A training step on this CPU beside transformers' Trainer and litgpt's pretraining: same model, tokens, batch and optimizer.

    python benchmarks/against_peers.py [--rounds 3] [--steps 12] [--models llama-7m tinystories-3m]

Each side runs in a process of its own, in turns, in bf16, compiled unless the C++ compiler breaks down; ratios are taken within a
round, by the clock and by processor time, since a shared machine's speed drifts. All see whole rows causally, as the peers cannot
do otherwise; hornbook with its document mask is an extra row. litgpt is the package from the registry, unmodified, in a folder
that this script makes (`--litgpt FOLDER`), in mixed precision and in pure bf16 (no float32 weights: less work, and not the same
training). It has no GPT-Neo: for tinystories-3m it gets its nearest model (rotary positions of no width, windows in every second block).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BATCH, LENGTH = 8, 512
RATE, DECAY, BETAS, EPSILON = 1e-3, 0.1, (0.9, 0.95), 1e-8
SIDES = ("hornbook", "hornbook, documents apart", "Trainer", "litgpt bf16-mixed", "litgpt bf16-true")


def run_side(side: str, model: str, steps: int, data: Path, litgpt: Path) -> dict[str, Any]:
    """Run one side in a process of its own; return its figures."""
    if side.startswith("hornbook"):
        mask = "--document-mask" if "apart" in side else "--no-document-mask"
        command = [
            sys.executable, "-m", "training.bench", "--preset", model, "--steps", str(steps), "--global-batch", str(BATCH),
            "--microbatch", str(BATCH), "--sequence-length", str(LENGTH), "--data", str(data), "--precision", "bf16",
            "--compile", mask,
        ]  # fmt: skip
    else:
        python = litgpt / "bin" / "python" if side.startswith("litgpt") else Path(sys.executable)
        here = str(Path(__file__).resolve())
        command = [str(python), here, "--side", side, "--models", model, "--steps", str(steps), "--data", str(data)]
    path = os.pathsep.join([str(ROOT / "platform"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    for compiled in (True, False):
        environment = os.environ | {"PYTHONPATH": path} | ({} if compiled else {"TORCH_COMPILE_DISABLE": "1"})
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return found | {"compiled": compiled}
        if b"internal compiler error" not in done.stderr:  # the C++ compiler's own, of which the side is innocent
            break
    raise SystemExit(f"{side}: {done.stderr.decode()[-4000:]}")


def make_litgpt(folder: Path) -> None:
    """Make an environment with litgpt in it, and this one's torch (its other packages exclude transformers' of here)."""
    import torch

    venv.create(folder, with_pip=True)
    (own,) = (folder / "lib").glob("python3*/site-packages")
    here = Path(torch.__file__).parent.parent
    for name in ("torch", "torchgen", "functorch", f"torch-{torch.__version__}.dist-info"):
        if (here / name).exists():
            (own / name).symlink_to(here / name)
    subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", "litgpt", "numpy"], check=True)


def write_rows(data: Path) -> None:
    """Write the rows that hornbook trains on for the peers, int64 (rows, LENGTH + 1)."""
    import numpy as np

    from training.shards import TokenSource

    source = TokenSource(data, "train", LENGTH)
    rows, _ = source.read(np.arange(len(source)))
    np.save(data / "rows.npy", rows.astype(np.int64).reshape(-1, LENGTH + 1))


def rows_of(data: Path) -> Any:
    """Return what `write_rows` wrote, as a tensor."""
    import numpy as np
    import torch

    return torch.from_numpy(np.load(data / "rows.npy"))


def report(times: list[tuple[float, float]]) -> None:
    """Print speed from the clock and the processor time at each step, the first third left out."""
    warm = times[len(times) // 3 :]
    each = median(later[0] - sooner[0] for sooner, later in pairwise(warm))
    processor = (warm[-1][1] - warm[0][1]) / (len(warm) - 1)
    tokens = BATCH * LENGTH
    figures = {"tokens_per_second": tokens / each, "tokens_per_processor_second": tokens / processor}
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}))


def run_trainer(model: str, steps: int, data: Path) -> None:
    """Be the Trainer."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from training.presets import build_model, model_config

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = [{"input_ids": row, "labels": row} for row in rows_of(data)[:, :LENGTH]]
    times: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            times.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch, max_steps=steps, per_device_train_batch_size=BATCH, use_cpu=True, bf16=True,
            torch_compile=True, optim="adamw_torch_fused", learning_rate=RATE, weight_decay=DECAY, adam_beta1=BETAS[0],
            adam_beta2=BETAS[1], adam_epsilon=EPSILON, lr_scheduler_type="constant", report_to=[], save_strategy="no",
            logging_steps=10**6, disable_tqdm=True,
        )  # fmt: skip
        built = build_model(model_config(model), 0)
        Trainer(model=built, args=arguments, train_dataset=rows, callbacks=[Clock()]).train()
    report(times)


class EnoughError(Exception):
    """The last step is done: ends litgpt's run before it writes its checkpoint."""


class Batches:
    """Batches as litgpt's loader asks for them, one at the start of each step, and when that was."""

    def __init__(self, rows: Any, steps: int) -> None:
        self.rows, self.steps = rows, steps
        self.times: list[tuple[float, float]] = []

    def __len__(self) -> int:
        return self.steps + 1

    def __getitem__(self, number: int) -> Any:
        self.times.append((time.perf_counter(), time.process_time()))
        if number == self.steps:
            raise EnoughError
        return self.rows[number * BATCH : (number + 1) * BATCH]


def run_litgpt(model: str, steps: int, data: Path, precision: Any) -> None:
    """Be litgpt's `pretrain`, with a data module that looks at the clock when a batch is asked for."""
    import torch
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.config import Config
    from litgpt.data import DataModule
    from litgpt.pretrain import setup

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = rows_of(data)
    batches: Any = Batches(rows, steps)

    class Rows(DataModule):
        def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: Any = None) -> None:
            """Nothing depends on these here."""

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(batches, batch_size=None)

        def val_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(rows[:BATCH], batch_size=BATCH)

    common = {"padding_multiple": 1, "block_size": LENGTH, "parallel_residual": False, "bias": False}
    models = {
        "llama-7m": Config(
            name="llama-7m", vocab_size=4_096, n_layer=8, n_embd=256, n_head=4, rotary_percentage=1.0,
            norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", intermediate_size=688, **common,
        ),
        "tinystories-3m": Config(
            name="tinystories-3m", vocab_size=50_257, n_layer=8, n_embd=128, n_head=16, rotary_percentage=0.0,
            gelu_approximate="tanh", sliding_window_size=256, sliding_window_indices=[0, 1] * 4, **common | {"bias": True},
        ),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(EnoughError):
        setup(
            "own", models[model], out_dir=Path(scratch), precision=precision, data=Rows(), devices=1, logger_name="csv",
            train=TrainArgs(
                save_interval=None, log_interval=10**6, global_batch_size=BATCH, micro_batch_size=BATCH,
                max_tokens=(steps + 1) * BATCH * LENGTH, max_norm=1.0, min_lr=RATE, lr_warmup_steps=0, tie_embeddings=True,
                max_seq_length=LENGTH,
            ),
            eval=EvalArgs(interval=10**6, max_iters=1, initial_validation=False, final_validation=False),
            optimizer={
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": RATE, "weight_decay": DECAY, "betas": BETAS, "eps": EPSILON},
            },
        )  # fmt: skip
    report(batches.times)


def compare(model: str, rounds: int, steps: int, litgpt: Path) -> None:
    """Run all sides in turns and print the ratios."""
    from training.bench import synthetic_shards
    from training.presets import model_config

    found: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        synthetic_shards(data, model_config(model).vocab_size, BATCH * (steps + 2) * (LENGTH + 1))
        write_rows(data)
        for number in range(rounds):
            found.append({})
            for side in SIDES:
                found[-1][side] = run_side(side, model, steps, data, litgpt)
                print(f"{model}, round {number + 1}, {side}: {json.dumps(found[-1][side])}", flush=True)
    for side in SIDES:
        rates = [sides[side] for sides in found]
        how = "" if rates[0]["compiled"] else " (not compiled: the C++ compiler fails on it)"
        line = f"{model}: {side}{how}: {median(rate['tokens_per_second'] for rate in rates):,.0f} tokens/s, "
        line += f"{median(rate['tokens_per_processor_second'] for rate in rates):,.0f} a processor second"
        if side.startswith("hornbook"):
            share = median(rate["share_of_matmul_peak"] for rate in rates)
            line += f", {100 * share:.0f}% of the measured bf16 matmul peak ({rates[0]['matmul_gflops']} GFLOP/s)"
        else:
            for figure, name in (("tokens_per_second", "clock"), ("tokens_per_processor_second", "processor")):
                ratio = median(sides["hornbook"][figure] / sides[side][figure] for sides in found)
                line += f"; hornbook is {ratio:.2f} x by the {name}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", default="all")
    parser.add_argument("--models", nargs="+", default=["llama-7m", "tinystories-3m"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--litgpt", type=Path, help="Folder of its environment; made if it is not there.")
    arguments = parser.parse_args()
    if arguments.side == "Trainer":
        run_trainer(arguments.models[0], arguments.steps, arguments.data)
    elif arguments.side.startswith("litgpt"):
        run_litgpt(arguments.models[0], arguments.steps, arguments.data, arguments.side.split()[1])
    else:
        with tempfile.TemporaryDirectory() as scratch:
            litgpt = arguments.litgpt or Path(scratch) / "litgpt"
            if not litgpt.exists():
                make_litgpt(litgpt)
            for model in arguments.models:
                compare(model, arguments.rounds, arguments.steps, litgpt)


if __name__ == "__main__":
    main()
