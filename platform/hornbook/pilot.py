"""A pilot: a recipe's generator stages with few rows, in a store of its own, timed part by part.

It runs what `hornbook run` runs, with fewer rows. Every prefix of a plan is balanced, so a pilot's rows are spread over the plan.
What the user's store holds already is read, never touched: finished stages are not run again, and feed those that are.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from hornbook.artifact import Artifact, finish_artifact
from hornbook.corpus_sample import record_bytes, stored_bytes
from hornbook.engines.usage import MONEY, by_engine
from hornbook.errors import HornbookError, Stopped
from hornbook.events import read_events
from hornbook.models import digest
from hornbook.parts import parquet_bytes
from hornbook.pipeline import Planned, plan_recipe, run_recipe
from hornbook.recipe import Recipe, RecipeStage, load_recipe
from hornbook.runs import Run, load_run, request_stop, run_ids
from hornbook.store import Store

GROUP = "generators"
PARTS = 25
"""Parts that a pilot's rows are cut into: what a time limit cuts off is small, and the interval has enough to draw from."""
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 60.0
"""How much longer than its time a stage may take until the beginning of its plan has no gap; then it is cut as it stands."""
MOST_COPIED = 1 << 30
"""Bytes of a finished input that are copied where the store is no local folder."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Chunk:
    """A finished part of a pilot; `seconds` is the time since the part before it was finished.

    `money` is what its replies cost, each at its own engine's prices; `written` are the tokens written, by the settings field
    of the engine.
    """

    planned: int
    rows: int
    prompt_tokens: float
    completion_tokens: float
    disk: float
    seconds: float
    money: float = 0.0
    written: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pilot:
    """What a stage's pilot showed.

    Attributes:
        chunks: its parts, in the order in which they were finished.
        start_seconds: from the stage's start to the first request: the start of its engine.
        cut: whether the time limit ended it.
        gpus: how many GPUs the cluster had.
        on: names of finished artifacts of the user's store that it was made from.
    """

    chunks: Sequence[Chunk]
    start_seconds: float
    cut: bool = False
    gpus: float = 0.0
    on: Sequence[str] = ()

    def sum(self, name: str) -> float:
        """Return the sum of a field over the chunks."""
        return float(sum(getattr(chunk, name) for chunk in self.chunks))


@dataclass
class Piloted:
    """The pilots of a recipe by stage, and why other generator stages have none."""

    recipe: Recipe
    planned: Mapping[str, Planned]
    pilots: dict[str, Pilot] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def run_pilot(
    name: str, overrides: Sequence[str], store: Store, *, rows: int = 100, seconds: float = 120.0, say: Say = print
) -> Piloted:
    """Run a pilot of every generator stage of a recipe that is not finished in the store.

    Args:
        name: the recipe, as `load_recipe` takes it, with its `overrides`.
        rows: planned rows of each stage, at most.
        seconds: time for each stage, its engine's start not counted; what is finished by then counts.

    Raises:
        HornbookError: a stage failed.
    """
    recipe = load_recipe(name, overrides)
    planned = plan_recipe(recipe, store)
    piloted = Piloted(recipe, planned)
    wanted = []
    for stage, entry in recipe.stages.items():
        if entry.group != GROUP or planned[stage].complete:
            continue
        missing = _missing_input(recipe, planned, stage)
        if missing:
            kind = recipe.stages[missing].stage.kind
            piloted.left_out[stage] = f"its input {missing} ({kind}) is not made yet and takes more than a pilot"
        else:
            wanted.append(stage)
    if not wanted:
        return piloted
    changes = _lowered(recipe, planned, wanted, rows)
    small = load_recipe(name, [*overrides, *changes])
    with _scratch(store) as scratch:
        _lend(store, scratch, recipe, planned, wanted, piloted)
        watch = _Watch(scratch, seconds)
        say(f"pilot of {', '.join(wanted)}: up to {rows:,} rows or {seconds:,.0f} s each, engine starts not counted")
        while wanted := _possible(recipe, wanted, piloted.left_out):
            try:
                with watch:
                    run_recipe(small, scratch, only=wanted, command="estimate", say=_stages_only(say))
                break
            except Stopped:
                if not watch.asked:
                    raise
            for stage, rows_there in _cut_short(small, scratch).items():
                if rows_there:
                    changes.append(f"stages.{stage}.rows={rows_there}")
                    small = load_recipe(name, [*overrides, *changes])
                else:
                    piloted.left_out[stage] = f"none of its rows was finished within {seconds:,.0f} s (--seconds)"
        for stage in wanted:
            piloted.pilots[stage] = _measured(stage, small, recipe, scratch, planned, watch)
    return piloted


def _possible(recipe: Recipe, wanted: Sequence[str], left_out: dict[str, str]) -> list[str]:
    """Return the stages that need none that is left out; note why the others are left out, too."""
    for stage in wanted:
        missing = sorted(recipe.ancestors([stage]) & left_out.keys())
        if missing and stage not in left_out:
            left_out[stage] = f"its input {missing[0]} has no pilot"
    return [stage for stage in wanted if stage not in left_out]


def _missing_input(recipe: Recipe, planned: Mapping[str, Planned], stage: str) -> str:
    """Return an ancestor that is neither finished, nor a generator, nor a plain reader of documents; else nothing."""
    for name in recipe.stages:
        entry = recipe.stages[name]
        reader = entry.stage.produces == "documents" and not entry.inputs
        if name in recipe.ancestors([stage]) and not (planned[name].complete or entry.group == GROUP or reader):
            return name
    return ""


def _lowered(recipe: Recipe, planned: Mapping[str, Planned], wanted: Sequence[str], rows: int) -> list[str]:
    """Return the overrides that make a pilot of a recipe: few rows in small parts, as many in flight as in earnest."""
    changes = []
    for name in recipe.ancestors(list(wanted)):
        if planned[name].complete:
            continue
        settings = recipe.stages[name].stage.settings
        fields = type(settings).model_fields
        values: dict[str, Any] = {}
        if "rows" in fields and name in wanted:
            prompts = max(1, rows // getattr(settings, "samples", 1))
            values["rows"] = min(prompts, settings.rows or prompts)
            if "accepted" in fields:
                values["accepted"] = "null"
            if "part_rows" in fields:
                values["part_rows"] = part = max(1, min(settings.part_rows, rows // PARTS))
                if "parts_in_flight" in fields:
                    values["parts_in_flight"] = -(-settings.parts_in_flight * settings.part_rows // part)
        elif isinstance(getattr(settings, "files", None), int):
            values["files"] = min(settings.files, 4 * rows)
        changes += [f"stages.{name}.{key}={value}" for key, value in values.items()]
    return changes


@contextmanager
def _scratch(store: Store) -> Iterator[Store]:
    """Give an empty store that every machine sees which sees the user's; it is gone afterwards."""
    if store.local is not None and os.environ.get("HORNBOOK_STORE_SHARED") != "1":
        folder = tempfile.mkdtemp(prefix="hornbook-estimate-")
        try:
            yield Store(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    inside = f"scratch/estimate-{uuid.uuid4().hex[:8]}"
    try:
        yield Store(store.describe(inside, options=True))
    finally:
        if store.local is not None:
            shutil.rmtree(store.local / inside, ignore_errors=True)  # follows no link into the store
        else:
            store.delete(inside)


def _lend(
    store: Store,
    scratch: Store,
    recipe: Recipe,
    planned: Mapping[str, Planned],
    wanted: Sequence[str],
    piloted: Piloted,
) -> None:
    """Let the scratch store have the finished inputs of the user's: links on a disk, copies of small ones elsewhere."""
    from pyarrow.fs import copy_files

    for name in recipe.ancestors(list(wanted)):
        found = planned[name].artifact
        if not planned[name].complete or found is None:
            continue
        if store.local is not None and scratch.local is not None:
            link = scratch.local / found.folder
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(store.local / found.folder, target_is_directory=True)
        elif sum(size for _, size in store.files(found.folder)) <= MOST_COPIED:
            copy_files(
                store.path(found.folder),
                scratch.path(found.folder),
                source_filesystem=store.filesystem,
                destination_filesystem=scratch.filesystem,
            )
        else:
            reason = f"its input {name} is too large to copy for a pilot"
            piloted.left_out |= {stage: reason for stage in wanted if name in recipe.ancestors([stage])}


class _Watch:
    """Asks a run to stop when one of its stages has had its time; while it lasts, notes what the cluster has."""

    def __init__(self, scratch: Store, seconds: float) -> None:
        self.scratch, self.seconds = scratch, seconds
        self.asked = False
        self.cut: set[str] = set()
        self.gpus = 0.0
        self._known: set[str] = set()
        self._done = threading.Event()

    def __enter__(self) -> _Watch:
        self._known = set(run_ids(self.scratch))
        self.asked = False
        self._done.clear()
        self._thread = threading.Thread(target=self._look, name="pilot's clock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            self._count_gpus()
            with suppress(HornbookError):
                for run in set(run_ids(self.scratch)) - self._known:
                    late = self._late(run)
                    if late and not self.asked:
                        request_stop(load_run(self.scratch, run))
                        self.cut.add(late)
                        self.asked = True

    def _late(self, run: str) -> str:
        """Return the stage at work whose time is over. It goes on a little where its plan's beginning has gaps: what comes
        after a gap cannot be kept."""
        began: dict[str, float] = {}
        done: dict[str, dict[int, int]] = {}
        for event in read_events(self.scratch, f"runs/{run}"):
            stage = str(event.get("stage"))
            if event.get("event") == "parts":
                began.setdefault(stage, float(event["time"]))
            elif event.get("event") == "part":
                done.setdefault(stage, {})[int(event["start"])] = int(event["planned"])
            elif str(event.get("event")).startswith("stage-"):
                began.pop(stage, None)
        for stage, since in began.items():
            spent, parts = time.time() - since, done.get(stage, {})
            whole = 0 < sum(parts.values()) <= 2 * without_gap(parts)
            if stage in self.cut:  # it has had its time and only takes over what it wrote in it
                continue
            if spent >= self.seconds and (whole or spent >= self.seconds + PATIENCE_SECONDS):
                return stage
        return ""

    def _count_gpus(self) -> None:
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        from hornbook.cluster import resources

        with suppress(Exception):  # Ray may be going down just now
            self.gpus = max(self.gpus, resources().gpus)


def without_gap(parts: Mapping[int, int]) -> int:
    """Return how many planned units from the first on are in parts, given as first unit and number of units."""
    units = 0
    while units in parts:
        units += parts[units]
    return units


def _cut_short(recipe: Recipe, scratch: Store) -> dict[str, int]:
    """Let later stages go on from what a stage that was stopped has.

    Parts that are final get a manifest. Where none is, since a stage writes drafts first, return how many rows of its plan are
    there without a gap: with so many asked it takes them over and asks no engine again. 0: nothing is there.
    """
    run = load_run(scratch, "latest")
    left: dict[str, int] = {}
    for name, entry in run.value["stages"].items():
        if entry["state"] != "stopped":
            continue
        artifact = Artifact(scratch, entry["folder"])
        stage = recipe.stages[name].stage
        if not any(part.planned for part in artifact.parts):
            units = without_gap(
                {int(event["start"]): int(event["planned"]) for event in _parts_of(scratch, [run], name)}
            )
            left[name] = units // getattr(stage.settings, "samples", 1) if hasattr(stage.settings, "rows") else 0
            continue
        inputs = {
            role: [Artifact(scratch, run.value["stages"][parent]["folder"]) for parent in parents]
            for role, parents in recipe.stages[name].inputs.items()
        }
        finish_artifact(
            artifact,
            kind=stage.kind,
            stage=name,
            produces=stage.produces,
            fingerprint=entry["fingerprint"],
            seed=recipe.seed,
            settings=stage.settings.identity(),
            models={model: digest(model) for model in stage.models()},
            inputs=inputs,
            input_stages=recipe.stages[name].inputs,
            metrics={},
            seconds=entry["seconds"],
        )
    return left


def _parts_of(scratch: Store, runs: Sequence[Run], stage: str) -> list[dict[str, Any]]:
    """Return the events of a stage's parts in these runs, in order."""
    events = [event for run in runs for event in read_events(scratch, run.folder)]
    return [event for event in events if event.get("event") == "part" and event.get("stage") == stage]


def _measured(
    stage: str, small: Recipe, recipe: Recipe, scratch: Store, planned: Mapping[str, Planned], watch: _Watch
) -> Pilot:
    runs = sorted((load_run(scratch, run) for run in run_ids(scratch)), key=lambda run: float(run.value["started"]))
    folder = next(run.value["stages"][stage]["folder"] for run in reversed(runs) if run.value["stages"].get(stage))
    artifact = Artifact(scratch, folder)
    events = [event for run in runs for event in read_events(scratch, run.folder) if event.get("stage") == stage]
    started = [float(event["time"]) for event in events if event["event"] == "stage-start"]
    began = [float(event["time"]) for event in events if event["event"] == "parts"]
    zero = min(began, default=min(started, default=0.0))
    written: dict[int, dict[str, Any]] = {}  # when its rows were written first: later attempts took them over
    for event in _parts_of(scratch, runs, stage):
        written.setdefault(int(event["start"]), event)
    factor = _disk_factor(artifact, recipe.stages[stage])
    parts = sorted((part for part in artifact.parts if part.start in written), key=lambda p: written[p.start]["time"])
    chunks = []
    before = zero
    for part in parts:
        event = written[part.start]
        counts = event["counts"]
        chunks.append(
            Chunk(
                planned=part.planned,
                rows=part.rows,
                prompt_tokens=counts.get("prompt_tokens", 0.0),
                completion_tokens=counts.get("completion_tokens", counts.get("tokens", 0.0)),
                disk=factor * stored_bytes(part),
                seconds=max(0.0, event["time"] - before),
                money=counts.get(MONEY, 0.0),
                written=by_engine(counts, "completion_tokens", recipe.stages[stage].stage.settings),
            )
        )
        before = event["time"]
    on = [name for name in small.ancestors([stage]) if name != stage and planned[name].complete]
    return Pilot(chunks, max(0.0, zero - min(started, default=zero)), stage in watch.cut, watch.gpus, sorted(on))


def _disk_factor(artifact: Artifact, entry: RecipeStage) -> float:
    """Return what the pilot's rows take in parts of the size that the recipe asks for, in proportion to what they take."""
    parts = artifact.parts
    planned = sum(part.planned for part in parts)
    count = -(-planned // (getattr(entry.stage.settings, "part_rows", 0) or planned or 1))
    roles = {file.role for part in parts for file in part.files if file.name.endswith(".parquet")}
    size = float(sum(file.size for part in parts for file in part.files if file.role not in roles))
    for role in roles:
        table = pa.concat_tables(artifact.tables(role))
        bounds = [table.num_rows * number // count for number in range(count + 1)]
        size += sum(len(parquet_bytes(table.slice(low, high - low))) for low, high in itertools.pairwise(bounds))
    size += sum(record_bytes(part) for part in parts) * count / max(1, len(parts))
    return size / max(1, sum(stored_bytes(part) for part in parts))


def _stages_only(say: Say) -> Say:
    """Let only the lines on stages through: run and report lie in the scratch store."""
    return lambda line: say(f"  {line}") if line.startswith("[") else None
