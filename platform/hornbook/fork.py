"""`hornbook fork`: from a step of a training run to a recipe with one more stage, which branches off there.

The branch is a stage beside the one that it branches off from, so one recipe, and one report, may hold many.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hornbook.artifact import ARTIFACTS, Artifact
from hornbook.errors import RecipeError, StoreError
from hornbook.recipe import Recipe, check_recipe, override_setting
from hornbook.runs import Run, load_run
from hornbook.settings import nearest
from hornbook.store import Store

SETTING = "fork"


@dataclass(frozen=True)
class Fork:
    """A recipe with a branch.

    Attributes:
        recipe: the run's own, with the branch added.
        stage: the branch's name in it.
        shown: the branch, and what the report is to show beside it: its trunk and other branches, as far as they are made.
    """

    recipe: Recipe
    stage: str
    shown: Sequence[str]


def fork(store: Store, place: str, name: str = "", settings: Sequence[str] = ()) -> Fork:
    """Return the recipe of a run with a stage added that branches off from a training step.

    Args:
        place: RUN[/STAGE]@STEP; without a stage the last one that can be branched off from.
        name: of the branch; the stage is called STAGE-NAME.
        settings: `key.path=value`, of the branch; by default it is trained as its trunk would have been.

    Raises:
        StoreError: there is no such run or stage, or it has not begun.
        RecipeError: nothing follows the step, or only the user can say what; the stage's name is taken, or a setting is wrong.
    """
    where, _, number = place.partition("@")
    if not number.isdigit() or not int(number):
        raise StoreError(f"{place!r} is not RUN@STEP", "for example latest@1000, or latest/pretrain@1000")
    step = int(number)
    run_name, _, stage = where.partition("/")
    run = load_run(store, run_name)
    recipe = check_recipe(run.value["source"], f"{run.folder}/run.json")
    able = [other for other, entry in recipe.stages.items() if SETTING in type(entry.stage.settings).model_fields]
    stage = stage or (able[-1] if able else "")
    if stage not in able:
        raise StoreError(
            f"run {run.id} has no stage {stage!r} to branch off from{nearest(stage, able) if able else ''}"
        )
    folder = _folder(run, stage)
    if not folder:
        raise StoreError(f"{stage} of run {run.id} has not begun", "`hornbook status` shows what runs")
    branch = f"{stage}-{name or f'at-{step}'}"
    source = copy.deepcopy(dict(run.value["source"]))
    if branch in source["stages"]:
        raise RecipeError(f"there is a stage {branch} in the recipe of {run.id}", "give another --name")
    value = {**copy.deepcopy(source["stages"][stage]), SETTING: f"{folder.removeprefix(f'{ARTIFACTS}/')}@{step}"}
    own_phases = any(setting.partition("=")[0].strip() == "phases" for setting in settings)
    value["phases"] = (
        [] if own_phases else _remaining(source["stages"][stage], recipe.stages[stage].stage.settings, step)
    )
    source["stages"][branch] = value
    for setting in settings:
        override_setting(source, f"stages.{branch}.{setting}")
    if not value["phases"]:
        raise RecipeError(
            f"nothing follows step {step} of {stage}", "say what: --set 'phases=[{name: more, steps: 100}]'"
        )
    beside = [other for other in able if (made := _folder(run, other)) and Artifact(store, made).complete]
    return Fork(check_recipe(source, f"the recipe of {run.id} with {branch}"), branch, [*beside, branch])


def _folder(run: Run, stage: str) -> str:
    return str(run.value["stages"].get(stage, {}).get("folder", ""))


def _remaining(raw: Mapping[str, Any], settings: Any, step: int) -> list[dict[str, Any]]:
    """Return what is left of a stage's phases behind a step; they begin where its own trunk, if it has one, ends.

    Args:
        raw: the stage's settings as they stand in the recipe.
        settings: the same, checked.

    Raises:
        RecipeError: as `_rest`.
    """
    done = step - int(str(raw.get(SETTING) or "@0").rpartition("@")[2])
    step_tokens = settings.loop.global_batch * settings.loop.sequence_length
    found = []
    for phase, checked in zip(raw["phases"], settings.phases, strict=True):
        steps = checked.expected_steps(step_tokens)
        if steps > done:
            found.append(_rest(phase, steps, done) if done > 0 else dict(phase))
        done -= steps
    return found


def _rest(phase: Mapping[str, Any], steps: int, done: int) -> dict[str, Any]:
    """Return a phase without its first steps: less of its budgets, and a ramp from where it is by then.

    Raises:
        RecipeError: what is left cannot be said as a phase: a learning rate that began to move in it would begin anew.
    """
    schedule = phase.get("schedule")
    if schedule and (schedule.get("kind") != "constant" or done < schedule.get("warmup_steps", 0)):
        raise RecipeError(
            f"the branch would begin {done} steps into phase {phase['name']!r}, which has a schedule of its own",
            "branch off where the phase begins or ends, or say what follows: --set 'phases=[{...}]'",
        )
    if budgets := phase.get("tokens"):
        return {**phase, "tokens": {name: tokens * (steps - done) / steps for name, tokens in budgets.items()}}
    rest = {**phase, "steps": steps - done}
    if end := phase.get("end_weights"):
        begin = phase.get("weights")
        if not begin:
            raise RecipeError(
                f"the branch would begin {done} steps into phase {phase['name']!r}, whose weights move from the corpora's sizes",
                "say what follows: --set 'phases=[{...}]'",
            )
        names, along = {**begin, **end}, done / steps
        first, last = (
            {name: weights.get(name, 0) / sum(weights.values()) for name in names} for weights in (begin, end)
        )
        rest["weights"] = {name: first[name] + (last[name] - first[name]) * along for name in names}
    return rest
