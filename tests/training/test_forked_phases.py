"""What `hornbook fork` leaves of the phases that a branch begins in: budgets, ramps, learning rates of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hornbook.errors import RecipeError
from hornbook.fork import fork
from hornbook.runs import RECORD, RUNS
from hornbook.store import Store
from training.mixture import PhaseSettings


def phases_behind(folder: Path, step: int, phases: list[dict[str, Any]], *settings: str) -> list[PhaseSettings]:
    """Return the phases of a branch of a run whose step takes 1,000 tokens."""
    stages: dict[str, Any] = {
        "web": {"kind": "installed-python", "files": 4},
        "books": {"kind": "installed-python", "files": 4},
        "tokenizer": {"kind": "tokenizer", "inputs": {"documents": ["web"]}},
        "pack-web": {"kind": "pack", "inputs": {"documents": "web", "tokenizer": "tokenizer"}},
        "pack-books": {"kind": "pack", "inputs": {"documents": "books", "tokenizer": "tokenizer"}},
        "pretrain": {
            "kind": "pretrain", "phases": phases,
            "inputs": {"tokens": ["pack-web", "pack-books"], "tokenizer": "tokenizer"},
            "loop": {"global_batch": 10, "sequence_length": 100},
        },
    }  # fmt: skip
    record = {"run": "r", "recipe": "r", "state": "done", "started": 1.0, "finished": 2.0}
    record["source"] = {"name": "r", "seed": 1, "stages": stages}
    record["stages"] = {"pretrain": {"folder": "artifacts/pretrain-1"}}
    store = Store(str(folder))
    store.write_json(f"{RUNS}/r/{RECORD}", record)
    branched = fork(store, f"r@{step}", settings=settings)
    return list(branched.recipe.stages[branched.stage].stage.settings.phases)  # type: ignore[attr-defined]


def test_budgets_are_cut_by_what_was_trained(tmp_path: Path) -> None:
    phases = [{"name": "stable", "tokens": {"web": 6_000, "books": 2_000}}, {"name": "decay", "tokens": {"web": 4_000}}]
    first, second = phases_behind(tmp_path, 6, phases)
    assert first.tokens == {"web": 1_500, "books": 500} and second.tokens == {"web": 4_000}
    (only,) = phases_behind(tmp_path, 11, phases)
    assert only.name == "decay" and only.tokens == {"web": 1_000}
    with pytest.raises(RecipeError, match="nothing follows step 12"):
        phases_behind(tmp_path, 12, phases)


def test_a_ramp_goes_on_from_where_it_is(tmp_path: Path) -> None:
    ramp = {"name": "ramp", "steps": 8, "weights": {"web": 3, "books": 1}, "end_weights": {"books": 2}}
    (rest,) = phases_behind(tmp_path, 2, [ramp])
    assert rest.steps == 6 and rest.end_weights == {"books": 2}
    assert rest.weights == pytest.approx({"web": 0.5625, "books": 0.4375})
    del ramp["weights"]
    with pytest.raises(RecipeError, match="weights move from the corpora's sizes"):
        phases_behind(tmp_path, 2, [ramp])


def test_a_learning_rate_that_began_to_move_does_not_begin_anew(tmp_path: Path) -> None:
    decay = {"name": "decay", "steps": 8, "schedule": {"kind": "linear"}, "learning_rate": 1e-4}
    stable = {"name": "stable", "steps": 4, "schedule": {"kind": "constant", "warmup_steps": 2}}
    with pytest.raises(RecipeError, match="2 steps into phase 'decay'"):
        phases_behind(tmp_path, 6, [stable, decay])
    with pytest.raises(RecipeError, match="1 steps into phase 'stable'"):
        phases_behind(tmp_path, 1, [stable, decay])
    assert [phase.steps for phase in phases_behind(tmp_path, 3, [stable, decay])] == [1, 8]
    (said,) = phases_behind(tmp_path, 6, [stable, decay], "phases=[{name: more, steps: 3}]")
    assert said.steps == 3
