"""The source alarm: does it suffice to know where a document comes from to know its score?

A filter that sorts by source keeps whole sources and drops whole others, whatever is in them (Marin #6849). Here documents are
predicted by the mean of their source, and the AUC of that prediction is the figure: 0.5 says that sources tell nothing, 1 that
they decide.

The mean is made of other documents than it predicts (cross-fitting): each source is dealt into thirds, several times, and a
third is predicted by the other two. A mean that contains the document itself makes sources of little size decide: 90
sources of five documents and random labels have an AUC of 0.75. Leaving out just the document fails the other way, since a good
document then lowers its source's mean and a bad one raises it: two large sources with equal shares of good documents get 0.25.
Thirds have neither fault: with random labels the expectation is 0.5 whatever the sizes, and two equal sources stay near it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from classifiers.grouping import rows_by
from classifiers.ranking import Ranking

ALARM = 0.8
FOLDS = 3
REPEATS = 10
SHRINKAGE = 1.0
"""Documents' worth of the overall mean in each source's: a document that is alone in its source is predicted by it."""


def source_auc(labels: np.ndarray, sources: Sequence[str], weights: np.ndarray) -> float | None:
    """Return the AUC with which sources alone predict `labels` (bool, rows), or None where there is nothing to predict.

    It is the mean over all thirds that have good and bad documents; a function of its arguments.

    Args:
        labels: bool (rows,).
        sources: (rows,).
        weights: how much each document counts, (rows,).
    """
    groups = list(rows_by(sources).values())
    source_of = np.empty(len(labels), dtype=np.int64)
    for number, rows in enumerate(groups):
        source_of[rows] = number
    weights = np.asarray(weights, dtype=np.float64) / np.mean(weights)
    overall = np.average(labels, weights=weights)
    random = np.random.default_rng(0)
    found = []
    for _ in range(REPEATS):
        fold_of = _dealt(groups, len(labels), random)
        for fold in range(FOLDS):
            asked = fold_of == fold
            seen = np.where(asked, 0.0, weights)
            total, good = (np.bincount(source_of, values, len(groups)) for values in (seen, seen * labels))
            means = np.round((good + SHRINKAGE * overall) / (total + SHRINKAGE), 9)  # equal, however they were added up
            found.append(float(Ranking(means[source_of[asked]], labels[asked]).auc(weights[asked])))
    defined = [figure for figure in found if np.isfinite(figure)]
    return float(np.mean(defined)) if defined else None


def _dealt(groups: Sequence[np.ndarray], rows: int, random: np.random.Generator) -> np.ndarray:
    """Return a fold for each row: every source dealt evenly, from a fold of its own on."""
    fold_of = np.empty(rows, dtype=np.int64)
    for group in groups:
        fold_of[random.permutation(group)] = (np.arange(len(group)) + random.integers(FOLDS)) % FOLDS
    return fold_of
