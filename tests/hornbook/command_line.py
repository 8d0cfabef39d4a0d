"""A command as the console script runs it, and what it left on the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RECIPE: dict[str, Any] = {
    "name": "small",
    "engine": {"kind": "echo"},
    "stages": {"stories": {"kind": "stories", "rows": 400, "part_rows": 20}},
}


@dataclass
class Answer:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


def write_recipe(folder: Path, **stories: Any) -> str:
    """Write a recipe of one stage of stories; return its path."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "stages": {"stories": {**RECIPE["stages"]["stories"], **stories}}}))
    return str(path)
