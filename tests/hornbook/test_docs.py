"""The documents say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from hornbook.describe import settings_page
from hornbook.recipe import check_recipe

ROOT = Path(__file__).parents[2]


def test_the_settings_page_is_generated_from_the_code() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run `python -m hornbook.describe > docs/settings.md`"


def test_the_example_recipe_is_right() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8"), re.DOTALL)
    assert check_recipe(yaml.safe_load(block), "docs/recipes.md").name == "bedtime"


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *[str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")]]
)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"
