"""Ties vLLM's child processes to the process that asked for them, so that no kill leaves an orphan holding the memory.

vLLM runs its engine core, and below it its workers, in processes of their own. When the owner is killed with SIGKILL,
nobody tells them. vLLM imports the class named as its worker extension in each worker before the model is loaded;
importing this module there starts a thread that sleeps until the owner is gone and then ends the worker and the engine
core above it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading

OWNER_VARIABLE = "HORNBOOK_ENGINE_OWNER"
"""The environment variable that carries the owner's process id into vLLM's processes."""


class Lifeline:
    """The (empty) vLLM worker extension; naming it as `worker_extension_cls` is what gets this module imported."""


def _end_when_gone(owner: int) -> None:
    try:
        descriptor = os.pidfd_open(owner)
    except ProcessLookupError:
        pass
    else:
        gone = select.poll()
        gone.register(descriptor, select.POLLIN)
        gone.poll()
    engine_core = os.getppid()
    if engine_core not in (1, owner):
        with contextlib.suppress(ProcessLookupError):
            os.kill(engine_core, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _watch() -> None:
    owner = os.environ.get(OWNER_VARIABLE, "")
    if owner.isdigit() and int(owner) != os.getpid():
        threading.Thread(target=_end_when_gone, args=(int(owner),), name="hornbook-lifeline", daemon=True).start()


_watch()
