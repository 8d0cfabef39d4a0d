"""How far two annotators agree: two wordings of a judge, two judges, two people, or people and a judge."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]


def agreement(first: Scores, second: Scores) -> dict[str, float | None]:
    """Return how far two series of scores (0 to 5) of the same documents agree.

    `spearman`: rank correlation; `kappa`: quadratic-weighted kappa of the rounded scores (Cohen, 1968); `exact` and
    `within_one`: shares of rounded scores that are equal, or at most one apart. None where undefined (constant scores).
    """
    from scipy.stats import spearmanr

    if len(first) < 2:
        return {"spearman": None, "kappa": None, "exact": None, "within_one": None}
    a, b = np.rint(first).astype(int), np.rint(second).astype(int)
    constant = np.ptp(first) == 0 or np.ptp(second) == 0
    return {
        "spearman": None if constant else _figure(spearmanr(first, second).statistic),
        "kappa": _figure(quadratic_kappa(a, b)),
        "exact": _figure(np.mean(a == b)),
        "within_one": _figure(np.mean(np.abs(a - b) <= 1)),
    }


def quadratic_kappa(first: npt.NDArray[np.integer], second: npt.NDArray[np.integer]) -> float:
    """Return 1 - observed / expected disagreement, both as mean squared distances; NaN where none is expected.

    The expected one is that of every grade of the first annotator with every one of the second. Distances are those of the
    grades themselves: scikit-learn's kappa takes the ranks of the grades that occur, so that 0 and 5 count as neighbours
    where nothing lies between them.
    """
    expected = first.var() + second.var() + (first.mean() - second.mean()) ** 2
    return float(1 - np.mean((first - second) ** 2.0) / expected) if expected > 0 else float("nan")


def spread(scores: Scores) -> dict[str, float]:
    """Return how many scores there are, their mean, standard deviation and quartiles; only the number where there is none."""
    if not len(scores):
        return {"documents": 0}
    quantiles = np.quantile(scores, [0, 0.25, 0.5, 0.75, 1])
    names = ("lowest", "quarter", "median", "three_quarters", "highest")
    return {
        "documents": len(scores),
        "mean": round(float(scores.mean()), 4),
        "deviation": round(float(scores.std()), 4),
        **{name: round(float(value), 4) for name, value in zip(names, quantiles, strict=True)},
    }


def _figure(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None
