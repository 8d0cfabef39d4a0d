"""The recipe `demo` against what it promises: time, memory, corpora, and how fast a second run is. Fails where it falls short.

python benchmarks/demo.py                # about a quarter of an hour on two cores
python benchmarks/demo.py --store FOLDER # look at a demo that was made there, and run it again
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

GIB = 1 << 30


class MemoryWatch:
    """The most memory that the whole machine used while the block ran, over what it used at the start, in bytes."""

    def __enter__(self) -> MemoryWatch:
        self.peak = self._before = psutil.virtual_memory().used
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self.peak = max(self.peak, psutil.virtual_memory().used)

    @property
    def added(self) -> int:
        """Bytes over the start."""
        return self.peak - self._before


def run_demo(store: str) -> tuple[float, int]:
    """Run the demo as a user does; return its seconds and the bytes of memory that it added."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    began = time.monotonic()
    with MemoryWatch() as memory:
        subprocess.run(
            [sys.executable, "-m", "hornbook.cli", "run", "demo"],
            env={**environment, "HORNBOOK_STORE": store},
            check=True,
        )
    return time.monotonic() - began, memory.added


def figures(store_url: str) -> dict[str, Any]:
    """Return what the newest run's manifests say of the corpora."""
    from hornbook.artifact import Artifact
    from hornbook.runs import load_run
    from hornbook.store import Store

    store = Store(store_url)
    stages = load_run(store, "latest").value["stages"]
    manifests = {name: Artifact(store, stage["folder"]).manifest for name, stage in stages.items()}
    reasons = manifests["stories"].metrics["finish_reasons"]
    return {
        "stories": manifests["stories"].counts["rows"],
        "stories that end by themselves": round(reasons["stop"] / sum(reasons.values()), 3),
        "median tokens of a story": manifests["stories"].metrics["median_tokens"],
        "textbook sections": manifests["textbooks"].counts["rows"],
        "web documents": manifests["web"].counts["rows"],
    }


def main() -> int:
    """Print a table of promised and found, and one JSON line; return 1 if a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--store", help="an absolute path that holds a finished demo; default: make one in a temporary folder"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hornbook-demo-") as folder:
        store = options.store or str(Path(folder) / "store")
        found: dict[str, Any] = {}
        if not options.store:
            seconds, memory = run_demo(store)
            found |= {"minutes": round(seconds / 60, 2), "memory, GiB": round(memory / GIB, 2)}
        found["seconds of a second run"] = round(run_demo(store)[0], 1)
        found |= figures(store)
    at_most = {"minutes": 15, "memory, GiB": 10, "seconds of a second run": 20}
    at_least = {
        "stories": 200,
        "stories that end by themselves": 0.8,
        "median tokens of a story": 120,
        "textbook sections": 60,
        "web documents": 3000,
    }
    missed = [
        name for name, value in found.items() if value > at_most.get(name, value) or value < at_least.get(name, value)
    ]
    for name, value in found.items():
        promise = f"at most {at_most[name]}" if name in at_most else f"at least {at_least[name]}"
        print(f"{name:32} {value:>10}   {promise}{'   MISSED' if name in missed else ''}")
    print(json.dumps(found))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
