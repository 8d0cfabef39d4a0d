"""Every example in a command's help and in the README can be typed as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

import generators.cli
import training.cli
from hornbook.cli import app
from hornbook.jobs import ENTRY_POINTS
from hornbook.recipe import Recipe, load_recipe, recipe_names
from hornbook.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]


def commands() -> dict[str, Any]:
    """Command line's first words -> the parsed command."""
    found = {f"hornbook {name}": command for name, command in get_command(app).commands.items()}  # type: ignore[attr-defined]
    for name, function in (("generate-textbooks", generators.cli.generate), ("train-phi-style", training.cli.train)):
        one = typer.Typer()
        one.command()(function)
        found[name] = get_command(one)
    return found


COMMANDS = commands()


def help_examples() -> list[str]:
    found = []
    for name, command in COMMANDS.items():
        lines = re.split(r"Examples?:\n", command.help)[1].splitlines()
        examples = [line.strip() for line in lines if line.startswith("    ")]
        assert examples, f"{name} --help has no example"
        found += examples
    return found


def readme_examples() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"hornbook |generate-textbooks |train-phi-style |ray job submit ", line)]


def test_the_readme_shows_the_commands() -> None:
    assert len(readme_examples()) > 15


@pytest.mark.parametrize("example", sorted({*help_examples(), *readme_examples()}))
def test_an_example_can_be_typed_as_it_stands(example: str) -> None:
    words = shlex.split(example)
    if words[:3] == ["ray", "job", "submit"]:
        assert (ROOT / words[words.index("--runtime-env") + 1]).is_file()
        words = words[words.index("--") + 1 :]
    name = " ".join(words[:2]) if words[0] == "hornbook" else words[0]
    context = COMMANDS[name].make_context(name, words[len(name.split()) :])
    values = context.params
    recipe = planned(values["recipe"], values.get("settings") or []) if "recipe" in values else None
    if values.get("remake_from"):
        assert recipe is not None
        assert values["remake_from"] in recipe.stages
    if name == "hornbook stages" and values["kind"]:
        assert values["kind"] in STAGES
    if name == "hornbook submit":
        assert values["command"] in ENTRY_POINTS
    if name == "hornbook show" and "/" in values["artifact"]:
        assert values["artifact"].split("/")[1] in load_recipe("demo").stages
    if name == "hornbook sample" and "/" in values["model"]:
        assert load_recipe("demo").stages[values["model"].split("/")[1]].stage.produces == "model"


def planned(recipe: str, settings: list[str]) -> Recipe:
    assert recipe in recipe_names(), f"no recipe {recipe} ships"
    return load_recipe(recipe, settings)
