"""A scored corpus made by hand: documents, their scores beside them, and grades of some, for tests of the dial."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from small_artifacts import make

from hornbook.artifact import Artifact
from hornbook.documents import Document, content_key, document_id, documents_table
from hornbook.parts import PartContent, same_ids
from hornbook.store import Store

Row = tuple[str, float, str]
"""Source, score, text."""


def scored_corpus(
    store: Store,
    rows: Sequence[Row],
    *,
    part_rows: int = 50,
    threshold: float | None = None,
    sized: bool = True,
    held_out: pa.Table | None = None,
) -> tuple[Artifact, Artifact]:
    """Return (documents, scores); the scores name a scorer with the held-out grades among their inputs, if there are any."""
    corpora, scores = [], []
    for start in range(0, len(rows), part_rows):
        some = rows[start : start + part_rows]
        documents = documents_table(
            Document(document_id(start + place), content_key(f"{start + place} {text}".encode()), text, source, "web")
            for place, (source, _, text) in enumerate(some)
        )
        columns = documents.select(["id", "key", "source"]).append_column(
            "score", pa.array(np.array([score for _, score, _ in some], dtype=np.float32))
        )
        if sized:
            columns = columns.append_column("bytes", pa.array([len(text.encode()) for *_, text in some], pa.int64()))
        corpora.append(PartContent(documents))
        scores.append(PartContent(columns, planned=documents.column("id").to_pylist(), unit_of=same_ids))
    corpus = make(store, "web", "files", "documents", corpora)
    inputs: dict[str, Any] = {"documents": [corpus]}
    if held_out is not None:
        sink = io.BytesIO()
        pq.write_table(held_out, sink)
        store.write("artifacts/quality-quality000000000/held_out.parquet", sink.getvalue())
        inputs["scorer"] = [make(store, "quality", "quality", "scorer", files=["held_out.parquet"])]
    files = []
    if threshold is not None:
        store.write("artifacts/score-scores0000000000/threshold.json", json.dumps({"threshold": threshold}).encode())
        files = ["threshold.json"]
    return corpus, make(store, "scores", "score", "attributes", scores, inputs, files=files)


def web(count: int, seed: int = 0) -> list[Row]:
    """Rows of three sources: tutorials score high, forums in the middle, spam low."""
    draws = np.random.default_rng(seed)
    means = {"tutorials": 0.75, "forums": 0.5, "spam": 0.15}
    names = draws.choice(list(means), count, p=[0.3, 0.5, 0.2])
    scores = np.clip(draws.normal([means[name] for name in names], 0.15), 0, 1)
    lengths = draws.integers(20, 200, count)
    return [
        (str(name), float(score), f"{name} {row}: " + "words and more words " * (int(length) // 20))
        for row, (name, score, length) in enumerate(zip(names, scores, lengths, strict=True))
    ]


def grades(count: int, seed: int = 0) -> pa.Table:
    """Held-out grades of documents like those of `web`, the rare sources drawn more often and so of less weight."""
    draws = np.random.default_rng(seed)
    scores = draws.beta(2, 2, count)
    labels = draws.random(count) < scores
    return pa.table({
        "key": pa.array([bytes([row % 256]) * 16 for row in range(count)], pa.binary(16)),
        "source": ["forums"] * count, "grade": pa.array(np.where(labels, 4.0, 1.0), pa.float32()),
        "label": labels, "weight": pa.array(draws.choice([1.0, 5.0], count), pa.float32()),
        "score": pa.array(scores, pa.float32()),
    })  # fmt: skip
