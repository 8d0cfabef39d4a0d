"""Speed of the training loop on made-up tokens, without Ray: `python -m training.bench`, or under torchrun.

Prints one JSON line: tokens per second over the last two thirds of the steps, the share of time spent waiting for the
loader, and the processor seconds of rank 0 (which a busy machine does not distort).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from training.shards import ShardBuilder, write_shard_folder

DOCUMENT_TOKENS = 200


def synthetic_shards(folder: Path, vocabulary: int, tokens: int) -> None:
    """Write random documents of about 200 tokens."""
    random = np.random.default_rng(0)
    builder = ShardBuilder(eos=0, vocabulary=vocabulary)
    for number in range(max(2, tokens // DOCUMENT_TOKENS)):
        ids = random.integers(1, vocabulary, random.integers(1, 2 * DOCUMENT_TOKENS))
        builder.add(number, number.to_bytes(16, "big"), "synthetic", "train", ids)
    write_shard_folder(folder, [builder])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on synthetic tokens; return the figures."""
    import torch

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
    settings = LoopSettings.model_validate(
        {
            "global_batch": arguments.global_batch, "sequence_length": arguments.sequence_length,
            "microbatch": arguments.microbatch, "precision": arguments.precision, "compile": arguments.compile,
            "document_mask": not arguments.no_document_mask, "validate_every": 10**9, "checkpoint_every": 10**9,
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
    figures = {
        "preset": arguments.preset,
        "workers": world.size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "tokens_per_second": round(median(row["tokens_per_second"] for row in warm[:-1] or warm), 1),
        "tokens_per_processor_second": round(warm[0]["tokens"] / world.size / max(processor, 1e-9), 1),
        "loader_wait_share": round(sum(r["loader_wait_share"] * r["seconds"] for r in warm) / sum(r["seconds"] for r in warm), 6),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if world.device.type == "cuda" else None,
    }  # fmt: skip
    leave_world()
    return figures


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="phi-demo-3m")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--global-batch", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--microbatch", type=int, default=16)
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--no-document-mask", action="store_true")
    parser.add_argument("--data", default="", help="Folder with shards.json; default: made up anew.")
    figures = measure(parser.parse_args())
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
