"""Attributes beside their documents: a part of each, joined on id, with the keys compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from hornbook.artifact import Artifact
from hornbook.errors import DataError, RecipeError
from hornbook.parts import PartRange

TWICE = "ids are unique within an artifact; make the one that was written otherwise again"


def require_same_documents(where: str, documents: Artifact, attributes: Artifact) -> None:
    """Refuse attributes that were made of other documents, before anything is read.

    Raises:
        RecipeError: no input of the attributes is the documents' artifact.
    """
    made_of = {reference.digest for references in attributes.manifest.inputs.values() for reference in references}
    if documents.manifest.digest not in made_of:
        raise RecipeError(
            f"{where}: {attributes.manifest.stage} has attributes of other documents than {documents.manifest.stage}",
            f"let `documents` name the stage that {attributes.manifest.stage} was made from, or make it of these documents",
        )


def first_unit(documents: Artifact, attributes: Artifact) -> int:
    """Return where a corpus begins in attributes of several (dedup's): where the parts of those before it end."""
    offset = 0
    for reference in attributes.manifest.inputs.get("documents", ()):
        if reference.digest == documents.manifest.digest:
            return offset
        parts = Artifact(attributes.store, reference.folder).parts
        offset += parts[-1].stop if parts else 0
    return 0


class Beside:
    """Columns of an attributes artifact, part by part in the documents' order. Pickles: it holds no table."""

    def __init__(self, attributes: Artifact, columns: Sequence[str], documents: Artifact | None = None) -> None:
        """Take attributes and which columns of them; and, where they may be of several corpora, whose are wanted."""
        self.attributes = attributes
        self.columns = list(dict.fromkeys(columns))
        self.offset = first_unit(documents, attributes) if documents is not None else 0

    def read(self, part: PartRange, documents: pa.Table) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
        """Return the columns of a part, a row for each document, and which documents have one; the others' are null.

        Args:
            part: the documents' part.
            documents: its documents, with `id` and `key`.

        Raises:
            DataError: the attributes have no such part, or are of other documents, or an id occurs twice.
        """
        record = self.attributes.parts_by_start.get(self.offset + part.start)
        if record is None:
            raise _other_documents(self.attributes.folder)
        table = self.attributes.read(record, columns=["id", "key", *self.columns])
        rows, known = joined(documents, table, self.attributes.folder)
        return rows.select(self.columns), known


def joined(documents: pa.Table, attributes: pa.Table, folder: str) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """Return the attributes' rows in the documents' order, null where a document has none, and which have one.

    Both tables have the columns `id` and `key`; `folder` names the attributes in messages.

    Raises:
        DataError: the same id has another key in the attributes, or an id occurs twice.
    """
    require_unique(documents, "the documents")
    require_unique(attributes, folder)
    place = pc.index_in(documents.column("id"), attributes.column("id").combine_chunks())
    known = pc.is_valid(place)
    rows = attributes.take(place)
    if rows.column("key").filter(known).to_pylist() != documents.column("key").filter(known).to_pylist():
        raise _other_documents(folder)
    return rows, known.to_numpy().astype(bool)


def require_unique(table: pa.Table, what: str) -> None:
    """Refuse a table in which an id occurs twice: no row could be told from the other. Raises DataError naming it."""
    counted = pc.value_counts(table.column("id").combine_chunks())
    twice = counted.filter(pc.greater(counted.field("counts"), 1))
    if len(twice):
        raise DataError(
            f"{what}: the id {twice[0]['values'].as_py()} occurs {twice[0]['counts'].as_py()} times",
            TWICE,
        )


def _other_documents(folder: str) -> DataError:
    return DataError(
        f"{folder} does not hold attributes of these documents",
        "let `documents` name the stage that the attributes were made from",
    )
