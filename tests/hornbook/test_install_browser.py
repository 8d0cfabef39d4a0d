"""scripts/install-browser finds a browser, installs one where it may, or says what to install."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "install-browser"


def run(folder: Path, **programs: str) -> subprocess.CompletedProcess[str]:
    """Run it where only these programs (shell scripts) can be found."""
    for name, text in programs.items():
        (folder / name).write_text(f"#!{shutil.which('sh')}\n{text}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": str(folder), "LOG": str(folder / "log")}
    return subprocess.run([shutil.which("sh") or "sh", SCRIPT], env=environment, capture_output=True, text=True)


def test_it_does_nothing_where_there_is_a_browser(tmp_path: Path) -> None:
    done = run(tmp_path, chromium="exit 0", id="echo 0", **{"apt-get": 'echo "$@" >> $LOG'})
    assert (done.returncode, done.stdout, done.stderr, (tmp_path / "log").exists()) == (0, "", "", False)


def test_root_gets_one_from_debian(tmp_path: Path) -> None:
    install = f'echo "$@" >> $LOG; case "$1" in install) {shutil.which("cp")} {tmp_path}/id {tmp_path}/chromium;; esac'
    done = run(tmp_path, id="echo 0", **{"apt-get": install})
    assert (done.returncode, done.stderr) == (0, "")
    update, installed = (tmp_path / "log").read_text().splitlines()
    assert (update, installed.split()[0], installed.split()[-1]) == ("update -qq", "install", "chromium")


@pytest.mark.parametrize(("user", "apt"), [("1000", "echo $@ >> $LOG"), ("0", "exit 100")])
def test_where_it_may_or_can_not_it_says_what_to_do(tmp_path: Path, user: str, apt: str) -> None:
    done = run(tmp_path, id=f"echo {user}", **{"apt-get": apt})
    assert done.returncode == 0 and not (tmp_path / "log").exists()
    assert "apt-get install chromium" in done.stderr and "CHROMIUM=" in done.stderr
