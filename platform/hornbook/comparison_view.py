"""What the report shows of a comparison of variants: means with error bars, differences paired by seed, and the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hornbook.interval_chart import Interval, interval_chart
from hornbook.run_view import RunView, mapping, numeric, sequence

COLOURS = 8


def comparisons(run: RunView) -> list[dict[str, Any]]:
    """Return, per stage that compared variants, a chart and a table for each held-out corpus."""
    found = []
    for stage in run.stages:
        value = mapping(stage.metrics.get("comparison"))
        corpora = [_corpus(name, mapping(entry), value) for name, entry in mapping(value.get("corpora")).items()]
        if shown := [corpus for corpus in corpora if corpus]:
            found.append(
                {
                    "stage": stage,
                    "corpora": shown,
                    "baseline": str(value.get("baseline")),
                    "seeds": numeric(value.get("seeds")),
                    "training": _training(mapping(value.get("training"))),
                }
            )
    return found


def _corpus(name: str, entry: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any] | None:
    variants = {variant: mapping(figures) for variant, figures in mapping(entry.get("variants")).items()}
    colours = {variant: f"c{place % COLOURS}" for place, variant in enumerate(variants)}
    unit = str(value.get("unit") or "loss")
    means = [_interval(variant, colours[variant], figures) for variant, figures in variants.items()]
    apart = [
        _interval(variant, colours[variant], mapping(figures["difference"]))
        for variant, figures in variants.items()
        if "difference" in figures
    ]
    if not means or None in means or None in apart:
        return None
    return {
        "name": name,
        "groups": numeric(entry.get("groups")),
        "bytes": numeric(entry.get("bytes")),
        "chart": interval_chart(
            [row for row in means if row],
            label=f"Loss on {name} by variant, mean and 95% interval over seeds",
            x_label=f"{unit}, lower is better",
        ),
        "differences": interval_chart(
            [row for row in apart if row],
            label=f"Difference on {name} to {value.get('baseline')}, paired by seed, mean and 95% interval",
            x_label=f"{unit}, difference to {value.get('baseline')}",
            zero=True,
        ),
        "rows": [
            {
                "name": row.name,
                "colour": row.colour,
                "mean": row,
                "apart": next((other for other in apart if other and other.name == row.name), None),
                "groups": _over_groups(mapping(variants[row.name].get("over_groups"))),
            }
            for row in means
            if row
        ],
    }


def _interval(name: str, colour: str, figures: Mapping[str, Any]) -> Interval | None:
    mean, low, high = (numeric(figures.get(key)) for key in ("mean", "low", "high"))
    values = [found for value in sequence(figures.get("values")) if (found := numeric(value)) is not None]
    return None if mean is None else Interval(name, colour, mean, low, high, values)


def _over_groups(figures: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: numeric(figures.get(name)) for name in ("low", "high", "better", "groups")}


def _training(value: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, float | None]], str]]:
    """Return of each variant what its models were trained on: figures of the first seed's, and its epochs in words."""
    rows = []
    for name, models in value.items():
        first = mapping(next(iter(sequence(models)), None))
        epochs = [
            f"{source} {found:.2f}"
            for source, count in mapping(first.get("epochs")).items()
            if (found := numeric(count)) is not None
        ]
        figures = [(key, numeric(first.get(key))) for key in ("parameters", "steps", "tokens", "loss")]
        rows.append((name, figures, ", ".join(epochs)))
    return rows
