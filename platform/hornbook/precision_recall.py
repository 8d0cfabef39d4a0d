"""Precision and recall of a threshold, at many thresholds at once, with intervals that know of sampling weights.

The graded documents are a sample in which rare sources and lengths count more often than they occur; each carries a weight, the
documents of the corpus that it stands for. Both figures are therefore weighted shares, and a sample of 500 with uneven weights
tells less than one of 500 equal ones. How much less is its effective size, the number of equally weighted draws that would be as
uncertain: the smaller one of Kish's (sum w)^2 / sum w^2 (Survey Sampling, 1965) and p (1 - p) / var(p), with the linearised
variance of a weighted share (Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts
estimated from survey data", Survey Methodology 24, 1998). The interval is Wilson's ("Probable inference, the law of succession, and
statistical inference", JASA 22, 1927) at that size, which stays honest where a share is near 0 or 1 and no resampling is.

The intervals hold for one threshold chosen beforehand, not for all at once: who picks the best of many picks some luck, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hornbook.intervals import wilson

LEVEL_Z = 1.959964
"""Standard normal quantile of a two-sided 95% interval."""
METHOD = "Wilson intervals, 95%, at the effective sample size (Kish 1965; Korn and Graubard 1998)"
DIGITS = 4

Numbers = npt.NDArray[np.float64]


def precision_recall(held_out: pa.Table, thresholds: Sequence[float]) -> dict[str, Any]:
    """Return what graded documents that training never saw say of each threshold, as JSON values.

    `precision` and `recall` are lists of [value, low, high], one for each threshold, None where nothing is left to divide by;
    `kept` counts the graded documents from each threshold on, `good` and `grades` those that are good and all of them.

    Args:
        held_out: columns label (bool), score (float), and weight where documents do not count alike. Rows without a finite
            score, a label or a positive weight are left out.
        thresholds: ascending; a document is kept from the threshold on, compared as float32, the type of scores.
    """
    scores, labels, weights = _columns(held_out)
    place = np.searchsorted(np.asarray(thresholds, dtype=np.float32), scores, side="right")

    def from_on(values: Numbers) -> Numbers:
        """Return sums over the documents that each threshold keeps."""
        sums = np.bincount(place, values, minlength=len(thresholds) + 1)
        return np.asarray(sums[::-1].cumsum()[::-1][1:], dtype=np.float64)

    squares, good = weights**2, labels.astype(np.float64)
    kept_good, kept_good_squares = from_on(weights * good), from_on(squares * good)
    kept_bad, kept_bad_squares = from_on(weights * (1 - good)), from_on(squares * (1 - good))
    all_good, all_good_squares = float(weights @ good), float(squares @ good)
    return {
        "grades": len(scores),
        "good": int(good.sum()),
        "good_share": round(all_good / float(weights.sum()), DIGITS) if len(scores) else None,
        "kept": from_on(np.ones(len(scores))).astype(int).tolist(),
        "method": METHOD,
        "precision": _shares(kept_good, kept_bad, kept_good_squares, kept_bad_squares),
        "recall": _shares(
            kept_good, all_good - kept_good, kept_good_squares, all_good_squares - kept_good_squares
        ),
    }  # fmt: skip


def _columns(held_out: pa.Table) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], Numbers]:
    count = held_out.num_rows
    scores = held_out.column("score").to_numpy().astype(np.float32)
    labels = np.array(held_out.column("label").to_pylist(), dtype=object)
    weighted = "weight" in held_out.column_names
    weights = held_out.column("weight").to_numpy().astype(np.float64) if weighted else np.ones(count)
    told = np.isfinite(scores) & (labels != None) & np.isfinite(weights) & (weights > 0)  # noqa: E711 - elementwise
    return scores[told], labels[told].astype(bool), weights[told]


def _shares(hits: Numbers, misses: Numbers, hit_squares: Numbers, miss_squares: Numbers) -> list[list[float] | None]:
    """Return hits / (hits + misses) with its interval; the arguments are sums of weights and of squared weights."""
    found: list[list[float] | None] = []
    for hit, miss, hit_square, miss_square in zip(hits, np.maximum(misses, 0), hit_squares, miss_squares, strict=True):
        total, squares = float(hit + miss), float(hit_square + max(miss_square, 0))
        if total <= 0 or squares <= 0:
            found.append(None)
            continue
        share = hit / total
        size = total**2 / squares
        linear = hit_square * (1 - share) ** 2 + max(miss_square, 0) * share**2
        if linear > 0 and 0 < share < 1:
            size = min(size, share * (1 - share) * total**2 / linear)
        told = wilson(share * size, size, LEVEL_Z)
        found.append([round(float(value), DIGITS) for value in (told.value, told.low, told.high)])
    return found
