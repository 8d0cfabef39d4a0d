"""Branches: a run that starts from another run's checkpoint, its weights, optimizer and step, and goes on with other settings.

The steps before the branch are the other run's, its trunk's: so are their batches (which a trace plans again) and their rows
in the metrics. The steps after it draw on from each source where the trunk stopped: nothing is seen twice before its time. All
that this needs of the trunk is noted in the branch's own artifact at its start, so that it may outlive the trunk.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hornbook.artifact import ARTIFACTS, Artifact
from hornbook.errors import DataError, RecipeError, TrainingError
from training.metrics import METRICS, parse_metrics
from training.mixture import Draws, Mixture, PhaseSettings, Share
from training.schedule import Leg

if TYPE_CHECKING:
    from training.archive import Archive
    from training.checkpoint import Checkpoint
    from training.shards import TokenSource

NOTE = "fork.json"
TRUNK = "trunk"
"""What the phases of a trunk are called together in its branches' shares."""
PLACE = re.compile(r"[\w.-]+@[1-9]\d*")


@dataclass(frozen=True)
class Trunk:
    """The checkpoint that a branch starts from, and what was before it.

    Attributes:
        artifact: that holds it.
        checkpoint: its folder's name.
        step: optimizer steps that it holds.
        data: fingerprint of what it was trained on.
        plan: what its batches were planned from.
    """

    artifact: Artifact
    checkpoint: str
    step: int
    data: str
    plan: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The checkpoint's name in the store."""
        return f"{self.artifact.folder}/checkpoints/{self.checkpoint}"

    def checkpoint_of_all(self, folder: Path) -> Checkpoint:
        """Return the checkpoint; all ranks call it, it then lies on each node. Raises TrainingError if it is gone.

        `folder`: of the branch, where a checkpoint from an object store is put.
        """
        from training.checkpoint import latest_of_all

        where, archive = _checkpoints(self.artifact)
        found = latest_of_all(folder / "trunk" if archive else where, archive, only=self.checkpoint)
        if found is None:
            raise TrainingError(
                f"{self.artifact.store.describe(self.name)}, from which this run branches off, is gone or torn",
                "branch off from another step; loop.milestone_every keeps checkpoints for good",
            )
        return found


class Branch(Mixture):
    """The batches of a trunk up to a step, then those of phases of one's own.

    Args:
        trunk: the mixture of the steps before.
        step: how many of its steps there were.
        sizes, phases, global_batch, max_epochs, seed, more: of the steps after it, as Mixture has them; epochs count from
            the trunk's first step.

    Raises:
        RecipeError: as Mixture, or the seed is not the trunk's.
    """

    def __init__(
        self,
        trunk: Mixture,
        step: int,
        sizes: Mapping[str, int],
        phases: Sequence[PhaseSettings],
        global_batch: int,
        max_epochs: float,
        seed: int,
        **more: Any,
    ) -> None:
        if seed != trunk.seed:
            raise RecipeError(
                "a branch with another seed would see rows again that its trunk has seen",
                "give the recipe and the stage the trunk's `seed`",
            )
        super().__init__(sizes, phases, global_batch, max_epochs, seed, taken=trunk.taken_before(step), **more)
        self._trunk, self._first = trunk, step
        self.steps += step

    def fingerprint(self) -> str:
        """Return a hash of all that the order of the batches depends on, the sources' content aside."""
        made_of = [self._trunk.fingerprint(), self._first, super().fingerprint()]
        return hashlib.sha256(repr(made_of).encode()).hexdigest()

    def plan(self) -> dict[str, Any]:
        """Return what `planned` makes it again from, JSON-ready."""
        return {**super().plan(), "trunk": {"step": self._first, "plan": self._trunk.plan()}}

    def legs(self) -> list[tuple[Leg, int]]:
        """Return the trunk as one phase, then the branch's own: a schedule spans both."""
        return [(PhaseSettings(name=TRUNK, steps=self._first), self._first), *super().legs()]

    def taken_before(self, step: int) -> dict[str, int]:
        """Return how many draws of each source come before a step."""
        if step <= self._first:
            return self._trunk.taken_before(step)
        return super().taken_before(step - self._first)

    def shares(self) -> list[Share]:
        """Return the planned counts of each phase and source; the trunk's as one phase, `trunk`."""
        before = self._trunk.taken_before(self._first)
        taken = [before.get(name, 0) for name in self.sources]
        tokens = [count * each for count, each in zip(taken, self._row_tokens, strict=True)]
        trunk = [
            Share(TRUNK, name, count, count / (self.sizes[name] or 1), float(own / sum(tokens)))
            for name, count, own in zip(self.sources, taken, tokens, strict=True)
        ]
        return [*trunk, *super().shares()]

    def batch(self, step: int) -> Draws:
        """Return the sequences of the global batch of a step (0 is the trunk's first)."""
        if step >= self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        if step >= self._first:
            return super().batch(step - self._first)
        draws = self._trunk.batch(step)
        places = np.array([self.sources.index(name) for name in self._trunk.sources])
        return Draws(draws.phase, places[draws.source], draws.sequence, draws.epoch)


def check_place(stage: str, place: str | None) -> None:
    """Raise RecipeError unless a `fork` setting reads ARTIFACT@STEP."""
    if place is not None and not PLACE.fullmatch(place):
        raise RecipeError(
            f"{stage}.fork: {place!r} is not ARTIFACT@STEP",
            "for example pretrain-0123456789abcdef@1000; `hornbook fork` writes it, `hornbook ls` lists artifacts",
        )


def planned(plan: Mapping[str, Any]) -> Mixture:
    """Return the mixture that a checkpoint's plan says."""
    values = {**plan, "phases": [PhaseSettings.model_validate(phase) for phase in plan["phases"]]}
    trunk = values.pop("trunk", None)
    return Branch(planned(trunk["plan"]), trunk["step"], **values) if trunk else Mixture(**values)


def branch_off(
    trunk: Trunk,
    sources: Mapping[str, TokenSource],
    sizes: Mapping[str, int],
    phases: Sequence[PhaseSettings],
    global_batch: int,
    max_epochs: float,
    seed: int,
    **more: Any,
) -> Branch:
    """Return a branch's mixture, once it is sure that the steps before it stay what they were.

    Raises:
        DataError: what the trunk read is not among the sources, or is not the same any more.
        RecipeError: as Branch.
    """
    from training.loader import Loader

    before = planned(trunk.plan)
    if gone := [name for name in before.sources if name not in sources]:
        raise DataError(
            f"{trunk.name} was trained on {', '.join(gone)}, which is no input of this stage",
            "keep the trunk's inputs; a phase need not draw from them",
        )
    changed = [name for name, size in before.sizes.items() if len(sources[name]) != size]
    if changed or Loader({name: sources[name] for name in before.sources}, before, 1).fingerprint() != trunk.data:
        raise DataError(
            f"the steps before the branch would differ from those of {trunk.name}: "
            f"{', '.join(changed) or 'a source'} was packed or is cut otherwise",
            "keep the trunk's packed inputs and its loop.sequence_length",
        )
    return Branch(before, trunk.step, sizes, phases, global_batch, max_epochs, seed, **more)


def find_trunk(artifact: Artifact, place: str) -> Trunk:
    """Return the trunk of a branch: as it noted it at its start, or `place`, ARTIFACT@STEP, in the same store.

    Args:
        artifact: the branch's own.

    Raises:
        DataError: no checkpoint of that step is kept there.
    """
    store = artifact.store
    if store.exists(f"{artifact.folder}/{NOTE}"):
        note = store.read_json(f"{artifact.folder}/{NOTE}")
        return Trunk(**{**note, "artifact": Artifact(store, note["artifact"])})
    from training.checkpoint import kept

    name, _, number = place.partition("@")
    trunk, step = Artifact(store, f"{ARTIFACTS}/{name}"), int(number)
    there = kept(*_checkpoints(trunk))
    found = [each for each in there if each.step == step]
    if not found:
        steps = ", ".join(str(each.step) for each in reversed(there)) or "none"
        raise DataError(
            f"fork: {store.describe(trunk.folder)} keeps no checkpoint of step {step}; it keeps those of: {steps}",
            "branch off from one of these; loop.milestone_every keeps checkpoints for good",
        )
    return Trunk(trunk, found[0].path.name, step, found[0].data, found[0].mixture)


def note_trunk(artifact: Artifact, trunk: Trunk) -> None:
    """Begin a branch: note in its artifact what it branches off from, and take over the metrics of the steps before."""
    store = artifact.store
    if store.exists(f"{artifact.folder}/{NOTE}"):
        return
    metrics = f"{trunk.artifact.folder}/{METRICS}"
    rows = parse_metrics(store.read(metrics).decode()) if store.exists(metrics) else ()
    kept = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= trunk.step)
    store.write(f"{artifact.folder}/{METRICS}", kept.encode())
    note = {**{name: getattr(trunk, name) for name in Trunk.__dataclass_fields__}, "artifact": trunk.artifact.folder}
    store.write_json(f"{artifact.folder}/{NOTE}", note)


def _checkpoints(artifact: Artifact) -> tuple[Path, Archive | None]:
    """Return where an artifact's checkpoints lie: the folder, of a cache if there is an archive."""
    from training.archive import Archive

    if artifact.store.local:
        return artifact.local_folder() / "checkpoints", None
    archive = Archive(artifact.store, artifact.folder)
    return archive.cache / "checkpoints", archive
