"""Runs: one execution of a recipe each. A run's folder holds its record, its events and its report; artifacts lie elsewhere."""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hornbook.errors import HornbookError, StoreError
from hornbook.lock import heartbeat, read_holder
from hornbook.settings import nearest
from hornbook.store import Store

RUNS = "runs"
RECORD = "run.json"
HEARTBEAT = "alive.json"
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
        self.store.write_json(f"{self.folder}/{RECORD}", self.value)

    def update_stage(self, name: str, **values: Any) -> None:
        """Change fields of one stage and write the record."""
        self.value["stages"][name].update(values)
        self.update()

    def stop_requested(self) -> bool:
        """Tell whether `hornbook stop` was called for this run."""
        return self.store.exists(f"{self.folder}/stop")

    def state(self) -> str:
        """Return the state; a run that says `running` and has no heartbeat any more is `dead`."""
        state = str(self.value["state"])
        if state != "running":
            return state
        try:
            holder = read_holder(self.store, f"{self.folder}/{HEARTBEAT}")
        except StoreError:
            return state  # unreadable is no proof of death
        if holder is not None and holder.alive():
            return state
        state = str(_read(self.store, self.id)["state"])  # it may have ended since this record was read
        return "dead" if state == "running" else state


@contextmanager
def new_run(store: Store, recipe: str, fields: dict[str, Any]) -> Iterator[Run]:
    """Create the folder and record of a new run of this process, and keep its heartbeat up while the block runs."""
    identifier = f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    value = {
        "run": identifier,
        "recipe": recipe,
        "state": "running",
        "started": round(time.time(), 3),
        "finished": None,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "error": "",
        **fields,
    }
    with heartbeat(store, f"{RUNS}/{identifier}/{HEARTBEAT}", identifier):
        run = Run(store, value)
        run.update()
        yield run


def load_run(store: Store, name: str) -> Run:
    """Return a run by its id, by a prefix that only it has, or the newest one for `latest`.

    Raises:
        StoreError: there is no such run, or several.
    """
    known = run_ids(store)
    if name == "latest" and known:
        readable = all_runs(store)
        if not readable:
            raise StoreError(f"no run in {store.describe(RUNS)} has a readable record", "run the recipe again")
        return max(readable, key=lambda run: float(run.value["started"]))
    matches = [name] if name in known else [identifier for identifier in known if identifier.startswith(name)]
    if len(matches) != 1:
        what = f"several runs begin with {name!r}: {', '.join(matches)}" if matches else f"there is no run {name!r}"
        raise StoreError(
            f"{what}{'' if matches else nearest(name, known) if known else ''}", "`hornbook status` lists the runs"
        )
    return Run(store, _read(store, matches[0]))


def all_runs(store: Store, but: Collection[str] = ()) -> list[Run]:
    """Return all runs `but` these, in the order of their ids.

    One damaged record must not hide the others: it is passed over, with a warning on stderr that names it.
    """
    runs = []
    for identifier in run_ids(store):
        if identifier in but:
            continue
        try:
            runs.append(Run(store, _read(store, identifier)))
        except StoreError as error:
            print(f"warning: passed over: {error.message}", file=sys.stderr, flush=True)
    return runs


def run_ids(store: Store) -> list[str]:
    """Return the ids of all runs that have a record."""
    return [name for name in store.names(RUNS) if store.exists(f"{RUNS}/{name}/{RECORD}")]


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
            looked = time.monotonic()
            with suppress(StoreError):  # a store out of reach for a moment: asked again a second later
                answer = run.stop_requested()
        return answer

    return stop_requested


def _read(store: Store, identifier: str) -> dict[str, Any]:
    name = f"{RUNS}/{identifier}/{RECORD}"
    value = store.read_json(name)
    known = isinstance(value, dict) and {"run", "recipe", "state", "finished"} <= value.keys()
    if not known or not isinstance(value.get("stages"), dict) or not isinstance(value.get("started"), int | float):
        raise StoreError(
            f"{store.describe(name)} is damaged: it is not the record of a run",
            f"delete {store.describe(f'{RUNS}/{identifier}')}: artifacts lie elsewhere",
        )
    return value
