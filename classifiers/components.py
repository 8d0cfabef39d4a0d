"""Connected components of all pairs of duplicates, in bounded memory across workers: the clusters.

What a worker holds is what `Slices.at_once` and its range of documents take, however many pairs, members of a cluster or
links of a document there are; where all pairs fit in one worker, the first of these steps has the components already and no
round follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from classifiers.clusters import ClusterPart, MemberPart, Slices
from classifiers.links import LinkPart, pair_counts, pair_groups
from classifiers.stars import rounds
from classifiers.steps import Step, inside, units
from hornbook.artifact import Artifact


@dataclass(frozen=True)
class ComponentSteps:
    """The steps that join pairs into clusters; to be asked for when the pairs are there, each when the one before is made.

    Attributes:
        work: the folder of the steps.
        slices: the documents, in ranges that a worker takes at a time.
        candidates: has the copies.
        edges: has the pairs that are similar.
    """

    work: Artifact
    slices: Slices
    candidates: Artifact
    edges: Artifact

    @property
    def facts(self) -> Artifact:
        """The step that has the files `facts`."""
        return inside(self.work, "links")

    @property
    def clusters(self) -> Artifact:
        """The step that has the files `clusters`."""
        return inside(self.work, "clusters")

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return sum(pair_counts(self.candidates, self.edges))

    def __iter__(self) -> Iterator[Step]:
        """Yield the steps."""
        slices, links, members, clusters = self.slices, self.facts, inside(self.work, "members"), self.clusters
        groups = pair_groups(pair_counts(self.candidates, self.edges), slices.at_once)
        parts = slices.corpus.first
        linking = LinkPart(links, self.candidates, self.edges, groups, slices.bounds, parts, slices.at_once)
        yield Step(links, linking, units(len(groups) - 1))
        last = links
        if sum(part.counts["forests"] for part in links.parts) > 1:
            for step in rounds(self.work, links, slices.bounds, slices.at_once):
                yield step
                last = step.artifact
        yield Step(members, MemberPart(members, last, links, slices), slices.ranges)
        yield Step(clusters, ClusterPart(clusters, members, slices), slices.ranges)
