"""The wheel holds everything: installed elsewhere, hornbook runs from it without the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["platform", "generators", "classifiers", "training", "recipes"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignore)
    for path in [ROOT / "pyproject.toml", *ROOT.glob("README.md"), ROOT / "LICENSE"]:
        shutil.copy(path, folder / "source")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(folder / "source"))
    [built] = folder.glob("hornbook-*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a folder of its own; its dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def command(site: Path, folder: Path, *arguments: str) -> str:
    """Run a console script of the installed wheel in a folder that has nothing to do with the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(site), "HORNBOOK_STORE": str(folder / "store")}
    script = str(site / "bin" / arguments[0])
    done = subprocess.run([script, *arguments[1:]], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_source_file_and_recipe_is_in_the_wheel(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    targets = {"platform/hornbook": "hornbook", "recipes": "hornbook/recipes"}
    targets |= {name: name for name in ("generators", "classifiers", "training")}
    for source, target in targets.items():
        wanted = [path for path in (ROOT / source).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert wanted
        missing = [path for path in wanted if f"{target}/{path.relative_to(ROOT / source).as_posix()}" not in inside]
        assert missing == []
    tops = {name.split("/")[0] for name in inside}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "hornbook",
        "generators",
        "classifiers",
        "training",
    }


def test_the_installed_wheel_is_what_runs(site: Path, tmp_path: Path) -> None:
    code = "import hornbook, generators, training; print(hornbook.__file__, generators.__file__, training.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert all(path.startswith(str(site)) for path in done.stdout.split()), done.stdout + done.stderr


def test_recipes_run_by_name_from_the_wheel(site: Path, tmp_path: Path) -> None:
    shipped = [path.stem for path in (ROOT / "recipes").glob("*.yaml")]
    assert "demo" in shipped
    listed = command(site, tmp_path, "hornbook", "recipes")
    assert all(name in listed for name in shipped)
    assert "stories" in command(site, tmp_path, "hornbook", "run", "demo", "--dry-run")
    assert "--recipe" in command(site, tmp_path, "generate-textbooks", "--help")
    assert "--recipe" in command(site, tmp_path, "train-phi-style", "--help")
    assert not (tmp_path / "store" / "artifacts").exists()


def test_a_job_submitted_from_the_wheel_ships_the_wheels_code(wheel: Path, site: Path, tmp_path: Path) -> None:
    """`hornbook submit` stages the code that runs; laid out like the checkout, so that the job's id is the same."""
    code = (
        "import shutil\n"
        "from hornbook.jobs import staged_code\n"
        "from hornbook.recipe import recipe_names\n"
        "with staged_code(recipe_names()['demo']) as (folder, recipe):\n"
        "    assert (folder / recipe).is_file()\n"
        "    shutil.copytree(folder, 'staged')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    packages = ("platform/hornbook", "generators", "classifiers", "training")
    for package in packages:
        assert contents(tmp_path / "staged" / package) == contents(wheel.parent / "source" / package)
    assert {path.name for path in (tmp_path / "staged").iterdir()} == {name.split("/")[0] for name in packages} | {
        "recipes"
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
