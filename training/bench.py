"""Speed of the training loop on made-up tokens, without Ray: `python -m training.bench`, or under torchrun.

    python -m training.bench --preset mobilellm-350m                       # on a GPU: bf16, compiled, rows of 2,048
    torchrun --nproc-per-node 8 -m training.bench --preset phi-1

Prints one JSON line: tokens per second over the last two thirds of the steps; what that is of the device's bf16 peak, by its
data sheet (mfu) and as a matrix product on it measures it; the share of time spent waiting for the loader; peak memory; and the
processor seconds of rank 0 (which a busy machine does not distort). What the model computes counts as in `training.flops`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from training.shards import ShardBuilder, write_shard_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

DOCUMENT_TOKENS = 200
GPU_STEP_TOKENS = 1 << 18


def synthetic_shards(folder: Path, vocabulary: int, tokens: int) -> None:
    """Write random documents of about 200 tokens."""
    random = np.random.default_rng(0)
    builder = ShardBuilder(eos=0, vocabulary=vocabulary)
    for number in range(max(2, tokens // DOCUMENT_TOKENS)):
        ids = random.integers(1, vocabulary, random.integers(1, 2 * DOCUMENT_TOKENS))
        builder.add(number, number.to_bytes(16, "big"), "synthetic", "train", ids)
    write_shard_folder(folder, [builder])


def peak_bytes(device: torch.device) -> int:
    """Return the most memory in use so far: of the GPU, or of this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def fitting_microbatch(config: PreTrainedConfig, parameters: int, length: int, free: int) -> int:
    """Return rows per forward pass that fit a GPU, a power of two.

    Args:
        free: bytes of the GPU. Half of what 18 bytes a parameter (master weights, gradients, AdamW's state, bf16 copy) leave
            of it goes to the 34 bytes a token, block and dimension that a block keeps for its backward pass
            (arXiv 2205.05198, without the scores).
    """
    row = 34 * length * config.hidden_size * config.num_hidden_layers
    rows = max(1, (free - 18 * parameters) // (2 * row))
    return 1 << min(6, rows.bit_length() - 1)


def complete(arguments: argparse.Namespace, config: PreTrainedConfig, device: torch.device) -> None:
    """Fill in what the command line left open: on a GPU what a paper's run would use, on a CPU something small."""
    import torch

    from training.presets import count_parameters

    if device.type == "cuda":
        arguments.sequence_length = arguments.sequence_length or min(2_048, config.max_position_embeddings)
        length, free = arguments.sequence_length, torch.cuda.mem_get_info()[1]
        arguments.microbatch = arguments.microbatch or fitting_microbatch(
            config, count_parameters(config), length, free
        )
        workers = int(os.environ.get("WORLD_SIZE", "1"))
        passes = max(1, GPU_STEP_TOKENS // (arguments.microbatch * length * workers))
        arguments.global_batch = arguments.global_batch or passes * arguments.microbatch * workers
    arguments.sequence_length = arguments.sequence_length or 256
    arguments.microbatch = arguments.microbatch or 16
    arguments.global_batch = arguments.global_batch or 32


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on synthetic tokens; return the figures."""
    import torch

    from training.flops import flops_per_token, measured_peak, peak_flops
    from training.loader import Loader
    from training.loop import train
    from training.mixture import Mixture, PhaseSettings
    from training.model import LanguageModel
    from training.parallel import join_world, leave_world
    from training.presets import build_model, model_config
    from training.settings import LoopSettings
    from training.shards import TokenSource

    config = model_config(arguments.preset)
    world = join_world()
    complete(arguments, config, world.device)
    settings = LoopSettings.model_validate(
        {
            "global_batch": arguments.global_batch, "sequence_length": arguments.sequence_length,
            "microbatch": arguments.microbatch, "precision": arguments.precision, "compile": arguments.compile,
            "document_mask": arguments.document_mask, "validate_every": 10**9, "checkpoint_every": 10**9,
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.data or scratch)
        if not (folder / "shards.json").exists():
            rows = arguments.global_batch * arguments.steps
            synthetic_shards(folder, config.vocab_size, min(rows * (arguments.sequence_length + 1), 10**7))
        source = TokenSource(folder, "train", arguments.sequence_length)
        phases = [PhaseSettings(name="bench", steps=arguments.steps)]
        mixture = Mixture({"synthetic": len(source)}, phases, settings.global_batch, 1e9, seed=0)
        model = LanguageModel(build_model(config, seed=0), source.eos, settings.document_mask)
        flops = flops_per_token(model, settings.sequence_length) or 0  # presets count all
        rows_seen: list[dict[str, Any]] = []
        began = [time.process_time()]

        def progress(row: dict[str, Any]) -> None:
            rows_seen.append(row)
            began.append(time.process_time())

        train(
            settings, model, Loader({"synthetic": source}, mixture, settings.microbatch), {}, Path(scratch) / "run",
            world, seed=0, progress=progress,
        )  # fmt: skip
    warm = rows_seen[len(rows_seen) // 3 :]
    processor = (began[-2] - began[len(rows_seen) // 3]) / max(len(warm) - 1, 1)  # the last step also saves
    speed = median(row["tokens_per_second"] for row in warm[:-1] or warm)
    peak = measured_peak(world.device, torch.bfloat16) if world.rank == 0 else 0.0
    figures = {
        "preset": arguments.preset,
        "rows": f"{arguments.global_batch} of {arguments.sequence_length}, {arguments.microbatch} at a time",
        "workers": world.size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "tokens_per_second": round(speed, 1),
        "tokens_per_processor_second": round(warm[0]["tokens"] / world.size / max(processor, 1e-9), 1),
        "flops_per_token": flops,
        "matmul_gflops": round(peak / 1e9, 1),
        "share_of_matmul_peak": round(speed * flops / (peak * world.size), 4) if peak else None,
        "mfu": round(speed * flops / (data_sheet * world.size), 4) if (data_sheet := peak_flops(world.device)) else None,
        "loader_wait_share": round(sum(r["loader_wait_share"] * r["seconds"] for r in warm) / sum(r["seconds"] for r in warm), 6),
        "peak_gib": round(peak_bytes(world.device) / 2**30, 2),
    }  # fmt: skip
    leave_world()
    return figures


def main() -> None:
    """Entry point."""
    from hornbook.cli import guarded

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="phi-demo-3m")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--global-batch", type=int, help="Rows per step; default: 32, on a GPU about 2^18 tokens.")
    parser.add_argument("--sequence-length", type=int, help="Default: 256, on a GPU 2,048.")
    parser.add_argument("--microbatch", type=int, help="Rows per forward pass; default: 16, on a GPU what fits.")
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--document-mask", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--data", default="", help="Folder with shards.json; default: made up anew.")
    arguments = parser.parse_args()

    def tell() -> None:
        figures = measure(arguments)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(figures), flush=True)

    guarded(tell)


if __name__ == "__main__":
    main()
