"""Fourth step of deduplication: clusters of documents that duplicates join, and the one of each that is kept.

The connected components of all edges, by one worker. Edges are read a million at a time and never held; what is held is
BYTES_PER_MEMBER for each document that has a duplicate (not for the others): 1 GiB for five million of them (measured: 192).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from classifiers.candidates import PAIR
from classifiers.corpus_order import CorpusOrder
from classifiers.exchange import Numbers, Records, packed, read_all
from classifiers.verification import EDGE
from hornbook.artifact import Artifact
from hornbook.errors import DataError
from hornbook.parts import PartContent, PartRange
from hornbook.partwork import PartMaker

MEMBER = np.dtype(
    [
        ("ordinal", "<i8"),
        ("first", "<i8"),  # the first document of its cluster, which names it
        ("kept", "<i8"),
        ("size", "<i8"),
        ("similarity", "<f8"),  # to the most similar document that it was compared with
        ("exact", "?"),  # whether it is dropped as a copy, not only as similar
    ]
)
BYTES_PER_MEMBER = 200
EDGES_AT_ONCE = 1_000_000


class ClusterPart(PartMaker):
    """Joins all edges into clusters: there is one planned unit."""

    def __init__(
        self, corpus: CorpusOrder, sketches: Artifact, candidates: Artifact, edges: Artifact, memory: int
    ) -> None:
        self.corpus, self.sketches, self.candidates, self.edges = corpus, sketches, candidates, edges
        self.memory = memory

    def make(self, part: PartRange) -> PartContent:
        """Return the file `members`: MEMBER records by ordinal, a slice for each part of the corpora.

        Raises:
            DataError: the documents with duplicates take more memory than the settings allow.
        """
        members = self._members()
        self._refuse_too_many(len(members))
        clusters = Clusters(members)
        for pairs in self._exact():
            clusters.join(pairs["low"], pairs["high"], None)
        for edges in self._near():
            clusters.join(edges["low"], edges["high"], edges["similarity"])
        records = clusters.records(self._scores(members))
        slices = np.searchsorted(records["ordinal"], self.corpus.first)
        return PartContent(table=None, succeeded=1, files={"members": packed(records, slices)})

    def _exact(self) -> Iterator[Records]:
        for part in self.candidates.parts:
            yield from read_all(self.candidates, part, "exact", PAIR, EDGES_AT_ONCE)

    def _near(self) -> Iterator[Records]:
        for part in self.edges.parts:
            yield from read_all(self.edges, part, "edges", EDGE, EDGES_AT_ONCE)

    def _members(self) -> Numbers:
        """Return the ordinals of all documents that have a duplicate, sorted."""
        members = np.empty(0, np.int64)
        waiting: list[Numbers] = []
        count = 0
        for edges in itertools.chain(self._exact(), self._near()):
            waiting.append(np.unique(np.concatenate([edges["low"], edges["high"]])))
            count += len(waiting[-1])
            if count > max(EDGES_AT_ONCE, len(members)):
                members, waiting, count = np.unique(np.concatenate([members, *waiting])), [], 0
                self._refuse_too_many(len(members))
        return np.unique(np.concatenate([members, *waiting]))

    def _scores(self, members: Numbers) -> npt.NDArray[np.float64] | None:
        """Return the members' scores, or None if nothing is to be scored; one part in memory at a time."""
        if not any(part.has("scores") for part in self.sketches.parts):
            return None
        scores = np.empty(len(members))
        bounds = np.searchsorted(members, self.corpus.first)
        for part in self.sketches.parts:
            low, high = bounds[part.start], bounds[part.start + 1]
            if low < high:
                data = self.sketches.store.read(f"{self.sketches.folder}/{part.file('scores').name}")
                scores[low:high] = np.frombuffer(data)[members[low:high] - self.corpus.first[part.start]]
        return scores

    def _refuse_too_many(self, members: int) -> None:
        if members * BYTES_PER_MEMBER > self.memory:
            raise DataError(
                f"at least {members:,} documents have a duplicate: to join them takes "
                f"{members * BYTES_PER_MEMBER / 2**20:,.0f} MiB on one worker, more than cluster_memory ({self.memory / 2**20:,.0f})",
                "raise cluster_memory on a machine that has it, or drop the duplicates of each source first",
            )


class Clusters:
    """Connected components over edges that come in batches.

    Args:
        members: the ordinals of all documents in edges, sorted.
    """

    def __init__(self, members: Numbers) -> None:
        self.members = members
        self._root = np.arange(len(members))  # the first member of each one's cluster, so far
        self._copy_of = np.arange(len(members))  # the first member with its text
        self._similarity = np.zeros(len(members))

    def join(self, low: Numbers, high: Numbers, similarity: npt.NDArray[np.float64] | None) -> None:
        """Join pairs: near-duplicates, or exact copies (no similarity) of which `low` is the first."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not len(low):
            return
        one, other = np.searchsorted(self.members, low), np.searchsorted(self.members, high)
        if similarity is None:
            self._copy_of[other] = one
        for end in (one, other):
            np.maximum.at(self._similarity, end, 1.0 if similarity is None else similarity)
        roots, ends = np.unique(np.concatenate([self._root[one], self._root[other]]), return_inverse=True)
        shape = (len(roots), len(roots))
        graph = coo_array((np.ones(len(low), np.int32), (ends[: len(low)], ends[len(low) :])), shape=shape)
        count, component = connected_components(graph, directed=False)
        first = np.full(count, len(self.members))
        np.minimum.at(first, component, roots)
        self._root[roots] = first[component]
        self._root = self._root[self._root]

    def records(self, scores: npt.NDArray[np.float64] | None) -> Records:
        """Return MEMBER records by ordinal; the kept one of a cluster has the highest score, else it is the first."""
        root = self._root
        kept = root
        if scores is not None:
            order = np.lexsort((np.arange(len(root)), -scores, root))
            best = order[np.concatenate(([True], root[order][1:] != root[order][:-1]))[: len(order)]]
            kept = np.empty_like(root)
            kept[root[best]] = best
            kept = kept[root]
        records = np.empty(len(root), MEMBER)
        records["ordinal"], records["first"], records["kept"] = self.members, self.members[root], self.members[kept]
        records["size"] = np.bincount(root, minlength=len(root))[root]
        records["similarity"] = self._similarity
        itself = np.arange(len(root))
        records["exact"] = (kept != itself) & ((self._copy_of != itself) | (self._copy_of[kept] == self._copy_of))
        return records
