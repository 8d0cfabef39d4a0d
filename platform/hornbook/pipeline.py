"""Runs a recipe: for each stage in order, reuse the artifact with its fingerprint or make it; record all of it.

A stage's fingerprint needs the digests of its inputs, so it is known only once they are finished. Runs may die: whatever was
committed is found again by fingerprint, and the same command goes on where it stood.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hornbook import __version__
from hornbook.artifact import Artifact, artifact_folder, delete_artifact, finish_artifact, lock_name, versions
from hornbook.cluster import cluster, require_shared_store, resources
from hornbook.engines.interface import engines_of
from hornbook.errors import ClusterError, HornbookError, Stopped
from hornbook.events import Events
from hornbook.fingerprint import fingerprint
from hornbook.lock import Lock, hold
from hornbook.models import digest, is_here, short_name
from hornbook.progress import duration
from hornbook.recipe import Recipe, RecipeStage
from hornbook.runs import Run, new_run, stop_check
from hornbook.stage import Expected, StageContext
from hornbook.store import Store

if TYPE_CHECKING:
    from hornbook.engines.interface import EngineSettings
    from hornbook.engines.pool import EngineHandle, EnginePool
    from hornbook.engines.replica import EngineStats

Say = Callable[[str], None]

USED = ("requests", "prompt_tokens", "completion_tokens", "money")
"""Figures of an engine that a run records after each stage."""


@dataclass(frozen=True)
class Planned:
    """What is known of a stage before it runs.

    `artifact` is None while an input is still to be made or a model, one of `to_download`, still to be fetched.
    """

    entry: RecipeStage
    artifact: Artifact | None
    complete: bool
    expected: Expected
    to_download: tuple[str, ...] = ()


@dataclass
class Finished:
    """How a run ended: the run, and the finished artifact of each stage."""

    run: Run
    artifacts: dict[str, Artifact] = field(default_factory=dict)


def plan_recipe(
    recipe: Recipe, store: Store, only: Sequence[str] | None = None, remake_from: str | None = None
) -> dict[str, Planned]:
    """Return what each stage of a recipe (or `only` these and what they need) would do now; nothing is written or fetched.

    `remake_from` and all that needs it count as to be made, as `run_recipe` would make them.
    """
    remake = recipe.descendants(remake_from) if remake_from else set()
    wanted = recipe.ancestors(list(only or recipe.stages))
    planned: dict[str, Planned] = {}
    for name, entry in recipe.stages.items():
        if name not in wanted:
            continue
        known = {role: [planned[parent] for parent in parents] for role, parents in entry.inputs.items()}
        ready = all(parent.complete for parents in known.values() for parent in parents)
        to_download = tuple(model for model in entry.stage.models() if not is_here(model))
        artifact = None
        if ready and not to_download:
            inputs = {role: [_known(parent) for parent in parents] for role, parents in known.items()}
            artifact = Artifact(store, artifact_folder(entry.stage.kind, _fingerprint(entry, recipe.seed, inputs)))
        complete = artifact is not None and artifact.complete and name not in remake
        if complete:
            expected = _held(_known(Planned(entry, artifact, True, Expected())))
        else:
            expected = entry.stage.expected({r: [p.expected for p in parents] for r, parents in known.items()})
        planned[name] = Planned(entry, artifact, complete, expected, to_download)
    return planned


def run_recipe(
    recipe: Recipe,
    store: Store,
    *,
    only: Sequence[str] | None = None,
    remake_from: str | None = None,
    command: str = "run",
    say: Say = print,
) -> Finished:
    """Run a recipe's stages, or `only` these and what they need; return the finished artifacts.

    Args:
        remake_from: make this stage, and all that needs it, anew even where artifacts exist.
        command: the command on whose behalf, for the record.
        say: gets the lines a person reads.

    Raises:
        HornbookError: a stage failed or the run was stopped; what is finished is kept, and the record says so.
    """
    wanted = recipe.ancestors(list(only or recipe.stages))
    names = [name for name in recipe.stages if name in wanted]
    for name in names:
        _model_digests(recipe.stages[name])  # an unknown model is said now, not when its stage comes
    remake = recipe.descendants(remake_from) if remake_from else set()
    for planned in plan_recipe(recipe, store, only=only, remake_from=remake_from).values():
        if not planned.complete:
            planned.entry.stage.ready()
    with new_run(store, recipe.name, _record(recipe, names, command)) as run:
        events = Events(store, run.folder)
        events.emit("run", run=run.id, recipe=recipe.name, command=command, stages=names)
        finished = Finished(run)
        say(f"run {run.id}: {len(names)} stages, store {store.url.split('?')[0]}")
        try:
            with _Engines() as engines:
                _run_stages(recipe, store, names, remake, finished, events, engines, say)
            run.update(state="succeeded", finished=round(time.time(), 3))
        except BaseException as error:
            state = _end_of(error)
            events.emit(state, error=str(error))
            run.update(state=state, finished=round(time.time(), 3), error=str(error))
            raise
        finally:
            events.emit("end", state=run.value["state"], seconds=round(time.time() - run.value["started"], 3))
            events.close()
            _report(store, run, say)
    return finished


def _run_stages(
    recipe: Recipe,
    store: Store,
    names: Sequence[str],
    remake: set[str],
    finished: Finished,
    events: Events,
    engines: _Engines,
    say: Say,
) -> None:
    run = finished.run
    stop_requested = stop_check(run)
    for number, name in enumerate(names, 1):
        entry = recipe.stages[name]
        head = f"[{number}/{len(names)}] {name}"
        inputs = {role: [finished.artifacts[parent] for parent in parents] for role, parents in entry.inputs.items()}
        mark = _fingerprint(entry, recipe.seed, inputs)
        artifact = Artifact(store, artifact_folder(entry.stage.kind, mark))
        run.update_stage(name, fingerprint=mark, folder=artifact.folder)
        if stop_requested():
            raise Stopped(f"stopped before {name}", "the same command goes on from here")
        if artifact.complete and name not in remake:
            _reuse(name, artifact, run, events, say, head)
        else:
            with hold(store, lock_name(artifact.folder), run.id, say) as lock:
                if artifact.complete and name not in remake:  # another driver made it while this one waited
                    _reuse(name, artifact, run, events, say, head)
                else:
                    anew = name in remake
                    if anew:
                        delete_artifact(artifact)
                    say(f"{head}: {entry.stage.kind} ...")
                    _make(entry, artifact, mark, recipe.seed, inputs, run, events, engines, stop_requested, lock, anew)
                    say(f"{head}: done in {duration(run.value['stages'][name]['seconds'])}, {_summary(artifact)}")
                    for warning in artifact.manifest.metrics.get("warnings", ()):
                        say(f"  warning: {warning}")
        finished.artifacts[name] = artifact
        engines.keep_only([recipe.stages[later].stage.settings for later in names[number:]])


def _reuse(name: str, artifact: Artifact, run: Run, events: Events, say: Say, head: str) -> None:
    say(f"{head}: reused, {_summary(artifact)}")
    events.emit("stage-reused", stage=name, folder=artifact.folder)
    run.update_stage(name, state="reused", seconds=0.0)


def _make(
    entry: RecipeStage,
    artifact: Artifact,
    mark: str,
    seed: int,
    inputs: Mapping[str, Sequence[Artifact]],
    run: Run,
    events: Events,
    engines: _Engines,
    stop_requested: Callable[[], bool],
    lock: Lock,
    anew: bool,
) -> None:
    store, stage = artifact.store, entry.stage
    engines.connect()
    engines.make_room(entry.name, stage.settings)
    require_shared_store(store)
    began = time.monotonic()
    run.update_stage(entry.name, state="running", began=round(time.time(), 3))
    events.emit("stage-start", stage=entry.name, kind=stage.kind, folder=artifact.folder, fingerprint=mark)
    context = StageContext(
        artifact=artifact,
        inputs=inputs,
        input_stages=entry.inputs,
        stage=entry.name,
        seed=seed,
        run=run.id,
        events=events,
        stop_requested=lambda: lock.lost or stop_requested(),
        open_engine=engines.open,
        anew=anew,
    )
    try:
        try:
            result = stage.run(context)
        except Stopped:
            if lock.lost:
                lock.check()  # says why it was stopped
            raise
        finally:
            for usage in engines.usage():
                events.emit("engine-used", stage=entry.name, **usage)
        lock.check()  # what another driver took over is for that one to finish
        manifest = finish_artifact(
            artifact,
            kind=stage.kind,
            stage=entry.name,
            produces=stage.produces,
            fingerprint=mark,
            seed=seed,
            settings=stage.settings.identity(),
            models=_model_digests(entry),
            inputs=inputs,
            input_stages=entry.inputs,
            metrics=result.metrics,
            seconds=time.monotonic() - began,
            files=result.files,
        )
    except BaseException as error:
        state = _end_of(error)
        if lock.lost:
            events.emit("lock-lost", stage=entry.name, folder=artifact.folder)
        run.update_stage(entry.name, state=state, seconds=round(time.monotonic() - began, 3))
        events.emit(f"stage-{state}", stage=entry.name, error=str(error))
        raise
    seconds = round(time.monotonic() - began, 3)
    run.update_stage(entry.name, state="made", seconds=seconds)
    events.emit("stage-end", stage=entry.name, seconds=seconds, counts=manifest.counts, digest=manifest.digest)


class _Engines:
    """Ray and the engine pools of one run: started when first needed, shared by stages with equal engine settings."""

    def __init__(self) -> None:
        self._pools: dict[EngineSettings, EnginePool] = {}
        self._opened: set[EngineSettings] = set()
        self._used: dict[EngineSettings, EngineStats] = {}
        self._cluster: Any = None

    def __enter__(self) -> _Engines:
        return self

    def __exit__(self, *error: object) -> None:
        for pool in self._pools.values():
            pool.close()
        if self._cluster is not None:
            self._cluster.__exit__(None, None, None)

    def connect(self) -> None:
        """Connect to Ray, or start it here; a run that reuses everything never does."""
        if self._cluster is None:
            opening = cluster()
            opening.__enter__()
            self._cluster = opening

    def open(self, settings: EngineSettings, wait: bool = True) -> EngineHandle:
        """Return a handle to the pool with these settings; `wait` as `EnginePool.handle` has it."""
        from hornbook.engines.pool import EnginePool

        if settings not in self._pools:
            self._leave_only(self._opened)  # an engine that is not in the stage's settings: a model of the recipe
            self._pools[settings] = EnginePool(settings)
        self._opened.add(settings)
        return self._pools[settings].handle(wait)

    def usage(self) -> Iterator[dict[str, Any]]:
        """Yield what each engine did since this was asked last: requests, tokens and money, those in vain included."""
        from hornbook.engines.replica import EngineStats

        for settings, pool in self._pools.items():
            try:
                now, before = pool.stats(), self._used.get(settings, EngineStats())
            except Exception:  # Ray is going down; why is said elsewhere
                continue
            self._used[settings] = now
            done = {name: getattr(now, name) - getattr(before, name) for name in USED}
            if any(done.values()):
                yield {"engine": settings.kind, "model": short_name(settings.model), **done}

    def make_room(self, name: str, stage: Any) -> None:
        """Close the pools that hold GPUs and that the stage with these settings does not ask for.

        A pool takes all GPUs, so the stage would wait for ever. On processors alone they stay: engine starts are dear.

        Raises:
            ClusterError: the stage asks for several engines of which one would take all GPUs.
        """
        wanted = {engine: field for field, engine in engines_of(stage).items() if engine.kind == "vllm"}
        greedy = [field for engine, field in wanted.items() if engine.replicas is None]
        if len(wanted) > 1 and greedy and resources().gpus:
            raise ClusterError(
                f"stages.{name} has {len(wanted)} vllm engines, and each takes all GPUs that there are",
                f"say how many each may have: {', '.join(f'{field}.replicas' for field in greedy)}",
            )
        self._opened = set()
        self._leave_only(wanted)

    def _leave_only(self, wanted: Collection[EngineSettings]) -> None:
        """Close the other pools that hold GPUs."""
        holding = [known for known in self._pools if known.kind == "vllm" and known not in wanted]
        if holding and resources().gpus:
            self._close(holding)

    def keep_only(self, later: Sequence[Any]) -> None:
        """Close the pools that no later stage asks for: their processors and memory are wanted elsewhere."""
        needed = [engine for settings in later for engine in engines_of(settings).values()]
        self._close([known for known in self._pools if known not in needed])

    def _close(self, pools: Sequence[EngineSettings]) -> None:
        for settings in pools:
            self._pools.pop(settings).close()
            self._used.pop(settings, None)


def _end_of(error: BaseException) -> str:
    return "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"


def _record(recipe: Recipe, names: Sequence[str], command: str) -> dict[str, Any]:
    """Return what a run's record says of the recipe."""
    stages = {
        name: {
            "kind": recipe.stages[name].stage.kind,
            "group": recipe.stages[name].group,
            "inputs": {role: list(parents) for role, parents in recipe.stages[name].inputs.items()},
            "folder": "",
            "fingerprint": "",
            "state": "pending",
            "seconds": 0.0,
        }
        for name in names
    }
    return {
        "description": recipe.description,
        "seed": recipe.seed,
        "command": command,
        "stages": stages,
        "source": recipe.source,
        "versions": versions(),
        "hornbook": __version__,
    }


def _fingerprint(entry: RecipeStage, seed: int, inputs: Mapping[str, Sequence[Artifact]]) -> str:
    stage = entry.stage
    digests = {role: [found.manifest.digest for found in artifacts] for role, artifacts in inputs.items()}
    models = {**_model_digests(entry), **stage.extra_identity()}
    return fingerprint(stage.kind, type(stage).__module__, stage.settings.identity(), seed, models, digests)


def _model_digests(entry: RecipeStage) -> dict[str, str]:
    return {name: digest(name) for name in entry.stage.models()}


def _known(planned: Planned) -> Artifact:
    assert planned.artifact is not None
    return planned.artifact


def _held(artifact: Artifact) -> Expected:
    counts = artifact.manifest.counts
    rows = int(counts.get("rows", 0))
    return Expected(planned=int(counts.get("planned", 0)), rows=rows, tokens=int(counts.get("tokens", 0)) or None)


def _summary(artifact: Artifact) -> str:
    counts, reasons, figures = artifact.manifest.counts, artifact.manifest.reasons, artifact.manifest.metrics
    if counts.get("planned"):
        parts = [f"{int(counts['rows']):,} rows"]
    elif isinstance(figures.get("steps"), int) and isinstance(figures.get("loss"), float):
        held_out = [
            f"{source} {loss:.3f}" for source, loss in figures.get("validation", {}).items() if loss is not None
        ]
        parts = [f"{figures['steps']:,} steps, loss {figures['loss']:.3f}"]
        parts += [f"held out {', '.join(held_out)}"] if held_out else []
    else:
        parts = [f"{len(artifact.manifest.files)} files"]
    if counts.get("empty"):
        parts.append(f"{int(counts['empty']):,} of {int(counts['planned']):,} dropped")
    if counts.get("rejected"):
        nothing = f" (most often {max(reasons, key=reasons.__getitem__)}; `hornbook show` has examples)"
        parts.append(f"{int(counts['rejected']):,} rejected{'' if counts['rows'] else nothing}")
    if counts.get("reused"):
        parts.append(f"{int(counts['reused']):,} carried over")
    if counts.get("tokens"):
        parts.append(f"{int(counts['tokens']):,} tokens")
    return ", ".join(parts)


def _report(store: Store, run: Run, say: Say) -> None:
    """Write the report; a run that failed has one too. A report that cannot be written never hides why a run failed."""
    from hornbook.report import write_report

    try:
        say(f"report: {store.describe(write_report(store, run.id))}")
    except HornbookError as error:
        say(f"the report could not be written: {error}")
