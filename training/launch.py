"""Runs a job on Ray Train and finishes its artifact. The only module of training that knows of Ray.

Ray starts the workers, restarts the group when one dies, and shows the run in its dashboard. What a restarted group goes
on from is our own latest checkpoint, not one that Ray keeps: one authority.
"""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook import errors
from hornbook.artifact import Artifact
from hornbook.errors import DataError, HornbookError, Stopped, TrainingError
from hornbook.progress import size
from hornbook.stage import StageContext, StageResult, TokenLocation
from training.best import best
from training.job import Corpus, Job
from training.metrics import METRICS, SAMPLES, json_ready, parse_metrics
from training.mixture import with_realised
from training.packed import describe, shard_index, template_hash, tokenizer_hash
from training.sigterm import Sigterm
from training.trunk import NOTE, note_trunk

if TYPE_CHECKING:
    from training.checkpoint import Checkpoint

MODEL, RAY_FOLDER = "model", "ray-train"
CPU_WORKERS = 2
POLL_SECONDS = 0.5
SHOWN_WAIT = 0.005
PREFLIGHT_STEPS = 10
REPORT_STEPS = 10
GAUGES = {
    "loss": ("hornbook_training_loss", "Training loss of the last step, nats per token."),
    "step": ("hornbook_training_step", "Optimizer steps done."),
    "lr": ("hornbook_training_learning_rate", "Learning rate of the last step."),
    "grad_norm": ("hornbook_training_gradient_norm", "Norm of the last step's gradient, before clipping."),
    "tokens_per_second": ("hornbook_training_tokens_per_second", "Tokens trained on per second, all workers together."),
    "mfu": (
        "hornbook_training_mfu",
        "Share of the hardware's operations a second that the last step used for the model.",
    ),
    "loader_wait_share": ("hornbook_training_loader_wait_share", "Share of the last step spent waiting for its batch."),
    "memory_bytes": ("hornbook_training_memory_bytes", "Peak memory of the first worker: its GPU's, or its process's."),
    "eta_seconds": ("hornbook_training_eta_seconds", "Seconds that the steps left will take."),
    "skipped": ("hornbook_training_skipped_steps", "Steps left out so far: not finite, or a leap."),
}
"""What Ray's metrics show of training: name and description by the key of a metrics row."""
GAUGES_BY_SOURCE = {
    "validation": ("hornbook_training_validation_loss", "Held-out loss of a source, nats per token."),
    "bits_per_byte": (
        "hornbook_training_validation_bits_per_byte",
        "Held-out loss of a source, bits per byte of text.",
    ),
}
"""Likewise of figures by source."""
EVENT_SECONDS = 30.0
"""Between events of steps: `metrics.jsonl` holds every step, the run's record only how it goes."""


def open_corpora(context: StageContext, tokenizer: Path, kind: str) -> list[Corpus]:
    """Return the packed inputs of a stage as a mixture's corpora.

    Raises:
        DataError: one was packed with another tokenizer or chat template, is of the other kind, or two have the same name.
    """
    corpora: list[Corpus] = []
    wanted = tokenizer_hash(tokenizer)
    for artifact, stage in zip(context.inputs["tokens"], context.input_stages["tokens"], strict=True):
        description = describe(artifact)
        if description.tokenizer != wanted:
            raise DataError(f"{stage} was packed with another tokenizer than the model's", "pack it with the same one")
        if description.template and description.template != template_hash(tokenizer):
            raise DataError(
                f"{stage} was packed with another chat template than the model's", "pack it with the model's own"
            )
        if description.kind != kind:
            raise DataError(f"{stage} holds {description.kind}, this stage trains on {kind}", f"set its form to {kind}")
        if description.source in [corpus.name for corpus in corpora]:
            raise DataError(f"two inputs are called {description.source!r}", "give one of the pack stages a `source`")
        corpora.append(Corpus(description.source, artifact, shard_index(artifact), _bytes_per_token(artifact, kind)))
    return corpora


def _bytes_per_token(artifact: Artifact, kind: str) -> float | None:
    """Return how many bytes of held-out text a token stands for, end-of-text tokens counted; None where nobody counted."""
    counts = artifact.manifest.counts
    size, tokens = counts.get("validation_bytes", 0), counts.get("validation_tokens", 0)
    return size / tokens if kind == "text" and size and tokens else None


def locate_token(job: Job, step: int, row: int, position: int) -> TokenLocation:
    """Return the document behind the input token at `position` of row `row` of optimizer step `step` (1 is the first).

    Raises:
        DataError: there is no such step, row or position.
    """
    rows, length = job.settings.global_batch, job.settings.sequence_length
    if job.trunk and step <= job.trunk.step:
        rows = job.trunk.plan["global_batch"]
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
    return TokenLocation(name, found.key, found.offset)


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
    board = _open_board(name)
    watcher = _Watcher(context, board, progress, done, lambda: sigterm.received or context.stop_requested(), preflight)
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
    _raise_failure(board)
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


class Board:
    """An actor beside the driver, between it and the workers, wherever they run: steps, a stop request, an error."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._stop = False
        self._failure: dict[str, str] = {}

    def add(self, row: dict[str, Any]) -> bool:
        """Note a step; return whether the run is to stop."""
        self._rows.append(row)
        return self._stop

    def take(self, stop: bool) -> list[dict[str, Any]]:
        """Return the steps since the last call, and pass on whether the run is to stop."""
        self._stop = self._stop or stop
        rows, self._rows = self._rows, []
        return rows

    def fail(self, failure: dict[str, str]) -> None:
        """Note an error that another start would only bring back; the first one stays."""
        self._failure = self._failure or failure

    def failure(self) -> dict[str, str]:
        """Return the error, empty if there is none."""
        return self._failure


def _open_board(name: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Board).options(name=name, num_cpus=0, scheduling_strategy=here).remote()


def _raise_failure(board: Any) -> None:
    import ray

    if value := ray.get(board.failure.remote()):
        raise getattr(errors, value["kind"], TrainingError)(value["message"], value["cure"])


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


class _Watcher:
    """On the driver: shows the steps that rank 0 reports, publishes them, and passes a stop request on."""

    def __init__(
        self,
        context: StageContext,
        board: Any,
        progress: Any,
        done: int,
        stop: Callable[[], bool] | None = None,
        preflight: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._stop = stop or context.stop_requested
        self._context, self._board, self._progress, self._done = context, board, progress, done
        self._preflight = preflight or self._tell_preflight
        self._gauges = _Gauges(context)
        self._by_source: dict[str, dict[str, float]] = {}
        self._told = 0.0
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

    def _show(self) -> None:
        import ray

        rows = ray.get(self._board.take.remote(self._stop()))
        for row in rows:
            if row["step"] <= self._done:
                continue  # done again, after a worker died
            self._done = row["step"]
            self._by_source |= {key: row[key] for key in GAUGES_BY_SOURCE if row.get(key)}
            self._progress.tell(progress_figures(row, self._by_source.get("validation", {})), row["eta_seconds"])
            self._progress.advance(1, tokens=row["tokens"])
            if "preflight" in row:
                self._preflight(row.pop("preflight"))
            self._tell(row)
        if rows:
            self._gauges.set({**rows[-1], **self._by_source})

    def _tell_preflight(self, found: dict[str, Any]) -> None:
        """Note what the run will take; of a long one, say it."""
        from training.preflight import LONG_SECONDS, lines

        self._context.events.emit("preflight", stage=self._context.stage, **found)
        if found["seconds"] >= LONG_SECONDS:
            self._progress.say("\n".join(f"{self._context.stage}: {line}" for line in lines(found)))

    def _tell(self, row: dict[str, Any]) -> None:
        """Note in the run's record what is worth it: validations, samples, and now and then a step."""
        stage, emit, samples = self._context.stage, self._context.events.emit, row.pop("samples", [])
        for text in row.pop("warnings", []):
            emit("warning", stage=stage, text=text)
            self._progress.say(f"{stage}: {text}")
        if "validation" in row:
            emit("validation", stage=stage, **json_ready(row))
        elif time.monotonic() - self._told >= EVENT_SECONDS:
            emit("training", stage=stage, **json_ready(row))
            self._told = time.monotonic()
        if samples:
            emit("samples", stage=stage, step=row["step"], samples=samples)
        for sample in samples:
            text = " ".join(sample["text"].split())
            self._progress.say(f"{stage} step {row['step']}: {sample['prompt']} | {text}")


class _Gauges:
    """Ray's gauges of one training stage."""

    def __init__(self, context: StageContext) -> None:
        from ray.util.metrics import Gauge

        tags = {"run": context.run, "stage": context.stage}
        self._plain = {key: Gauge(name, text, tag_keys=tuple(tags)) for key, (name, text) in GAUGES.items()}
        self._by_source = {
            key: Gauge(name, text, tag_keys=(*tags, "source")) for key, (name, text) in GAUGES_BY_SOURCE.items()
        }
        for gauge in [*self._plain.values(), *self._by_source.values()]:
            gauge.set_default_tags(tags)

    def set(self, row: Mapping[str, Any]) -> None:
        """Publish a step's figures."""
        for key in self._plain.keys() & row.keys():
            self._plain[key].set(row[key])
        for key, gauge in self._by_source.items():
            for source, value in row.get(key, {}).items():
                gauge.set(value, tags={"source": source})


def progress_figures(row: Mapping[str, Any], held_out: Mapping[str, float]) -> str:
    """Return what a person wants to see of a step in one line; `held_out`: the last validation's losses by source."""
    figures = [f"loss {row['loss']:.3f}"]
    if held_out:
        figures.append(f"held out {sum(held_out.values()) / len(held_out):.3f}")
    figures.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    figures += [f"MFU {row['mfu']:.1%}"] if "mfu" in row else []
    figures.append(size(row["memory_bytes"]))
    figures += [f"lr {row['lr']:.2g}", f"gradient {row['grad_norm']:.2g}"]
    if row["loader_wait_share"] >= SHOWN_WAIT:
        figures.append(f"waiting for data {row['loader_wait_share']:.0%}")
    if row["skipped"]:
        figures.append(f"{row['skipped']:,} skipped")
    return ", ".join(figures)
