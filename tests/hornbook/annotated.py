"""A finished annotation, made by hand: what a judge read of some texts and what it said, with the documents beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from finished_artifact import finish

from hornbook.artifact import Artifact
from hornbook.documents import Document, content_key, document_id, documents_table
from hornbook.labelling import ASKED, EXCERPT_SCHEMA, EXCERPTS
from hornbook.parts import PartContent, PartRange, commit_part, parquet_bytes, same_ids
from hornbook.store import Store

READ = 40
"""Characters that the judge read."""
PART = 4


def annotated(store: Store, texts: Sequence[str], ungraded: Sequence[int] = (), shipped: bool = True) -> Artifact:
    """Return the annotation `artifacts/labels` of the texts; the judge gave document n the score n % 6, but none of `ungraded`."""
    documents, labels = Artifact(store, "artifacts/web"), Artifact(store, "artifacts/labels")
    for start in range(0, len(texts), PART):
        part = PartRange(start, min(start + PART, len(texts)))
        made = [
            Document(document_id(row), content_key(f"{row}".encode()), texts[row], f"source-{row % 2}", "text")
            for row in range(part.start, part.stop)
        ]
        commit_part(store, documents.folder, part, PartContent(documents_table(made)))
        read = [
            {"id": one.id, "key": one.key, "source": one.source, "input": 0, "start": start, "kind": one.kind}
            | {"characters": len(one.text), "text": one.text[:READ]}
            for one in made
        ]
        graded = [one for number, one in enumerate(made, start) if number not in ungraded]
        scores = pa.table(
            {
                "id": pa.array([one.id for one in graded], pa.int64()),
                "score": [float((one.id >> 16) % 6) for one in graded],
                "judge": ["a small model"] * len(graded),
            }
        )
        content = PartContent(
            scores,
            planned=[one.id for one in made],
            unit_of=same_ids,
            empty=len(made) - len(graded),
            files={EXCERPTS: parquet_bytes(pa.Table.from_pylist(read, schema=EXCERPT_SCHEMA))},
        )
        commit_part(store, labels.folder, part, content)
    voice = {"judge": "a small model", "wording": "mine", "choices": ["No", "Yes"]}
    asked = {"shipped": shipped, "voices": [{**voice, "messages": [{"role": "user", "content": "Is it good?"}]}]}
    store.write_json(f"{labels.folder}/{ASKED}", asked)
    _finish(documents, "files", "documents", {})
    _finish(labels, "annotate", "attributes", {"documents": [documents]}, [ASKED])
    return labels


def _finish(artifact: Artifact, kind: str, produces: str, inputs: dict[str, Any], files: Sequence[str] = ()) -> None:
    finish(artifact, produces, kind=kind, seed=1, inputs=inputs, files=files)
