"""The annotated documents: grades of several annotators joined to their documents, split into training and held-out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from classifiers.embed import embedding_matrix
from classifiers.excerpt import excerpt
from classifiers.grouping import rows_by
from classifiers.heads import TOP_GRADE
from hornbook.artifact import Artifact
from hornbook.documents import KEY_BYTES
from hornbook.errors import DataError
from hornbook.plan import derive_seed

HUMAN = "labels"
"""The kind of stage whose grades are people's."""
GRADED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("grade", pa.float64(), nullable=False),  # 0 to 5
        pa.field("weight", pa.float64(), nullable=False),  # documents of the corpus that it stands for
    ]
)


@dataclass(frozen=True)
class Annotated:
    """Annotated documents in their corpus' order.

    Attributes:
        keys, sources: of the documents, (rows,).
        texts: their beginnings, as much as the n-grams read.
        grades: 0 to 5, float64 (rows,).
        weights: how many documents of the corpus each stands for, float64 (rows,).
        vectors: float32 (rows, dimension), or None where none were wanted.
    """

    keys: list[bytes]
    sources: list[str]
    texts: list[str]
    grades: np.ndarray
    weights: np.ndarray
    vectors: np.ndarray | None

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Split:
    """Which annotated documents are good (`labels`), which only measure (`held_out`), and the grade at the border."""

    labels: np.ndarray
    held_out: np.ndarray
    cut: float


def collect_grades(
    annotations: Sequence[Artifact], prefer: Literal["human", "mean"]
) -> tuple[pa.Table, dict[str, int]]:
    """Return rows of GRADED_SCHEMA, each document once, and how many rows of what were set aside or joined.

    A document that several annotators graded counts with the mean grade, or, where `prefer` is human and a person graded it,
    with the mean of people's. Its weight is the largest given: a file of chosen documents says 1, a sample what it stands for.
    """
    found: dict[tuple[int, bytes], list[tuple[bool, float, float]]] = {}
    counts = {"bad_grades": 0, "graded_by_several": 0, "graded_by_people": 0}
    for artifact in annotations:
        human = artifact.manifest.kind == HUMAN
        for table in artifact.tables(columns=_columns(artifact)):
            for row in table.to_pylist():
                grade, weight = row["score"], row.get("weight", 1.0)
                if not (_within(grade, TOP_GRADE) and _within(weight, math.inf) and weight > 0):
                    counts["bad_grades"] += 1
                    continue
                found.setdefault((row["id"], row["key"]), []).append((human, grade, weight))
    rows = []
    for (identifier, key), given in sorted(found.items()):
        grades = [grade for human, grade, _ in given if human and prefer == "human"]
        grades = grades or [grade for _, grade, _ in given]
        counts["graded_by_several"] += len(given) > 1
        counts["graded_by_people"] += any(human for human, _, _ in given)
        rows.append((identifier, key, sum(grades) / len(grades), max(weight for _, _, weight in given)))
    columns = list(zip(*rows, strict=True)) or [()] * len(GRADED_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, GRADED_SCHEMA, strict=True)]
    return pa.table(arrays, schema=GRADED_SCHEMA), counts


def _columns(annotations: Artifact) -> list[str]:
    known = {column.partition(":")[0] for column in annotations.manifest.columns}
    return ["id", "key", "score", *(["weight"] if "weight" in known else [])]


def _within(value: Any, most: float) -> bool:
    return value is not None and math.isfinite(value) and 0 <= value <= most


def annotated_table(rows: pa.Table, vectors: np.ndarray | None, characters: int) -> pa.Table:
    """Return what `read_annotated` reads: rows (key, source, text, grade, weight) with the texts cut and vectors beside."""
    table = rows.select(["key", "source", "grade", "weight"])
    heads = [excerpt(text, characters) for text in rows.column("text").to_pylist()]
    table = table.append_column("text", pa.array(heads, pa.string()))
    if vectors is None:
        return table
    values = pa.array(vectors.reshape(-1), type=pa.float32())
    return table.append_column("embedding", pa.FixedSizeListArray.from_arrays(values, vectors.shape[1]))


def read_annotated(tables: Iterable[pa.Table]) -> Annotated:
    """Return the annotated documents of tables that `annotated_table` made, in their order."""
    pieces = list(tables)
    if not pieces:
        return Annotated([], [], [], np.zeros(0), np.zeros(0), None)
    table = pa.concat_tables(pieces)
    return Annotated(
        keys=table.column("key").to_pylist(),
        sources=table.column("source").to_pylist(),
        texts=table.column("text").to_pylist(),
        grades=table.column("grade").to_numpy(),
        weights=table.column("weight").to_numpy(),
        vectors=embedding_matrix(table.column("embedding")) if "embedding" in table.column_names else None,
    )


def split_annotated(
    annotated: Annotated, label_cut: float | None, label_quantile: float, share: float, seed: int
) -> Split:
    """Cut the grades into good and bad, and set some documents aside: those with the smallest seeded hash of their key.

    Which are set aside depends on seed and keys alone. Documents with equal keys fall on the same side.

    Args:
        label_cut: the grade from which a document is good; None: above the `label_quantile` of the grades.
        label_quantile: between 0 and 1.
        share: of the documents that are set aside.
        seed: which ones.
    """
    cut = label_cut if label_cut is not None else float(np.quantile(annotated.grades, label_quantile))
    order = {key: derive_seed(seed, key.hex()) for key in annotated.keys}
    aside = set(sorted(order, key=lambda key: order[key])[: max(1, round(share * len(order)))])
    held_out = np.array([key in aside for key in annotated.keys])
    labels = annotated.grades >= cut if label_cut is not None else annotated.grades > cut
    return Split(labels, held_out, cut)


def require_both_classes(where: str, split: Split) -> None:
    """Refuse a split of which a side has good or bad documents only. Raises DataError naming the cut."""
    cure = "lower or raise label_cut, annotate a larger sample, or name a judge that tells documents apart"
    for what, labels in (("training", split.labels[~split.held_out]), ("held-out", split.labels[split.held_out])):
        if len(set(labels.tolist())) < 2:
            side = "good" if labels.any() else "bad"
            raise DataError(
                f"{where}: all {len(labels)} {what} annotations are {side} at the cut {split.cut:.3f}: "
                "there is nothing to tell apart",
                cure,
            )


# --- folds -----------------------------------------------------------------------------------------------------------


def key_folds(keys: Sequence[bytes], labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each row, int (rows,) from 0: good and bad dealt evenly, rows of one key in one fold.

    As many folds as there are keys of the rarer class, at most `folds`; -1 throughout where that leaves fewer than two.
    """
    groups = rows_by(keys)
    good = {key: bool(labels[rows].mean() >= 0.5) for key, rows in groups.items()}
    dealt = sorted(groups, key=lambda key: (good[key], derive_seed(seed, key.hex())))
    folds = min(folds, sum(good.values()), len(good) - sum(good.values()))
    fold_of = np.full(len(keys), -1)
    if folds >= 2:
        for place, key in enumerate(dealt):
            fold_of[groups[key]] = place % folds
    return fold_of


def source_folds(sources: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """Return the fold of each row, int (rows,) from 0: all rows of a source in one, the folds about as large as can be.

    At most as many folds as sources; -1 throughout where that leaves fewer than two.
    """
    groups = rows_by(sources)
    folds = min(folds, len(groups))
    fold_of = np.full(len(sources), -1)
    if folds >= 2:
        sizes = [0] * folds
        for name in sorted(groups, key=lambda name: (-len(groups[name]), derive_seed(seed, name))):
            smallest = sizes.index(min(sizes))
            fold_of[groups[name]] = smallest
            sizes[smallest] += len(groups[name])
    return fold_of
