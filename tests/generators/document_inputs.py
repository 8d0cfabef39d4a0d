"""Input documents made by hand, without Ray, for kinds that are made from documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from finished_artifact import finish

from hornbook.artifact import THRESHOLD, Artifact, artifact_folder
from hornbook.documents import Document, MadeBy, content_key, document_id, documents_table
from hornbook.parts import PartContent, PartRange, commit_part, same_ids
from hornbook.store import Store


def corpus(
    folder: Path,
    texts: Sequence[str],
    part_rows: int = 3,
    seeds: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Artifact:
    """Documents with these texts, `part_rows` a part; all made from `seeds`, if any."""
    artifact = Artifact(Store(str(folder)), artifact_folder("web", f"{'c0':0<16}"))
    made_by = MadeBy("[]", json.dumps(seeds), "m", "r", "{}", 0, "stop", 1, 1) if seeds is not None else None
    for start in range(0, len(texts), part_rows):
        documents = [
            Document(
                document_id(row), content_key(text.encode()), text, "web", "text", made_by=made_by, meta=meta or {}
            )
            for row, text in enumerate(texts[start : start + part_rows], start)
        ]
        part = PartRange(start, start + len(documents))
        commit_part(artifact.store, artifact.folder, part, PartContent(documents_table(documents)))
    return finished(artifact, "web", "documents")


def scores_of(documents: Artifact, scores: Mapping[int, float], threshold: float | None) -> Artifact:
    """Scores of documents by their row; rows that are left out have none."""
    artifact = Artifact(documents.store, artifact_folder("quality", f"{'50':0<16}"))
    for part in documents.parts:
        rows = [row for row in range(part.start, part.stop) if row in scores]
        table = pa.table(
            {
                "id": pa.array([document_id(row) for row in rows], pa.int64()),
                "score": pa.array([scores[row] for row in rows], pa.float32()),
            }
        )
        planned = [document_id(row) for row in range(part.start, part.stop)]
        content = PartContent(table, planned=planned, unit_of=same_ids, empty=len(planned) - len(rows))
        commit_part(artifact.store, artifact.folder, part.range, content)
    files = []
    if threshold is not None:
        artifact.store.write_json(f"{artifact.folder}/{THRESHOLD}", {"threshold": threshold})
        files = [THRESHOLD]
    return finished(artifact, "quality", "attributes", {"documents": [documents]}, files)


def finished(
    artifact: Artifact,
    stage: str,
    produces: str,
    inputs: Mapping[str, Sequence[Artifact]] | None = None,
    files: Sequence[str] = (),
) -> Artifact:
    """Write the manifest."""
    return finish(artifact, produces, kind=stage, stage=stage, inputs=inputs or {}, files=files)
