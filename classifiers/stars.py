"""Rounds that join the links of many workers into clusters: large-star and small-star (Kiveris et al., "Connected Components
in MapReduce and Beyond", 2014), a range of documents each.

Large-star: a document tells those after it that it is linked with of the first one that it knows. Small-star: a document
tells those before it that it is linked with of the first of them, and what a worker writes of that it joins into its own
components first, which takes half of the rounds. After some rounds, about the logarithm of the longest chain, every document
is linked with the first of its cluster and with nothing else. There are never more links than at the beginning.

A worker holds a number for each document of its range and some links, however many the documents of its range have: links
are read twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from classifiers.exchange import Numbers, Records, Spill, spilled
from classifiers.links import LINK, as_links, star_forest
from classifiers.steps import Step, inside, units
from hornbook.artifact import Artifact
from hornbook.parts import PartContent, PartRange
from hornbook.partwork import PartMaker


class StarPart(PartMaker):
    """One half of a round: planned unit n is slice n.

    Args:
        made: what this makes parts of.
        before: the step before, whose files `links` are read.
        slices: ordinals at which slices begin, and their end.
        at_once: links to hold.
    """

    def __init__(self, made: Artifact, before: Artifact, slices: Numbers, at_once: int) -> None:
        self.made, self.before, self.slices, self.at_once = made, before, slices, at_once

    def links(self, number: int) -> Iterator[Records]:
        """Yield the links of a slice's documents, some at a time."""
        return spilled(self.before, "links", (number, number + 1), len(self.slices) - 1, LINK, self.at_once)

    def lowest(self, number: int) -> Numbers:
        """Return for each document of a slice the first of itself and those that it is linked with."""
        start, stop = self.slices[number : number + 2].tolist()
        found = np.arange(start, stop)
        for links in self.links(number):
            np.minimum.at(found, links["node"] - start, links["other"])
        return found


class LargeStarPart(StarPart):
    """Links the later neighbours of each document with the first one."""

    def make(self, part: PartRange) -> PartContent:
        """Return the files `links` (LINK, from each document to an earlier one only).

        The count `unfinished` is of documents that are neither the first of their cluster, so far, nor linked with that one
        alone; if there is none, these links are the clusters.
        """
        start = int(self.slices[part.start])
        lowest = self.lowest(part.start)
        itself = np.arange(start, start + len(lowest))
        leads, torn = np.zeros(len(lowest), bool), np.zeros(len(lowest), bool)
        spill = Spill(self.made, part, "links", self.slices, self.at_once)
        for links in self.links(part.start):
            place = links["node"] - start
            later = links["other"] > links["node"]
            leads[place[later]] = True
            torn[place[~later & (links["other"] != lowest[place])]] = True
            spill.add(as_links(links["other"][later], lowest[place[later]]))
        unfinished = int((torn | (leads & (lowest < itself))).sum())
        return PartContent(table=None, succeeded=1, existing=spill.files(), counts={"unfinished": unfinished})


class SmallStarPart(StarPart):
    """Links each document, and the earlier ones that it is linked with, with the first of those."""

    def make(self, part: PartRange) -> PartContent:
        """Return the files `links` (LINK, both ways)."""
        start = int(self.slices[part.start])
        lowest = self.lowest(part.start)
        spill = Spill(self.made, part, "links", self.slices, self.at_once, star_forest)
        linked = np.flatnonzero(lowest < np.arange(start, start + len(lowest)))
        for low in range(0, len(linked), self.at_once):
            some = linked[low : low + self.at_once]
            spill.add(as_links(start + some, lowest[some]))
        for links in self.links(part.start):
            first = lowest[links["node"] - start]
            others = links["other"] != first
            spill.add(as_links(links["other"][others], first[others]))
        return PartContent(table=None, succeeded=1, existing=spill.files())


def rounds(work: Artifact, links: Artifact, slices: Numbers, at_once: int) -> Iterator[Step]:
    """Yield the steps that join links into clusters; each is made before the next one is asked for.

    The files `links` of the last one link every document of a cluster with the cluster's first one, and with no other.
    """
    for number in itertools.count():
        large = inside(work, f"large-{number:02}")
        yield Step(large, LargeStarPart(large, links, slices, at_once), units(len(slices) - 1))
        if not sum(part.counts["unfinished"] for part in large.parts):
            return
        links = inside(work, f"small-{number:02}")
        yield Step(links, SmallStarPart(links, large, slices, at_once), units(len(slices) - 1))
