"""The main text of HTML, extracted by a process of its own that may crash or hang without taking a worker with it.

HTML from the web can be nested so deeply that a parser overflows its stack or takes hours: neither can be caught within a
process. So another one extracts, under limits of processor time and memory that its kernel enforces; when it ends over a
document, the next one gets a new process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

from classifiers import main_text_child
from hornbook.errors import ClusterError

START_SECONDS = 300  # by the clock, on a machine that has other work
PATIENCE = 20  # times the limit of processor seconds, by the clock, before a process that does not answer is ended
HEADER = 1 + main_text_child.LENGTH_BYTES


class NoMainText(Exception):
    """A document could not be extracted: a short reason, counted in the manifest, and a detail for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class MainText:
    """Extracts the main text of one HTML document after another in one process that is started when it is first needed.

    Args:
        extractor: `trafilatura` or `resiliparse`.
        seconds: processor seconds that a document may take.
        memory_mib: address space that the process may take.
    """

    def __init__(self, extractor: str, seconds: float, memory_mib: int) -> None:
        self.extractor, self.seconds, self.memory_mib = extractor, seconds, memory_mib
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, html: str) -> str:
        """Return the main text of a page; empty where it has none.

        Raises:
            NoMainText: `too-slow`, `extractor-crashed` or `extraction-failed`.
            ClusterError: the process does not start.
        """
        process = self._running()
        data = html.encode("utf-8", "replace")
        try:
            assert process.stdin is not None
            process.stdin.write(len(data).to_bytes(main_text_child.LENGTH_BYTES, "big") + data)
            process.stdin.flush()
            kind, text = self._answer(process, time.monotonic() + PATIENCE * self.seconds + 10)
        except (OSError, EOFError, TimeoutError) as error:
            raise self._why(process, error) from None
        if kind == main_text_child.FAILED:
            raise NoMainText("extraction-failed", text)
        return text

    def close(self) -> None:
        """End the process; the next document starts another."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):  # what was not written yet has no reader any more
                    pipe.close()
            self.process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            # -P: the folder of the child must not come before the standard library's modules.
            command = [sys.executable, "-P", main_text_child.__file__]
            command += [self.extractor, str(self.seconds), str(self.memory_mib)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            try:
                self._answer(self.process, time.monotonic() + START_SECONDS)
            except (EOFError, TimeoutError):
                self.close()
                raise ClusterError(
                    f"the process that extracts with {self.extractor} does not start",
                    f"`{' '.join(command)}` shows why; is {self.extractor} installed, memory_mib large enough?",
                ) from None
        return self.process

    def _answer(self, process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, str]:
        header = _read(process, HEADER, deadline)
        return header[:1], _read(process, int.from_bytes(header[1:], "big"), deadline).decode()

    def _why(self, process: subprocess.Popen[bytes], error: Exception) -> NoMainText:
        """Return why a process gave no answer, and let go of it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0 if isinstance(error, TimeoutError) else 10)
        ended = process.returncode
        self.close()
        if isinstance(error, TimeoutError) or ended == -signal.SIGPROF:
            return NoMainText("too-slow", f"{self.extractor} took more than {self.seconds:g} s of processor time")
        name = signal.Signals(-ended).name if ended is not None and ended < 0 else f"exit code {ended}"
        return NoMainText("extractor-crashed", f"{self.extractor} ended with {name}")


def _read(process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
    """Read exactly so many bytes. Raises EOFError where the process ends before, TimeoutError after the deadline."""
    assert process.stdout is not None
    waiting, blocks = select.poll(), []  # not select.select: a worker may have more than 1,024 files open
    waiting.register(process.stdout, select.POLLIN)
    while size:
        if not waiting.poll(1000 * max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        block = os.read(process.stdout.fileno(), min(size, 1 << 20))
        if not block:
            raise EOFError
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)
