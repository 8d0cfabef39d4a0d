"""Fourth step of deduplication: what joins documents, copies and similar pairs, made as little as can be.

Files of pairs are taken together up to what a worker can hold. Their connected components need no more than a link from each
document to the first of its component, and those are written, however many pairs there were: 200 near-copies have up to
19,900 pairs and 199 links. Where all pairs fit in one worker's memory these are the clusters already; if not, `classifiers.stars`
joins what the workers found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from classifiers.candidates import PAIR
from classifiers.exchange import Numbers, Records, Spill, read_all
from classifiers.verification import EDGE
from hornbook.artifact import Artifact
from hornbook.parts import PartContent, PartRange
from hornbook.partwork import PartMaker

LINK = np.dtype([("node", "<i8"), ("other", "<i8")])
"""Two documents of one cluster. Stands in the slice of `node`, and once more the other way round in that of `other`."""
FACT = np.dtype([("ordinal", "<i8"), ("copy_of", "<i8"), ("similarity", "<f8")])
"""The first document with the same text, and the index of the most similar document; of some of a document's pairs."""
BYTES_PER_PAIR = 256
"""Memory that a worker takes for each pair that it joins at once (measured: 160 to 230)."""


class LinkPart(PartMaker):
    """Joins the pairs of one group of files: planned unit n is group n.

    Args:
        links: what this makes parts of.
        candidates: has the files `exact`.
        edges: has the files `edges`.
        groups: which of these files, first all `exact`, then all `edges`, begin a group; and how many there are.
        slices: ordinals at which slices of links begin, and their end.
        parts: ordinals at which parts of the corpora begin, and their end.
        at_once: pairs to hold.
    """

    def __init__(
        self,
        links: Artifact,
        candidates: Artifact,
        edges: Artifact,
        groups: Numbers,
        slices: Numbers,
        parts: Numbers,
        at_once: int,
    ) -> None:
        self.links, self.candidates, self.edges = links, candidates, edges
        self.groups, self.slices, self.parts, self.at_once = groups, slices, parts, at_once

    def make(self, part: PartRange) -> PartContent:
        """Return the files `links` (LINK, in slices) and `facts` (FACT, a slice for each part of the corpora).

        The count `forests` is in how many pieces the pairs were joined: one of all parts is the clusters.
        """
        links = Spill(self.links, part, "links", self.slices, self.at_once, star_forest)
        facts = Spill(self.links, part, "facts", self.parts, self.at_once, one_fact_each)
        for pairs in self._pairs(range(*self.groups[part.start : part.start + 2])):
            links.add(as_links(pairs["low"], pairs["high"]))
            facts.add(pair_facts(pairs))
        made = links.files()
        return PartContent(table=None, succeeded=1, existing=[*made, *facts.files()], counts={"forests": len(made)})

    def _pairs(self, files: Sequence[int]) -> Iterator[Records]:
        """Yield the EDGE records of files; copies have the similarity COPY."""
        exact = self.candidates.parts
        for number in files:
            if number < len(exact):
                for copies in read_all(self.candidates, exact[number], "exact", PAIR, self.at_once // 2 + 1):
                    yield copy_edges(copies)
            else:
                yield from read_all(
                    self.edges, self.edges.parts[number - len(exact)], "edges", EDGE, self.at_once // 2 + 1
                )


COPY = 2.0
"""Stands for a similarity where the texts are the same: more than any index."""


def pair_counts(candidates: Artifact, edges: Artifact) -> list[int]:
    """Return how many pairs each file has: first the copies, then the edges."""
    copies, similar = (
        (part.counts["copies"] for part in candidates.parts),
        (part.counts["verified"] for part in edges.parts),
    )
    return [int(count) for count in (*copies, *similar)]


def pair_groups(counts: Sequence[int], at_once: int) -> Numbers:
    """Return which files begin a group, and how many there are: successive ones, of at most so many pairs or of one file."""
    bounds, taken = [0], 0
    for number, count in enumerate(counts):
        if taken and taken + count > at_once:
            bounds.append(number)
            taken = 0
        taken += count
    return np.array([*bounds, len(counts)], np.int64)


def copy_edges(copies: Records) -> Records:
    """Return PAIR records of a text's first document and another one as EDGE records."""
    edges = np.empty(len(copies), EDGE)
    edges["low"], edges["high"], edges["similarity"] = copies["low"], copies["high"], COPY
    return edges


def pair_facts(pairs: Records) -> Records:
    """Return FACT records of both documents of each pair."""
    facts = np.empty(2 * len(pairs), FACT)
    facts["ordinal"] = facts["copy_of"] = np.concatenate([pairs["low"], pairs["high"]])
    facts["similarity"] = np.tile(pairs["similarity"], 2)
    copies = np.flatnonzero(pairs["similarity"] == COPY)
    facts["copy_of"][len(pairs) + copies] = pairs["low"][copies]
    return facts


def one_fact_each(facts: Records) -> Records:
    """Return the facts with those of each document drawn together."""
    ordinals, place = np.unique(facts["ordinal"], return_inverse=True)
    found = np.empty(len(ordinals), FACT)
    found["ordinal"] = found["copy_of"] = ordinals
    found["similarity"] = 0
    np.minimum.at(found["copy_of"], place, facts["copy_of"])
    np.maximum.at(found["similarity"], place, facts["similarity"])
    return found


def as_links(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> Records:
    """Return LINK records, one way."""
    links = np.empty(len(one), LINK)
    links["node"], links["other"] = one, other
    return links


def star_forest(links: Records) -> Records:
    """Return the links of the same connected components with the fewest links: each document's with the first one, both ways."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(links)
    nodes, ends = np.unique(np.concatenate([links["node"], links["other"]]), return_inverse=True)
    shape = (len(nodes), len(nodes))
    graph = coo_array((np.ones(count, np.int8), (ends[:count], ends[count:])), shape=shape)
    _, component = connected_components(graph, directed=False)
    first = np.unique(component, return_index=True)[1]
    root = first[component]
    rest = np.flatnonzero(root != np.arange(len(nodes)))
    nodes, roots = nodes[rest], nodes[root[rest]]
    return np.concatenate([as_links(nodes, roots), as_links(roots, nodes)])
