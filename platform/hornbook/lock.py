"""One driver per artifact: a lock file with a heartbeat, which works on a disk and on an object store alike.

A second driver waits and says who holds it. A holder that died on this host is recognised at once (its process is gone),
one on another host when its heartbeat is older than STALE_SECONDS.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import psutil

from hornbook.errors import StoreError
from hornbook.store import Store

BEAT_SECONDS = 5.0
STALE_SECONDS = 45.0
POLL_SECONDS = 1.0


@dataclass
class Holder:
    """Who holds a lock. `started` is the process's start time, so that a recycled pid is not taken for the holder."""

    token: str
    host: str
    pid: int
    started: float
    run: str
    beat: float

    def alive(self) -> bool:
        """Tell whether the holder still works: its process on this host, else its heartbeat."""
        if self.host == socket.gethostname():
            try:
                return abs(psutil.Process(self.pid).create_time() - self.started) < 1.0
            except psutil.Error:
                return False
        return time.time() - self.beat < STALE_SECONDS


@contextmanager
def hold(store: Store, name: str, run: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `name` while the block runs; wait for another holder, saying who it is.

    Args:
        run: the run on whose behalf; shown to those who wait.
        say: gets a line when waiting starts, and every 10 s after.
    """
    me = Holder(uuid.uuid4().hex, socket.gethostname(), os.getpid(), psutil.Process().create_time(), run, time.time())
    _acquire(store, name, me, say)
    done = threading.Event()
    beat = threading.Thread(target=_keep_alive, args=(store, name, me, done), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        if (holder := read_holder(store, name)) is not None and holder.token == me.token:
            store.delete(name)


def read_holder(store: Store, name: str) -> Holder | None:
    """Return who holds a lock, dead or alive; None if nobody."""
    try:
        return Holder(**json.loads(store.read(name)))
    except (StoreError, ValueError, TypeError):
        return None


def _acquire(store: Store, name: str, me: Holder, say: Callable[[str], None]) -> None:
    said = 0.0
    while True:
        if store.create(name, json.dumps(asdict(me)).encode()):
            holder = read_holder(store, name)  # on an object store two may have written at once: the later one stays
            if holder is not None and holder.token == me.token:
                return
            continue
        holder = read_holder(store, name)
        if holder is not None and not holder.alive():
            store.delete(name)
            continue
        if holder is not None and time.time() - said > 10:
            said = time.time()
            say(f"waiting: {store.describe(name)} is held by {holder.run} (process {holder.pid} on {holder.host})")
        time.sleep(POLL_SECONDS)


def _keep_alive(store: Store, name: str, me: Holder, done: threading.Event) -> None:
    while not done.wait(BEAT_SECONDS):
        me.beat = time.time()
        try:
            store.write(name, json.dumps(asdict(me)).encode())
        except StoreError:
            continue  # a full disk must not kill the work; the process itself still proves that we live
