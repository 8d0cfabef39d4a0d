"""Scores as probabilities: how far they are, and Platt's way to make them so.

Platt's logistic curve (1999), not isotonic regression: it has two numbers, needs no more than a few dozen documents, and is
strictly monotone, so that no two documents get the same score that had different ones and no threshold is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

BINS, DOCUMENTS_PER_BIN = 10, 10
"""At most so many bins, and at least about so many documents in each."""


@dataclass(frozen=True)
class Platt:
    """score -> 1 / (1 + exp(-(slope * score + offset))), with a positive slope."""

    slope: float
    offset: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Return the chance that a document is good, float32 (rows,)."""
        exponent = -(self.slope * np.asarray(scores, dtype=np.float64) + self.offset)
        return (1 / (1 + np.exp(np.minimum(exponent, 700)))).astype(np.float32)


def fit_platt(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Platt | None:
    """Return the curve for out-of-fold scores, or None where higher scores are not better."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1e3).fit(
        scores[:, None].astype(np.float64), labels, sample_weight=weights / weights.mean()
    )
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    return Platt(round(slope, 6), round(offset, 6)) if slope > 0 else None


def reliability(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Return how far scores are chances of being good.

    `curve`: [mean score, share of good, documents] of at most BINS bins of equal weight; `brier`: mean squared error; `ece`: expected
    calibration error, the mean distance of the two over the bins. All weighted.
    """
    order = np.argsort(scores, kind="stable")
    before = np.cumsum(weights[order]) - weights[order] / 2
    wanted = int(np.clip(len(scores) // DOCUMENTS_PER_BIN, 2, BINS))
    bins = np.minimum((wanted * before / weights.sum()).astype(int), wanted - 1)
    curve, error = [], 0.0
    for number in np.unique(bins):
        rows = order[bins == number]
        weight = weights[rows].sum()
        said, observed = (float(np.average(values[rows], weights=weights[rows])) for values in (scores, labels))
        error += weight / weights.sum() * abs(said - observed)
        curve.append([round(said, 4), round(observed, 4), len(rows)])
    brier = float(np.average((scores - labels) ** 2, weights=weights))
    return {"curve": curve, "brier": round(brier, 4), "ece": round(float(error), 4)}
