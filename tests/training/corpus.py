"""A small real corpus as artifacts in a store, for tests of the training stages: sources of the standard library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import finished_artifact

from hornbook.artifact import Artifact
from hornbook.chat import Message, chat_meta, plain_text
from hornbook.documents import Document, content_key, document_id, documents_table
from hornbook.parts import PartContent, PartRange, commit_part
from hornbook.preference import Preference, preference_meta, preference_text
from hornbook.store import Store

STANDARD_LIBRARY = Path(json.__file__).parent.parent
PART_ROWS = 10


def python_documents(count: int, source: str = "web") -> list[Document]:
    """Return the first modules of the standard library, at most 4,000 characters of each."""
    files = sorted(STANDARD_LIBRARY.glob("*.py"))[:count]
    texts = [file.read_text(errors="replace")[:4000] for file in files]
    return [
        Document(document_id(row), content_key(text.encode()), text, source, "code") for row, text in enumerate(texts)
    ]


def chat_documents(count: int) -> list[Document]:
    """Return conversations about sums."""
    chats: list[Any] = [
        [
            {"role": "user", "content": f"What is {number} plus {number}?"},
            {"role": "assistant", "content": f"It is {2 * number}."},
        ]
        for number in range(count)
    ]
    return [
        Document(
            document_id(row), content_key(str(chat).encode()), plain_text(chat), "sums", "chat", meta=chat_meta(chat)
        )
        for row, chat in enumerate(chats)
    ]


def preference_documents(count: int) -> list[Document]:
    """Return pairs of answers about sums: a sum is preferred to a refusal; the assistant spoke before."""
    found = []
    for number in range(count):
        prompt = (
            Message(role="user", content="Hello."),
            Message(role="assistant", content="Good day."),
            Message(role="user", content=f"What is {number} plus {number}?"),
        )
        pair = Preference(prompt, f"It is {2 * number}.", f"I do not know {number}.")
        key = content_key(str(pair).encode())
        text, meta = preference_text(pair), preference_meta(pair)
        found.append(Document(document_id(number), key, text, "sums", "preference", meta=meta))
    return found


def corpus(store: Store, stage: str, documents: list[Document]) -> Artifact:
    """Write documents as a finished artifact, in parts of ten."""
    artifact = Artifact(store, f"artifacts/{stage}")
    for start in range(0, len(documents), PART_ROWS):
        part = PartRange(start, min(start + PART_ROWS, len(documents)))
        commit_part(store, artifact.folder, part, PartContent(documents_table(documents[start : part.stop])))
    finish(artifact, stage, "documents", {})
    return artifact


def finish(artifact: Artifact, stage: str, produces: str, inputs: dict[str, Any], **options: Any) -> None:
    """Write a manifest with the least that readers need."""
    finished_artifact.finish(
        artifact, produces, stage=stage, inputs={role: list(found.values()) for role, found in inputs.items()},
        input_stages={role: list(found) for role, found in inputs.items()}, **options,
    )  # fmt: skip
