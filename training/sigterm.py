"""SIGTERM as a wish: whoever takes a machine away sends it some seconds before, which is time to save."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Sigterm:
    """From now on, SIGTERM ends this process no more but is remembered, until `close`; a second one ends it as before.

    Signals can be caught in a process's main thread only; elsewhere (in a Ray Train worker, which trains in another thread)
    this does nothing, and the driver passes the wish on.
    """

    def __init__(self) -> None:
        self.received = False
        """Whether the signal came."""
        self._before: Any = None  # None: not caught
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def close(self) -> None:
        """Let the signal do again what it did before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:  # nobody could act on the first one
            self.close()
            signal.raise_signal(signal.SIGTERM)
        self.received = True
