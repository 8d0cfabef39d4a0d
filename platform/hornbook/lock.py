"""Who is at work: a file with a heartbeat, on a disk and on an object store alike. One for each artifact under
construction, so that one driver makes it, and one for each run, so that a run that died is told from one that works.

A second driver waits and says who holds the lock. A holder that died on this host is recognised at once (its process is
gone), one on another host when its heartbeat is older than STALE_SECONDS. On a disk whoever looks at a lock file and then
changes it does both under a guard (flock), so two can never take over the same dead holder. An object store has no such
thing: there a taker writes, waits, and reads again who came last; and every holder looks at each beat whether it still is.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from hornbook.errors import StoreError
from hornbook.store import Store, storage_failure

BEAT_SECONDS = 5.0
STALE_SECONDS = 45.0
POLL_SECONDS = 1.0
SAY_SECONDS = 10.0
SETTLE_SECONDS = 2.0
"""How long a taker on an object store waits before it reads again: longer than anyone takes from looking to writing."""
GUARD = ".guard"


@dataclass
class Holder:
    """Who holds a lock. `started` is the process's start time, so that a recycled pid is not taken for the holder."""

    token: str
    host: str
    pid: int
    started: float
    run: str
    beat: float

    @classmethod
    def here(cls, run: str) -> Holder:
        """Return this process as a holder on behalf of a run, with a token that nobody else has."""
        started = psutil.Process().create_time()
        return cls(uuid.uuid4().hex, socket.gethostname(), os.getpid(), started, run, time.time())

    def alive(self) -> bool:
        """Tell whether the holder still works: its process on this host, else its heartbeat."""
        if self.host == socket.gethostname():
            try:
                return abs(psutil.Process(self.pid).create_time() - self.started) < 1.0
            except psutil.Error:
                return False
        return time.time() - self.beat < STALE_SECONDS

    def __str__(self) -> str:
        return f"{self.run} (process {self.pid} on {self.host})"


class Lock:
    """A lock file of this process. `lost` tells whether it was found to be another's, or gone, since it was taken."""

    def __init__(self, store: Store, name: str, holder: Holder) -> None:
        self.store = store
        self.name = name
        self.holder = holder
        self.lost = False

    def check(self) -> None:
        """Look into the store whether this process still holds the lock. Raises StoreError if not."""
        if not self._is_mine():
            raise StoreError(
                f"{self.store.describe(self.name)} was taken from this run: its heartbeat did not reach the store for "
                f"{STALE_SECONDS:.0f} s (this machine slept, or the store was out of reach)",
                "run the same command again: it waits for whoever works there now and goes on from what is finished",
            )

    def _is_mine(self) -> bool:
        if not self.lost:
            holder = read_holder(self.store, self.name)
            self.lost = holder is None or holder.token != self.holder.token
        return not self.lost

    def _write(self) -> None:
        self.holder.beat = time.time()
        self.store.write(self.name, json.dumps(asdict(self.holder)).encode())

    def _take(self) -> bool:
        """Write the lock file if nobody alive holds it; tell whether this process holds it now."""
        with _guard(self.store, self.name) as exclusive:
            holder = read_holder(self.store, self.name)
            if holder is not None and holder.alive():
                return False
            self._write()
        if exclusive:
            return True
        time.sleep(SETTLE_SECONDS)  # another may have looked before this write and write after it: the last one stays
        holder = read_holder(self.store, self.name)
        return holder is not None and holder.token == self.holder.token

    def _beat(self) -> bool:
        with _guard(self.store, self.name):
            if not self._is_mine():
                return False
            self._write()
        return True

    def _release(self) -> None:
        with suppress(StoreError), _guard(self.store, self.name):  # a dead holder's lock is taken over anyway
            if self._is_mine():
                self.store.delete(self.name)


@contextmanager
def hold(store: Store, name: str, run: str, say: Callable[[str], None]) -> Iterator[Lock]:
    """Hold the lock file `name` while the block runs; wait for another holder, saying who it is.

    A lock can be lost: to a machine that slept, or to a store out of reach. `Lock.lost` tells so after the next heartbeat,
    `Lock.check` at once; call it before what only the holder may do.

    Args:
        run: the run on whose behalf; shown to those who wait.
        say: gets a line when waiting starts and every 10 s after, and one when the lock is lost.

    Raises:
        StoreError: the store cannot be reached, or the lock file is damaged.
    """
    lock, said = Lock(store, name, Holder.here(run)), 0.0
    while not lock._take():
        holder = read_holder(store, name)
        if holder is not None and time.time() - said > SAY_SECONDS:
            said = time.time()
            say(f"waiting: {store.describe(name)} is held by {holder}")
        time.sleep(POLL_SECONDS)
    with _beating(lock, say):
        yield lock


@contextmanager
def try_hold(store: Store, name: str, run: str) -> Iterator[Lock | None]:
    """Hold the lock file `name` while the block runs, or give None at once if another holds it."""
    lock = Lock(store, name, Holder.here(run))
    if not lock._take():
        yield None
        return
    with _beating(lock, lambda line: None):
        yield lock


@contextmanager
def heartbeat(store: Store, name: str, run: str) -> Iterator[None]:
    """Keep a heartbeat in a file that is this process's alone, so that `read_holder(...).alive()` is true for others."""
    lock = Lock(store, name, Holder.here(run))
    lock._write()
    with _beating(lock, lambda line: None):
        yield


def read_holder(store: Store, name: str) -> Holder | None:
    """Return who holds a lock, dead or alive; None if nobody. Raises StoreError if the file cannot be read."""
    if not store.exists(name):
        return None
    try:
        value = store.read_json(name)
        return Holder(**{field.name: value[field.name] for field in fields(Holder)})
    except (StoreError, TypeError, KeyError) as error:
        if not store.exists(name):
            return None  # released between the two looks
        if isinstance(error, StoreError) and not isinstance(error.__cause__, ValueError):
            raise  # out of reach
        raise StoreError(f"{store.describe(name)} is damaged", "delete it if no run is at work there") from error


@contextmanager
def _beating(lock: Lock, say: Callable[[str], None]) -> Iterator[None]:
    done = threading.Event()
    thread = threading.Thread(target=_keep_alive, args=(lock, done, say), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        lock._release()


def _keep_alive(lock: Lock, done: threading.Event, say: Callable[[str], None]) -> None:
    while not done.wait(BEAT_SECONDS):
        try:
            if not lock._beat():
                say(f"{lock.store.describe(lock.name)} was taken from this run")
                return
        except StoreError:
            continue  # a full disk must not kill the work; the process itself still proves that we live


@contextmanager
def _guard(store: Store, name: str) -> Iterator[bool]:
    """Let one process at a time look at a lock and change it; yield whether this store can promise that."""
    if store.local is None:
        yield False
        return
    path = Path(store.path(name)).parent / GUARD
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise storage_failure(str(path), error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            exclusive = True
        except OSError:  # some network disks have no flock
            exclusive = False
        yield exclusive
