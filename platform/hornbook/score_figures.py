"""What the report shows of scored documents: how the scores lie, how many of each source a threshold keeps, and whether the source
alone would have decided the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hornbook.artifact import Artifact

SOURCE_ALARM = 0.8
"""AUC from which a decision counts as one about sources, not documents."""

FOLDS, REPEATS = 3, 10
LARGEST_DRAW = 100_000_000  # documents of a source above which chance no longer matters, and numpy draws no more

Counts = npt.NDArray[np.int64]


def kept_and_histogram(scored: Artifact, threshold: float | None, edges: np.ndarray) -> dict[str, Any]:
    """Return `histogram` ({edges, counts by source}) and, with a threshold, `kept` ({source: {documents, kept, share}}).

    Args:
        scored: an artifact with the columns `source` and `score`; one part at a time is in memory.
        threshold: the score from which a document is kept.
        edges: of the histogram's bins, ascending; the last bin includes its right edge.
    """
    counts: dict[str, np.ndarray] = {}
    kept: dict[str, int] = {}
    for table in scored.tables(columns=["source", "score"]):
        scores = table.column("score").to_numpy()
        sources = np.array(table.column("source").to_pylist(), dtype=object)
        for source in sorted(set(sources)):
            own = scores[sources == source]
            counts[source] = counts.get(source, np.zeros(len(edges) - 1, dtype=np.int64)) + np.histogram(own, edges)[0]
            if threshold is not None:
                kept[source] = kept.get(source, 0) + int((own >= threshold).sum())
    totals = {source: int(bins.sum()) for source, bins in counts.items()}
    return {
        "histogram": {
            "edges": [round(float(edge), 4) for edge in edges],
            "counts": {source: bins.tolist() for source, bins in counts.items()},
        },
        "kept": {
            source: {"documents": totals[source], "kept": count, "share": round(count / max(totals[source], 1), 4)}
            for source, count in kept.items()
        },
    }


def source_auc(kept: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return how well the source alone predicts which documents are kept: an AUC, 0.5 where it says nothing, 1 where it decides.

    A document is predicted by the share kept of its source, counted on other documents: each source is dealt into thirds, and
    a third is predicted by the rest. Shares that count the document itself would make many small sources look as if they
    decided. Counts are enough for that; which documents fall into a third is drawn, always the same way.

    Args:
        kept: `documents` and `kept` by source, as `kept_and_histogram` gives them.

    Returns:
        The mean over the thirds, or None where all documents are kept, or none.
    """
    sizes = np.array([entry["documents"] for entry in kept.values()], dtype=np.int64)
    good = np.array([entry["kept"] for entry in kept.values()], dtype=np.int64)
    if not 0 < good.sum() < sizes.sum():
        return None
    overall = good.sum() / sizes.sum()
    random = np.random.default_rng(0)
    found = []
    for _ in range(REPEATS):
        left, left_good = sizes.copy(), good.copy()
        first = random.integers(FOLDS, size=len(sizes))  # which third gets the odd documents
        for fold in range(FOLDS):
            asked = sizes // FOLDS + ((fold - first) % FOLDS < sizes % FOLDS)
            asked_good = _drawn(random, left, left_good, asked)
            left, left_good = left - asked, left_good - asked_good
            # One document's worth of the overall share: a document that is alone in its source is predicted by it.
            shares = (good - asked_good + overall) / (sizes - asked + 1)
            found.append(_auc(np.round(shares, 9), asked_good, asked - asked_good))
    defined = [figure for figure in found if figure is not None]
    return float(np.mean(defined)) if defined else None


def source_warnings(kept: Mapping[str, Mapping[str, Any]], auc: float | None) -> list[str]:
    """Return what to say of a decision that sources predict, and the cure; empty where they do not."""
    if auc is None or auc <= SOURCE_ALARM:
        return []
    shares = sorted(kept.items(), key=lambda entry: (entry[1]["share"], -entry[1]["documents"]))
    (lowest, least), (highest, most) = shares[0], shares[-1]
    return [
        f"where a document comes from nearly decides whether it is kept (AUC {auc:.2f} of the source alone, 0.5 is chance): "
        f"{least['share']:.0%} of {lowest!r}, {most['share']:.0%} of {highest!r}. If sources differ so much in quality, all is "
        "well; else set source_blind: true at the quality stage, so that each source is judged by itself"
    ]


def _drawn(random: np.random.Generator, population: Counts, good: Counts, draws: Counts) -> Counts:
    """Return how many good documents there are among `draws` drawn from each source."""
    large = population > LARGEST_DRAW
    share = good / np.maximum(population, 1)
    small_good = np.where(large, 0, good)
    drawn = random.hypergeometric(small_good, np.where(large, 0, population) - small_good, np.where(large, 0, draws))
    return np.where(large, np.round(draws * share).astype(np.int64), drawn)


def _auc(values: npt.NDArray[np.float64], positives: Counts, negatives: Counts) -> float | None:
    """Return the AUC of groups of documents with one value each; None without positives or negatives."""
    _, place = np.unique(values, return_inverse=True)
    above, below = (np.bincount(place, weights=counts.astype(np.float64)) for counts in (positives, negatives))
    pairs = above.sum() * below.sum()
    if not pairs:
        return None
    return float((above * (np.cumsum(below) - below / 2)).sum() / pairs)
