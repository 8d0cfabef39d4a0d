"""Fifth step of deduplication: how large each cluster is, and which of its documents is kept.

Links say of each document which is the first of its cluster. A range of documents at a time, that one is told of each member,
once, with what decides between them (`members`); and in the first one's range it is known then how many they are and which is
the best (`clusters`). A worker holds some numbers for each document of its range and some members, however large a cluster is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from classifiers.corpus_order import CorpusOrder
from classifiers.exchange import Numbers, Records, Spill, spilled
from classifiers.links import FACT, LINK
from classifiers.steps import units
from hornbook.artifact import Artifact
from hornbook.parts import PartContent, PartRange
from hornbook.partwork import PartMaker

MEMBER = np.dtype([("first", "<i8"), ("ordinal", "<i8"), ("copy_of", "<i8"), ("score", "<f8")])
"""A document, the first one of its cluster, the first one with its text, and how good it is."""
CLUSTERED = np.dtype(
    [
        ("ordinal", "<i8"),
        ("first", "<i8"),  # the first document of its cluster, which names it
        ("kept", "<i8"),
        ("kept_copy_of", "<i8"),  # the first document with the same text as the kept one
        ("size", "<i8"),
    ]
)
BYTES_PER_DOCUMENT = 64
"""Memory that a worker takes for each document of its range."""


@dataclass(frozen=True)
class Slices:
    """The documents in slices: successive parts of the corpora.

    Attributes:
        corpus: the documents.
        sketches: has the files `scores`, where the best is kept.
        blocks: numbers of the parts at which slices begin, and their end.
        at_once: records to hold.
    """

    corpus: CorpusOrder
    sketches: Artifact
    blocks: Numbers
    at_once: int

    @property
    def bounds(self) -> Numbers:
        """Ordinals at which slices begin, and their end."""
        return self.corpus.first[self.blocks]

    @property
    def ranges(self) -> list[PartRange]:
        """A planned unit for each slice."""
        return units(len(self.blocks) - 1)

    def documents(self, number: int) -> tuple[int, int]:
        """Return the ordinals of a slice's first document and of the next slice's."""
        start, stop = self.bounds[number : number + 2].tolist()
        return start, stop

    def scores(self, number: int) -> npt.NDArray[np.float64]:
        """Return the scores of a slice's documents; zeros where the first is kept, and scores decide nothing."""
        start, stop = self.documents(number)
        found = np.zeros(stop - start)
        for part in self.sketches.parts:
            if part.has("scores") and self.blocks[number] <= part.start < self.blocks[number + 1]:
                data = self.sketches.store.read(f"{self.sketches.folder}/{part.file('scores').name}")
                low = int(self.corpus.first[part.start]) - start
                found[low : low + len(data) // 8] = np.frombuffer(data)
        return found


class MemberPart(PartMaker):
    """Tells the first document of each cluster of its members in one slice: planned unit n is slice n."""

    def __init__(self, made: Artifact, links: Artifact, facts: Artifact, slices: Slices) -> None:
        self.made, self.links, self.facts, self.slices = made, links, facts, slices

    def make(self, part: PartRange) -> PartContent:
        """Return the files `members`: MEMBER records in the slice of the cluster's first document, which is none of them."""
        number, slices, at_once = part.start, self.slices, self.slices.at_once
        start, stop = slices.documents(number)
        first = np.arange(start, stop)
        for links in spilled(self.links, "links", (number, number + 1), len(slices.ranges), LINK, at_once):
            np.minimum.at(first, links["node"] - start, links["other"])
        copy_of = np.arange(start, stop)
        parts = (int(slices.blocks[number]), int(slices.blocks[number + 1]))
        for facts in spilled(self.facts, "facts", parts, slices.corpus.parts, FACT, at_once):
            np.minimum.at(copy_of, facts["ordinal"] - start, facts["copy_of"])
        scores = slices.scores(number)
        spill = Spill(self.made, part, "members", slices.bounds, at_once)
        members = np.flatnonzero(first < np.arange(start, stop))
        for low in range(0, len(members), at_once):
            some = members[low : low + at_once]
            records = np.empty(len(some), MEMBER)
            records["first"], records["ordinal"] = first[some], start + some
            records["copy_of"], records["score"] = copy_of[some], scores[some]
            spill.add(records)
        return PartContent(table=None, succeeded=1, existing=spill.files())


class ClusterPart(PartMaker):
    """Decides for the clusters that begin in one slice: planned unit n is slice n."""

    def __init__(self, made: Artifact, members: Artifact, slices: Slices) -> None:
        self.made, self.members, self.slices = made, members, slices

    def make(self, part: PartRange) -> PartContent:
        """Return the files `clusters`: CLUSTERED records of all documents of clusters, a slice for each part of the corpora.

        The kept one has the highest score; of equals it is the first.
        """
        at_once = self.slices.at_once
        start, stop = self.slices.documents(part.start)
        size, best = np.ones(stop - start, np.int64), self.slices.scores(part.start)
        own = best.copy()
        for members in self._members(part.start):
            place = members["first"] - start
            np.add.at(size, place, 1)
            np.maximum.at(best, place, members["score"])
        kept = np.where(own == best, np.arange(start, stop), np.iinfo(np.int64).max)
        for members in self._members(part.start):
            best_ones = members[members["score"] == best[members["first"] - start]]
            np.minimum.at(kept, best_ones["first"] - start, best_ones["ordinal"])
        kept_copy_of = kept.copy()  # a document that is the first of a cluster is the first one with its text
        for members in self._members(part.start):
            kept_ones = members[members["ordinal"] == kept[members["first"] - start]]
            kept_copy_of[kept_ones["first"] - start] = kept_ones["copy_of"]
        spill = Spill(self.made, part, "clusters", self.slices.corpus.first, at_once)

        def add(ordinals: Numbers, place: Numbers) -> None:
            records = np.empty(len(ordinals), CLUSTERED)
            records["ordinal"], records["first"], records["kept"] = ordinals, start + place, kept[place]
            records["kept_copy_of"], records["size"] = kept_copy_of[place], size[place]
            spill.add(records)

        firsts = np.flatnonzero(size > 1)
        for low in range(0, len(firsts), at_once):
            add(start + firsts[low : low + at_once], firsts[low : low + at_once])
        for members in self._members(part.start):
            add(members["ordinal"], members["first"] - start)
        return PartContent(table=None, succeeded=1, existing=spill.files())

    def _members(self, number: int) -> Iterator[Records]:
        slices = self.slices
        return spilled(self.members, "members", (number, number + 1), len(slices.ranges), MEMBER, slices.at_once)
