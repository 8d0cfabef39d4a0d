"""A run's own record: `events.jsonl`, one JSON object a line, kept with the run because Ray's state is ephemeral.

An object store cannot append, so there the events gather in a local file that is uploaded every few seconds and at the end.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hornbook.errors import StoreError
from hornbook.store import Store, storage_failure

UPLOAD_SECONDS = 10.0


class Events:
    """Appends events of one run. Thread-safe; events survive a killed process up to the last line."""

    def __init__(self, store: Store, run_folder: str) -> None:
        self._store = store
        self._name = f"{run_folder}/events.jsonl"
        self._lock = threading.Lock()
        self._uploaded = time.monotonic()
        if store.local is not None:
            self._path = store.local / self._name
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise storage_failure(str(self._path.parent), error) from error
        else:
            self._path = Path(tempfile.mkdtemp(prefix="hornbook-events-")) / "events.jsonl"

    def emit(self, event: str, **values: Any) -> None:
        """Append one event with the current time. A full disk loses the line, never the run."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **values}, ensure_ascii=False, default=str)
        with self._lock:
            try:
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                try:
                    os.write(descriptor, line.encode() + b"\n")
                finally:
                    os.close(descriptor)
            except OSError:
                return
            if self._store.local is None and time.monotonic() - self._uploaded > UPLOAD_SECONDS:
                self._upload()

    def close(self) -> None:
        """Upload what is left (object stores)."""
        with self._lock:
            if self._store.local is None and self._path.exists():
                self._upload()

    def _upload(self) -> None:
        self._uploaded = time.monotonic()
        try:
            self._store.write(self._name, self._path.read_bytes())
        except StoreError:
            return  # tried again at the next event


def read_events(store: Store, run_folder: str) -> Iterator[dict[str, Any]]:
    """Yield a run's events in order; a torn last line (a killed run) is passed over."""
    name = f"{run_folder}/events.jsonl"
    if not store.exists(name):
        return
    for line in store.read(name).splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
