"""Documents at the border of a threshold, with their texts, read when somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hornbook.artifact import Artifact

Reference = Sequence[Any]
"""[start of the part, id, key, source's place, score], as `dial_figures` leaves them."""


def border(figures: Mapping[str, Any], step: int, wanted: int) -> tuple[list[Reference], list[Reference]]:
    """Return documents just above the threshold number `step` (lowest scores first) and just below (highest first)."""
    references = figures["references"]
    above = _nearest(references[step:], lambda reference: float(reference[4]), wanted)
    return above, _nearest(reversed(references[:step]), lambda reference: -float(reference[4]), wanted)


def read_texts(documents: Artifact, references: Sequence[Reference]) -> dict[tuple[int, int], str]:
    """Return the texts of documents by (start of the part, id); those that are gone are left out."""
    if not documents.complete:
        return {}
    known, texts = documents.parts_by_start, {}
    for start in sorted({reference[0] for reference in references} & set(known)):
        wanted = pa.array([reference[1] for reference in references if reference[0] == start], pa.int64())
        table = documents.read(known[start], columns=["id", "text"])
        table = table.filter(pc.is_in(table.column("id"), wanted))
        for identifier, text in zip(table.column("id").to_pylist(), table.column("text").to_pylist(), strict=True):
            texts[start, identifier] = text
    return texts


def _nearest(bins: Iterable[Sequence[Reference]], order: Callable[[Reference], float], wanted: int) -> list[Reference]:
    """Return the first documents of intervals that lead away from the border."""
    found: list[Reference] = []
    for references in bins:
        found += sorted(references, key=order)
        if len(found) >= wanted:
            break
    return found[:wanted]
