"""Columns beside documents that follow from each text alone: language, heuristics. Part in, part out.

Nothing is dropped here: what a value means for a document is decided later, when a corpus is selected, so that a threshold
changes without computing anything again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from classifiers.beside import require_unique
from hornbook.artifact import Artifact
from hornbook.documents import Reject, rejects_table
from hornbook.parts import PartContent, PartRange, same_ids
from hornbook.partwork import PartMaker, Totals
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult


class TextAttributes(Stage):
    """A stage that gives every document the columns of `attributes`; its settings may have `workers`."""

    produces = "attributes"
    inputs: ClassVar[Mapping[str, Input]] = {"documents": Input("documents")}

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return as many rows as there are documents."""
        rows = inputs["documents"][0].rows
        return Expected(planned=rows, unit="documents", rows=rows)

    def setup(self) -> None:
        """Load what is heavy, once per worker."""

    @abstractmethod
    def attributes(self, text: str) -> Mapping[str, Any]:
        """Return a document's values by column, the columns of `schema`; a ValueError makes it a reject that says why."""

    @abstractmethod
    def schema(self) -> pa.Schema:
        """Return the columns that `attributes` gives, without `id`, `key` and `source`."""

    def counts(self, table: pa.Table) -> Mapping[str, float]:
        """Return sums over a part's rows; added up over all parts they are `totals.counts` of `figures`."""
        return {}

    def figures(self, artifact: Artifact, totals: Totals) -> Mapping[str, Any]:
        """Return figures for the report, from the finished parts."""
        return {}

    def run(self, context: StageContext) -> StageResult:
        """Look at each part of the documents and write a part of the same range."""
        documents = context.input("documents")
        ranges = [part.range for part in documents.parts]
        totals = context.make_parts(AttributePart(self, documents), ranges, unit="documents")
        return StageResult(metrics=self.figures(context.artifact, totals))


class AttributePart(PartMaker):
    """Computes the attributes of the documents of one part."""

    def __init__(self, stage: TextAttributes, documents: Artifact) -> None:
        self.stage, self.documents = stage, documents
        self.kind = stage.kind
        self.max_workers = getattr(stage.settings, "workers", None)

    def setup(self) -> None:
        """Load what the stage needs."""
        self.stage.setup()

    def make(self, part: PartRange) -> PartContent:
        """Return columns id, key, source and the stage's own, in the documents' order."""
        table = self.documents.read(self.documents.parts_by_start[part.start], columns=["id", "key", "source", "text"])
        require_unique(table, f"{self.documents.folder}, part {part.start}")
        ids = table.column("id").to_pylist()
        kept: list[bool] = []
        rows: list[Mapping[str, Any]] = []
        rejects: list[Reject] = []
        for identifier, text in zip(ids, table.column("text").to_pylist(), strict=True):
            try:
                rows.append(self.stage.attributes(text))
                kept.append(True)
            except ValueError as error:
                rejects.append(Reject(identifier, "document", f"no-{self.stage.kind}", str(error)))
                kept.append(False)
        found = pa.Table.from_pylist(list(map(dict, rows)), schema=self.stage.schema())
        beside = table.select(["id", "key", "source"]).filter(pa.array(kept, pa.bool_()))
        for name in found.column_names:
            beside = beside.append_column(found.schema.field(name), found.column(name))
        counts = self.stage.counts(beside)
        return PartContent(table=beside, rejects=rejects_table(rejects), planned=ids, unit_of=same_ids, counts=counts)
