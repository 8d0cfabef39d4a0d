"""What a run's engines with prices cost: what the artifacts' rows were bought for, and what this run paid.

The two differ: rows of an earlier attempt were paid for by an earlier run, and a run pays, too, for replies that reach no row
(a part whose other half failed, a reply without a text).
"""

from __future__ import annotations

from typing import Any

from hornbook.engines.usage import MONEY
from hornbook.progress import money
from hornbook.run_view import RunView, StageView, numeric


def spending(run: RunView) -> list[dict[str, Any]]:
    """Return, per stage whose engines have prices: the tokens and money of its rows by engine, and what this run paid."""
    paid: dict[str, float] = {}
    for event in run.events:
        if event.get("event") == "engine-used":
            stage = str(event.get("stage"))
            paid[stage] = paid.get(stage, 0.0) + (numeric(event.get(MONEY)) or 0.0)
    return [
        {"stage": stage, "engines": _engines(stage), "paid": money(paid.get(stage.name, 0.0))}
        for stage in run.stages
        if numeric(stage.counts.get(MONEY)) or paid.get(stage.name)
    ]


def spent(run: RunView) -> float:
    """Return what the rows of the run's artifacts were bought for."""
    return sum(numeric(stage.counts.get(MONEY)) or 0.0 for stage in run.stages)


def _engines(stage: StageView) -> list[dict[str, Any]]:
    """Return tokens and money of each engine that a stage asked; in all, where it asked one."""
    names = sorted(
        {field for name in stage.counts for field in name.split(":")[1:] if name.startswith("prompt_tokens:")}
    )
    return [
        {
            "name": name,
            "read": stage.counts.get(f"prompt_tokens{end}", 0),
            "written": stage.counts.get(f"completion_tokens{end}", 0),
            "money": money(stage.counts.get(f"{MONEY}{end}", 0.0)),
        }
        for name, end in ([(name, f":{name}") for name in names] or [("engine", "")])
    ]
