"""`hornbook gc`: what no kept run needs. It lists first; it deletes only when told to.

Runs start and go on while it works, so it errs on the side of keeping: a running run's stages that are still to come may
reuse any artifact of their kinds, and each artifact is looked at again, with its lock held, right before it is deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from hornbook.artifact import ARTIFACTS, Artifact, delete_artifact, lock_name
from hornbook.errors import StoreError
from hornbook.lock import read_holder, try_hold
from hornbook.runs import RUNS, Run, all_runs
from hornbook.store import TEMPORARY, Store

ATTEMPT = re.compile(rf"[^/]+/(\d{{12}}-[0-9a-f]{{12}}\.(parquet|bin)|{re.escape(TEMPORARY)}\w+)")
"""Names of the files that an attempt at a part leaves (`hornbook.parts`), or a write that was killed."""


@dataclass
class Collection:
    """What would be deleted: (store name, why, bytes); and what lost attempts left in kept artifacts, likewise."""

    garbage: list[tuple[str, str, int]] = field(default_factory=list)
    leftovers: list[tuple[str, str, int]] = field(default_factory=list)
    kept_runs: int = 0
    kept_artifacts: int = 0

    def rows(self) -> list[list[str]]:
        """Return table rows."""
        return [[name, why, f"{size / (1 << 20):,.1f} MiB"] for name, why, size in self.garbage + self.leftovers]

    def summary(self, deleting: bool) -> str:
        """Return one line that sums up."""
        listed = self.garbage + self.leftovers
        total = sum(size for _, _, size in listed) / (1 << 20)
        what = f"{len(listed)} of no more use, {total:,.1f} MiB; kept: {self.kept_runs} runs, {self.kept_artifacts} artifacts"
        if not listed:
            return f"nothing to delete: {what}"
        return f"deleting {what}" if deleting else f"{what}. `hornbook gc --delete` deletes what is listed"


def plan_collection(store: Store, keep: int) -> Collection:
    """List what neither the newest `keep` runs of each recipe nor a running run needs.

    An artifact under construction that some driver holds is never garbage, nor is what a kept artifact was made from.
    """
    runs = all_runs(store)
    running = [run for run in runs if run.state() == "running"]
    kept = [run for run in runs if run in running or _rank(run, runs) < keep]
    needed = _with_inputs(store, _folders(kept))
    collection = Collection(kept_runs=len(kept))
    for run in runs:
        if run not in kept:
            why = f"run {run.state()}, not among the newest {keep}"
            collection.garbage.append((run.folder, why, _size(store, run.folder)))
    for name in store.names(ARTIFACTS):
        folder = f"{ARTIFACTS}/{name}"
        held = _held(store, folder)
        if held or folder in needed or _may_be_reused(folder, running):
            collection.kept_artifacts += 1
            left = {} if held else _leftovers(Artifact(store, folder))
            if left:
                collection.leftovers.append((folder, f"{len(left)} files of lost attempts in it", sum(left.values())))
        else:
            collection.garbage.append((folder, "no kept run needs it", _size(store, folder)))
    return collection


def collect(store: Store, collection: Collection) -> list[str]:
    """Delete what a collection lists; return the artifacts that were left: somebody makes or needs them by now."""
    left, ended = [], set[str]()
    for name, _, _ in collection.garbage:
        assert name.startswith((f"{ARTIFACTS}/", f"{RUNS}/"))
        if name.startswith(f"{RUNS}/"):
            store.delete(name)
            continue
        with try_hold(store, lock_name(name), "hornbook gc") as lock:
            running = _running(store, ended)
            if lock is None or name in _with_inputs(store, _folders(running)) or _may_be_reused(name, running):
                left.append(name)
            else:
                delete_artifact(Artifact(store, name))
    for name, _, _ in collection.leftovers:
        with try_hold(store, lock_name(name), "hornbook gc") as lock:
            for file in _leftovers(Artifact(store, name)) if lock is not None else ():
                store.delete(f"{name}/{file}")
    return left


def _running(store: Store, ended: set[str]) -> list[Run]:
    """Return the runs that are running now; `ended` remembers, from call to call, those that need no second look."""
    running = []
    for run in all_runs(store, ended):
        if run.state() == "running":
            running.append(run)
        else:
            ended.add(run.id)
    return running


def _folders(runs: Iterable[Run]) -> set[str]:
    return {stage["folder"] for run in runs for stage in run.value["stages"].values() if stage["folder"]}


def _may_be_reused(folder: str, running: Iterable[Run]) -> bool:
    """Tell whether a stage that a running run has yet to come to could find its artifact in this folder.

    Which one it will be is known only when its inputs are finished, so any artifact of its kind counts.
    """
    kinds = {stage["kind"] for run in running for stage in run.value["stages"].values() if not stage["folder"]}
    return folder.split("/")[-1].rpartition("-")[0] in kinds


def _with_inputs(store: Store, folders: set[str]) -> set[str]:
    """Return artifacts and all that they were made from, which a trace goes back to."""
    found: set[str] = set()
    waiting = list(folders)
    while waiting:
        folder = waiting.pop()
        if folder in found:
            continue
        found.add(folder)
        artifact = Artifact(store, folder)
        try:
            inputs = artifact.manifest.inputs if artifact.complete else {}
        except StoreError:  # damaged: its inputs are unknown, `hornbook ls` says so
            continue
        waiting += [reference.folder for references in inputs.values() for reference in references]
    return found


def _held(store: Store, folder: str) -> bool:
    try:
        holder = read_holder(store, lock_name(folder))
    except StoreError:
        return True  # unreadable is no proof that nobody works there
    return holder is not None and holder.alive()


def _leftovers(artifact: Artifact) -> dict[str, int]:
    """Return files of a finished artifact, and their bytes, that an attempt at a part left and no commit record names."""
    try:
        if not artifact.complete:
            return {}
        named = {file.name for part in artifact.parts for file in part.files}
        named |= {file.name for file in artifact.manifest.files}
    except StoreError:
        return {}
    files = artifact.store.files(artifact.folder)
    return {name: size for name, size in files if name not in named and ATTEMPT.fullmatch(name)}


def _rank(run: Run, runs: list[Run]) -> int:
    """Return how many runs of the same recipe are newer."""
    same = [other for other in runs if other.value["recipe"] == run.value["recipe"]]
    return sum(other.value["started"] > run.value["started"] for other in same)


def _size(store: Store, folder: str) -> int:
    return sum(size for _, size in store.files(folder))
