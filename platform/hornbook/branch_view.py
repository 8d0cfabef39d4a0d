"""What the report shows of training runs that branch off from one another: their curves in one chart, their losses in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hornbook.charts import COLOURS, Series, line_chart, thinned
from hornbook.run_view import RunView, StageView, mapping, numeric

Curve = tuple[StageView, list[dict[str, Any]]]


def branches(run: RunView, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return, per trunk that stages branch off from, a chart of validation loss and a table of where each one ended.

    The loss is the mean over the sources that all of them validate, or their figures could not be compared.
    """
    stages = mapping(mapping(run.record.get("source")).get("stages"))
    forks: dict[str, list[tuple[Curve, int]]] = {}
    for stage, rows in curves:
        trunk, _, step = str(mapping(stages.get(stage.name)).get("fork") or "").partition("@")
        if trunk and rows:
            forks.setdefault(trunk, []).append(((stage, rows), int(step)))
    found = []
    for trunk, children in forks.items():
        own = [(curve, 0) for curve in curves if curve[0].artifact and curve[0].artifact.folder.endswith(f"/{trunk}")]
        found.append(_family(own[0][0][0].name if own else trunk, [*own, *children]))
    return found


def _family(trunk: str, members: Sequence[tuple[Curve, int]]) -> dict[str, Any]:
    held_out = [{source for row in rows for source in mapping(row.get("validation"))} for (_, rows), _ in members]
    sources = sorted(set.intersection(*held_out))
    lines, table = [], []
    for number, ((stage, rows), step) in enumerate(members):
        points = [(row["step"], loss) for row in rows if (loss := _drawn(row, sources)) is not None]
        colour = f"c{number % COLOURS}"
        lines.append(
            Series(
                stage.name,
                colour,
                thinned([point for point in points if point[0] >= step]),
                marked=bool(sources),
            )
        )
        last = next((row for row in reversed(rows) if _mean(row, sources) is not None), {})
        table.append({
            "name": stage.name, "colour": colour, "step": step, "steps": rows[-1]["step"],
            "phases": ", ".join(dict.fromkeys(str(row.get("phase")) for row in rows if row["step"] > step)),
            "loss": numeric(rows[-1].get("loss")),
            "held_out": [numeric(mapping(last.get("validation")).get(source)) for source in sources],
            "mean": _mean(last, sources),
        })  # fmt: skip
    drawn = [line for line in lines if line.points]
    return {
        "trunk": trunk,
        "sources": sources,
        "table": table,
        "legend": [(line.name, line.colour) for line in drawn],
        "chart": line_chart(
            drawn,
            label=f"Loss of {trunk} and of what branches off from it, by optimizer step",
            x_label="optimizer step",
            y_label="validation loss, mean of sources" if sources else "training loss",
        ),
    }


def _drawn(row: Mapping[str, Any], sources: Sequence[str]) -> float | None:
    """Return the validation loss of a step; where nothing is held out, the training loss."""
    return _mean(row, sources) if sources else numeric(row.get("loss"))


def _mean(row: Mapping[str, Any], sources: Sequence[str]) -> float | None:
    losses = [numeric(mapping(row.get("validation")).get(source)) for source in sources]
    known = [loss for loss in losses if loss is not None]
    return sum(known) / len(known) if known and len(known) == len(losses) else None
