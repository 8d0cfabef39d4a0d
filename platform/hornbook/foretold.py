"""Estimate against actual: what `hornbook estimate` foretold of a run's stages, beside what they came to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hornbook.charts import number
from hornbook.engines.usage import MONEY
from hornbook.progress import duration, money, size
from hornbook.run_view import RunView, StageView, mapping, numeric


def foretold(run: RunView) -> list[dict[str, Any]]:
    """Return, per stage that was estimated and is finished, each figure's estimate, its interval and what it came to."""
    rows = []
    for stage in run.stages:
        estimate = run.estimates.get(stage.name)
        if estimate is None or stage.manifest is None:
            continue
        found, asked = stage.manifest.model_dump(mode="json"), mapping(estimate.get("identity"))
        same = all(found.get(name) == asked.get(name) for name in ("kind", "seed", "settings"))
        rows.append({"stage": stage, "same": same, "figures": _figures(stage, estimate) if same else []})
    return rows


def _figures(stage: StageView, estimate: Mapping[str, Any]) -> list[dict[str, Any]]:
    told = {**mapping(estimate.get("figures")), "acceptance": estimate.get("acceptance")}
    planned, kept = stage.counts.get("planned"), stage.counts.get("rows", 0)
    figures: list[tuple[str, str, float | None, Callable[[float], str]]] = [
        ("rows", "rows", kept, _whole),
        ("acceptance", "acceptance", kept / planned if planned else None, lambda share: f"{share:.1%}"),
        ("tokens read", "prompt_tokens", stage.counts.get("prompt_tokens"), _whole),
        ("tokens written", "completion_tokens", stage.counts.get("completion_tokens"), _whole),
        ("money", "money", stage.counts.get(MONEY, 0.0), money),
        ("time", "seconds", stage.made_in, duration),
        ("disk", "disk", stage.disk, size),
    ]
    return [
        figure
        for name, key, actual, write in figures
        if (figure := _figure(name, mapping(told.get(key)), actual, write)) is not None
    ]


def _figure(
    name: str, told: Mapping[str, Any], actual: float | None, write: Callable[[float], str]
) -> dict[str, Any] | None:
    value, low, high = (numeric(told.get(end)) for end in ("value", "low", "high"))
    if value is None or low is None or high is None or actual is None or (name == "money" and not value and not actual):
        return None
    return {
        "name": name, "told": write(value), "low": write(low), "high": write(high), "actual": write(actual),
        "share": actual / value if value else None, "inside": low <= actual <= high,
    }  # fmt: skip


def _whole(count: float) -> str:
    return number(round(count))
