"""What the report says of a judge: where its grades lie, whether its criteria differ, and whether it only counts characters
or repeats the reasons of its examples.

All from running sums: one part is in memory at a time.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from generators.overlap import alike
from generators.rubric import REASON, Rubric
from hornbook.artifact import Artifact
from hornbook.score_figures import kept_and_histogram

BINS = 20
FEWEST = 20  # graded documents; below, no warning is worth reading
ONE_SCORE = 0.9  # share of the scores within one bin from which they say nothing
ONE_THING = 0.95  # correlation from which two criteria are called one
MUCH_LENGTH = 0.5  # correlation with length from which a judge is called a ruler
SAME_REASON = 0.6  # Jaccard index of the words of two reasons from which one repeats the other
MANY_COPIED = 0.2  # share of such reasons from which the judge is said to repeat its examples


def judge_figures(graded: Artifact, rubric: Rubric, score: str, threshold: float | None) -> dict[str, Any]:
    """Return the metrics of a finished grading.

    `histogram` and `kept` of the score; `grades` ({criterion: mean, deviation, counts of each grade, whole numbers for those
    that need not be whole}); `mean_by_source`; `correlation` (Pearson) of each pair of numeric criteria and
    `correlation_with_length` of the score with the characters that the judge read, None where one of them is constant;
    `copied_reasons`, the share of reasons that repeat an example's, where there are reasons and examples.
    """
    numbers = [criterion.name for criterion in rubric.numeric]
    sums = _Sums([*numbers, "score", "characters"])
    counts: dict[str, Counter[str]] = {criterion.name: Counter() for criterion in rubric.criteria}
    by_source: dict[str, list[float]] = {}
    examples, copied, reasons = [example.reason for example in rubric.examples], 0, 0
    for table in graded.tables():
        sums.add(np.column_stack([table.column(name).to_numpy().astype(float) for name in sums.names]))
        for criterion in rubric.criteria:
            found = table.column(criterion.name).to_pylist()
            counts[criterion.name].update(found if criterion.choices else [f"{round(value)}" for value in found])
        if REASON in table.column_names:
            for reason in table.column(REASON).to_pylist():
                copied += any(alike(reason, example, SAME_REASON) for example in examples)
            reasons += table.num_rows
        for source, value in zip(table.column("source").to_pylist(), table.column("score").to_pylist(), strict=True):
            total = by_source.setdefault(source, [0, 0.0])
            total[0] += 1
            total[1] += value
    low, high = rubric.bounds(score)
    grades: dict[str, Any] = {}
    for criterion in rubric.criteria:
        spread = (
            {}
            if criterion.choices
            else {"mean": sums.mean(criterion.name), "deviation": sums.deviation(criterion.name)}
        )
        order = criterion.choices or sorted(counts[criterion.name], key=float)
        grades[criterion.name] = spread | {"counts": {grade: counts[criterion.name][grade] for grade in order}}
    metrics: dict[str, Any] = {
        "graded": sums.rows,
        "threshold": threshold,
        "grades": grades,
        "mean_by_source": {name: round(total / rows, 4) for name, (rows, total) in sorted(by_source.items())},
        "correlation": {
            first: {second: sums.correlation(first, second) for second in numbers[place + 1 :]}
            for place, first in enumerate(numbers[:-1])
        },
        "correlation_with_length": sums.correlation("score", "characters"),
        **kept_and_histogram(graded, threshold, np.linspace(low, high, BINS + 1)),
    }
    if examples and reasons:
        metrics["copied_reasons"] = round(copied / reasons, 4)
    metrics["warnings"] = _warnings(metrics, sums)
    return metrics


class _Sums:
    """Sums of columns and of their products."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.rows = 0
        self.total = np.zeros(len(names))
        self.products = np.zeros((len(names), len(names)))

    def add(self, values: np.ndarray) -> None:
        """Add rows, float (rows, names)."""
        self.rows += len(values)
        self.total += values.sum(axis=0)
        self.products += values.T @ values

    def mean(self, name: str) -> float | None:
        return round(float(self.total[self.names.index(name)]) / self.rows, 4) if self.rows else None

    def deviation(self, name: str) -> float | None:
        return round(float(np.sqrt(self._covariance(name, name))), 4) if self.rows else None

    def correlation(self, first: str, second: str) -> float | None:
        """Return Pearson's correlation, or None where one is constant."""
        spread = self._covariance(first, first) * self._covariance(second, second)
        return round(self._covariance(first, second) / float(np.sqrt(spread)), 4) if spread > 0 else None

    def _covariance(self, first: str, second: str) -> float:
        if not self.rows:
            return 0.0
        a, b = self.names.index(first), self.names.index(second)
        found = float(self.products[a, b] / self.rows - self.total[a] * self.total[b] / self.rows**2)
        return found if a != b or found > 1e-9 * max(1.0, self.products[a, a] / self.rows) else 0.0  # rounding


def _warnings(metrics: dict[str, Any], sums: _Sums) -> list[str]:
    if sums.rows < FEWEST:
        return [f"only {sums.rows} documents were graded: the figures are rough"]
    warnings = []
    bins = np.sum(list(metrics["histogram"]["counts"].values()), axis=0)
    if (share := bins.max() / bins.sum()) > ONE_SCORE:
        low, high = metrics["histogram"]["edges"][bins.argmax() :][:2]
        warnings.append(
            f"{share:.0%} of the scores lie between {low:g} and {high:g}: the judge hardly tells texts apart"
        )
    pairs = [(one, other, value) for one, row in metrics["correlation"].items() for other, value in row.items()]
    if same := [f"{one} and {other}" for one, other, value in pairs if value is not None and value > ONE_THING]:
        warnings.append(f"the judge grades {', '.join(same)} as one thing")
    length = metrics["correlation_with_length"]
    if length is not None and abs(length) > MUCH_LENGTH:
        warnings.append(f"the score goes with the documents' length (correlation {length:.2f})")
    if (copied := metrics.get("copied_reasons", 0)) > MANY_COPIED:
        warnings.append(f"{copied:.0%} of the reasons repeat an example of the rubric: the judge hardly read the texts")
    return warnings
