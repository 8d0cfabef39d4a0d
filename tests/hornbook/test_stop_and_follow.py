"""`hornbook stop` and `hornbook logs --follow` from another terminal while a run works; then the run goes on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from command_line import RECIPE, Answer

from hornbook.artifact import Artifact
from hornbook.events import read_events
from hornbook.runs import run_ids
from hornbook.store import Store


def other_terminal(*arguments: str) -> subprocess.Popen[str]:
    """Start a command of hornbook's in a process of its own."""
    command = [sys.executable, "-m", "hornbook.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_run_is_followed_stopped_and_goes_on(
    hornbook: Callable[..., Answer], tmp_path: Path, ray_cluster: None
) -> None:
    recipe, store = tmp_path / "slow.yaml", Store(str(tmp_path / "store"))
    slow = {**RECIPE["stages"]["stories"], "parts_in_flight": 2}  # the second terminal takes seconds to open
    engine = {"kind": "echo", "echo_tokens_per_second": 60}
    recipe.write_text(yaml.safe_dump({**RECIPE, "engine": engine, "stages": {"stories": slow}}))
    told: dict[str, str] = {}

    def watch_and_stop() -> None:
        deadline = time.monotonic() + 60
        while not any(
            event["event"] == "part" for run in run_ids(store) for event in read_events(store, f"runs/{run}")
        ):
            if time.monotonic() > deadline:
                return
            time.sleep(0.2)
        following = other_terminal("logs", "latest", "--follow")
        told["stop"] = other_terminal("stop", "latest").communicate(timeout=60)[0]
        told["logs"] = following.communicate(timeout=60)[0]

    watcher = threading.Thread(target=watch_and_stop)
    watcher.start()
    answer = hornbook("run", str(recipe))
    watcher.join()
    assert (answer.code, "stopped:" in answer.err, "cure:" in answer.err) == (3, True, True), answer
    [run] = run_ids(store)
    assert f"asked run {run} to stop" in told["stop"]
    lines = told["logs"].splitlines()
    assert " run " in lines[0]
    assert "end" in lines[-1] and "state=stopped" in lines[-1], told["logs"]
    assert any(" part " in line and "stage=stories" in line for line in lines)
    [name] = store.names("artifacts")
    kept = store.names(f"artifacts/{name}/drafts/parts")
    assert 0 < len(kept) < 20
    assert "stopped" in hornbook("status").out
    refused = hornbook("stop", "latest")
    assert (refused.code, "is stopped, not running" in refused.err) == (1, True)

    recipe.write_text(yaml.safe_dump(RECIPE))  # how fast the engine is does not change what is made
    assert hornbook("run", str(recipe)).code == 0
    assert set(kept) <= set(store.names(f"artifacts/{name}/parts"))
    assert Artifact(store, f"artifacts/{name}").manifest.counts["planned"] == 400
