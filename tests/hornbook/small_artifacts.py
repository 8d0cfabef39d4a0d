"""Artifacts made by hand, small and without Ray, for tests of what looks at, traces or deletes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finished_artifact import finish

from hornbook.artifact import Artifact, artifact_folder
from hornbook.documents import Document, MadeBy, Reject, document_id, documents_table, rejects_table
from hornbook.parts import PartContent, PartRange, commit_part
from hornbook.store import Store


def make(
    store: Store,
    name: str,
    kind: str,
    produces: str,
    parts: Sequence[PartContent] = (),
    inputs: Mapping[str, Sequence[Artifact]] | None = None,
    **options: Any,
) -> Artifact:
    """Finish an artifact of one planned unit for each id of the parts' tables and rejects; `name` is its fingerprint."""
    artifact = Artifact(store, artifact_folder(kind, f"{name:0<16}"))
    start = 0
    for content in parts:
        planned = content.planned
        stop = start + (len(planned) if planned is not None else rows(content))
        commit_part(store, artifact.folder, PartRange(start, stop), content)
        start = stop
    values = {
        "kind": kind,
        "stage": name,
        "fingerprint": f"{name:0<64}",
        "seed": 1,
        "seconds": 1.0,
        "inputs": inputs or {},
    }
    return finish(artifact, produces, **{**values, **options})


def stories(texts: Sequence[str], rejects: Sequence[Reject] = (), start: int = 0, key: str = "story") -> PartContent:
    """Documents of planned rows from `start`, with keys that depend on row and `key` alone."""
    documents = [
        Document(
            document_id(row), document_key(row, key), text, "stories", "story",
            made_by=MadeBy('[{"role": "user", "content": "Write."}]', "{}", "m", "r", "{}", row, "stop", 5, 9),
        )
        for row, text in enumerate(texts, start)
    ]  # fmt: skip
    return PartContent(documents_table(documents), rejects_table(rejects))


def document_key(row: int, key: str = "story") -> bytes:
    """The key of a document of `stories`."""
    return f"{key}-{row:x}".encode().ljust(16, b"_")


def rows(content: PartContent) -> int:
    """Planned units of a part of documents."""
    assert content.table is not None
    return content.table.num_rows + (content.rejects.num_rows if content.rejects is not None else 0)
