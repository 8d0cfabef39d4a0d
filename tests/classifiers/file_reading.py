"""Reads files as the stage `files` does, in this process: its plan, then every part by one worker or several."""

from __future__ import annotations

import itertools
from typing import Any

from classifiers.file_plan import make_plan, planned_parts
from classifiers.files import PLAN, Files, ReadRows
from hornbook.parts import parquet_bytes
from hornbook.stage import StageContext

Rows = dict[int, dict[str, Any]]


def read_documents(context: StageContext, made: Files, workers: int = 1) -> tuple[Rows, Rows]:
    """Return (documents by planned unit, rejects by planned unit), after a check that they are all units of the plan.

    Workers take parts in turn, so that each enters files at places that it has not read up to.
    """
    plan = make_plan(made.files, made.settings)
    context.artifact.store.write(f"{context.artifact.folder}/{PLAN}", parquet_bytes(plan))
    makers = [ReadRows(made.settings, context.artifact) for _ in range(workers)]
    for maker in makers:
        maker.setup()
    documents: Rows = {}
    rejects: Rows = {}
    for part, maker in zip(planned_parts(plan), itertools.cycle(makers), strict=False):
        content = maker.make(part)
        kept = {row["id"] >> 16: row for row in content.table.to_pylist()}
        lost = {row["id"]: row for row in content.rejects.to_pylist()}
        assert sorted([*kept, *lost]) == list(range(part.start, part.stop))
        documents |= kept
        rejects |= lost
    return documents, rejects
