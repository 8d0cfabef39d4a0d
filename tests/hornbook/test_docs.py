"""The documents say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from hornbook.describe import settings_page
from hornbook.recipe import check_recipe
from hornbook.settings import validate
from hornbook.stages import stage_class

ROOT = Path(__file__).parents[2]


def test_the_settings_page_is_generated_from_the_code() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run `python -m hornbook.describe > docs/settings.md`"


def test_the_example_recipes_are_right() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8"), re.DOTALL)
    bedtime, checked = (check_recipe(yaml.safe_load(block), "docs/recipes.md") for block in blocks)
    assert (bedtime.name, checked.name) == ("bedtime", "checked-rewrites")
    judge = checked.stages["rewrites"].stage.settings.judge
    assert (judge.kind, judge.max_money, checked.stages["textbooks"].stage.settings.engine.prefix_order) == (
        "openai", 20, True,
    )  # fmt: skip


WITH_EXAMPLES = [
    "classifiers.md",
    *sorted(
        f"{folder}/{path.name}"
        for folder in ("classifiers", "training")
        for path in (ROOT / "docs" / folder).glob("*.md")
    ),
]


@pytest.mark.parametrize("page", WITH_EXAMPLES)
def test_the_pages_examples_are_right(page: str) -> None:
    stages = [
        (f"{page}: {name}", dict(entry))
        for block in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
        for name, entry in (yaml.safe_load(block).get("stages") or yaml.safe_load(block)).items()
        if isinstance(entry, dict) and "kind" in entry
    ]
    assert stages
    for where, entry in stages:
        kind = stage_class(entry.pop("kind"), where)
        assert entry.pop("inputs", {}).keys() <= kind.inputs.keys(), where
        validate(kind.Settings, entry, where)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *[str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")]]
)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"
