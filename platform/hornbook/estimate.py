"""`hornbook estimate`: from a pilot to tokens, hours, money and disk of the whole recipe, each with an interval.

Method. Acceptance: Wilson's interval (1927) on the pilot's planned rows. Tokens, money and bytes of one planned row: ratio of sums over
the pilot's parts, its interval from 1,000 bootstrap resamples of those parts (Efron 1979). Both at 90%. Seconds: at the pilot's pace, with
the interval of the tokens; its lower end is stretched to the pace of an engine that is always full and writes a row as fast then. The
product of two intervals has the products of their ends as its ends, which is wider than 90%. In totals half-widths add in quadrature.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hornbook.engines.interface import EngineSettings, engines_of
from hornbook.gpu_hours import gpu_hours
from hornbook.intervals import Quantity, in_quadrature, per_planned, wilson
from hornbook.machine import processors
from hornbook.models import digest, is_here
from hornbook.pilot import GROUP, Pilot, Piloted, run_pilot
from hornbook.recipe import Recipe, RecipeStage
from hornbook.run_view import estimate_name, read_estimate
from hornbook.stage import Expected
from hornbook.store import Store

FEW_CHUNKS = 5
NEARLY_FULL = 0.8
WRITERS = ("engine", "engines")
"""Settings fields of the engines that write rows; others are asked about what these wrote."""
FIGURES = ("planned", "rows", "prompt_tokens", "completion_tokens", "seconds", "money", "disk")
METHOD = (
    "Intervals are 90%: Wilson for acceptance, bootstrap over the pilot's parts for tokens, money and bytes a row; ends of products are "
    "products of ends (wider than 90%); totals add half-widths in quadrature. Time is at the pilot's pace; its lower end assumes an "
    "engine that is full all the time and no slower for it. A machine that is busier later is in no interval."
)


@dataclass
class StageEstimate:
    """What a stage is expected to take.

    Attributes:
        state: `estimated`, `finished` (nothing to do) or `not estimated`.
        figures: by name, see FIGURES; `rows` are the accepted ones, `seconds` are on this machine.
        gpu_hours: by number of GPUs.
        notes: what a reader must know of the figures.
        identity: what the stage is; an estimate holds for no other.
    """

    stage: str
    kind: str
    state: str
    figures: dict[str, Quantity] = field(default_factory=dict)
    acceptance: Quantity | None = None
    gpu_hours: dict[int, Quantity] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pilot: dict[str, float] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)


def estimate(
    name: str,
    overrides: Sequence[str],
    store: Store,
    *,
    rows: int = 100,
    seconds: float = 120.0,
    gpus: Sequence[int] = (1, 8, 64),
    say: Callable[[str], None] = print,
) -> list[StageEstimate]:
    """Run a pilot of a recipe, return what each of its stages will take, and keep it in the store for the run's report.

    Raises:
        HornbookError: the recipe is wrong, or the pilot failed.
    """
    piloted = run_pilot(name, overrides, store, rows=rows, seconds=seconds, say=say)
    found = estimates_of(piloted, gpus)
    save(store, piloted.recipe, found)
    return found


def estimates_of(piloted: Piloted, gpus: Sequence[int]) -> list[StageEstimate]:
    """Return what each stage of a recipe will take, from its pilots."""
    expected: dict[str, list[Expected]] = {}
    """Per stage what it is expected to hold: the estimate and both ends of its interval."""
    found = []
    engines: set[EngineSettings] = set()
    for name, entry in piloted.recipe.stages.items():
        planned = piloted.planned[name]
        inputs = [
            {role: [expected[parent][end] for parent in parents] for role, parents in entry.inputs.items()}
            for end in range(3)
        ]
        expected[name] = [planned.expected if planned.complete else entry.stage.expected(each) for each in inputs]
        made = StageEstimate(name, entry.stage.kind, "not estimated", identity=_identity(entry, piloted.recipe))
        pilot = piloted.pilots.get(name)
        if planned.complete:
            made.state = "finished"
        elif pilot is not None:
            _estimate_stage(made, entry, pilot, expected[name], gpus, engines)
            if "rows" in made.figures:
                rows = made.figures["rows"]
                length = made.figures["completion_tokens"].value / max(1.0, made.figures["planned"].value)
                ends = (rows.value, rows.low, rows.high)
                expected[name] = [Expected(rows=round(count), tokens=round(count * length)) for count in ends]
        elif entry.group == GROUP:
            made.notes.append(piloted.left_out.get(name, ""))
        found.append(made)
    return found


def total(found: Iterable[StageEstimate]) -> StageEstimate:
    """Return the sum over the stages that are estimated; GPU hours only where every one of them has them."""
    stages = [stage for stage in found if stage.state == "estimated"]
    figures = {
        name: in_quadrature([stage.figures[name] for stage in stages])
        for name in FIGURES
        if stages and all(name in stage.figures for stage in stages)
    }
    counts = [set(stage.gpu_hours) for stage in stages]
    hours = {
        count: in_quadrature([stage.gpu_hours[count] for stage in stages])
        for count in sorted(set.intersection(*counts) if counts else ())
    }
    return StageEstimate("total", "", "estimated" if stages else "not estimated", figures, gpu_hours=hours)


def fullness(pilot: Pilot, at_once: int) -> float:
    """Return how full an engine that takes `at_once` rows was on average in a pilot: 1 is always full.

    Rows start in plan order, one for each that is finished once the engine is full; a row ends with its part.
    """
    finished: list[float] = []
    now = 0.0
    for chunk in pilot.chunks:
        now += chunk.seconds
        finished += [now] * chunk.planned
    if not now:
        return 1.0
    started = [0.0] * min(at_once, len(finished)) + finished[: max(0, len(finished) - at_once)]
    return min(1.0, (sum(finished) - sum(started)) / (now * at_once))


def _seconds(pilot: Pilot, full: float) -> Quantity:
    """Return seconds per planned row."""
    pace = pilot.sum("seconds") / pilot.sum("planned")
    tokens = per_planned(pilot, "completion_tokens")
    if not tokens.value:
        return Quantity(pace, pace * full, pace)
    return Quantity(pace, pace * full * tokens.low / tokens.value, pace * tokens.high / tokens.value)


def _at_once(settings: Any, pilot: Pilot) -> int:
    """Return how many rows a long run has in the writers at once: what they take, if the stage asks for as many."""
    rows = 0
    writers = [engine for name, engine in engines_of(settings).items() if name.split(".")[0] in WRITERS]
    for engine in writers:
        replicas = engine.replicas or max(1, int(pilot.gpus // engine.tensor_parallel))
        asked = getattr(settings, "parts_in_flight", 1) * getattr(settings, "part_rows", 1)
        rows += replicas * (min(engine.max_num_seqs, asked) if engine.kind == "vllm" else asked)
    return max(1, rows)


def _estimate_stage(
    made: StageEstimate,
    entry: RecipeStage,
    pilot: Pilot,
    expected: Sequence[Expected],
    gpus: Sequence[int],
    engines: set[EngineSettings],
) -> None:
    settings = entry.stage.settings
    accepted = getattr(settings, "accepted", None)
    rows, planned_rows = pilot.sum("rows"), pilot.sum("planned")
    made.acceptance = wilson(rows, planned_rows) if rows <= planned_rows else per_planned(pilot, "rows")
    most = _most(entry, expected[0])
    if accepted is not None:
        enough = _planned_for(accepted, made.acceptance, most, made.notes)
        if enough is None:
            return
        planned = enough
    elif most is None:
        made.notes.append("how many rows it plans is not known before its inputs are made")
        return
    else:
        ends = [each.planned if each.planned is not None else most for each in expected]
        planned = Quantity(float(ends[0]), float(min(ends)), float(max(ends)))
    made.state = "estimated"
    got = planned * made.acceptance
    if accepted is not None:
        got = Quantity(*(min(float(accepted), value) for value in (got.value, got.low, got.high)))
    prompt, completion = (planned * per_planned(pilot, name) for name in ("prompt_tokens", "completion_tokens"))
    asked = set(engines_of(settings).values())
    start = 0.0 if asked <= engines else pilot.start_seconds
    engines |= asked
    full = fullness(pilot, _at_once(settings, pilot))
    seconds = planned * _seconds(pilot, full)
    made.figures = {
        "planned": planned,
        "rows": got,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "seconds": seconds + start,
        "money": planned * per_planned(pilot, "money"),
        "disk": planned * per_planned(pilot, "disk"),
    }
    made.pilot = {
        "rows": planned_rows,
        "accepted": rows,
        "seconds": round(pilot.sum("seconds"), 3),
        "start_seconds": round(pilot.start_seconds, 3),
        "gpus": pilot.gpus,
    }
    made.gpu_hours, notes = gpu_hours(settings, pilot, planned, seconds, gpus)
    made.notes += notes
    _remarks(made, pilot, full)


def _most(entry: RecipeStage, expected: Expected) -> int | None:
    """Return the most rows that a stage may plan; None if that is not known."""
    settings = entry.stage.settings
    limits = [] if getattr(settings, "accepted", None) is not None and not entry.inputs else [expected.planned]
    if hasattr(settings, "planned_rows"):
        limits.append(settings.planned_rows * settings.samples)
        limits.append(None if expected.distinct is None else expected.distinct * settings.samples)
    return min((limit for limit in limits if limit is not None), default=None)


def _planned_for(accepted: int, acceptance: Quantity, most: int | None, notes: list[str]) -> Quantity | None:
    """Return how many rows must be planned for so many accepted ones, within the over-generation that the stage allows."""
    limit = float(most) if most is not None else math.inf
    needed = [accepted / share if share else math.inf for share in (acceptance.value, acceptance.high, acceptance.low)]
    if needed[0] > limit:
        notes.append(f"{accepted:,} accepted rows need more than the {limit:,.0f} that may be planned for them")
    value, low, high = (min(limit, each) for each in needed)
    if math.isinf(value):
        notes.append("no row of the pilot was accepted, and nothing bounds the plan")
        return None
    return Quantity(value, low, high if math.isfinite(high) else value)


def _remarks(made: StageEstimate, pilot: Pilot, full: float) -> None:
    if pilot.cut:
        made.notes.append(
            "the time limit cut the pilot: what was slow is missing from it, so tokens and seconds a row may be low"
        )
    if len(pilot.chunks) < FEW_CHUNKS:
        made.notes.append(f"the pilot has only {len(pilot.chunks)} parts: its intervals are guesses")
    if full < NEARLY_FULL:
        made.notes.append(
            f"the engine was {full:.0%} full on average in so short a pilot; a long run may be faster, more --rows tell"
        )
    if pilot.on:
        made.notes.append(f"piloted on finished artifacts: {', '.join(pilot.on)}")


# --- on storage ------------------------------------------------------------------------------------------------------


def save(store: Store, recipe: Recipe, found: Sequence[StageEstimate]) -> None:
    """Keep an estimate as `estimates/RECIPE.json`. Of a stage that is finished by now the earlier one stays."""
    stages = {stage.stage: asdict(stage) for stage in found if stage.state == "estimated"}
    earlier = {name: entry for name, entry in read_estimate(store, recipe.name).items() if name not in stages}
    store.write_json(
        estimate_name(recipe.name),
        {
            "recipe": recipe.name,
            "created": round(time.time(), 3),
            "host": platform.node(),
            "processors": processors(),
            "stages": {**{name: entry for name, entry in earlier.items() if name in recipe.stages}, **stages},
        },
    )


def _identity(entry: RecipeStage, recipe: Recipe) -> dict[str, Any]:
    """Return what an estimate holds for, in the words of the manifest: it can be compared with the artifact's."""
    models = {model: digest(model) for model in entry.stage.models() if is_here(model)}
    return {
        "kind": entry.stage.kind,
        "seed": recipe.seed,
        "settings": entry.stage.settings.identity(),
        "models": models,
    }
