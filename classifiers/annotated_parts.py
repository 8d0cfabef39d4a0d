"""Finds the annotated documents in their corpus and embeds them: a part of the corpus each, by whichever worker is free."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from classifiers.annotated import Annotated, annotated_table, read_annotated
from classifiers.found_rows import FoundRows
from hornbook.artifact import Artifact
from hornbook.parts import PartContent, PartRange, parquet_bytes
from hornbook.partwork import PartMaker
from hornbook.store import Store

ROLE = "annotated"


class AnnotatedPart(PartMaker):
    """Writes what training needs of the annotated documents of one part of the corpus; a planned unit is a part.

    The grades (rows of GRADED_SCHEMA) are in the file `graded` of the store.
    """

    kind = "quality"

    def __init__(
        self, rows: FoundRows, store: Store, graded: str, characters: int, num_cpus: float, on_gpu: bool
    ) -> None:
        self.rows = rows
        self.store = store
        self.graded = graded
        self.characters = characters
        self.num_cpus = 1.0 if on_gpu else num_cpus
        self.num_gpus = 1.0 if on_gpu else 0.0

    def setup(self) -> None:
        """Read the grades and load the embedding model."""
        self.wanted = read_table(self.store, self.graded)
        self.rows.set_up("cuda" if self.num_gpus else "cpu")

    def make(self, part: PartRange) -> PartContent:
        """Return a file of rows that `read_annotated` reads, none where the part has no annotated document."""
        rows, vectors, left_out = self.rows.read(part.start, self.wanted)
        table = annotated_table(rows, vectors, self.characters)
        files: Mapping[str, bytes] = {ROLE: parquet_bytes(table)} if table.num_rows else {}
        return PartContent(table=None, succeeded=1, files=files, counts={"annotated": table.num_rows, **left_out})


def read_table(store: Store, name: str) -> pa.Table:
    """Return a Parquet file of the store."""
    with store.open_input(name) as file:
        return pq.read_table(file)


def found_annotated(folder: Artifact, vectors: bool) -> Annotated:
    """Return the annotated documents that `AnnotatedPart` left, in the corpus' order, with their vectors or without."""
    columns = ["key", "source", "grade", "weight", "text"]
    options = {} if vectors else {"columns": columns}
    return read_annotated(folder.read(part, ROLE, **options) for part in folder.parts if part.has(ROLE))
