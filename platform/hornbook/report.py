"""report.html: what a run did, on one self-contained page that a person reads, prints or sends.

The page makes no request: styles and a few lines of script are inline, and its content security policy allows nothing else, so
that text from a corpus, which is untrusted, could not load or run anything even if the escaping failed.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hornbook.branch_view import branches
from hornbook.charts import COLOURS, Band, Series, line_chart, named_colours, number, smoothed, thinned
from hornbook.comparison_view import comparisons
from hornbook.dial_view import dials
from hornbook.diversity_view import diversity
from hornbook.foretold import foretold
from hornbook.grade_view import graded
from hornbook.progress import duration, money, size
from hornbook.quality_view import agreements, scored, trained
from hornbook.recipe import yaml_text
from hornbook.run_view import (
    RunView,
    StageView,
    flat_figures,
    generated_samples,
    mapping,
    model_samples,
    numeric,
    read_curve,
    read_run,
    read_written,
    reject_examples,
    rule_steps,
)
from hornbook.spending import spending, spent
from hornbook.store import Store

SAMPLES = 10
WRITTEN_STEPS = 6
FOLD = 420
"""Characters of a sample that are shown before it is folded."""


def write_report(store: Store, run_id: str) -> str:
    """Write `runs/<run id>/report.html` and return its name in the store.

    Raises:
        StoreError: the run has no readable record, or the store cannot be written.
    """
    name = f"runs/{run_id}/report.html"
    store.write(name, render_report(store, run_id).encode("utf-8", "replace"))
    return name


def render_report(store: Store, run_id: str) -> str:
    """Return a run's report as one HTML page. Raises StoreError if the run has no readable record."""
    import jinja2

    run = read_run(store, run_id)
    colours = {stage.name: f"c{index % COLOURS}" for index, stage in enumerate(run.sources)}
    curves = [(stage, rows) for stage in run.stages if (rows := read_curve(stage))]
    script = _packaged("report.js")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_packaged),
    )
    environment.filters.update(number=_number, duration=duration, share=_share, moment=_moment, head=_head)
    return environment.get_template("report.html.jinja").render(
        run=run,
        record=run.record,
        colours=colours,
        style=_packaged("report.css"),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        tiles=_tiles(run, curves),
        warnings=[(stage, text) for stage in run.stages for text in stage.warnings],
        funnel=_funnel(run),
        rejects=_rejects(run),
        conservation=[stage for stage in run.stages if stage.counts.get("planned")],
        graded=graded(run),
        diversity=diversity(run, colours),
        trained=trained(run),
        agreements=agreements(run),
        scored=scored(run, colours),
        dials=dials(run),
        comparisons=comparisons(run),
        branches=branches(run, curves),
        training=[_training(stage, rows, colours) for stage, rows in curves],
        generated=generated_samples(run.stages, SAMPLES),
        modelled=model_samples(run.stages, SAMPLES),
        timings=_timings(run, curves),
        foretold=foretold(run),
        spending=spending(run),
        figures=[(stage, flat) for stage in run.stages if (flat := flat_figures(stage.metrics))],
        versions=mapping(run.record.get("versions")),
        recipe=_yaml(run.record.get("source")),
        elapsed=_elapsed(run),
    )


def _tiles(run: RunView, curves: Sequence[tuple[StageView, list[dict[str, Any]]]]) -> list[tuple[str, str, str]]:
    """Return the figures at the head of the page: (value, name, remark)."""
    tiles = []
    corpora = run.corpora
    documents = sum(corpus[-1].counts.get("rows", 0) for corpus in corpora)
    if planned := sum(corpus[0].counts.get("planned", 0) for corpus in corpora):
        where = f"in {number(len(corpora))} corpora" if len(corpora) > 1 else f"in {corpora[0][-1].name}"
        tiles.append((number(documents), "documents", f"{where}, of {number(planned)} planned"))
    written = sum(stage.counts.get("completion_tokens", stage.counts.get("tokens", 0)) for stage in run.sources
                  if stage.entry.get("group") == "generators")  # fmt: skip
    if written:
        tiles.append((number(written), "tokens generated", "counted by the engine"))
    if bought := spent(run):
        tiles.append((money(bought), "paid to endpoints", "for the rows here, at the recipe's prices"))
    if curves:
        rows = curves[0][1]
        tokens = sum(numeric(row.get("tokens")) or 0 for row in rows)
        if tokens:
            tiles.append((number(tokens), "tokens trained on", f"{curves[0][0].name}, {number(len(rows))} steps"))
        losses = _last_validation(rows)
        if losses:
            tiles.append(
                (number(sum(losses.values()) / len(losses)), "validation loss", "nats per token, mean of sources")
            )
    if (elapsed := _elapsed(run)) is not None:
        reused = sum(stage.state == "reused" for stage in run.stages)
        tiles.append((duration(elapsed), "wall time", f"{reused} of {len(run.stages)} stages reused"))
    return tiles


def _funnel(run: RunView) -> list[dict[str, Any]]:
    """Return, per corpus, how many documents and tokens are left after each step."""
    rows = []
    for corpus in run.corpora:
        first, last = corpus[0], corpus[-1]
        read = "selected" if rule_steps(first) else "read" if first.entry.get("group") == "classifiers" else "written"
        steps = [("planned", first.counts.get("planned", 0)), *rule_steps(first), (read, first.counts.get("rows", 0))]
        for stage in corpus[1:]:
            steps += [*rule_steps(stage), (f"left by {stage.name}", stage.counts.get("rows", 0))]
        for later in run.stages:
            if (kept := _kept_of(run, later, last)) is not None:
                steps.append((f"kept by {later.name}", kept))
        tokens = [(f"as {read}", numeric(first.counts.get("tokens")))]
        names = {stage.name for stage in corpus}
        packers = [later for later in run.stages if later.produces == "tokens" and names & later.parents]
        for later in packers:
            label = "packed" if len(packers) == 1 else f"packed by {later.name}"
            split = [later.counts.get(f"{part}_documents") for part in ("train", "validation")]
            steps.append((label, later.counts.get("rows", 0) if None in split else sum(filter(None, split))))
            tokens.append((label, numeric(later.counts.get("tokens"))))
        most = max(count for _, count in steps)
        if most > 0:
            rows.append({
                "stage": last,
                "steps": [(label, count, count / most) for label, count in steps],
                "tokens": [(label, count) for label, count in tokens if count],
            })  # fmt: skip
    return rows


def _kept_of(run: RunView, later: StageView, stage: StageView) -> float | None:
    """Return how many documents of a corpus a later stage keeps, by its figures `kept`; None if they do not say.

    They are named after the corpus, or after the sources that its documents name; these are added up, where the corpus is the
    only one that they can belong to.
    """
    by_source = {
        name: count
        for name, value in mapping(later.metrics.get("kept")).items()
        if (count := numeric(mapping(value).get("kept"))) is not None
    }
    if stage.name in by_source or stage.kind in by_source:
        return by_source.get(stage.name, by_source.get(stage.kind))
    corpora = [source for source in run.sources if source.name in later.parents]
    unnamed = [source.name for source in corpora if not {source.name, source.kind} & set(by_source)]
    named = {name for source in run.sources for name in (source.name, source.kind)}
    own = [count for name, count in by_source.items() if name not in named]
    return sum(own) if own and unnamed == [stage.name] else None


def _rejects(run: RunView) -> list[dict[str, Any]]:
    rows = []
    for stage in run.stages:
        examples = reject_examples(stage) if stage.reasons else {}
        for reason, count in sorted(stage.reasons.items(), key=lambda item: (-item[1], item[0])):
            planned = stage.counts.get("planned", 0)
            rows.append({
                "stage": stage, "reason": reason, "count": count, "share": count / planned if planned else 0.0,
                "example": examples.get(reason),
            })  # fmt: skip
    return rows


def _training(stage: StageView, rows: list[dict[str, Any]], colours: Mapping[str, str]) -> dict[str, Any]:
    """Return the charts and tables of one training curve."""
    losses = _points(rows, "loss")
    held_out: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for source, loss in mapping(row.get("validation")).items():
            if (value := numeric(loss)) is not None:
                held_out.setdefault(source, []).append((row["step"], value))
    bands = _bands(rows)
    span = max((row["step"] for row in rows), default=0) - min((row["step"] for row in rows), default=0)
    names = named_colours(held_out, colours)
    lines = [
        Series("training, each step", "ink", thinned(losses), faint=True),
        Series("training, smoothed", "ink", thinned(smoothed(losses, span / 100))),
        *(
            Series(f"validation, {source}", names[source], thinned(points), marked=True)
            for source, points in held_out.items()
        ),
    ]
    rates = _points(rows, "lr")
    return {
        "stage": stage,
        "legend": [(line.name, line.colour) for line in lines if line.points and not line.faint],
        "loss": line_chart(
            [line for line in lines if line.points],
            label=f"Loss of {stage.name} by optimizer step: training, and validation per source",
            x_label="optimizer step",
            y_label="loss, nats per token",
            bands=bands,
        ),
        "rate": line_chart(
            [Series("learning rate", "ink", thinned(rates))] if rates else [],
            label=f"Learning rate of {stage.name} by optimizer step",
            x_label="optimizer step",
            y_label="learning rate",
            bands=bands,
            height_share=0.55,
        ),
        "table": [
            (source, points[0], points[len(points) // 2], points[-1], names[source])
            for source, points in held_out.items()
        ],
        "written": _spread(read_written(stage)),
        "phases": [(band.name, band.stop - band.start) for band in bands],
        "figures": _training_figures(rows),
    }


def _spread(written: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """Return what a model wrote at no more than WRITTEN_STEPS steps, spread over the run, the first and the last among them."""
    steps = sorted({step for step, _, _ in written})
    most = len(steps) - 1
    shown = {steps[round(number * most / (WRITTEN_STEPS - 1))] for number in range(WRITTEN_STEPS)} if steps else set()
    return [row for row in written if row[0] in shown]


def _training_figures(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    figures = [("steps", number(len(rows)))]
    if tokens := sum(numeric(row.get("tokens")) or 0 for row in rows):
        figures.append(("tokens", number(tokens)))
    if rates := sorted(value for _, value in _points(rows, "tokens_per_second")):
        figures.append(("tokens per second, median step", number(rates[len(rates) // 2], 0)))
    if shares := sorted(value for _, value in _points(rows, "mfu")):
        figures.append(("of the hardware’s peak (MFU), median step", f"{100 * shares[len(shares) // 2]:.0f}%"))
    if memory := [value for _, value in _points(rows, "memory_bytes")]:
        figures.append(("peak memory of the first worker", size(max(memory))))
    if waits := [value for _, value in _points(rows, "loader_wait_share")]:
        figures.append(("share of time waiting for data", f"{100 * sum(waits) / len(waits):.2f}%"))
    if skipped := numeric(rows[-1].get("skipped")):
        figures.append(("steps skipped, gradient not finite", number(skipped)))
    return figures


def _bands(rows: list[dict[str, Any]]) -> list[Band]:
    bands: list[Band] = []
    for row in rows:
        name = str(row.get("phase") or "")
        if bands and bands[-1].name == name:
            bands[-1] = Band(name, bands[-1].start, row["step"])
        else:
            bands.append(Band(name, bands[-1].stop if bands else row["step"] - 1, row["step"]))
    return bands if len(bands) > 1 else []


def _points(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["step"], value) for row in rows if (value := numeric(row.get(key))) is not None]


def _last_validation(rows: list[dict[str, Any]]) -> dict[str, float]:
    for row in reversed(rows):
        losses = {
            source: number
            for source, value in mapping(row.get("validation")).items()
            if (number := numeric(value)) is not None
        }
        if losses:
            return losses
    return {}


def _timings(run: RunView, curves: Sequence[tuple[StageView, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Return, per stage, when it ran within the run, what it cost and how fast it was."""
    start = numeric(run.record.get("started"))
    elapsed = _elapsed(run)
    trained = {stage.name: sum(value for _, value in _points(rows, "tokens")) for stage, rows in curves}
    rows = []
    for stage in run.stages:
        made_in = stage.made_in
        units, tokens = stage.counts.get("planned"), stage.counts.get("completion_tokens", stage.counts.get("tokens"))
        tokens = tokens or trained.get(stage.name)
        bar = None
        if start is not None and elapsed and stage.began is not None:
            left = min(max(0.0, (stage.began - start) / elapsed), 1.0)
            seconds = (stage.ended - stage.began) if stage.ended is not None else stage.seconds
            bar = (100 * left, max(0.4, 100 * min(seconds / elapsed, 1 - left)))
        rows.append({
            "stage": stage,
            "bar": bar,
            "made_in": made_in,
            "units": units / made_in if units and made_in else None,
            "tokens": numeric(stage.metrics.get("tokens_per_second")) or (tokens / made_in if tokens and made_in else None),
        })  # fmt: skip
    return rows


def _elapsed(run: RunView) -> float | None:
    """Return the run's seconds; of an unfinished one, up to its last event."""
    start, end = numeric(run.record.get("started")), numeric(run.record.get("finished"))
    if end is None:
        end = max((moment for event in run.events if (moment := numeric(event.get("time"))) is not None), default=None)
    return max(0.0, end - start) if start is not None and end is not None else None


def _number(value: Any, digits: int = 2) -> str:
    figure = numeric(value)
    return "–" if figure is None else number(figure, digits)


def _head(text: str) -> str:
    """Return the part of a long text that is shown before it is unfolded, cut between words; a short one whole."""
    if len(text) <= 1.3 * FOLD:
        return text
    cut = max(text.rfind(" ", 0, FOLD), text.rfind("\n", 0, FOLD))
    return text[: cut if cut > FOLD // 2 else FOLD]


def _share(value: float | None) -> str:
    if value is None:
        return "–"
    percent = 100 * value
    return f"{percent:.0f}%" if percent >= 10 or percent == 0 else f"{percent:.1f}%" if percent >= 0.1 else "< 0.1%"


def _moment(value: Any) -> str:
    seconds = numeric(value)
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds)) if seconds is not None else "–"


def _yaml(value: Any) -> str:
    return yaml_text(value) if isinstance(value, Mapping) else ""


def _packaged(name: str) -> str:
    return importlib.resources.files("hornbook").joinpath(name).read_text(encoding="utf-8")
