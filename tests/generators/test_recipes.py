"""The small recipes of the kinds: right, and with a plan, without anything run."""

from __future__ import annotations

from pathlib import Path

import pytest

from hornbook.pipeline import plan_recipe
from hornbook.recipe import load_recipe
from hornbook.store import Store

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    "name", ["tinystories", "textbooks", "story-instructions", "web-textbooks", "rewrites", "chats"]
)
def test_a_recipe_is_right_and_plans_something(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(str(RECIPES / f"{name}.yaml"), ["engine.kind=echo"])
    planned = plan_recipe(recipe, Store(str(tmp_path)))
    assert recipe.name == name.replace("_", "-")
    assert not any(stage.complete for stage in planned.values())
    assert all((stage.expected.planned or 0) > 0 for stage in planned.values())
