"""Runs a job on Ray Train and finishes its artifact. This module and `watcher` are the only ones of training that know of Ray.

Ray starts the workers, restarts the group when one dies, and shows the run in its dashboard. What a restarted group goes
on from is our own latest checkpoint, not one that Ray keeps: one authority.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook.errors import HornbookError, Stopped, TrainingError
from hornbook.stage import StageContext, StageResult
from training.best import best
from training.job import Job
from training.metrics import METRICS, SAMPLES, parse_metrics
from training.mixture import with_realised
from training.sigterm import Sigterm
from training.trunk import NOTE, note_trunk
from training.watcher import Watcher, open_board, raise_failure

if TYPE_CHECKING:
    from training.checkpoint import Checkpoint

MODEL, RAY_FOLDER = "model", "ray-train"
CPU_WORKERS = 2
PREFLIGHT_STEPS = 10
REPORT_STEPS = 10


def run_job(
    context: StageContext,
    job: Job,
    tokenizer: Path,
    workers: int | None,
    max_failures: int,
    min_workers: int | None = None,
) -> StageResult:
    """Train on Ray workers and leave metrics and a Hugging Face folder in the artifact.

    Args:
        tokenizer: its folder, copied beside the weights.
        workers: default: one per GPU, or two on CPUs.
        max_failures: how often a dead worker group is started again.
        min_workers: go on with fewer workers, but at least these, while there is no room for all.

    Raises:
        HornbookError: whatever a worker met; Stopped when `hornbook stop` was called and the run saved.
    """
    mixture = job.mixture(job.open("train"))  # refuses an impossible mixture before any worker starts
    job.folder.mkdir(parents=True, exist_ok=True)
    if job.trunk:
        note_trunk(job.artifact, job.trunk)
    found = _begin(job)
    done = found.step if found else job.trunk.step if job.trunk else 0
    if done < job.steps:
        with context.progress(job.steps, "steps", done) as progress:
            _fit(context, job, (min_workers, workers), max_failures, progress, done)
        found = _latest(job)
    if found is None or found.step < job.steps:
        done = found.step if found else 0
        raise Stopped(f"{context.stage} was stopped after step {done}", "`hornbook run` goes on from there")
    files = []
    if job.best_of:
        found = best(found, job.folder / "checkpoints", job.best_of, job.archive)
    with context.scratch() as folder:
        parameters, proof = job.leave(found, folder, tokenizer)
        files += context.save_folder(folder, MODEL)
    if job.archive:
        shutil.rmtree(job.folder, ignore_errors=True)  # a cache that nobody asks again
    store, written = context.artifact.store, f"{context.artifact.folder}/{SAMPLES}"
    rows = list(parse_metrics(store.read(f"{context.artifact.folder}/{METRICS}").decode()))
    files += [SAMPLES] if store.exists(written) else []
    drawn = {"mixture": with_realised(mixture, rows), "dry": [vars(dry) for dry in mixture.dry]}
    figures = _figures(rows) | {"parameters": parameters, "proof": proof} | drawn
    if job.best_of:
        figures["best"] = {"step": found.step, "loss": found.score, "by": job.best_of.by}
    if job.trunk:
        figures["fork"] = {"from": job.trunk.name, "step": job.trunk.step}
        files.append(NOTE)
    return StageResult(metrics=figures, files=[*files, METRICS])


def _begin(job: Job) -> Checkpoint | None:
    """Return the checkpoint that training goes on from; its files are looked at only if it is the last one.

    The workers look at them, too: if one is torn, they go on from the checkpoint before.
    """
    from training import checkpoint

    found = checkpoint.newest(job.folder / "checkpoints", job.archive)
    return _latest(job) if found and found.step == job.steps else found


def _latest(job: Job) -> Checkpoint | None:
    from training import checkpoint

    return checkpoint.latest(job.folder / "checkpoints", job.archive)


def _fit(
    context: StageContext,
    job: Job,
    workers: tuple[int | None, int | None],
    max_failures: int,
    progress: Any,
    done: int,
    preflight: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    least, most = workers
    count, use_gpu, cpus = _worker_shape(most)
    elastic = (min(least, count), count) if least else count
    sigterm = Sigterm()
    storage = job.folder / RAY_FOLDER
    name = (
        f"{context.stage}-{context.run}-{uuid.uuid4().hex[:8]}"  # one used again would bring Ray's own resume into play
    )
    board = open_board(name)
    watcher = Watcher(context, board, progress, done, lambda: sigterm.received or context.stop_requested(), preflight)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "board": name, "driver": ray.get_runtime_context().get_node_id()},
        scaling_config=ScalingConfig(
            num_workers=elastic,  # type: ignore[arg-type] # mypy sees the class of Ray Train's first version
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout_s=600),
    )
    failure: Exception | None = None
    try:
        trainer.fit()
    except Exception as error:
        failure = error
    finally:
        watcher.close()
        sigterm.close()
        shutil.rmtree(storage, ignore_errors=True)
    raise_failure(board)
    if failure is not None:
        raise TrainingError(
            f"the workers failed more than {max_failures} times: {_reason(failure)}",
            f"read the workers' logs in Ray's folder, then run again: checkpoints are kept in "
            f"{context.artifact.store.describe(context.artifact.folder)}/checkpoints",
        ) from failure


def preflight_table(context: StageContext, job: Job, workers: int | None) -> list[list[str]]:
    """Train a few steps of a job on its real workers, leave nothing, and return what all of it will take as a table's lines.

    The context's artifact is a scratch one.

    Raises:
        HornbookError: it cannot fit, or whatever a worker met.
    """
    from training.preflight import table

    never = 10**9
    quiet = {"validate_every": never, "checkpoint_every": never, "record": (), "sample_prompts": (), "profile": None}
    job = replace(job, only_preflight=True, settings=job.settings.model_copy(update=quiet))
    job.mixture(job.open("train"))  # refuses an impossible mixture before any worker starts
    job.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    with context.progress(PREFLIGHT_STEPS, "steps") as progress:
        _fit(context, job, (None, workers), 0, progress, 0, found.update)
    return table(found)


def _worker_shape(workers: int | None) -> tuple[int, bool, float]:
    """Return how many workers there are to be, whether each has a GPU, and its share of processors.

    GPUs that the cluster would start when they are asked for count, or nobody would ever ask.
    """
    from hornbook.cluster import expected_gpus, resources

    gpus = expected_gpus()
    count = workers or int(gpus) or CPU_WORKERS
    cpus = min(1.0, resources().cpus / (2 * count))  # a processor may be held by an engine that the run still needs
    return count, gpus > 0, cpus


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _worker(config: dict[str, Any]) -> None:
    """Be one Ray Train worker."""
    import ray
    import ray.train

    from training.parallel import join_world

    job: Job = config["job"]
    board = ray.get_actor(config["board"])  # by name: a handle among arguments can be lost before a restart
    if ray.get(board.failure.remote()):
        return  # the group was started again after an error that would only come back
    world = join_world()
    answer: Any = None
    warned, saved = False, False

    def progress(row: dict[str, Any]) -> None:
        nonlocal answer, warned
        if world.rank == 0:
            answer = board.add.remote(row)
        if row["step"] % REPORT_STEPS == 0 or row["step"] == job.steps:
            ray.train.report({key: value for key, value in row.items() if isinstance(value, int | float | str)})
            warned = ray.train.get_preemption_info() is not None  # a barrier, too: not in every step

    def stop() -> bool:
        return answer is not None and bool(ray.get(answer))  # the last step's: here by now

    def save_now() -> bool:
        nonlocal saved
        first = warned and not saved  # a node of ours will be taken away: once is enough
        saved = saved or warned
        return first

    try:
        outcome = job.train(world, stop, progress, save_now)
    except HornbookError as error:
        value = {"kind": type(error).__name__, "message": error.message, "cure": error.cure}
        ray.get(board.fail.remote(value))
        raise
    if job.archive and not outcome.stopped and ray.get_runtime_context().get_node_id() != config["driver"]:
        shutil.rmtree(job.folder, ignore_errors=True)  # the driver reads its own node's cache, nobody this one


def _figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    seconds, tokens = sum(row["seconds"] for row in rows), sum(row["tokens"] for row in rows)
    validated = [row["validation"] for row in rows if row.get("validation")]
    return {
        "steps": len(rows),
        "tokens": tokens,
        "loss": rows[-1]["loss"],
        "validation": validated[-1] if validated else {},
        **{key: rows[-1][key] for key in ("bits_per_byte", "perplexity") if key in rows[-1]},
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        **({"mfu": _mean("mfu", rows)} if "mfu" in rows[-1] else {}),
        "memory_bytes": max(row["memory_bytes"] for row in rows),
        "loader_wait_share": _mean("loader_wait_share", rows),
        "skipped": rows[-1]["skipped"],
    }


def _mean(figure: str, rows: list[dict[str, Any]]) -> float:
    """Return the mean of a figure over the time that steps took."""
    return round(sum(row[figure] * row["seconds"] for row in rows) / sum(row["seconds"] for row in rows), 6)
