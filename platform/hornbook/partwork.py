"""Makes parts with Ray Data: one row of the dataset is one planned range; a worker makes it, commits it, returns counts.

Nothing but counts reaches the driver, and nothing depends on blocks, worker counts or order: a range is made by whoever
gets it, and its commit record says that it is done. A worker that dies is started again by Ray and its ranges are tried
again; what it had committed is not made twice.
"""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import traceback
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hornbook import errors
from hornbook.artifact import PART_COUNTS, sum_counts
from hornbook.errors import ClusterError, HornbookError
from hornbook.parts import PartContent, PartRange, commit_part, missing_ranges, read_commit, read_commits
from hornbook.progress import Progress

if TYPE_CHECKING:
    import ray.data

    from hornbook.stage import StageContext
    from hornbook.store import Store

MAX_BLOCKS = 2000
IN_FLIGHT = 8
WORKER_RETRIES = 10  # of one range whose worker dies; then the stage fails
SHOWN_RANGES = 4  # of those that a worker that keeps dying may have died of


class PartMaker(ABC):
    """Makes the content of one planned range. Pickled to the workers, so hold settings and handles, not models.

    `make` may be a plain method (work of a processor: one range at a time, `num_cpus` each) or a coroutine (waiting for an
    engine: many ranges in flight in one worker).
    """

    kind: str = ""
    """The kind of stage that it makes parts of, for messages."""
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    max_workers: int | None = None
    in_flight: int = IN_FLIGHT
    """Ranges in flight per worker, for coroutines."""
    replicas: int = 1
    """Replicas of the engine that a coroutine waits for: each gets a worker's ranges in flight, or it would starve."""

    def setup(self) -> None:  # noqa: B027 - most makers have nothing to load
        """Load what is heavy, once per worker."""

    @abstractmethod
    def make(self, part: PartRange) -> Any:
        """Return the PartContent of a range (or a coroutine of it). Rows that fail belong into its rejects."""


@dataclass
class Totals:
    """Sums over all parts of an artifact, those of earlier attempts included."""

    planned: int = 0
    rows: int = 0
    rejected: int = 0
    counts: dict[str, float] = field(default_factory=dict)


def make_parts(
    context: StageContext, maker: PartMaker, ranges: Iterable[PartRange], unit: str = "rows", tokens: str = "tokens"
) -> Totals:
    """Make and commit every range that has no commit record yet.

    Args:
        unit: what a planned unit is called in the progress line.
        tokens: the name in `PartContent.counts` that the progress shows as tokens.

    Raises:
        HornbookError: of the kind that a worker raised, or Stopped; ClusterError where workers keep dying over the same ranges.
    """
    store, folder = context.artifact.store, context.artifact.folder
    ranges = list(ranges)
    missing = missing_ranges(store, folder, ranges)
    planned = sum(len(part) for part in ranges)
    done = planned - sum(len(part) for part in missing)
    progress = Progress(context.stage, planned, unit, done)
    context.events.emit("parts", stage=context.stage, planned=planned, done=done, ranges=len(missing))
    try:
        if missing:
            for row in _committed_rows(_dataset(context, maker, missing)):
                _raise_if_failed(row, context.stage)
                progress.advance(row["planned"], row["rejected"], row["counts"].get(tokens, 0))
                context.events.emit("part", stage=context.stage, **row)
                context.check_stop()
    except _WorkersDied as died:
        left = missing_ranges(store, folder, missing)
        raise _worker_error(context.stage, maker, died, left, unit) from None
    finally:
        progress.close()
    return _totals(store, folder)


def _dataset(context: StageContext, maker: PartMaker, missing: list[PartRange]) -> ray.data.Dataset:
    import pyarrow as pa
    import ray.data

    from hornbook.cluster import require_shared_store

    # Its plan and its timings are in its own log files; what it logs as an error it raises as well.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    store = context.artifact.store
    require_shared_store(store)
    table = pa.table({"start": [part.start for part in missing], "stop": [part.stop for part in missing]})
    blocks = min(len(missing), MAX_BLOCKS)
    bounds = [len(missing) * block // blocks for block in range(blocks + 1)]
    planned = ray.data.from_arrow([table.slice(low, high - low) for low, high in itertools.pairwise(bounds)])
    asynchronous = inspect.iscoroutinefunction(maker.make)
    workers = _workers(maker, len(missing), asynchronous)
    worker: type = _AsyncWorker if asynchronous else _Worker
    in_flight = maker.in_flight if asynchronous else 2
    dataset = planned.map_batches(
        type(f"{context.stage}", (worker,), {}),  # the dashboard shows operators by class name
        fn_constructor_args=(maker, store, context.artifact.folder),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=maker.num_cpus,
        num_gpus=maker.num_gpus or None,
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=in_flight),
        max_restarts=-1,
        max_task_retries=WORKER_RETRIES,
        max_concurrency=in_flight if asynchronous else 1,
    )
    dataset.set_name(context.stage)
    data_context = dataset.context
    data_context.enable_progress_bars = False
    data_context.execution_options.preserve_order = False
    data_context.execution_options.verbose_progress = False
    return dataset


def _workers(maker: PartMaker, ranges: int, asynchronous: bool) -> int:
    """Return how many workers to start: those that find a GPU or processor, those that wait one per engine replica."""
    import ray

    from hornbook.cluster import expected_gpus

    if maker.num_gpus:
        fitting = int(expected_gpus() / maker.num_gpus)
    elif asynchronous:
        fitting = maker.replicas
    else:
        fitting = int(ray.available_resources().get("CPU", 1) / maker.num_cpus)
    return max(1, min(fitting, ranges, maker.max_workers or ranges))


def _committed_rows(dataset: ray.data.Dataset) -> Iterable[dict[str, Any]]:
    import pyarrow as pa
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            assert isinstance(batch, pa.Table)
            for value in batch.column("result").to_pylist():
                yield json.loads(value)
    except (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
        raise _WorkersDied(str(error)) from None


class _WorkersDied(Exception):
    """Ray gave a range up, with what it says of it: whoever took it died, the last retry included."""


def _worker_error(
    stage: str, maker: PartMaker, died: _WorkersDied, left: Sequence[PartRange], unit: str
) -> ClusterError:
    """Return what is said of workers that keep dying. Which range they die of only Ray knows: ranges are given out in order,
    so that it is one of the first that are not there."""
    under_way = [f"{part.start}-{part.stop - 1}" for part in left[:SHOWN_RANGES]]
    more = f" or of the {len(left) - SHOWN_RANGES} parts after them" if len(left) > SHOWN_RANGES else ""
    works = f", which works for the kind {maker.kind!r}," if maker.kind else ""
    said = next((line.strip() for line in str(died).splitlines() if line.strip()), "")
    return ClusterError(
        f"{stage}: a worker process{works} died of the same part {WORKER_RETRIES + 1} times: "
        f"one of {unit} {', '.join(under_way)}{more}; Ray says: {said}",
        "most often the kind's own code (a crash of a compiled library, os._exit) or too little memory: smaller parts "
        "(part_rows) and fewer at once (parts_in_flight) take less; the worker's last words are in Ray's session folder "
        "(logs/worker-*.err); run again once it is mended: finished parts are kept",
    )


def _result(record: Any) -> Any:
    """Return a worker's answer, one row of JSON text: Ray Data must not guess a schema from counts that differ."""
    import pyarrow as pa

    return pa.table({"result": [json.dumps(record)]})


def keep_memory_small() -> None:
    """Let Arrow take memory by malloc. Its own pool (mimalloc) keeps what was freed: of the 243 MiB of a deduplication 45."""
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())


class _Base:
    def __init__(self, maker: PartMaker, store: Store, folder: str) -> None:
        keep_memory_small()
        self.maker, self.store, self.folder = maker, store, folder
        self.failure: dict[str, Any] | None = None
        try:
            maker.setup()
        except (
            Exception,
            SystemExit,
        ) as error:  # returned with the first range: an actor that dies in __init__ is retried for ever
            self.failure = _describe(error)

    def committed(self, part: PartRange) -> dict[str, Any] | None:
        record = read_commit(self.store, self.folder, part)
        return None if record is None else _counts(record)

    def failed(self, error: BaseException, part: PartRange) -> dict[str, Any]:
        """Return what the driver is told. It stops the stage at that, so what this worker began now would be lost, and paid."""
        self.failure = _describe(error, part)
        return self.failure

    def commit(self, part: PartRange, content: PartContent) -> dict[str, Any]:
        return _counts(commit_part(self.store, self.folder, part, content))


class _Worker(_Base):
    """A worker whose `make` computes."""

    def __call__(self, batch: Any) -> Any:
        part = PartRange(batch.column("start")[0].as_py(), batch.column("stop")[0].as_py())
        if self.failure is not None:
            return _result(self.failure)
        try:
            return _result(self.committed(part) or self.commit(part, self.maker.make(part)))
        except (Exception, SystemExit) as error:
            return _result(self.failed(error, part))


class _AsyncWorker(_Base):
    """A worker whose `make` waits for an engine."""

    async def __call__(self, batch: Any) -> AsyncIterator[Any]:
        part = PartRange(batch.column("start")[0].as_py(), batch.column("stop")[0].as_py())
        if self.failure is not None:
            yield _result(self.failure)
            return
        try:
            result = self.committed(part) or self.commit(part, await self.maker.make(part))
        except (Exception, SystemExit) as error:
            result = self.failed(error, part)
        yield _result(result)


def _counts(record: Any) -> dict[str, Any]:
    return {
        "start": record.start,
        "planned": record.planned,
        "rows": record.rows,
        "rejected": record.rejected,
        "counts": record.counts,
    }


def _describe(error: BaseException, part: PartRange | None = None) -> dict[str, Any]:
    if isinstance(error, HornbookError):
        return {"failure": type(error).__name__, "message": error.message, "cure": error.cure}
    where = f"rows {part.start}-{part.stop}: " if part else ""
    return {"failure": "", "message": f"{where}{error!r}\n{traceback.format_exc()}", "cure": ""}


def _raise_if_failed(row: dict[str, Any], stage: str) -> None:
    if "failure" not in row:
        return
    kind = getattr(errors, row["failure"], None) if row["failure"] else None
    if kind is not None:
        raise kind(f"{stage}: {row['message']}", row["cure"])
    raise RuntimeError(f"{stage}: a worker failed: {row['message']}")


def _totals(store: Store, folder: str) -> Totals:
    sums = sum_counts(read_commits(store, folder))
    planned, rows, rejected = (int(sums.get(name, 0)) for name in ("planned", "rows", "rejected"))
    return Totals(planned, rows, rejected, {name: sums[name] for name in sums if name not in PART_COUNTS})
