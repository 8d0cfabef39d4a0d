"""Runs small_disk.py in a user and mount namespace, where an ordinary user may mount and nobody else sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def test_what_a_small_disk_breaks(tmp_path: Path) -> None:
    try:
        allowed = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True)
        refusal = allowed.stderr.strip() if allowed.returncode else ""
    except OSError as error:
        refusal = str(error)
    if refusal:
        pytest.skip(f"this system gives no mount namespace to its users: {refusal}")
    tests = Path(__file__).with_name("small_disk.py")
    options = ["-p", "no:cacheprovider", "--durations=0", f"--basetemp={tmp_path / 'inside'}"]
    command = [*NAMESPACE, sys.executable, "-m", "pytest", str(tests), *options]
    done = subprocess.run(command, cwd=tests.parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
