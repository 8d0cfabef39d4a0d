"""An append-only log of what an engine took and finished: evidence that does not come from hornbook's own books.

Lines are `taken TAG PID` and `done TAG PID`. The file is opened with O_APPEND and whole lines go out in single writes,
so that several engines may share it and a killed one leaves no torn line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from hornbook.engines.interface import Request


class RequestLog:
    """Writes the log; with an empty path it does nothing."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if path else None

    def taken(self, requests: Iterable[Request]) -> None:
        """Note that work on `requests` begins."""
        self._write("taken", requests)

    def done(self, requests: Iterable[Request]) -> None:
        """Note that `requests` have their replies."""
        self._write("done", requests)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, what: str, requests: Iterable[Request]) -> None:
        if self._file is not None:
            lines = "".join(f"{what} {request.tag or '-'} {os.getpid()}\n" for request in requests)
            os.write(self._file, lines.encode())
