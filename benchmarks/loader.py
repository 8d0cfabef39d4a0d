"""The loader alone: tokens per second that one process turns from shards in the page cache into batches of tensors.

    python benchmarks/loader.py

Three sources in uneven shares, documents of some 200 tokens in shards of about a million; each shape of batch in turn, as
rank 0 of 1 asks for them, on one processor (torch and the reader get one thread). Beside it what a bare copy from the same
memory-mapped files into int64 inputs and targets takes: no mixture, no order, no digest.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from training.shards import Rows

SHAPES = ((32, 256), (256, 512), (1024, 2048))
"""Rows per batch and tokens per row: the demo's, phi2-zh's order of size, phi-1's."""
CUTS: Sequence[Rows] = ("windows", "best-fit")
SHARES = {"web": 0.6, "textbooks": 0.3, "code": 0.1}
SHARD_TOKENS = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=24e6, help="tokens of all sources together")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each shape is read")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="hornbook-loader-") as scratch:
        folders = {name: Path(scratch) / name for name in SHARES}
        for name, share in SHARES.items():
            write_source(folders[name], int(share * arguments.tokens))
        for rows, length in SHAPES:
            for cut in CUTS:
                ours = batches_per_second(folders, rows, length, cut, arguments.seconds) * rows * length
                bare = bare_copies(folders["web"], rows, length, arguments.seconds / 4)
                print(
                    f"{rows} rows of {length}, {cut}: {ours / 1e6:.1f}M tokens per processor second, "
                    f"{ours / bare:.2f} of a bare copy's {bare / 1e6:.0f}M",
                    flush=True,
                )


def write_source(folder: Path, tokens: int) -> None:
    """Write random documents of about 200 tokens."""
    from training.shards import ShardBuilder, write_shard_folder

    random = np.random.default_rng(0)

    def builders() -> Iterator[ShardBuilder]:
        for _ in range(max(1, tokens // SHARD_TOKENS)):
            builder = ShardBuilder(eos=0, vocabulary=50_257)
            for number in range(SHARD_TOKENS // 200):
                ids = random.integers(1, 50_257, random.integers(1, 400))
                builder.add(number, number.to_bytes(16, "big"), "made", "train", ids)
            yield builder

    write_shard_folder(folder, builders())


def batches_per_second(folders: dict[str, Path], rows: int, length: int, cut: Rows, seconds: float) -> float:
    """Return batches per processor second, over all batches together."""
    from training.loader import Loader
    from training.mixture import Mixture, PhaseSettings
    from training.shards import TokenSource

    sources = {name: TokenSource(folder, "train", length, cut) for name, folder in folders.items()}
    sizes = {name: len(source) for name, source in sources.items()}
    phases = [PhaseSettings(name="all", steps=10**6, weights=SHARES)]
    loader = Loader(sources, Mixture(sizes, phases, rows, 1e9, seed=0), microbatch=16)
    loader.batch(0, 0, 1)
    times: list[float] = []
    step = 1
    while sum(times) < seconds or len(times) < 3:
        began = time.process_time()
        loader.batch(step, 0, 1)
        times.append(time.process_time() - began)
        step += 1
    return 1 / (sum(times) / len(times))


def bare_copies(folder: Path, rows: int, length: int, seconds: float) -> float:
    """Return tokens per processor second of slicing successive windows and turning them into int64."""
    from training.shards import ShardIndex

    index = ShardIndex.read(folder)
    shard = index.splits["train"][0]
    ids = np.memmap(folder / shard.tokens, dtype=index.dtype, mode="r")
    windows = (shard.count - 1) // length
    times: list[float] = []
    while sum(times) < seconds:
        began = time.process_time()
        inputs = np.empty((rows, length), dtype=np.int64)
        targets = np.empty((rows, length), dtype=np.int64)
        for row in range(rows):
            start = (row % windows) * length
            inputs[row] = ids[start : start + length]
            targets[row] = ids[start + 1 : start + 1 + length]
        times.append(time.process_time() - began)
    return rows * length / median(times)


if __name__ == "__main__":
    main()
