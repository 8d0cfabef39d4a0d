"""The recipes that ship: right, named as their files, and with a plan, without anything run."""

from __future__ import annotations

from pathlib import Path

import pytest

from generators.prompted import PromptedStage
from hornbook.pipeline import plan_recipe
from hornbook.recipe import load_recipe
from hornbook.stages import STAGES
from hornbook.store import Store

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_is_right_and_plans_something(file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(file), ["engine.kind=echo"])
    planned = plan_recipe(recipe, Store(str(tmp_path)))
    assert recipe.name == file.stem and recipe.description
    assert list(planned) == list(recipe.stages)
    assert not any(stage.complete for stage in planned.values())
    generated = [name for name, entry in recipe.stages.items() if isinstance(entry.stage, PromptedStage)]
    read = [name for name, entry in recipe.stages.items() if not entry.inputs]
    assert generated or read, "every recipe writes something, or reads it"
    assert all((planned[name].expected.planned or 0) > 0 for name in generated or read)


def test_every_kind_of_generated_text_has_a_recipe() -> None:
    kinds = {entry.stage.kind for file in RECIPES for entry in load_recipe(str(file)).stages.values()}
    assert {kind for kind, place in STAGES.items() if place.startswith("generators.")} <= kinds
    assert {file.stem for file in RECIPES} >= set(STAGES) & {
        "questions",
        "chats",
        "exercises",
        "rewrites",
        "preferences",
    }
