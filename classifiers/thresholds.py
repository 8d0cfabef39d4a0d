"""Where the threshold lies: what it aims at, on weighted documents that training never saw."""

from __future__ import annotations

from typing import Literal

import numpy as np

Target = Literal["keep-share", "best-f1", "precision"]


def choose_threshold(
    scores: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    target: Target,
    keep_share: float = 0.5,
    precision: float = 0.8,
) -> float:
    """Return the score from which documents are kept: one of `scores`.

    Args:
        scores: float32 (rows,).
        labels: which documents are good, bool (rows,).
        weights: how many documents of the corpus each stands for, (rows,).
        target: keep-share: what it keeps comes nearest to `keep_share` of the corpus; best-f1: the highest F1; precision: the
            lowest threshold above which at least `precision` of the kept are good, or where none is, that of the highest.
        keep_share: in (0, 1].
        precision: in (0, 1].
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # a threshold keeps all documents of one score or none
    kept = np.cumsum(weights[order])[last]
    good = np.cumsum(weights[order] * labels[order])[last]
    candidates = ordered[last]
    if target == "keep-share":
        return float(candidates[np.argmin(np.abs(kept - keep_share * kept[-1]))])
    if target == "best-f1":
        return float(candidates[np.argmax(np.round(2 * good / (kept + good[-1]), 9))])
    precisions = np.round(good / kept, 9)
    enough = np.flatnonzero(precisions >= precision)
    return float(candidates[enough[-1] if len(enough) else np.argmax(precisions)])
