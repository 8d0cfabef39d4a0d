"""`hornbook gc`: what no kept run needs. It lists first; it deletes only when told to."""

from __future__ import annotations

from dataclasses import dataclass, field

from hornbook.artifact import ARTIFACTS
from hornbook.lock import read_holder
from hornbook.runs import RUNS, Run, load_run, run_ids
from hornbook.store import Store


@dataclass
class Collection:
    """What would be deleted: (store name, why, bytes)."""

    garbage: list[tuple[str, str, int]] = field(default_factory=list)
    kept_runs: int = 0
    kept_artifacts: int = 0

    def rows(self) -> list[list[str]]:
        """Return table rows."""
        return [[name, why, f"{size / (1 << 20):,.1f} MiB"] for name, why, size in self.garbage]

    def summary(self, deleting: bool) -> str:
        """Return one line that sums up."""
        total = sum(size for _, _, size in self.garbage) / (1 << 20)
        what = f"{len(self.garbage)} of no more use, {total:,.1f} MiB; kept: {self.kept_runs} runs, {self.kept_artifacts} artifacts"
        if not self.garbage:
            return f"nothing to delete: {what}"
        return f"deleting {what}" if deleting else f"{what}. `hornbook gc --delete` deletes what is listed"


def plan_collection(store: Store, keep: int) -> Collection:
    """List what neither the newest `keep` runs of each recipe nor a running run needs.

    An artifact under construction that some driver holds is never garbage.
    """
    runs = [load_run(store, name) for name in run_ids(store)]
    kept = [run for run in runs if run.state() == "running" or _rank(run, runs) < keep]
    needed = {stage["folder"] for run in kept for stage in run.value["stages"].values() if stage["folder"]}
    collection = Collection(kept_runs=len(kept))
    for run in runs:
        if run not in kept:
            collection.garbage.append(
                (run.folder, f"run {run.state()}, not among the newest {keep}", _size(store, run.folder))
            )
    for name in store.names(ARTIFACTS):
        folder = f"{ARTIFACTS}/{name}"
        holder = read_holder(store, f"locks/{name}.json")
        if folder in needed or (holder is not None and holder.alive()):
            collection.kept_artifacts += 1
        else:
            collection.garbage.append((folder, "no kept run needs it", _size(store, folder)))
    return collection


def collect(store: Store, collection: Collection) -> None:
    """Delete what a collection lists."""
    for name, _, _ in collection.garbage:
        assert name.startswith((f"{ARTIFACTS}/", f"{RUNS}/"))
        store.delete(name)


def _rank(run: Run, runs: list[Run]) -> int:
    """Return how many runs of the same recipe are newer."""
    same = [other for other in runs if other.value["recipe"] == run.value["recipe"]]
    return sum(other.value["started"] > run.value["started"] for other in same)


def _size(store: Store, folder: str) -> int:
    return sum(size for _, size in store.files(folder))
