"""Keeps the last lines that a child process wrote to stderr, because vLLM's own exception only says «see above».

While `captured()` is open, stderr (the file descriptor, which children inherit) is a pipe; a thread passes everything
on to the real stderr and remembers the end. Children started meanwhile keep the pipe for life.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import threading
from collections.abc import Iterator

_ERROR_LINE = re.compile(r"((?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception)): (.+)")
_SAYS_NOTHING = (
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "cancelled",
    "EngineDeadError",
)


class ChildStderr:
    """Passes children's stderr on and can say what they complained about last."""

    def __init__(self) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=400)

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Let children that are started inside the block write through the pipe."""
        real = os.dup(2)
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(writer)
        threading.Thread(target=self._pass_on, args=(reader, os.dup(real)), name="child-stderr", daemon=True).start()
        try:
            yield
        finally:
            os.dup2(real, 2)
            os.close(real)

    def reason(self) -> str:
        """Return the last error that children reported (the type and its message), or an empty string."""
        for line in reversed(self._lines):
            found = _ERROR_LINE.search(line)
            if found and not any(phrase in line for phrase in _SAYS_NOTHING):
                return f"{found.group(1)}: {found.group(2).strip()}"
        return ""

    def close(self) -> None:
        """Forget the lines. The thread ends by itself when the last child has gone."""
        self._lines.clear()

    def _pass_on(self, reader: int, real: int) -> None:
        rest = b""
        while chunk := os.read(reader, 65536):
            with contextlib.suppress(OSError):
                os.write(real, chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            self._lines.extend(line.decode(errors="replace") for line in lines)
        os.close(reader)
        os.close(real)
