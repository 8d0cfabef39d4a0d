"""Personal data and secrets in documents: counted by type, and replaced by placeholders such as <EMAIL>. Part in, part out.

A document that something was replaced in has a new key, of its new text, and the original's as its parent; its `meta` says how
much of each type was found. What is found, and what is not, is in `personal_data`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from classifiers.beside import require_unique
from classifiers.personal_data import TYPES, Type, replaced
from hornbook.artifact import Artifact
from hornbook.documents import DOCUMENT_SCHEMA, canonical_json, content_key
from hornbook.parts import PartContent, PartRange, same_ids
from hornbook.partwork import PartMaker
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult


class PiiSettings(Settings):
    """What is looked for, and what becomes of it."""

    types: tuple[Type, ...] = Field(TYPES, min_length=1, description="What is looked for.")
    action: Literal["replace", "count"] = Field(
        "replace", description="replace: by <KEY>, <EMAIL>, <IP>, <CARD>, <PHONE>. count: the texts stay as they are."
    )
    reserved: bool = Field(
        False,
        description="Also take addresses that are nobody's: loopback, private and documentation IPs, example.com.",
    )
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor.")


class Pii(Stage):
    """Replaces personal data in every document of its input, or counts it."""

    kind = "pii"
    produces = "documents"
    Settings = PiiSettings
    inputs: ClassVar[Mapping[str, Input]] = {"documents": Input("documents")}
    settings: PiiSettings

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return as many documents as there are."""
        documents = inputs["documents"][0]
        return Expected(planned=documents.rows, unit="documents", rows=documents.rows, tokens=documents.tokens)

    def run(self, context: StageContext) -> StageResult:
        """Go through each part of the documents and write a part of the same range."""
        documents = context.input("documents")
        maker = PiiPart(self.settings, documents)
        totals = context.make_parts(maker, [part.range for part in documents.parts], unit="documents")
        found: dict[str, dict[str, int]] = {}
        for name, count in sorted(totals.counts.items()):
            source, _, what = name.rpartition("/")
            if source:
                found.setdefault(source, {})[what] = int(count)
        return StageResult(metrics={"found": found})


class PiiPart(PartMaker):
    """Goes through the documents of one part."""

    kind = "pii"

    def __init__(self, settings: PiiSettings, documents: Artifact) -> None:
        self.settings, self.documents = settings, documents
        self.max_workers = settings.workers

    def make(self, part: PartRange) -> PartContent:
        """Return the documents, in their order, with what was found in their `meta`."""
        table = self.documents.read(self.documents.parts_by_start[part.start], columns=DOCUMENT_SCHEMA.names)
        require_unique(table, f"{self.documents.folder}, part {part.start}")
        rows = table.to_pylist()
        counts: Counter[str] = Counter()
        for row in rows:
            text, found = replaced(row["text"], self.settings.types, self.settings.reserved)
            source = row["source"]
            counts.update({f"{source}/documents": 1, f"{source}/with any": int(bool(found))})
            if found:
                counts.update({f"{source}/{what}": number for what, number in found.items()})
                row["meta"] = canonical_json({**json.loads(row["meta"]), "pii": found})
                if self.settings.action == "replace":
                    key = content_key(text.encode())
                    row.update(text=text, key=key, parents=[row["key"]])
        return PartContent(
            table=pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA),
            planned=[row["id"] for row in rows],
            unit_of=same_ids,
            counts=counts,
        )
