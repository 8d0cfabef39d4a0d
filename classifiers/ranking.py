"""How well scores rank labels: ROC AUC, average precision and their curves, weighted, and with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
"""Of the intervals."""
CURVE_POINTS = 60
VALUES_AT_ONCE = 4_000_000  # of resampled weights in memory


class Ranking:
    """Labelled scores in ascending order, equal scores together.

    Methods take weights of the rows, float (..., rows) with any leading axes, and return a figure for each (...): NaN where
    either class has no weight.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        self.order = np.argsort(scores, kind="stable")
        self.scores = np.asarray(scores)[self.order]
        self.labels = np.asarray(labels, dtype=bool)[self.order]
        self.starts = np.flatnonzero(np.append(True, self.scores[1:] != self.scores[:-1]))

    def auc(self, weights: np.ndarray) -> np.ndarray:
        """Return the chance that a good row has a higher score than a bad one, equal scores counting half."""
        good, bad = self._groups(weights)
        below = np.cumsum(bad, axis=-1) - bad
        pairs = good.sum(axis=-1) * bad.sum(axis=-1)
        return _ratio((good * (below + bad / 2)).sum(axis=-1), pairs)

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """Return the area under precision by recall in steps: the mean precision at each good row's score."""
        good, bad = self._groups(weights)
        above = _from_the_top(good)
        precision = above / np.maximum(above + _from_the_top(bad), np.finfo(float).tiny)
        found = _ratio((good * precision).sum(axis=-1), good.sum(axis=-1))
        return np.where(bad.sum(axis=-1) > 0, found, np.nan)

    def roc(self, weights: np.ndarray) -> list[list[float]]:
        """Return points (false positive rate, true positive rate) from (0, 0) to (1, 1), at most CURVE_POINTS."""
        good, bad = self._groups(weights)
        points = [(0.0, 0.0), *zip(_rate(bad), _rate(good), strict=True)]
        return _thinned(points)

    def precision_recall(self, weights: np.ndarray) -> list[list[float]]:
        """Return points (recall, precision), from the highest score to the lowest, at most CURVE_POINTS."""
        good, bad = self._groups(weights)
        above = _from_the_top(good)[::-1]
        kept = above + _from_the_top(bad)[::-1]
        return _thinned(list(zip(_rate(good), above / np.maximum(kept, 1e-300), strict=True)))

    def _groups(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights of good and of bad rows at each distinct score, (..., scores)."""
        ordered = np.asarray(weights, dtype=np.float64)[..., self.order]
        good = np.add.reduceat(ordered * self.labels, self.starts, axis=-1)
        return good, np.add.reduceat(ordered * ~self.labels, self.starts, axis=-1)


def resampled(figure: Callable[[np.ndarray], np.ndarray], weights: np.ndarray, seed: int) -> np.ndarray:
    """Return a figure of RESAMPLES bootstrap samples: rows drawn with replacement, weighted.

    Every row is drawn a Poisson(1) number of times (Chamandy et al., 2012), the same numbers for the same seed and number of
    rows, so that two heads' figures on the same rows can be subtracted one by one.

    Args:
        figure: takes weights (any, rows), returns (any,).
        weights: of the rows, (rows,).
    """
    random = np.random.default_rng(seed)
    at_once = max(1, VALUES_AT_ONCE // max(len(weights), 1))
    found = []
    for start in range(0, RESAMPLES, at_once):
        drawn = random.poisson(1.0, size=(min(at_once, RESAMPLES - start), len(weights)))
        found.append(figure(drawn * weights))
    return np.concatenate(found)


def interval(value: float, samples: np.ndarray) -> list[float] | None:
    """Return [value, low, high] of a figure and its bootstrap samples, or None if it is undefined."""
    defined = samples[np.isfinite(samples)]
    if not np.isfinite(value):
        return None
    low, high = np.quantile(defined, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)) if len(defined) else (value, value)
    return [round(float(figure), 4) for figure in (value, low, high)]


def _from_the_top(groups: np.ndarray) -> np.ndarray:
    """Return at each score the sum of it and of those above."""
    return np.cumsum(groups[..., ::-1], axis=-1)[..., ::-1]


def _rate(groups: np.ndarray) -> np.ndarray:
    """Return which share of a class lies at or above each score, from the highest score to the lowest."""
    return np.cumsum(groups[::-1]) / max(groups.sum(), 1e-300)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _thinned(points: list[tuple[float, float]]) -> list[list[float]]:
    """Return at most CURVE_POINTS of the points, evenly by number, first and last included."""
    chosen = np.unique(np.linspace(0, len(points) - 1, min(CURVE_POINTS, len(points))).round().astype(int))
    return [[round(float(value), 4) for value in points[place]] for place in chosen]
