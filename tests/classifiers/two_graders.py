"""A kind of the tests' own: two graders that agree about what a text is worth, in place of a judge and its engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa

from classifiers.annotate import ANNOTATION_SCHEMA
from classifiers.attributes import TextAttributes
from hornbook.settings import Settings


class NoSettings(Settings):
    """None."""

    workers: int = 2


class TwoGraders(TextAttributes):
    """Grades every document by how often it speaks of the red boat."""

    kind = "two-graders"
    Settings: ClassVar[type[Settings]] = NoSettings

    def schema(self) -> pa.Schema:
        """Return the columns of annotations."""
        return pa.schema([field for field in ANNOTATION_SCHEMA if field.name not in ("id", "key", "source")])

    def attributes(self, text: str) -> Mapping[str, Any]:
        """Return both graders' grades."""
        score = min(5.0, text.count("red boat"))
        made = {"score_a": score, "score_b": score, "score": score, "grade_a": "", "grade_b": ""}
        return {**made, "judge": "tests", "revision": "1", "weight": 1.0}
