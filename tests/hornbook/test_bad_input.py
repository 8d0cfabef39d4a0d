"""What goes wrong outside is said in one message with the cure, by the command line, and nothing half-made counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hornbook.artifact import Artifact
from hornbook.cli import app, guarded
from hornbook.store import Store

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


@pytest.fixture
def hornbook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """Run a command as the console script does, on a store in a temporary folder."""
    monkeypatch.setenv("HORNBOOK_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["hornbook", *arguments])
        capfd.readouterr()
        try:
            guarded(app)
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        printed = capfd.readouterr()
        return Answer(code, printed.out, printed.err)

    return run


def write_recipe(folder: Path, **stories: Any) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "stages": {"stories": {**RECIPE["stages"]["stories"], **stories}}}))
    return str(path)


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
    assert without == "[] 16"
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


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(
    hornbook: Callable[..., Answer],
    tmp_path: Path,
    small_disk: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    ray_cluster: None,
) -> None:
    disk = small_disk("size=400k")
    monkeypatch.setenv("HORNBOOK_STORE", str(disk / "store"))
    recipe = write_recipe(tmp_path, parts_in_flight=3)
    answer = hornbook("run", recipe)
    assert answer.code == 1
    assert "the disk is full: free space" in answer.err
    assert "Traceback" not in answer.err
    store = Store(str(disk / "store"))
    (name,) = store.names("artifacts")
    kept = store.names(f"artifacts/{name}/parts")
    assert 0 < len(kept) < 20
    assert not Artifact(store, f"artifacts/{name}").complete
    small_disk("remount,size=64m")
    assert hornbook("run", recipe).code == 0
    artifact = Artifact(store, f"artifacts/{name}")
    rows = [identifier >> 16 for table in artifact.tables(columns=["id"]) for identifier in table["id"].to_pylist()]
    rejects = [identifier for table in artifact.tables("rejects") for identifier in table["id"].to_pylist()]
    assert sorted(rows + rejects) == list(range(400))
    assert set(kept) <= set(store.names(f"artifacts/{name}/parts"))
    for part in artifact.parts:
        for file in part.files:
            assert store.size(f"{artifact.folder}/{file.name}") == file.size
    assert not list(disk.rglob(".writing-*"))


def test_a_read_only_store_is_said(
    hornbook: Callable[..., Answer], tmp_path: Path, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("size=400k")
    small_disk("remount,ro")
    monkeypatch.setenv("HORNBOOK_STORE", str(disk / "store"))
    answer = hornbook("run", write_recipe(tmp_path))
    assert answer.code == 1
    assert "the file system is read-only: choose another HORNBOOK_STORE" in answer.err
    assert "Traceback" not in answer.err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a tmpfs with options, or remount it; needs root, or sudo without a password."""
    disk = tmp_path / "disk"
    disk.mkdir()
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]

    def mount(options: str) -> Path:
        owner = "" if "remount" in options else f",uid={os.getuid()}"
        command = [*root, "mount", "-t", "tmpfs", "-o", options + owner, "tmpfs", str(disk)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return disk

    yield mount
    subprocess.run([*root, "umount", str(disk)], check=True)
