"""`hornbook fork`: branches of a real run, beside it in one report, each traced to what it read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_kills import RECIPE
from typer.testing import CliRunner

from hornbook.artifact import Artifact
from hornbook.cli import app
from hornbook.errors import HornbookError, RecipeError, StoreError
from hornbook.fork import fork
from hornbook.pipeline import run_recipe
from hornbook.recipe import check_recipe
from hornbook.runs import load_run
from hornbook.store import Store
from hornbook.trace import trace_token
from training.checkpoint import kept
from training.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def rows(artifact: Artifact) -> list[dict[str, Any]]:
    return list(read_metrics(artifact.local_folder() / "metrics.jsonl"))


def test_branches_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = copy.deepcopy(RECIPE)
    source["stages"]["pretrain"] |= {
        "phases": [{"name": "stable", "steps": 8}, {"name": "decay", "steps": 4}],
    }
    source["stages"]["pretrain"]["loop"] |= {"validate_every": 4, "checkpoint_every": 4, "milestone_every": 4}
    store = Store(str(tmp_path / "store"))
    monkeypatch.setenv("HORNBOOK_STORE", store.url)
    trunk = run_recipe(check_recipe(source, "test recipe"), store, say=lambda line: None).artifacts["pretrain"]
    for place, options, error, message in (
        ("latest@0", {}, StoreError, "is not RUN@STEP"),
        ("latest/pack@8", {}, StoreError, "no stage 'pack' to branch off from"),
        ("latest@12", {}, RecipeError, "nothing follows step 12"),
        ("latest@8", {"settings": ["fork=x@y"]}, RecipeError, "is not ARTIFACT@STEP"),
        ("latest@8", {"settings": ["loop.learnin_rate=1"]}, RecipeError, "did you mean 'learning_rate'"),
    ):
        with pytest.raises(error, match=message):
            fork(store, place, **options)  # type: ignore[arg-type]

    recipe = tmp_path / "branches.yaml"
    changes = ["--name", "more", "--set", "phases=[{name: more, steps: 3}]", "--set", "loop.learning_rate=3e-4"]
    done = CliRunner().invoke(app, ["fork", "latest@8", *changes, "--write", str(recipe)])
    assert done.exit_code == 0, done.output
    run = load_run(store, "latest")
    states = {name: stage["state"] for name, stage in run.value["stages"].items()}
    assert states["pretrain"] == "reused" and states["pretrain-more"] == "made"
    stages = yaml.safe_load(recipe.read_text())["stages"]
    assert stages["pretrain"] == source["stages"]["pretrain"]
    assert stages["pretrain-more"]["fork"] == f"{Path(trunk.folder).name}@8"
    more = Artifact(store, run.value["stages"]["pretrain-more"]["folder"])
    assert rows(more)[:8] == rows(trunk)[:8] and [row["step"] for row in rows(more)] == list(range(1, 12))
    assert [row["phase"] for row in rows(more)] == ["stable"] * 8 + ["more"] * 3
    assert more.manifest.metrics["fork"]["step"] == 8 and more.manifest.metrics["steps"] == 11
    parents = {found.parent.split("/checkpoints/")[0] for found in kept(more.local_folder() / "checkpoints")}
    assert parents == {trunk.folder}
    second = fork(store, "latest/pretrain@4", "same")
    assert second.shown == ["pretrain", "pretrain-more", "pretrain-same"]
    phases = second.recipe.stages["pretrain-same"].stage.settings.phases
    assert [(phase.name, phase.steps) for phase in phases] == [("stable", 4), ("decay", 4)]
    of_branch = fork(store, "latest/pretrain-more@10").recipe.stages["pretrain-more-at-10"].stage.settings
    assert [(phase.name, phase.steps) for phase in of_branch.phases] == [("more", 1)]
    assert of_branch.fork == f"{Path(more.folder).name}@10"
    with pytest.raises(RecipeError, match="give another --name"):
        fork(store, "latest/pretrain@8", "more")
    page = store.read(f"{run.folder}/report.html").decode()
    section = page[page.index('id="branches"') :]
    assert "Branches of pretrain" in section and "pretrain-more" in section

    traced = {stage: list(trace_token(store, f"latest/{stage}@8:3:17")) for stage in ("pretrain", "pretrain-more")}
    assert traced["pretrain"][1:] == traced["pretrain-more"][1:], "step 8 was the trunk's"
    assert "token" in next(trace_token(store, "latest/pretrain-more@11:3:17"))
    with pytest.raises(HornbookError, match="no position 17 in row 3 of step 12"):
        next(trace_token(store, "latest/pretrain-more@12:3:17"))
