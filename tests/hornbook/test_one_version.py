"""A job runs one version of the code, or none at all."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hornbook.errors import HornbookError
from hornbook.one_version import STAGE_PACKAGES, check_roots, require_one_version, source_digest

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "platform" / "hornbook"


def tree(folder: Path, layout: str) -> Path:
    """Lay the code out as a checkout (`platform/hornbook`) or as an installation (`hornbook`) under `folder`."""
    ignore = shutil.ignore_patterns("__pycache__")
    for package in STAGE_PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=ignore)
    shutil.copytree(OURS, folder / layout, ignore=ignore)
    return folder


def roots(folder: Path) -> dict[str, Path]:
    return dict.fromkeys(STAGE_PACKAGES, folder)


def change(hornbook: Path) -> None:
    path = hornbook / "plan.py"
    path.write_text(path.read_text() + "\nCHANGED = True\n")


def test_platform_is_a_source_root_and_no_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    code = "import platform; print(platform.system())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "Linux", done.stderr


def test_this_checkout_is_one_version() -> None:
    require_one_version()


def test_an_installation_is_one_version(tmp_path: Path) -> None:
    site = tree(tmp_path, "hornbook")
    check_roots(site / "hornbook", roots(site))


def test_shipped_copies_of_one_version_pass_and_fast(tmp_path: Path) -> None:
    shipped = tree(tmp_path / "working_dir", "platform/hornbook")
    module = tree(tmp_path / "py_module", "hornbook") / "hornbook"
    began = time.perf_counter()
    for _ in range(5):
        check_roots(module, roots(shipped))
    assert (time.perf_counter() - began) / 5 < 0.1  # 4 ms here when the machine is idle


def test_stages_of_another_version_are_refused_with_both_places_and_the_cure(tmp_path: Path) -> None:
    shipped = tree(tmp_path, "platform/hornbook")
    change(shipped / "platform" / "hornbook")
    with pytest.raises(HornbookError) as refused:
        check_roots(OURS, roots(shipped))
    assert str(shipped / "generators") in refused.value.message
    assert str(OURS) in refused.value.message
    assert "clusters/runtime_env.yaml" in refused.value.cure


def test_stages_without_their_hornbook_are_refused(tmp_path: Path) -> None:
    shipped = tree(tmp_path, "platform/hornbook")
    shutil.rmtree(shipped / "platform")
    with pytest.raises(HornbookError, match="no hornbook beside it"):
        check_roots(OURS, roots(shipped))


def test_stages_from_two_trees_are_refused(tmp_path: Path) -> None:
    shipped = tree(tmp_path, "platform/hornbook")
    with pytest.raises(HornbookError, match="training from"):
        check_roots(OURS, {"generators": ROOT, "training": shipped})


def test_the_digest_sees_a_changed_a_new_and_a_renamed_file(tmp_path: Path) -> None:
    package = tree(tmp_path, "hornbook") / "hornbook"
    seen = {source_digest(package)}
    (package / "plan.py").rename(package / "plan2.py")
    seen.add(source_digest(package))
    (package / "new.py").write_text("")
    seen.add(source_digest(package))
    change_again = package / "plan2.py"
    change_again.write_text(change_again.read_text() + "#")
    seen.add(source_digest(package))
    assert len(seen) == 4


def test_a_command_refuses_to_run_a_mixture(tmp_path: Path) -> None:
    """What happened before the check: the working directory's stages with the installation's hornbook."""
    shipped = tree(tmp_path / "working_dir", "platform/hornbook")
    change(shipped / "platform" / "hornbook")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text("name: tiny\nengine: {kind: echo}\nstages:\n  stories: {kind: stories, rows: 4}\n")
    done = subprocess.run(
        [sys.executable, "-m", "generators.cli", "--recipe", str(recipe), "--dry-run"],
        cwd=shipped,
        env={**os.environ, "PYTHONPATH": f"{shipped}:{OURS.parent}", "HORNBOOK_STORE": str(tmp_path / "store")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "two versions of hornbook's code are mixed" in done.stderr
    assert "cure:" in done.stderr
    assert "Traceback" not in done.stderr
