"""What a run leaves of each step, in one place: `metrics.jsonl`, `samples.jsonl`, and whatever recorders the user asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.archive import Archive
from training.metrics import METRICS, SAMPLES, MetricsFile, json_ready, read_metrics
from training.parallel import World
from training.recorders import Recorders
from training.settings import Recorded


class Record:
    """Rank 0's; on the others it does nothing.

    Args:
        names: recorders beside the two files.
        folder: where all of it is written.
        first: steps that the resumed checkpoint holds; of later ones the files drop what an earlier attempt left.
        archive: where the files last, if not in `folder`.
    """

    def __init__(
        self, names: Sequence[Recorded], folder: Path, first: int, archive: Archive | None, world: World
    ) -> None:
        self._here = world.rank == 0
        if not self._here:
            return
        self._folder, self._archive = folder, archive
        self._full: set[str] = set()
        if archive:
            for name in (METRICS, SAMPLES):
                archive.get_metrics(folder / name)
        self._sampled = max((row["step"] for row in read_metrics(folder / SAMPLES)), default=0)
        self._metrics = MetricsFile(folder / METRICS, first)
        self._samples = MetricsFile(folder / SAMPLES, first) if (folder / SAMPLES).exists() else None
        self._recorders = Recorders(names, folder, first, folder.name)

    def step(self, row: dict[str, Any]) -> None:
        """Record a step's figures, and what the model wrote after it, if it did; what went wrong is added as `warnings`."""
        if not self._here:
            return
        figures = {key: value for key, value in row.items() if key != "samples"}
        self._write(lambda: self._metrics.append(json_ready(figures)), METRICS)
        self._recorders.row(figures)
        if "samples" in row:
            self._write(lambda: self._append_samples(row), SAMPLES)
            if row["step"] > self._sampled:  # else an earlier attempt recorded the same; TensorBoard replaces no texts
                self._recorders.texts(row["step"], row["samples"])
        if self._recorders.problems:  # a worker's own warnings end in its log, which nobody reads
            row["warnings"], self._recorders.problems = self._recorders.problems, []

    def keep(self) -> OSError | None:
        """Make all of it outlive this process: a checkpoint comes next, and no resume makes its steps again.

        Returns why a step's figures are not in their file, if they are not.
        """
        if not self._here:
            return None
        try:
            self._metrics.write()
        except OSError as error:
            return error
        self._recorders.flush()
        if self._archive:
            self._archive.put_record(self._folder)
        return None

    def _append_samples(self, row: dict[str, Any]) -> None:
        self._samples = self._samples or MetricsFile(self._folder / SAMPLES, 0)
        self._samples.append({"step": row["step"], "samples": row["samples"]})

    def _write(self, write: Callable[[], None], name: str) -> None:
        """Write; where there is no room, say so once: the rows wait, and whether the run goes on is the next checkpoint's matter."""
        try:
            write()
        except OSError as error:
            if name not in self._full:
                self._recorders.problems.append(f"{name} cannot be written ({error}): its rows wait")
            self._full.add(name)
        else:
            self._full.discard(name)

    def close(self) -> None:
        """Write out what is left."""
        if self._here:
            self._recorders.close()
            if self._archive:
                self._archive.put_record(self._folder)
