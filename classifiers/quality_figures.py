"""What documents that heads did not learn from say of them: the figures of the report, all weighted to the corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from classifiers.grouping import rows_by
from classifiers.heads import NGRAMS
from classifiers.ranking import LEVEL, Ranking, interval, resampled
from classifiers.source_alarm import source_auc

ENOUGH_OF_A_SOURCE = 20
"""Documents from which a source has figures of its own."""
MOST_SOURCES = 30


def compared(scores: Mapping[str, np.ndarray], labels: np.ndarray, weights: np.ndarray, seed: int) -> dict[str, Any]:
    """Return AUC and average precision of several heads, [value, low, high] each, on the documents that all of them scored.

    `auc_above_ngrams`: how much more than the n-grams' the AUC is, its interval from the same bootstrap samples.

    Args:
        scores: by head, (rows,), NaN where it has none.
        labels: bool (rows,).
        weights: (rows,).
        seed: of the bootstrap.
    """
    if not scores:
        return {}
    rows = np.isfinite(np.stack(list(scores.values()))).all(axis=0)
    labels, weights = labels[rows], weights[rows]
    if not labels.any() or labels.all():
        return {}
    values, samples = {}, {}
    for kind, given in scores.items():
        ranking = Ranking(given[rows], labels)
        values[kind] = _both(ranking, weights)
        samples[kind] = resampled(lambda drawn, ranking=ranking: _both(ranking, drawn), weights, seed)  # type: ignore[misc]
    found: dict[str, Any] = {}
    for kind, (auc, precision) in values.items():
        found[kind] = {
            "auc": interval(auc, samples[kind][:, 0]),
            "average_precision": interval(precision, samples[kind][:, 1]),
        }
        if NGRAMS in values and kind != NGRAMS:
            ahead = samples[kind][:, 0] - samples[NGRAMS][:, 0]
            found[kind]["auc_above_ngrams"] = interval(auc - values[NGRAMS][0], ahead)
    return found


def _both(ranking: Ranking, weights: np.ndarray) -> np.ndarray:
    return np.stack([ranking.auc(weights), ranking.average_precision(weights)], axis=-1)


def curves(scores: Mapping[str, np.ndarray], labels: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Return the points of ROC and precision-recall curves by name, and the share of good documents."""
    rankings = {}
    for name, given in scores.items():
        rows = np.isfinite(given)
        if labels[rows].any() and not labels[rows].all():
            rankings[name] = Ranking(given[rows], labels[rows]), weights[rows]
    return {
        "roc": {name: ranking.roc(own) for name, (ranking, own) in rankings.items()},
        "precision_recall": {name: ranking.precision_recall(own) for name, (ranking, own) in rankings.items()},
        "good_share": round(float(np.average(labels, weights=weights)), 4),
    }


def at_threshold(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, threshold: float, seed: int
) -> dict[str, Any]:
    """Return what a threshold does: confusion in documents; precision, recall, F1 and share kept, [value, low, high] each."""
    kept = scores >= threshold
    cells = np.stack([kept & labels, kept & ~labels, ~kept & labels, ~kept & ~labels], axis=1)

    def figures(drawn: np.ndarray) -> np.ndarray:
        right, wrong, missed, dropped = np.moveaxis(drawn @ cells.astype(np.float64), -1, 0)
        parts = [right, right, 2 * right, right + wrong]
        wholes = [right + wrong, right + missed, 2 * right + wrong + missed, right + wrong + missed + dropped]
        return np.stack(
            [
                np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
                for part, whole in zip(parts, wholes, strict=True)
            ],
            axis=-1,
        )

    values, samples = figures(weights[None, :])[0], resampled(figures, weights, seed)
    names = ("precision", "recall", "f1", "kept_share")
    counts = dict(
        zip(("kept_good", "kept_bad", "dropped_good", "dropped_bad"), cells.sum(axis=0).tolist(), strict=True)
    )
    return {
        "confusion": counts,
        "level": LEVEL,
        **{name: interval(float(values[place]), samples[:, place]) for place, name in enumerate(names)},
    }


def by_source(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, sources: Sequence[str], threshold: float, seed: int
) -> list[dict[str, Any]]:
    """Return figures of the sources with most annotated documents, those with fewer than ENOUGH_OF_A_SOURCE left out."""
    groups = {name: rows[np.isfinite(scores[rows])] for name, rows in rows_by(sources).items()}
    named = sorted(
        (name for name in groups if len(groups[name]) >= ENOUGH_OF_A_SOURCE),
        key=lambda name: (-len(groups[name]), name),
    )
    found = []
    for name in named[:MOST_SOURCES]:
        rows = groups[name]
        ranking, own = Ranking(scores[rows], labels[rows]), weights[rows]
        found.append(
            {
                "source": name,
                "documents": len(rows),
                "good_share": round(float(np.average(labels[rows], weights=own)), 4),
                "kept_share": round(float(np.average(scores[rows] >= threshold, weights=own)), 4),
                "auc": interval(float(ranking.auc(own)), resampled(ranking.auc, own, seed)),
            }
        )
    return found


def sources_tell(decisions: np.ndarray, sources: Sequence[str], weights: np.ndarray) -> float | None:
    """Return the AUC with which sources alone predict decisions, rounded; None for one source or one decision."""
    found = source_auc(decisions, sources, weights) if len(set(sources)) > 1 else None
    return None if found is None else round(found, 4)


def effective(weights: np.ndarray) -> float:
    """Return how many documents of equal weight tell as much: (sum of weights)^2 / sum of squares (Kish, 1965)."""
    return round(float(weights.sum() ** 2 / (weights**2).sum()), 1)
