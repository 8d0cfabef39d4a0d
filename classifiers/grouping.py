"""Rows by what they have in common, without a pass over all rows for each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Name = TypeVar("Name", str, bytes)


def rows_by(names: Sequence[Name]) -> dict[Name, np.ndarray]:
    """Return the row numbers that have each name, ascending, int64 (rows of it,); names in order of appearance."""
    groups: dict[Name, list[int]] = {}
    for row, name in enumerate(names):
        groups.setdefault(name, []).append(row)
    return {name: np.array(rows, dtype=np.int64) for name, rows in groups.items()}
