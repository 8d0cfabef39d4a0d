"""Runs: one execution of a recipe each. A run's folder holds its record, its events and its report; artifacts lie elsewhere."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

import psutil

from hornbook.errors import HornbookError, StoreError
from hornbook.settings import nearest
from hornbook.store import Store

RUNS = "runs"
STOP_POLL_SECONDS = 1.0


class Run:
    """The record of a run, `runs/<id>/run.json`, rewritten whenever something changes."""

    def __init__(self, store: Store, value: dict[str, Any]) -> None:
        self.store = store
        self.value = value

    @property
    def id(self) -> str:
        """The run's id: recipe, time, four random digits."""
        return str(self.value["run"])

    @property
    def folder(self) -> str:
        """The run's folder in the store."""
        return f"{RUNS}/{self.id}"

    def update(self, **values: Any) -> None:
        """Change fields of the record and write it."""
        self.value.update(values)
        self.store.write_json(f"{self.folder}/run.json", self.value)

    def update_stage(self, name: str, **values: Any) -> None:
        """Change fields of one stage and write the record."""
        self.value["stages"][name].update(values)
        self.update()

    def stop_requested(self) -> bool:
        """Tell whether `hornbook stop` was called for this run."""
        return self.store.exists(f"{self.folder}/stop")

    def state(self) -> str:
        """Return the state; a run whose process is gone (on this host) is `dead`, whatever it last wrote."""
        state = str(self.value["state"])
        if state == "running" and self.value.get("host") == socket.gethostname():
            try:
                alive = abs(psutil.Process(self.value["pid"]).create_time() - self.value["process_started"]) < 1.0
            except psutil.Error:
                alive = False
            return state if alive else "dead"
        return state


def create_run(store: Store, recipe: str, fields: dict[str, Any]) -> Run:
    """Create the folder and record of a new run of this process."""
    identifier = f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    value = {
        "run": identifier,
        "recipe": recipe,
        "state": "running",
        "started": round(time.time(), 3),
        "finished": None,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "error": "",
        **fields,
    }
    run = Run(store, value)
    run.update()
    return run


def load_run(store: Store, name: str) -> Run:
    """Return a run by its id, by a prefix that only it has, or the newest one for `latest`.

    Raises:
        StoreError: there is no such run, or several.
    """
    known = run_ids(store)
    if name == "latest" and known:
        name = max(known, key=lambda identifier: _read(store, identifier)["started"])
    matches = [name] if name in known else [identifier for identifier in known if identifier.startswith(name)]
    if len(matches) != 1:
        what = f"several runs begin with {name!r}: {', '.join(matches)}" if matches else f"there is no run {name!r}"
        raise StoreError(
            f"{what}{'' if matches else nearest(name, known) if known else ''}", "`hornbook status` lists the runs"
        )
    return Run(store, _read(store, matches[0]))


def run_ids(store: Store) -> list[str]:
    """Return the ids of all runs that have a record."""
    return [name for name in store.names(RUNS) if store.exists(f"{RUNS}/{name}/run.json")]


def request_stop(run: Run) -> None:
    """Ask a run to finish what it is at, save and exit."""
    if run.state() != "running":
        raise HornbookError(f"run {run.id} is {run.state()}, not running", "`hornbook status` shows what runs")
    run.store.write(f"{run.folder}/stop", b"stop\n")


def stop_check(run: Run) -> Callable[[], bool]:
    """Return a cheap function that tells whether the run was asked to stop; it looks at most once a second."""
    looked, answer = 0.0, False

    def stop_requested() -> bool:
        nonlocal looked, answer
        if not answer and time.monotonic() - looked > STOP_POLL_SECONDS:
            looked, answer = time.monotonic(), run.stop_requested()
        return answer

    return stop_requested


def _read(store: Store, identifier: str) -> dict[str, Any]:
    value = store.read_json(f"{RUNS}/{identifier}/run.json")
    if not isinstance(value, dict):
        raise StoreError(f"{store.describe(f'{RUNS}/{identifier}/run.json')} is damaged")
    return value
