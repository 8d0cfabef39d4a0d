"""What the report shows of scored documents: how the scores lie, and how many of each source a threshold keeps."""

from __future__ import annotations

from typing import Any

import numpy as np

from hornbook.artifact import Artifact


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
