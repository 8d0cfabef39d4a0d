"""Runs a job on Ray Train and finishes its artifact. The only module of training that knows of Ray.

Ray starts the workers, restarts the group when one dies, and shows the run in its dashboard. What a restarted group goes
on from is our own latest checkpoint, not one that Ray keeps: one authority.
"""

from __future__ import annotations

import json
import threading
import uuid
from pathlib import Path
from typing import Any

from hornbook import errors
from hornbook.errors import ClusterError, DataError, HornbookError, Stopped, TrainingError
from hornbook.stage import StageContext, StageResult, TokenLocation
from training.hf_folder import write_hf_folder
from training.job import Corpus, Job
from training.metrics import read_metrics
from training.packed import describe, shard_index, tokenizer_hash

METRICS, MODEL, STOP, FAILURE, RAY_FOLDER = "metrics.jsonl", "model", "stop", "failure.json", "ray-train"
CPU_WORKERS = 2
POLL_SECONDS = 0.5
REPORT_STEPS = 10


def working_folder(context: StageContext) -> Path:
    """Return the folder of checkpoints and metrics: the artifact's own, or a machine-local one for a remote store.

    Raises:
        ClusterError: the store is remote and the cluster has several nodes, which would not see each other's checkpoints.
    """
    store = context.artifact.store
    if store.local is not None:
        return store.local / context.artifact.folder
    from hornbook.cluster import resources
    from hornbook.machine import cache_folder

    if resources().nodes > 1:
        raise ClusterError(
            "training on several nodes needs a store that all of them mount: checkpoints are written in pieces",
            "set HORNBOOK_STORE to a shared disk (and HORNBOOK_STORE_SHARED=1)",
        )
    return cache_folder() / "training" / Path(context.artifact.folder).name


def open_corpora(context: StageContext, tokenizer: Path, kind: str) -> list[Corpus]:
    """Return the packed inputs of a stage as a mixture's corpora.

    Raises:
        DataError: one was packed with another tokenizer, is of the other kind, or two have the same name.
    """
    corpora: list[Corpus] = []
    wanted = tokenizer_hash(tokenizer)
    for artifact, stage in zip(context.inputs["tokens"], context.input_stages["tokens"], strict=True):
        description = describe(artifact)
        if description.tokenizer != wanted:
            raise DataError(f"{stage} was packed with another tokenizer than the model's", "pack it with the same one")
        if description.kind != kind:
            raise DataError(f"{stage} holds {description.kind}, this stage trains on {kind}", f"set its form to {kind}")
        if description.source in [corpus.name for corpus in corpora]:
            raise DataError(f"two inputs are called {description.source!r}", "give one of the pack stages a `source`")
        corpora.append(Corpus(description.source, artifact, shard_index(artifact)))
    return corpora


def locate_token(job: Job, step: int, row: int, position: int) -> TokenLocation:
    """Return the document behind the input token at `position` of row `row` of optimizer step `step` (1 is the first).

    Raises:
        DataError: there is no such step, row or position.
    """
    rows, length = job.settings.global_batch, job.settings.sequence_length
    if not (1 <= step <= job.steps and 0 <= row < rows and 0 <= position < length):
        raise DataError(
            f"there is no position {position} in row {row} of step {step}",
            f"steps go from 1 to {job.steps}, rows from 0 to {rows - 1}, positions from 0 to {length - 1}",
        )
    sources = job.open("train")
    mixture = job.mixture(sources)
    draws = mixture.batch(step - 1)
    name = mixture.sources[int(draws.source[row])]
    try:
        found = sources[name].locate(int(draws.sequence[row]), position)
    except IndexError as error:
        raise DataError(f"step {step}, {error}", "give a smaller position") from error
    return TokenLocation(found.corpus, found.key, found.offset)


def run_job(context: StageContext, job: Job, tokenizer: Path, workers: int | None, max_failures: int) -> StageResult:
    """Train on Ray workers and leave metrics and a Hugging Face folder in the artifact.

    Args:
        tokenizer: its folder, copied beside the weights.
        workers: default: one per GPU, or two on CPUs.
        max_failures: how often a dead worker group is started again.

    Raises:
        HornbookError: whatever a worker met; Stopped when `hornbook stop` was called and the run saved.
    """
    mixture = job.mixture(job.open("train"))  # refuses an impossible mixture before any worker starts
    job.folder.mkdir(parents=True, exist_ok=True)
    for stale in (STOP, FAILURE):
        (job.folder / stale).unlink(missing_ok=True)
    done = _last_step(job)
    with context.progress(job.steps, "steps", done) as progress:
        watcher = _Watcher(context, job, progress, done)
        try:
            if done < job.steps:
                _fit(job, workers, max_failures, f"{context.stage}-{context.run}")
        finally:
            watcher.close()
    if _last_step(job) < job.steps:
        raise Stopped(f"{context.stage} was stopped after step {_last_step(job)}", "`hornbook run` goes on from there")
    files = []
    with context.scratch() as folder:
        write_hf_folder(job.trained_model(), folder, tokenizer)
        files += context.save_folder(folder, MODEL)
    rows = list(read_metrics(job.folder / METRICS))
    context.artifact.store.write(f"{context.artifact.folder}/{METRICS}", (job.folder / METRICS).read_bytes())
    shares = [vars(share) for share in mixture.shares() if share.sequences]
    return StageResult(metrics=_figures(job, rows) | {"mixture": shares}, files=[*files, METRICS])


def _fit(job: Job, workers: int | None, max_failures: int, name: str) -> None:
    import shutil

    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from hornbook.cluster import resources

    cluster = resources()
    use_gpu = cluster.gpus > 0
    count = workers or (int(cluster.gpus) if use_gpu else CPU_WORKERS)
    cpus = min(1.0, cluster.cpus / (2 * count))  # a processor may be held by an engine that the run still needs
    storage = job.folder / RAY_FOLDER
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(num_workers=count, use_gpu=use_gpu, resources_per_worker={"CPU": cpus}),
        run_config=RunConfig(
            name=f"{name}-{uuid.uuid4().hex[:8]}",  # a name used again would bring Ray's own resume into play
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout_s=600),
    )
    try:
        trainer.fit()
    except HornbookError:
        raise
    except Exception as error:
        _raise_failure(job)
        raise TrainingError(
            f"the workers failed more than {max_failures} times: {str(error).strip().splitlines()[-1]}",
            f"read the workers' logs in Ray's folder; checkpoints are kept in {job.folder / 'checkpoints'}",
        ) from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    _raise_failure(job)


def _worker(config: dict[str, Any]) -> None:
    """Be one Ray Train worker."""
    import ray.train

    from training.parallel import join_world

    job: Job = config["job"]
    if (job.folder / FAILURE).exists():
        return  # the group was started again after an error that would only come back
    world = join_world()

    def progress(row: dict[str, Any]) -> None:
        if row["step"] % REPORT_STEPS == 0 or row["step"] == job.steps:
            ray.train.report({key: value for key, value in row.items() if isinstance(value, int | float | str)})

    try:
        job.train(world, (job.folder / STOP).exists, progress)
    except HornbookError as error:
        value = {"kind": type(error).__name__, "message": error.message, "cure": error.cure}
        (job.folder / FAILURE).write_text(json.dumps(value))
        raise


def _raise_failure(job: Job) -> None:
    path = job.folder / FAILURE
    if path.exists():
        value = json.loads(path.read_text())
        path.unlink()
        raise getattr(errors, value["kind"], TrainingError)(value["message"], value["cure"])


def _last_step(job: Job) -> int:
    from training import checkpoint

    found = checkpoint.latest(job.folder / "checkpoints")
    return found.step if found else 0


def _figures(job: Job, rows: list[dict[str, Any]]) -> dict[str, Any]:
    seconds, tokens = sum(row["seconds"] for row in rows), sum(row["tokens"] for row in rows)
    validated = [row["validation"] for row in rows if row.get("validation")]
    return {
        "steps": len(rows),
        "tokens": tokens,
        "loss": rows[-1]["loss"],
        "validation": validated[-1] if validated else {},
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        "loader_wait_share": round(sum(row["loader_wait_share"] * row["seconds"] for row in rows) / seconds, 6),
        "skipped": rows[-1]["skipped"],
        "parameters": sum(parameter.numel() for parameter in job.trained_model().parameters()),
    }


class _Watcher:
    """On the driver: shows the steps that rank 0 writes down, and passes a stop request on."""

    def __init__(self, context: StageContext, job: Job, progress: Any, done: int) -> None:
        self._context, self._job, self._progress, self._done = context, job, progress, done
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="training-watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show what is left and end."""
        self._closed.set()
        self._thread.join()
        self._show()

    def _work(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            self._show()
            if self._context.stop_requested():
                (self._job.folder / STOP).touch()

    def _show(self) -> None:
        for row in read_metrics(self._job.folder / METRICS):
            if row["step"] > self._done:
                self._done = row["step"]
                loss = row["loss"]
                self._progress.advance(1, tokens=row["tokens"], note=f"loss {loss:.3f}" if loss is not None else "")
                if "validation" in row:
                    self._context.events.emit("validation", stage=self._context.stage, **row)
