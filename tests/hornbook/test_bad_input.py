"""What goes wrong outside is said in one message with the cure, by the command line, and nothing half-made counts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Answer, write_recipe


def test_help_of_every_command_has_examples_and_loads_nothing_heavy() -> None:
    program = """
import sys
from typer.main import get_command
from typer.testing import CliRunner
import generators.cli, training.cli, typer
from hornbook.cli import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
pages = {name: CliRunner().invoke(app, [name, "--help"]).output for name in get_command(app).commands}
for module, function in (("generators", generators.cli.generate), ("training", training.cli.train)):
    one = typer.Typer()
    one.command()(function)
    pages[module] = CliRunner().invoke(one, ["--help"]).output
print(sorted(name for name, page in pages.items() if "Example" not in page), len(pages))
print(sorted({"torch", "ray", "vllm", "transformers", "pyarrow", "numpy", "sklearn", "jinja2"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    without, heavy = done.stdout.splitlines()
    assert without == "[] 24"
    assert heavy == "[]"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rwos": 3}, "did you mean 'rows'"),
        ({"rows": "many"}, "stages.stories.rows"),
        ({"inputs": {"documents": "stories"}}, "has no such input"),
        ({"kind": "storys"}, "did you mean 'stories'"),
        ({"kind": "questions", "rows": 5, "inputs": {"documents": "stories"}}, "in a circle"),
        ({"kind": "questions"}, "needs this input"),
        ({"engine": {"kind": "vllm", "model": "smollm-135m-instruct"}}, "did you mean 'smollm2-135m-instruct'"),
        ({"engine": {"kind": "vllm", "model": "./no/such/folder"}}, "./no/such/folder"),
    ],
)
def test_a_wrong_recipe_is_named_with_the_place(
    hornbook: Callable[..., Answer], tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    answer = hornbook("run", write_recipe(tmp_path, **settings))
    assert answer.code == 2
    assert said in answer.err
    assert answer.err.count("error:") == 1
    assert "Traceback" not in answer.err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "dmeo"], "no recipe 'dmeo' (did you mean 'demo'?)"),
        (["run", "recipe.yaml", "--set", "stages.stories.rows"], "is not key=value"),
        (["run", "recipe.yaml", "--set", "stages.storis.rows=3"], "did you mean 'stories'"),
        (["run", "recipe.yaml", "--from", "storie"], "did you mean 'stories'"),
        (["stages", "storys"], "did you mean 'stories'"),
        (["run"], "Missing argument"),
        (["rnu"], "No such command"),
        (["gc", "--keep", "some"], "Invalid value for"),
        (["gc", "--keep", "-1", "--delete"], "Invalid value for '--keep'"),
        (["show", "latest/stories", "--rows", "-5"], "Invalid value for '--rows'"),
        (["sample", "m", "--prompt", "x", "--max-tokens", "0"], "Invalid value for '--max-tokens'"),
        (["sample", "m", "--prompt", "x", "--temperature", "-1"], "Invalid value for '--temperature'"),
        (["sample", "m", "--prompt", "x", "--top-p", "1.5"], "Invalid value for '--top-p'"),
        (["sample", "m", "--prompt", "x", "--seed", "-1"], "Invalid value for '--seed'"),
    ],
)
def test_a_wrong_command_is_named(
    hornbook: Callable[..., Answer], tmp_path: Path, arguments: list[str], said: str
) -> None:
    write_recipe(tmp_path)
    answer = hornbook(*arguments)
    assert answer.code == 2
    assert said in " ".join(answer.err.replace("│", " ").split())
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "nothing"], "no artifact 'nothing'"),
        (["show", "latest/stories"], "no run 'latest'"),
        (["trace", "abcdef"], "has a key 'abcdef'"),
        (["trace", "not-hex"], "not a document key"),
        (["logs", "latest"], "no run 'latest'"),
        (["report", "small-2026"], "no run 'small-2026'"),
        (["stop"], "no run 'latest'"),
        (["sample", "nothing", "--prompt", "x"], "nothing"),
    ],
)
def test_what_is_not_there_is_said(hornbook: Callable[..., Answer], arguments: list[str], said: str) -> None:
    answer = hornbook(*arguments)
    assert answer.code in (1, 2)
    assert said in answer.err
    assert "cure:" in answer.err
    assert "Traceback" not in answer.err


def test_looking_at_an_empty_store_is_no_error(hornbook: Callable[..., Answer]) -> None:
    assert [hornbook(command).code for command in ("ls", "status", "gc", "stages", "recipes")] == [0] * 5


def test_a_broken_recipe_of_this_folder_is_named_and_the_others_are_listed(
    hornbook: Callable[..., Answer], tmp_path: Path
) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "torn.yaml").write_text("name: [torn\nstages: {")
    (folder / "latin.yaml").write_bytes(b"description: caf\xe9")
    (folder / "list.yaml").write_text("[1, 2]")
    (folder / "number.yaml").write_text("{name: number, stages: 5}")
    (folder / "marks.yaml").write_text("{name: marks, description: 'of [/b] :smile:', stages: {one: {kind: stories}}}")
    answer = hornbook("recipes")
    assert answer.code == 0
    assert "Traceback" not in answer.err
    for name, said in {"torn": "unreadable", "latin": "unreadable", "list": "no recipe", "number": "no recipe"}.items():
        assert f"({said}) recipes/{name}.yaml" in answer.out
    assert "of [/b] :smile:" in answer.out
    assert "everything, small" in answer.out


def test_from_shows_in_the_dry_run(hornbook: Callable[..., Answer], tmp_path: Path, ray_cluster: None) -> None:
    path = tmp_path / "two.yaml"
    stages = {
        "stories": {"kind": "stories", "rows": 8},
        "textbooks": {"kind": "textbooks", "rows": 8},
        "questions": {"kind": "questions", "inputs": {"documents": "textbooks"}},
    }
    path.write_text(yaml.safe_dump({"name": "two", "engine": {"kind": "echo"}, "stages": stages}))
    assert hornbook("run", str(path)).code == 0
    assert "0 to make, 3 reused" in hornbook("run", str(path), "--dry-run").out
    again = hornbook("run", str(path), "--from", "textbooks", "--dry-run").out
    assert "2 to make, 1 reused" in again
    assert [f"{name} [{state}]" in again for name, state in (("textbooks", "make"), ("stories", "exists"))] == [
        True
    ] * 2
    assert "questions [make]" in again
    assert "0 to make, 3 reused" in hornbook("run", str(path), "--dry-run").out


def test_a_store_that_cannot_be_a_folder(
    hornbook: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HORNBOOK_STORE", str(tmp_path / "file" / "store"))
    answer = hornbook("run", write_recipe(tmp_path))
    assert answer.code == 1
    assert "HORNBOOK_STORE" in answer.err
    assert "Traceback" not in answer.err


def test_damage_is_named_with_its_cure(hornbook: Callable[..., Answer], tmp_path: Path, ray_cluster: None) -> None:
    recipe = write_recipe(tmp_path, rows=40)
    assert hornbook("run", recipe).code == 0
    (manifest,) = (tmp_path / "store" / "artifacts").glob("*/manifest.json")
    whole = manifest.read_text()
    for broken in (whole[: len(whole) // 2], "{}", "[1]"):
        manifest.write_text(broken)
        for command in (["run", recipe], ["show", "latest/stories"]):
            answer = hornbook(*command)
            assert answer.code == 1
            assert "manifest.json is damaged" in answer.err
            assert "delete" in answer.err
            assert "Traceback" not in answer.err
        listed = hornbook("ls")
        assert listed.code == 0
        assert "(damaged)" in listed.out
    manifest.write_text(json.dumps({**json.loads(whole), "format_version": 99}))
    answer = hornbook("run", recipe)
    assert (answer.code, "newer hornbook" in answer.err) == (1, True)
    record = next((tmp_path / "store" / "runs").glob("*/run.json"))
    record.write_text("{")
    for arguments in (["status"], ["logs", record.parent.name]):
        answer = hornbook(*arguments)
        assert "Traceback" not in answer.err
        assert record.parent.name in answer.out + answer.err
