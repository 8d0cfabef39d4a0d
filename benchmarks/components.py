"""Clusters of duplicates: the steps that join pairs, with a small limit of memory against all pairs in one worker.

Synthetic pairs over twice as many documents: clusters of two most of all, and chains that reach across all parts. Each
measurement runs in a process of its own that does what the workers do, one part after the other, on files on disk. The clock
counts the processor's seconds; memory is the peak while the steps run, less what the process had before.

    python benchmarks/components.py                      # 1,000,000 and 4,000,000 pairs
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from classifiers.clusters import CLUSTERED, Slices
from classifiers.components import ComponentSteps
from classifiers.corpus_order import CorpusOrder
from classifiers.exchange import spilled
from classifiers.steps import OneWorker, Step
from classifiers.verification import EDGE
from hornbook.artifact import Artifact
from hornbook.parts import PartContent, PartRange, commit_part
from hornbook.store import Store

PART_DOCUMENTS = 10_000
RANGES = 16
SMALL_LIMIT = 100_000  # pairs, links and members that a worker holds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1_000_000, 4_000_000])
    parser.add_argument("--at-once", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.at_once:
        print(json.dumps(measured(arguments.pairs[0], arguments.at_once)))
        return
    for pairs in arguments.pairs:
        found = []
        for name, at_once in (("one worker holds all", pairs), (f"{SMALL_LIMIT:,} at once", SMALL_LIMIT)):
            command = [sys.executable, __file__, "--pairs", str(pairs), "--at-once", str(at_once)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(
                f"{pairs:,} pairs, {name}: {found[-1]['seconds']:.1f} processor seconds, {found[-1]['mib']:.0f} MiB "
                f"above what was loaded, {found[-1]['rounds']} rounds, {found[-1]['clusters']:,} clusters",
                flush=True,
            )
        if found[0]["clusters"] != found[1]["clusters"]:
            raise SystemExit("they found different clusters")


def measured(pairs: int, at_once: int) -> dict[str, Any]:
    """Return what it takes to join so many pairs, so many at once."""
    from scipy.sparse import csgraph  # noqa: F401

    documents = 2 * pairs
    corpus = Documents(documents)
    with tempfile.TemporaryDirectory(prefix="hornbook-components-") as folder:
        store = Store(folder)
        work, sketches, candidates, edges = (Artifact(store, name) for name in ("work", "sketches", "copies", "edges"))
        for number, records in enumerate(synthetic_pairs(pairs, corpus)):
            content = PartContent(
                None, succeeded=1, files={"edges": records.tobytes()}, counts={"verified": len(records)}
            )
            commit_part(store, edges.folder, PartRange(number, number + 1), content)
        blocks = np.linspace(0, corpus.parts, RANGES + 1).astype(np.int64)
        steps = ComponentSteps(work, Slices(corpus, sketches, blocks, at_once), candidates, edges)
        folders: list[str] = []

        def noted() -> Iterator[Step]:
            for step in steps:
                folders.append(step.artifact.folder)
                yield step

        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        before, began = peak_mib(), time.process_time()
        OneWorker(noted()).make(PartRange(0, 1))
        seconds, peak = time.process_time() - began, peak_mib()
        clusters = sum(
            int((records["ordinal"] == records["first"]).sum())
            for records in spilled(steps.clusters, "clusters", (0, corpus.parts), corpus.parts, CLUSTERED, 10**6)
        )
    rounds = sum("small" in folder for folder in folders)
    return {"seconds": seconds, "mib": peak - before, "rounds": rounds, "clusters": clusters}


class Documents(CorpusOrder):
    """So many documents in parts, of which only the numbers are asked for."""

    def __init__(self, documents: int) -> None:
        self.first = np.arange(0, documents + 1, PART_DOCUMENTS)
        self.starts = self.first[:-1]


def synthetic_pairs(pairs: int, corpus: CorpusOrder) -> Iterator[np.ndarray]:
    """Yield the pairs whose later document is in each part, of random documents, near and far."""
    rng = np.random.default_rng(1)
    for first, last in zip(corpus.first[:-1].tolist(), corpus.first[1:].tolist(), strict=True):
        edges = np.empty(pairs // corpus.parts, EDGE)
        edges["high"] = rng.integers(max(first, 1), last, len(edges))
        edges["low"] = (edges["high"] * rng.random(len(edges)) ** rng.choice([0.001, 1.0], len(edges))).astype(np.int64)
        edges["similarity"] = 0.9
        edges = edges[edges["low"] < edges["high"]]
        edges.sort(order=["high", "low"])
        yield edges


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
