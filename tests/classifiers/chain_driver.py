"""Runs a recipe as `hornbook run` does, and notes in a file of its own which worker on which node begins each part.

    CHAIN_LOG=FILE python chain_driver.py RECIPE

Deduplication takes its steps one by one, on all workers, as it does for a large corpus. CHAIN_DELAY holds each part back by so
many seconds: for tests that must be quicker than the chain is.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from classifiers import dedup
from hornbook import partwork
from hornbook.parts import PartRange
from hornbook.pipeline import run_recipe
from hornbook.recipe import load_recipe
from hornbook.store import Store

BLOCK_DOCUMENTS = 60


class Noting:
    """Notes a part that is not committed yet before it is made: a line of folder, first row, node, process."""

    store: Store
    folder: str

    def committed(self, part: PartRange) -> Any:
        """Return what the worker would."""
        import ray

        record = super().committed(part)  # type: ignore[misc]
        if record is None:
            node = ray.get_runtime_context().get_node_id()
            with open(os.environ["CHAIN_LOG"], "a") as log:
                log.write(f"{self.folder} {part.start} {node} {os.getpid()}\n")
            time.sleep(float(os.environ.get("CHAIN_DELAY", "0")))
        return record


class NotingWorker(Noting, partwork._Worker):
    """A worker that computes."""


class NotingAsyncWorker(Noting, partwork._AsyncWorker):
    """A worker that waits for an engine."""


def main() -> None:
    """Run the recipe on the cluster that RAY_ADDRESS names, or on one of its own."""
    partwork._Worker = NotingWorker  # type: ignore[misc]
    partwork._AsyncWorker = NotingAsyncWorker  # type: ignore[misc]
    dedup.SMALL_CORPUS, dedup.BLOCK_DOCUMENTS = 0, BLOCK_DOCUMENTS
    run_recipe(load_recipe(sys.argv[1]), Store(os.environ["HORNBOOK_STORE"]))


if __name__ == "__main__":
    main()
