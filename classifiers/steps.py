"""Steps of a stage, each of parts in a folder of its own: a run that was killed goes on in the step where it stood."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hornbook.artifact import Artifact
from hornbook.parts import PartContent, PartRange, commit_part, missing_ranges
from hornbook.partwork import PartMaker


@dataclass(frozen=True)
class Step:
    """Parts to make in a folder, by a maker; those that are there are not made again."""

    artifact: Artifact
    maker: PartMaker
    ranges: Sequence[PartRange]


class OneWorker(PartMaker):
    """Makes the parts of several steps one after the other: to start workers for each takes longer than a small corpus.

    Args:
        steps: the steps; the next one is asked for when the one before it is made.
    """

    def __init__(self, steps: Iterable[Step]) -> None:
        self.steps = steps

    def make(self, part: PartRange) -> PartContent:
        """Commit what is missing of each step."""
        for step in self.steps:
            store, folder = step.artifact.store, step.artifact.folder
            if missing := missing_ranges(store, folder, step.ranges):
                step.maker.setup()
                for some in missing:
                    commit_part(store, folder, some, step.maker.make(some))
        return PartContent(table=None, succeeded=1)


def units(count: int) -> list[PartRange]:
    """Return so many planned units, each a part of its own."""
    return [PartRange(unit, unit + 1) for unit in range(count)]


def inside(artifact: Artifact, name: str) -> Artifact:
    """Return the folder of this name in an artifact's folder."""
    return Artifact(artifact.store, f"{artifact.folder}/{name}")
