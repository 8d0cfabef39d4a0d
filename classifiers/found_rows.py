"""Some documents of a corpus, and their vectors: computed here, or read from an `embed` stage. One part at a time."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from classifiers.beside import Beside, require_unique
from classifiers.embed import embedding_matrix
from classifiers.features import FeatureSettings, load_features
from hornbook.artifact import Artifact
from hornbook.documents import DOCUMENT_SCHEMA

if TYPE_CHECKING:
    from classifiers.features import Features

TEXTS_AT_ONCE = 1024
LEFT_OUT = ("empty_text", "no_embedding", "not_finite")
"""Why a document that was asked for cannot be used."""


class FoundRows:
    """Reads documents by id, with vectors where they are wanted. Pickles until it is set up.

    Attributes:
        documents: the corpus.
        embeddings: an `embed` stage's attributes of it, or None.
        features: how to embed where there are none, or None: no vectors are wanted.
    """

    def __init__(self, documents: Artifact, embeddings: Artifact | None, features: FeatureSettings | None) -> None:
        self.documents = documents
        self.beside = Beside(embeddings, ["embedding"]) if embeddings is not None else None
        self.features = features if embeddings is None else None
        self._model: Features | None = None

    @property
    def embeds(self) -> bool:
        """Tell whether an embedding model is needed."""
        return self.features is not None

    @property
    def gives_vectors(self) -> bool:
        """Tell whether documents come with vectors."""
        return self.embeds or self.beside is not None

    def set_up(self, device: str) -> None:
        """Load the model, where one is needed, on `device` (cpu or cuda)."""
        if self.features is not None:
            self._model = load_features(self.features, device)

    def read(self, number: int, wanted: pa.Table) -> tuple[pa.Table, np.ndarray | None, Counter[str]]:
        """Return the wanted documents of a part, in its order, and what became of those that cannot be used.

        Args:
            number: of the part.
            wanted: rows with `id` and `key`; a document with another key under this id is not one of them.

        Returns:
            The columns id, key, source, text and what `wanted` has beside; vectors, float32 (rows, dimension), or None if
            none are wanted; how many were left out: `empty_text`, `no_embedding` (rejected when embedded), `not_finite`.

        Raises:
            DataError: an id occurs twice in the part.
        """
        rows = self._wanted_rows(number, wanted)
        left_out = Counter(dict.fromkeys(LEFT_OUT, 0))
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(rows.column("text"))), 0)
        left_out["empty_text"] = int(pc.sum(blank).as_py() or 0)
        rows = rows.filter(pc.invert(blank))
        if not self.gives_vectors:
            return rows, None, left_out
        if self.beside is not None:
            found, known = self.beside.read(self.documents.parts[number].range, rows)
            left_out["no_embedding"] = int((~known).sum())
            rows = rows.filter(pa.array(known))
            vectors = embedding_matrix(found.column("embedding").filter(pa.array(known)))
        else:
            vectors = self._embedded(rows.column("text").to_pylist())
        finite = np.isfinite(vectors).all(axis=1)
        left_out["not_finite"] = int((~finite).sum())
        return rows.filter(pa.array(finite, pa.bool_())), vectors[finite], left_out

    def _wanted_rows(self, number: int, wanted: pa.Table) -> pa.Table:
        part = self.documents.parts[number]
        columns = ["id", "key", "source", "text"]
        ids = self.documents.read(part, columns=["id"])
        require_unique(ids, f"{self.documents.folder}, part {part.range.name}")
        chosen = wanted.column("id").combine_chunks()
        if pc.any(pc.is_in(ids.column("id"), chosen)).as_py():
            table = self.documents.read(part, columns=columns)
            table = table.filter(pc.is_in(table.column("id"), chosen))
        else:
            table = pa.schema([DOCUMENT_SCHEMA.field(name) for name in columns]).empty_table()
        place = pc.index_in(table.column("id"), chosen)
        own = wanted.take(place)
        pairs = zip(table.column("key").to_pylist(), own.column("key").to_pylist(), strict=True)
        same = pa.array([key == known for key, known in pairs], pa.bool_())
        for name in own.column_names:
            if name not in columns:
                table = table.append_column(name, own.column(name))
        return table.filter(same)

    def _embedded(self, texts: list[str]) -> np.ndarray:
        assert self._model is not None
        pieces = [
            self._model.embed(texts[start : start + TEXTS_AT_ONCE]) for start in range(0, len(texts), TEXTS_AT_ONCE)
        ]
        return np.concatenate([self._model.embed([]), *pieces])
