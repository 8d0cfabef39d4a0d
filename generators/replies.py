"""Every reply of an engine, kept with the key of what asked for it, so that a later plan need not ask again.

A reply's key hashes the messages, the model's revision, the sampling and the seed. When a prompt, a model, a parser or a
setting changes, the artifact is a new one; but each row whose request still has the same key takes the earlier reply over.
And where a part fails half-way (a budget is spent, an endpoint goes down), what was answered is saved for the next attempt.
"""

from __future__ import annotations

import bisect
import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hornbook.artifact import ARTIFACTS, MANIFEST, Artifact
from hornbook.documents import KEY_BYTES
from hornbook.engines.interface import Reply
from hornbook.errors import StoreError
from hornbook.parts import PartCommit, PartRange, parquet_bytes, read_commits, read_part
from hornbook.store import Store

ROLE = "replies"
DRAFTS = "drafts"
SAVED = "saved"
MOST_ARTIFACTS = 4
"""Earlier artifacts that are looked through: the newest."""

REPLY_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.int64(), nullable=False),
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("completion_tokens", pa.int32(), nullable=False),
        pa.field("choices", pa.string(), nullable=False),  # probabilities of the choices, JSON; empty without
    ]
)


@dataclass(frozen=True)
class Call:
    """One request of a planned unit, and its reply; `engine` is the settings field of the engine that was asked."""

    unit: int
    key: bytes
    reply: Reply
    reused: bool = False
    engine: str = "engine"


def replies_bytes(calls: Iterable[Call]) -> bytes:
    """Return the Parquet file of the replies worth keeping: failures are asked again."""
    rows = [
        {
            "unit": call.unit,
            "key": call.key,
            "text": call.reply.text,
            "finish_reason": call.reply.finish_reason,
            "prompt_tokens": call.reply.prompt_tokens,
            "completion_tokens": call.reply.completion_tokens,
            "choices": json.dumps(call.reply.choice_probabilities) if call.reply.choice_probabilities else "",
        }
        for call in calls
        if call.reply.finish_reason != "error"
    ]
    return parquet_bytes(pa.Table.from_pylist(rows, schema=REPLY_SCHEMA))


@dataclass
class KnownReplies:
    """The replies that are there for a range of planned units, by key.

    Attributes:
        earlier: those of other artifacts, to be taken over.
        saved: those of this artifact's own earlier attempts.
    """

    earlier: dict[bytes, Reply] = field(default_factory=dict)
    saved: dict[bytes, Reply] = field(default_factory=dict)

    def find(self, key: bytes) -> tuple[Reply | None, bool]:
        """Return the reply with a key, and whether it is another artifact's."""
        if key in self.saved:
            return self.saved[key], False
        return self.earlier.get(key), key in self.earlier


@dataclass
class EarlierReplies:
    """Looks replies up in earlier artifacts of a kind, and in this one's earlier attempts.

    Can be pickled; each worker reads what it needs.

    Attributes:
        own: folder of the artifact that is being made.
        folders: those of earlier ones, the newest first.
    """

    store: Store
    own: str
    folders: Sequence[str]
    _parts: list[tuple[str, list[PartCommit]]] | None = field(default=None, repr=False)
    _saved: list[tuple[PartRange, str]] | None = field(default=None, repr=False)

    def load(self, part: PartRange) -> KnownReplies:
        """Return the replies that are there for a range of planned units."""
        known = KnownReplies()
        for folder, records in self._known():
            first = max(0, bisect.bisect_right([record.start for record in records], part.start) - 1)
            for record in records[first:]:
                if record.start >= part.stop:
                    break
                if record.stop > part.start:  # the newest artifact's come first
                    known.earlier = {**_read(self.store, folder, record), **known.earlier}
        for units, name in self._known_saved():
            if units.start < part.stop and part.start < units.stop:
                known.saved |= _replies(pq.read_table(pa.BufferReader(self.store.read(name))))
        return known

    def save(self, part: PartRange, calls: Iterable[Call]) -> None:
        """Keep the replies of a part that cannot be made now, so that the next attempt does not ask, and pay, for them again."""
        made = [call for call in calls if not call.reused and call.reply.finish_reason != "error"]
        if made:
            name = f"{part.start}-{part.stop}-{uuid.uuid4().hex[:12]}.parquet"
            self.store.write(f"{self.own}/{SAVED}/{name}", replies_bytes(made))

    def cover(self, parts: Sequence[PartRange]) -> bool:
        """Return whether there are replies for the first of these ranges: then an engine may well be asked for nothing."""
        return bool(parts and self.load(parts[0]).earlier)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_parts": None, "_saved": None}

    def _known(self) -> list[tuple[str, list[PartCommit]]]:
        if self._parts is None:
            self._parts = [(folder, list(_records(self.store, folder))) for folder in self.folders]
        return self._parts

    def _known_saved(self) -> list[tuple[PartRange, str]]:
        if self._saved is None:
            names = [name for name in self.store.names(f"{self.own}/{SAVED}") if name.endswith(".parquet")]
            bounds = [(int(start), int(stop)) for start, stop, _ in (name.split("-") for name in names)]
            self._saved = [
                (PartRange(start, stop), f"{self.own}/{SAVED}/{name}")
                for (start, stop), name in zip(bounds, names, strict=True)
            ]
        return self._saved


def earlier_replies(artifact: Artifact, kind: str, anew: bool = False) -> EarlierReplies:
    """Return where replies for a kind's new artifact may be found: the newest artifacts of that kind, unfinished ones too.

    `anew` takes nothing over from other artifacts.
    """
    store = artifact.store
    if anew:
        return EarlierReplies(store, artifact.folder, [])
    names = [name for name in store.names(ARTIFACTS) if name.rpartition("-")[0] == kind]
    others = [folder for name in names if (folder := f"{ARTIFACTS}/{name}") != artifact.folder]
    newest = sorted(others, key=lambda folder: _age(store, folder), reverse=True)[:MOST_ARTIFACTS]
    return EarlierReplies(
        store, artifact.folder, [place for folder in newest for place in (folder, f"{folder}/{DRAFTS}")]
    )


def _age(store: Store, folder: str) -> float:
    """Return when an artifact was finished; an unfinished one, which a user may have stopped to mend it, is newest."""
    try:
        artifact = Artifact(store, folder)
        return artifact.manifest.created if artifact.complete else float("inf")
    except StoreError:
        return 0.0


def _records(store: Store, folder: str) -> Iterable[PartCommit]:
    try:
        complete = store.exists(f"{folder}/{MANIFEST}")
        records = Artifact(store, folder).parts if complete else read_commits(store, folder)
        return [record for record in records if record.has(ROLE)]
    except StoreError:  # damaged, or being deleted: then there is nothing to take over
        return []


def _read(store: Store, folder: str, record: PartCommit) -> dict[bytes, Reply]:
    try:
        return _replies(read_part(store, folder, record, ROLE))
    except StoreError:
        return {}


def _replies(table: pa.Table) -> dict[bytes, Reply]:
    return {
        row["key"]: Reply(
            row["text"],
            row["finish_reason"],
            row["prompt_tokens"],
            row["completion_tokens"],
            choice_probabilities=json.loads(row["choices"]) if row["choices"] else {},
        )
        for row in table.to_pylist()
    }
