"""Finished artifacts for tests, made without Ray: a corpus in parts, and attributes beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from finished_artifact import finish

from hornbook.artifact import Artifact
from hornbook.documents import Document, content_key, document_id, documents_table
from hornbook.parts import PartContent, PartRange, commit_part, same_ids
from hornbook.store import Store


def corpus(store: Store, rows: Sequence[tuple[str, str]], part_rows: int = 3, name: str = "web") -> Artifact:
    """Return a finished corpus of (source, text), `part_rows` to a part."""
    for start in range(0, len(rows), part_rows):
        documents = [
            Document(document_id(number), content_key(text.encode()), text, source, "text", meta={"row": number})
            for number, (source, text) in list(enumerate(rows))[start : start + part_rows]
        ]
        part = PartRange(start, start + len(documents))
        commit_part(store, f"artifacts/{name}", part, PartContent(documents_table(documents)))
    return finished(store, name, "documents", {})


def beside(
    store: Store,
    documents: Artifact,
    columns: Mapping[str, Sequence[Any]],
    name: str = "scores",
    without: Sequence[int] = (),
    types: Mapping[str, pa.DataType] | None = None,
    files: Sequence[str] = (),
) -> Artifact:
    """Return finished attributes of a corpus: columns with a value per document; documents in `without` have no row."""
    first = 0
    for part in documents.parts:
        table = documents.read(part, columns=["id", "key", "source"])
        rows = np.arange(first, first + table.num_rows)
        for column, values in columns.items():
            own = [values[row] for row in rows]
            table = table.append_column(column, pa.array(own, type=(types or {}).get(column)))
        kept = ~np.isin(rows, without)
        content = PartContent(
            table.filter(pa.array(kept)), planned=table["id"].to_numpy(), unit_of=same_ids, empty=int((~kept).sum())
        )
        commit_part(store, f"artifacts/{name}", part.range, content)
        first += table.num_rows
    return finished(store, name, "attributes", {"documents": [documents]}, files)


def finished(
    store: Store,
    name: str,
    produces: str,
    inputs: Mapping[str, Sequence[Artifact]],
    files: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    kind: str = "test",
) -> Artifact:
    """Write the manifest of the artifact `artifacts/NAME`, whose parts are committed, and return it."""
    artifact = Artifact(store, f"artifacts/{name}")
    return finish(artifact, produces, kind=kind, inputs=inputs, files=files, settings=settings or {})
