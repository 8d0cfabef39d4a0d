"""The one schema that all corpora share, what a reject looks like, and how a document's key is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

KEY_BYTES = 16
FAN_OUT_BITS = 16
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)

MADE_BY = pa.struct(
    [
        ("prompt", pa.string()),  # the rendered messages, JSON
        ("seeds", pa.string()),  # what the prompt was made from (words, topic, audience), JSON
        ("model", pa.string()),
        ("revision", pa.string()),
        ("sampling", pa.string()),  # JSON
        ("row_seed", pa.int64()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
    ]
)

DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("parents", pa.list_(pa.binary(KEY_BYTES)), nullable=False),
        pa.field("made_by", MADE_BY),  # null for web text
        pa.field("meta", pa.string(), nullable=False),  # JSON object
    ]
)

REJECT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),  # the planned unit: a row, or the input document's id
        pa.field("unit", pa.string(), nullable=False),  # what it was: the prompt, the file
        pa.field("reason", pa.string(), nullable=False),  # a short code, counted in the manifest
        pa.field("detail", pa.string(), nullable=False),  # what a person needs to know
        pa.field("text", pa.string(), nullable=False),  # what was produced, if anything
    ]
)


@dataclass(frozen=True)
class MadeBy:
    """How a generated document came to be; JSON strings where the content is open."""

    prompt: str
    seeds: str
    model: str
    revision: str
    sampling: str
    row_seed: int
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Document:
    """One row of a corpus; see DOCUMENT_SCHEMA. `id` comes from `document_id`."""

    id: int
    key: bytes
    text: str
    source: str
    kind: str
    parents: tuple[bytes, ...] = ()
    made_by: MadeBy | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reject:
    """A planned unit that failed; see REJECT_SCHEMA."""

    id: int
    unit: str
    reason: str
    detail: str = ""
    text: str = ""


def document_id(row: int, fan_out: int = 0) -> int:
    """Return the id of the `fan_out`-th document made from planned row `row` (both from 0)."""
    if not 0 <= fan_out < 1 << FAN_OUT_BITS:
        raise ValueError(f"row {row} gave more than {1 << FAN_OUT_BITS} documents")
    return row << FAN_OUT_BITS | fan_out


def planned_row(identifier: int) -> int:
    """Return the planned row that a document's id belongs to."""
    return identifier >> FAN_OUT_BITS


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces; the input of every hash here."""
    return _CANONICAL.encode(value)


def generated_key(messages: Sequence[Mapping[str, str]], revision: str, sampling: str, row_seed: int) -> bytes:
    """Return the 16-byte key of a generated document: a hash of what makes it, not of what it says."""
    made_of = canonical_json([list(map(dict, messages)), revision, sampling, row_seed])
    return hashlib.blake2b(made_of.encode(), digest_size=KEY_BYTES).digest()


def written_tokens(first: int, meta: str) -> int:
    """Return the tokens that models wrote for a document, in all calls that it took.

    Args:
        first: `completion_tokens` of its first call.
        meta: its metadata, JSON; `calls` has the calls after the first, or whatever a kind of its own calls so.
    """
    calls = json.loads(meta).get("calls") if '"calls"' in meta else None
    later = (
        [call.get("completion_tokens") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    )
    return first + sum(tokens for tokens in later if isinstance(tokens, int))


def content_key(data: bytes) -> bytes:
    """Return the 16-byte key of a document that was read: a hash of its bytes."""
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()


def documents_table(documents: Iterable[Document]) -> pa.Table:
    """Return documents as a table of DOCUMENT_SCHEMA, in the order given."""
    rows = [
        {
            "id": document.id,
            "key": document.key,
            "text": document.text,
            "source": document.source,
            "kind": document.kind,
            "parents": list(document.parents),
            "made_by": vars(document.made_by) if document.made_by else None,
            "meta": canonical_json(dict(document.meta)),
        }
        for document in documents
    ]
    return pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA)


def rejects_table(rejects: Iterable[Reject]) -> pa.Table:
    """Return rejects as a table of REJECT_SCHEMA, in the order given."""
    return pa.Table.from_pylist([vars(reject) for reject in rejects], schema=REJECT_SCHEMA)
