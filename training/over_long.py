"""Conversations that are longer than a row: counted in the stage's metrics, and listed where they are rejects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hornbook.documents import Reject, rejects_table
from hornbook.parts import parquet_bytes
from hornbook.stage import StageContext, StageResult
from training.shards import TokenSource

REJECTS = "rejects.parquet"


def report_over_long(
    context: StageContext, result: StageResult, sources: Mapping[str, TokenSource], then: str
) -> StageResult:
    """Return a stage's result with `over_long` in its metrics; with `reject` the artifact gets a table of REJECT_SCHEMA.

    Args:
        sources: the training conversations.
        then: what became of those that are too long: cut, drop, reject.
    """
    longer = {name: source.longer() for name, source in sources.items()}
    count = sum(spans.num_rows for spans in longer.values())
    figures = {"conversations": count, "then": then}
    files = list(result.files)
    if then == "reject" and count:
        rejects = [
            Reject(
                row["id"],
                "document",
                "over-long",
                f"{row['tokens']} tokens, a row of {name} has {source.sequence_length}",
            )
            for name, source in sources.items()
            for row in longer[name].to_pylist()
        ]
        context.artifact.store.write(f"{context.artifact.folder}/{REJECTS}", parquet_bytes(rejects_table(rejects)))
        files.append(REJECTS)
    return replace(result, metrics={**result.metrics, "over_long": figures}, files=files)
