"""The cure for a scorer that sorts by source: each source's scores are mapped through its own quantiles to the pooled ones.

A score's rank within its source becomes its rank in the corpus, so that every source keeps the same share at any threshold.
A source of which little was seen moves only part of the way: n / (n + SHRINKAGE) of it after n documents, and one that was not
seen not at all; to map pooled scores to pooled scores is to leave them, so that this shrinks towards the pooled map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifiers.grouping import rows_by

KNOTS = 33
SHRINKAGE = 10.0
"""Documents of a source after which its own map counts half."""
FEWEST_OF_A_SOURCE = 4
"""Documents below which a source has no map of its own."""
DECIMALS = 6


@dataclass(frozen=True)
class SourceMaps:
    """Quantiles of scores, at KNOTS equal steps of rank from 0 to 1: of all documents, and of each source.

    Attributes:
        pooled: (KNOTS,), ascending.
        sources: per source how many documents it was made of, and their quantiles (KNOTS,), ascending.
    """

    pooled: np.ndarray
    sources: Mapping[str, tuple[int, np.ndarray]]

    def blind(self, scores: np.ndarray, sources: Sequence[str]) -> np.ndarray:
        """Return scores in [0, 1] that say how good a document is within its source, float32 (rows,).

        Monotone within a source: the order of its documents stays.
        """
        mapped = np.asarray(scores, dtype=np.float64).copy()
        for name, own in rows_by(sources).items():
            if name in self.sources:
                seen, quantiles = self.sources[name]
                trust = seen / (seen + SHRINKAGE)
                mapped[own] = trust * _through(mapped[own], quantiles, self.pooled) + (1 - trust) * mapped[own]
        return np.clip(mapped, 0, 1).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value that `from_json` reads."""
        sources = {name: [seen, quantiles.tolist()] for name, (seen, quantiles) in sorted(self.sources.items())}
        return {"pooled": self.pooled.tolist(), "sources": sources}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SourceMaps:
        """Rebuild maps from their JSON value."""
        sources = {name: (int(seen), np.array(knots)) for name, (seen, knots) in value["sources"].items()}
        return cls(np.array(value["pooled"]), sources)


def source_maps(scores: np.ndarray, sources: Sequence[str], weights: np.ndarray) -> SourceMaps:
    """Return the maps of a sample.

    Args:
        scores: in [0, 1], (rows,).
        sources: (rows,).
        weights: how many documents of the corpus each stands for, (rows,): they make the pool.
    """
    maps = {
        name: (len(own), weighted_quantiles(scores[own], weights[own]))
        for name, own in rows_by(sources).items()
        if len(own) >= FEWEST_OF_A_SOURCE
    }
    return SourceMaps(weighted_quantiles(scores, weights), maps)


def weighted_quantiles(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return KNOTS quantiles of scores at equal steps of rank, lowest and highest included; float64 (KNOTS,), ascending."""
    order = np.argsort(scores, kind="stable")
    counted = np.cumsum(weights[order], dtype=np.float64)
    middles = counted - weights[order] / 2  # the rank of each score: half of itself lies below it
    span = middles[-1] - middles[0]
    ranks = (middles - middles[0]) / span if span > 0 else np.linspace(0, 1, len(middles))
    found = np.interp(np.linspace(0, 1, KNOTS), ranks, scores[order].astype(np.float64))
    return np.round(found, DECIMALS)


def _through(scores: np.ndarray, own: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """Map scores from a source's quantiles to the pooled ones, in straight lines between them and out to 0 and 1.

    Where many documents of a source have one score, it gets the mean of the ranks that they share.
    """
    places, of = np.unique(own, return_inverse=True)
    heights = np.bincount(of, pooled) / np.bincount(of)
    if places[0] > 0:
        places, heights = np.append(0.0, places), np.append(0.0, heights)
    if places[-1] < 1:
        places, heights = np.append(places, 1.0), np.append(heights, 1.0)
    return np.interp(scores, places, heights)
