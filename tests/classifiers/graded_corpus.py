"""A corpus whose documents' worth is known, with grades and embeddings made by hand: for tests of `quality` without a model.

The first dimension of a document's vector is how good it is, and the word "lesson" stands as often in its text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import finished_artifact
import numpy as np
import pyarrow as pa
from in_process import context_of

from classifiers.annotate import ANNOTATION_SCHEMA
from classifiers.embed import embedded_content
from classifiers.quality import Quality, QualitySettings
from hornbook.artifact import Artifact
from hornbook.documents import Document, content_key, document_id, documents_table
from hornbook.parts import PartContent, PartRange, commit_part, same_ids
from hornbook.store import Store

PART_ROWS = 100
DIMENSION = 8


def finish(artifact: Artifact, kind: str, produces: str, inputs: dict[str, list[Artifact]], **options: Any) -> Artifact:
    names = {role: [role] * len(found) for role, found in inputs.items()}
    return finished_artifact.finish(
        artifact, produces, **{"kind": kind, "inputs": inputs, "input_stages": names, **options}
    )


class GradedCorpus:
    """Documents, embeddings and a judge's grades.

    Attributes:
        worth: how good each document is, (rows,), normal.
        sources: of each.
        grades: 0 to 5, by `worth` and noise.
    """

    def __init__(
        self,
        store: Store,
        worth: np.ndarray,
        sources: Sequence[str],
        graded: Sequence[int] | None = None,
        noise: float = 0.5,
        texts: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        random = np.random.default_rng(seed)
        self.store, self.worth, self.sources = store, worth, list(sources)
        self.texts = texts or [
            f"page {row}" + " lesson" * max(0, round(4 + 2 * value)) for row, value in enumerate(worth)
        ]
        self.vectors = random.normal(size=(len(worth), DIMENSION)).astype(np.float32)
        self.vectors[:, 0] = worth
        self.grades = np.clip(2.5 + worth + noise * random.normal(size=len(worth)), 0, 5).astype(np.float32)
        self.documents = self._documents()
        self.annotations = self.annotate("grades", list(range(len(worth))) if graded is None else list(graded))

    def key(self, row: int) -> bytes:
        return content_key(f"{row} {self.texts[row]}".encode())

    def _documents(self) -> Artifact:
        artifact = Artifact(self.store, "artifacts/web")
        for part in self._ranges():
            documents = [
                Document(document_id(row), self.key(row), self.texts[row], self.sources[row], "web")
                for row in range(part.start, part.stop)
            ]
            commit_part(self.store, artifact.folder, part, PartContent(documents_table(documents)))
        return finish(artifact, "files", "documents", {})

    def embed(self, name: str = "vectors", **settings: Any) -> Artifact:
        artifact = Artifact(self.store, f"artifacts/{name}")
        for part in self._ranges():
            rows = self.documents.read(self._part(part), columns=["id", "key"])
            content = embedded_content(rows, self.vectors[part.start : part.stop])
            commit_part(self.store, artifact.folder, part, content)
        return finish(artifact, "embed", "attributes", {"documents": [self.documents]}, settings=settings)

    def annotate(
        self,
        name: str,
        rows: Sequence[int],
        grades: Sequence[float] | None = None,
        weights: Sequence[float] | None = None,
        kind: str = "annotate",
        agreement: Mapping[str, Any] | None = None,
    ) -> Artifact:
        artifact = Artifact(self.store, f"artifacts/{name}")
        values = [float(self.grades[row]) for row in rows] if grades is None else list(grades)
        table = pa.Table.from_pylist(
            [
                {
                    "id": document_id(row), "key": self.key(row), "source": self.sources[row], "score_a": value,
                    "score_b": value, "score": value, "grade_a": "", "grade_b": "", "judge": "test", "revision": "1",
                }
                for row, value in zip(rows, values, strict=True)
            ],
            schema=pa.schema([field for field in ANNOTATION_SCHEMA if field.name != "weight"]),
        )  # fmt: skip
        if weights is not None:
            table = table.append_column("weight", pa.array(weights, pa.float32()))
        ids = table.column("id").to_numpy()
        content = PartContent(table, planned=ids, unit_of=same_ids)
        commit_part(self.store, artifact.folder, PartRange(0, max(len(rows), 1)), content)
        metrics = {} if agreement is None else {"agreement": dict(agreement)}
        return finish(artifact, kind, "attributes", {"documents": [self.documents]}, metrics=metrics)

    def inputs(self, **others: list[Artifact]) -> dict[str, list[Artifact]]:
        if not self.store.exists("artifacts/vectors/manifest.json"):
            self.embed()
        embeddings = Artifact(self.store, "artifacts/vectors")
        return {
            "documents": [self.documents], "annotations": [self.annotations], "embeddings": [embeddings], **others,
        }  # fmt: skip

    def _ranges(self) -> list[PartRange]:
        rows = len(self.worth)
        return [PartRange(start, min(start + PART_ROWS, rows)) for start in range(0, rows, PART_ROWS)]

    def _part(self, part: PartRange) -> Any:
        (found,) = (commit for commit in self.documents.parts if commit.start == part.start)
        return found


def train(store: Store, inputs: dict[str, list[Artifact]], name: str = "quality", **settings: Any) -> Artifact:
    """Run `quality` in this process and return its finished artifact; few trees, since most tests need none."""
    stage = Quality(name, QualitySettings(**{"trees": 10, **settings}), seed=7)
    context = context_of(stage, store, **inputs)
    result = stage.run(context)
    return finish(
        context.artifact, "quality", "scorer", inputs,
        settings=stage.settings.identity(), metrics=result.metrics, files=result.files,
    )  # fmt: skip
