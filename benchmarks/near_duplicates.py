"""Near-duplicates among short documents: ours against datasketch's MinHashLSH, and ours alone over many more.

Documents are sampled words (50 to 150 of them); a tenth are copies of an earlier one with up to 10 words changed. Both
sides take 256 slots, the same bands and the same words, look for the most similar earlier document, and remember those
that have none. Each run is a process of its own, so that its peak memory is its own; the documents are made outside of the
clock, which counts the processor's seconds.

    python benchmarks/near_duplicates.py                                       # 5,000 both, 20,000 ours: half a minute
    python benchmarks/near_duplicates.py --both 100000 --documents 1000000     # some minutes
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hornbook.near_duplicates import SHINGLE, SLOTS, NearDuplicates
from hornbook.shingles import bands_for, words_of

BLOCK = 1000
VOCABULARY = 5000
SOURCES = 2000
THRESHOLD = 0.8

Answer = tuple[int, float] | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--both", type=int, default=5000, help="documents that both sides get")
    parser.add_argument("--documents", type=int, default=20_000, help="documents that ours gets in a further run")
    parser.add_argument("--side", choices=("ours", "datasketch"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.documents)))
        return
    theirs = run("datasketch", arguments.both)
    ours = run("ours", arguments.both)
    run("ours", arguments.documents)
    print(
        f"ours / datasketch, {arguments.both:,} documents: {ours['rows_per_second'] / theirs['rows_per_second']:.1f} x"
    )


def run(side: str, documents: int) -> dict[str, Any]:
    """Measure one side in a process of its own, and print what it took."""
    command = [sys.executable, __file__, "--side", side, "--documents", str(documents)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    print(
        f"{side}, {documents:,} documents: {found['rows_per_second']:,.0f} rows per processor second, "
        f"peak {found['peak_mib']:,.0f} MiB ({found['peak_mib'] - found['empty_mib']:,.0f} more than empty); "
        f"{found['planted']:,} planted pairs: of those with an exact similarity of at least 0.80 {found['recall_80']:.1%} "
        f"found, of at least 0.85 {found['recall_85']:.2%}; of the pairs found {found['precision_80']:.1%} have at least 0.80, "
        f"{found['precision_75']:.2%} at least 0.75; found without being planted: {found['unplanted']}",
        flush=True,
    )
    return found


def measure(side: str, documents: int) -> dict[str, Any]:
    """Return rows per processor second, memory, and how the answers compare with the exact similarity."""
    find = ours() if side == "ours" else datasketch()
    find(["warm up"])
    empty = peak_mib()
    seconds = 0.0
    planted: list[tuple[float, bool]] = []
    unplanted = 0
    for texts, exact in blocks(documents):
        began = time.process_time()
        answers = find(texts)
        seconds += time.process_time() - began
        for similarity, answer in zip(exact, answers, strict=True):
            if similarity is not None:
                planted.append((similarity, answer is not None))
            unplanted += similarity is None and answer is not None
    found = [similarity for similarity, was_found in planted if was_found]
    return {
        "rows_per_second": documents / seconds,
        "peak_mib": peak_mib(),
        "empty_mib": empty,
        "planted": len(planted),
        "unplanted": unplanted,
        **{f"recall_{at}": mean(hit for similarity, hit in planted if similarity >= at / 100) for at in (80, 85)},
        **{f"precision_{at}": mean(similarity >= at / 100 for similarity in found) for at in (80, 75)},
    }


def blocks(documents: int) -> Iterator[tuple[list[str], list[float | None]]]:
    """Yield documents in blocks, and of each that is a changed copy its exact similarity to the original.

    Originals come from a reservoir that is refilled slowly, so that some copies follow long after them.
    """
    rng = np.random.default_rng(7)
    vocabulary = ["".join(rng.choice(list("aeioubdfghklmnprst"), size=rng.integers(2, 9))) for _ in range(VOCABULARY)]
    sources: list[list[str]] = []
    for start in range(0, documents, BLOCK):
        texts: list[str] = []
        exact: list[float | None] = []
        for _ in range(min(BLOCK, documents - start)):
            if len(sources) == SOURCES and rng.random() < 0.1:
                original = sources[rng.integers(SOURCES)]
                words = list(original)
                for place in rng.integers(len(words), size=rng.integers(11)):
                    words[place] = vocabulary[rng.integers(VOCABULARY)]
                exact.append(jaccard(original, words))
            else:
                words = [vocabulary[rank] for rank in (rng.random(rng.integers(50, 151)) ** 2 * VOCABULARY).astype(int)]
                exact.append(None)
                if len(sources) < SOURCES:
                    sources.append(words)
                elif rng.random() < 0.02:
                    sources[rng.integers(SOURCES)] = words
            texts.append(" ".join(words))
        yield texts, exact


def jaccard(one: list[str], other: list[str]) -> float:
    """Return the exact Jaccard index of two documents' shingles."""
    first, second = (set(zip(*(words[at:] for at in range(SHINGLE)), strict=False)) for words in (one, other))
    return len(first & second) / len(first | second)


def ours() -> Callable[[list[str]], list[Answer]]:
    return NearDuplicates(THRESHOLD).similar_and_add


def datasketch() -> Callable[[list[str]], list[Answer]]:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=SLOTS, params=bands_for(THRESHOLD, SLOTS))
    kept: list[Any] = []

    def find(texts: list[str]) -> list[Answer]:
        answers: list[Answer] = []
        for text in texts:
            words = words_of(text)
            sketch = MinHash(num_perm=SLOTS)
            sketch.update_batch([b" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))])
            pairs = [(sketch.jaccard(kept[label]), -label) for label in index.query(sketch)]
            similarity, label = max(pairs, default=(0.0, 0))
            if similarity >= THRESHOLD:
                answers.append((-label, similarity))
            else:
                answers.append(None)
                index.insert(len(kept), sketch, check_duplication=False)
                kept.append(sketch)
        return answers

    return find


def mean(values: Any) -> float:
    kept = list(values)
    return sum(kept) / len(kept) if kept else float("nan")


def peak_mib() -> float:
    """Return this process's own peak; what getrusage says begins with its parent's."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
