"""What deduplication found, in figures, and the brakes: it stops before it wipes out a source or trusts a giant cluster.

Marin lost all but 2 of 859,092 function-calling documents to MinHash and its transitive closure. Templated synthetic text is
at the same risk even with true similarities: each story is like the next, and a chain of them is one cluster.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from classifiers.corpus_order import CorpusOrder
from hornbook.artifact import PART_COUNTS, Artifact, sum_counts
from hornbook.errors import DataError
from hornbook.parts import PartContent, PartRange
from hornbook.partwork import PartMaker
from hornbook.settings import Settings, runtime

SHOWN = 5
EXAMPLE_SOURCES = 20
"""Problems that an error tells, and clusters and sources that have examples."""
EXAMPLES = 3
EXAMPLE_CHARACTERS = 160


class BrakeSettings(Settings):
    """What a run may lose before it stops. No part of the artifact's identity: a brake decides whether it is finished."""

    largest_cluster: int = runtime(1000, ge=2, description="Brake: documents in a cluster above which the stage stops.")
    allow_large_clusters: bool = runtime(False, description="Release this brake.")
    largest_loss: float = runtime(
        0.5, ge=0, le=1, description="Brake: share of a source's documents lost above which the stage stops."
    )
    loss_documents: int = runtime(100, ge=1, description="Sources of fewer documents are not braked.")
    allow_loss: dict[str, float] = runtime({}, description="Release this brake: {source: share that it may lose}.")


class SummaryPart(PartMaker):
    """Adds up the finished attributes: there is one planned unit. Memory: some counts a source, and one part at a time."""

    def __init__(self, corpus: CorpusOrder, attributes: Artifact, steps: Sequence[Artifact]) -> None:
        self.corpus, self.attributes, self.steps = corpus, attributes, list(steps)

    def make(self, part: PartRange) -> PartContent:
        """Return the file `summary`, JSON: counts of the steps, documents by source, clusters by size, examples."""
        sources: dict[str, Counter[str]] = {}
        sizes: Counter[int] = Counter()
        largest: list[tuple[int, int]] = []
        for _, table in self._tables(["source", "duplicate", "cluster", "cluster_size"]):
            for source, duplicate, count in _counted(table):
                sources.setdefault(source, Counter())[duplicate] += count
            clusters, members = (table.column(name).to_numpy() for name in ("cluster", "cluster_size"))
            names, places = np.unique(clusters[members > 1], return_index=True)
            found = list(zip(members[members > 1][places].tolist(), (-names).tolist(), strict=True))
            largest = sorted(set(largest) | set(heapq.nlargest(SHOWN, found)), reverse=True)[:SHOWN]
            for size, count in zip(*np.unique(members[members > 1], return_counts=True), strict=True):
                sizes[int(size)] += int(count)  # documents; divided by their size below: clusters
        share = {name: 1 - counts["kept"] / counts.total() for name, counts in sources.items()}
        worst = sorted(
            (name for name in sources if share[name]),
            key=lambda name: (-share[name] * sources[name].total() ** 0.5, name),
        )[:EXAMPLE_SOURCES]
        summary = {
            "counts": {
                name: count
                for step in self.steps
                for name, count in sum_counts(step.parts).items()
                if name not in PART_COUNTS
            },
            "sources": {name: dict(sorted(sources[name].items())) for name in sorted(sources)},
            "cluster_sizes": {str(size): sizes[size] // size for size in sorted(sizes)},
            "largest": [{"cluster": -name, "size": size} for size, name in largest],
            "examples": self._examples([-name for _, name in largest], worst),
        }
        return PartContent(table=None, succeeded=1, files={"summary": json.dumps(summary).encode()})

    def _tables(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        for part in self.attributes.parts:
            if part.rows:
                yield self.corpus.number_of(part.range), self.attributes.read(part, columns=list(columns))

    def _examples(self, clusters: Sequence[int], sources: Sequence[str]) -> dict[str, dict[str, list[str]]]:
        """Return beginnings of a few members of each cluster, and of a few documents that each source would lose."""
        found: dict[str, dict[str, list[str]]] = {
            "clusters": {str(name): [] for name in clusters},
            "sources": {name: [] for name in sources},
        }
        for number, table in self._tables(["source", "cluster", "kept"]):
            short = {kind: [name for name, some in of.items() if len(some) < EXAMPLES] for kind, of in found.items()}
            if not any(short.values()):
                break
            names, lossy = pa.array(map(int, short["clusters"]), pa.int64()), pa.array(short["sources"], pa.string())
            mine = pc.is_in(table.column("cluster"), names)
            lost = pc.and_(pc.is_in(table.column("source"), lossy), pc.invert(table.column("kept")))
            wanted = []
            for row in np.flatnonzero(pc.or_(mine, lost).to_numpy()).tolist():
                lists = [found["clusters"].get(str(table.column("cluster")[row].as_py()))]
                if not table.column("kept")[row].as_py():
                    lists.append(found["sources"].get(table.column("source")[row].as_py()))
                wanted += [(row, entry) for entry in lists if entry is not None and len(entry) < EXAMPLES]
            if wanted:
                texts = self.corpus.read(number, ["text", "source"])
                for row, entry in wanted:
                    if len(entry) < EXAMPLES:
                        text = " ".join(texts.column("text")[row].as_py()[: 4 * EXAMPLE_CHARACTERS].split())
                        entry.append(f"{texts.column('source')[row].as_py()}: {text[:EXAMPLE_CHARACTERS]}")
        return found


def _counted(table: pa.Table) -> Iterator[tuple[str, str, int]]:
    """Yield (source, what became of it, how many documents) of a part. Not by group_by: it loads 30 MiB of libraries."""
    source, duplicate = (table.column(name).combine_chunks().dictionary_encode() for name in ("source", "duplicate"))
    names = [*duplicate.dictionary.to_pylist(), "kept"]
    fates = duplicate.indices.fill_null(len(names) - 1).to_numpy(zero_copy_only=False)
    pairs, counts = np.unique(source.indices.to_numpy() * len(names) + fates, return_counts=True)
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        yield source.dictionary[pair // len(names)].as_py(), names[pair % len(names)], count


def brake(stage: str, summary: Mapping[str, Any], settings: BrakeSettings) -> None:
    """Refuse what the recipe does not allow.

    Raises:
        DataError: a cluster is larger, or a source would lose more, than the settings allow; with examples.
    """
    problems, cures = [], []
    large = [entry for entry in summary["largest"] if entry["size"] > settings.largest_cluster]
    if large and not settings.allow_large_clusters:
        clusters = sum(
            count for size, count in summary["cluster_sizes"].items() if int(size) > settings.largest_cluster
        )
        problems.append(
            f"{clusters:,} clusters are larger than largest_cluster ({settings.largest_cluster:,} documents); the largest "
            f"has {large[0]['size']:,}, of which one would be kept:"
            + _quoted(summary["examples"]["clusters"].get(str(large[0]["cluster"]), []))
        )
        cures.append("allow_large_clusters: true lets them pass")
    for source, lost, share in losses(summary, settings.loss_documents):
        allowed = settings.allow_loss.get(source, settings.largest_loss)
        if share > allowed:
            total = sum(summary["sources"][source].values())
            problems.append(
                f"the source {source!r} would lose {lost:,} of {total:,} documents ({share:.1%}; {allowed:.1%} is allowed)"
                + _quoted(summary["examples"]["sources"].get(source, []))
            )
            cures.append(f"allow_loss: {{{source}: {np.ceil(share * 100) / 100:g}}} lets it pass")
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError(
            f"{stage}: " + "\n".join(problems[:SHOWN]) + more,
            "look at the examples: if they are not the same text, raise the threshold, or take out what all of them share; if "
            f"they are, {'; '.join(cures[:SHOWN])}. What was computed is kept: the next run goes on from here",
        )


def losses(summary: Mapping[str, Any], fewest: int) -> list[tuple[str, int, float]]:
    """Return (source, documents lost, share) of sources of at least so many documents, the largest share first."""
    found = []
    for source, counts in summary["sources"].items():
        total, kept = sum(counts.values()), counts.get("kept", 0)
        if total >= fewest:
            found.append((source, total - kept, 1 - kept / total))
    return sorted(found, key=lambda entry: (-entry[2], -entry[1], entry[0]))


def _quoted(examples: Sequence[str]) -> str:
    return "".join(f"\n    {example!r}" for example in examples)
