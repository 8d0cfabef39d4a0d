"""Estimate against actual: what `hornbook estimate` foretold of a run's stages, beside what they came to."""

from __future__ import annotations

from typing import Any

from hornbook.charts import number
from hornbook.progress import duration, size
from hornbook.run_view import RunView, mapping, numeric


def foretold(run: RunView) -> list[dict[str, Any]]:
    """Return, per stage that was estimated and is finished, each figure's estimate, its interval and what it came to."""
    rows = []
    for stage in run.stages:
        estimate = run.estimates.get(stage.name)
        if estimate is None or stage.manifest is None:
            continue
        found, asked = stage.manifest.model_dump(mode="json"), mapping(estimate.get("identity"))
        same = all(found.get(name) == asked.get(name) for name in ("kind", "seed", "settings"))
        actual = {
            "rows": stage.counts.get("rows"),
            "tokens": stage.counts.get("completion_tokens"),
            "time": stage.made_in,
            "disk": stage.disk,
        }
        names = {"tokens": "completion_tokens", "time": "seconds"}
        figures = []
        for name, value in actual.items():
            quantity = mapping(mapping(estimate.get("figures")).get(names.get(name, name)))
            told, low, high = (numeric(quantity.get(end)) for end in ("value", "low", "high"))
            if told is not None and low is not None and high is not None and value is not None:
                write = {"time": duration, "disk": size}.get(name, lambda count: number(round(count)))
                figures.append({
                    "name": name, "told": write(told), "low": write(low), "high": write(high), "actual": write(value),
                    "share": value / told if told else None, "inside": low <= value <= high,
                })  # fmt: skip
        rows.append({"stage": stage, "same": same, "figures": figures if same else []})
    return rows
