"""A corpus of raw documents made by hand, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finished_artifact import finish

from hornbook.artifact import Artifact, artifact_folder
from hornbook.documents import Document, content_key, document_id, documents_table
from hornbook.parts import PartContent, PartRange, commit_part
from hornbook.store import Store


def raw_corpus(folder: Path, texts: Sequence[str | tuple[str, Mapping[str, Any]]], part_rows: int = 100) -> Artifact:
    """Documents of these texts, or of texts with metadata, `part_rows` a part."""
    artifact = Artifact(Store(str(folder)), artifact_folder("raw", f"{'4a':0<16}"))
    rows = [(row, {}) if isinstance(row, str) else row for row in texts]
    for start in range(0, len(rows), part_rows):
        documents = [
            Document(document_id(row), content_key(text.encode()), text, "web", "text", meta=meta)
            for row, (text, meta) in enumerate(rows[start : start + part_rows], start)
        ]
        part = PartRange(start, start + len(documents))
        commit_part(artifact.store, artifact.folder, part, PartContent(documents_table(documents)))
    return finish(artifact, "documents", kind="raw", stage="raw", fingerprint="4a" * 32)
