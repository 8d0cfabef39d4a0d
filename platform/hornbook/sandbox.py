"""Runs generated Python where it can do no harm: no network, no files but its own, little time, memory and output.

The code gets namespaces of its own (users, processes, mounts, network), a read-only tree with Python's standard library
and nothing else, an empty scratch folder that vanishes, limits, and a filter on system calls; root is dropped first, because
the kernel's limit on processes does not bind root. All of it is the kernel's, set up by `sandbox_child.py`: no container
engine is needed, and no privilege where the kernel lets users make namespaces. Where it does not, nothing is run:
`SandboxError` says what could not be restricted.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from hornbook.errors import SandboxError
from hornbook.sandbox_child import READY
from hornbook.sandbox_filter import filter_program
from hornbook.settings import Settings

Outcome = Literal["ok", "failed", "timeout", "output", "killed"]

CHILD = Path(__file__).with_name("sandbox_child.py")
_SECONDS_TO_END = 10.0
_CURE = (
    "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, "
    "user.max_user_namespaces > 0; in a container a seccomp profile that permits unshare), or run as root"
)
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/lib32", "/usr/lib", "/usr/lib64", "/usr/lib32", "/etc/ld.so.cache")


class SandboxLimits(Settings):
    """What a piece of generated code may use."""

    seconds: float = Field(10.0, gt=0, le=600, description="Wall-clock time, start of Python included.")
    cpu_seconds: int = Field(5, ge=1, le=600, description="Processor time of each process.")
    memory_mib: int = Field(
        512, ge=64, description="Address space of each process, MiB; `processes` times as much is the most in all."
    )
    processes: int = Field(8, ge=1, le=256, description="Processes and threads at the same time.")
    output_kib: int = Field(64, ge=1, description="Standard output and error together; more ends the code.")
    scratch_mib: int = Field(16, ge=1, description="Files in the scratch folder, all together; they vanish.")


@dataclass(frozen=True)
class SandboxResult:
    """How the code ended.

    `ok`: exit code 0. `failed`: another exit code, an exception for one. `timeout`: over `seconds`. `output`: over
    `output_kib`. `killed`: by a signal, as the kernel does at the end of `cpu_seconds`.
    """

    outcome: Outcome
    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def reason(self) -> str:
        """The last line of standard error, which in Python names the exception; else the outcome."""
        lines = self.stderr.strip().splitlines()
        return lines[-1] if lines and self.outcome == "failed" else self.outcome


def run_python(code: str, limits: SandboxLimits | None = None) -> SandboxResult:
    """Run `code` as a program of its own, with the standard library and nothing else.

    Raises:
        SandboxError: the kernel does not let this user confine a process; nothing was run.
    """
    limits = limits or SandboxLimits()
    began = time.monotonic()
    reads, writes = os.pipe()
    with tempfile.TemporaryDirectory(prefix="hornbook-sandbox-") as root, os.fdopen(reads, "rb") as report:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(CHILD), *_orders(limits, root, writes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={},
                pass_fds=(writes,),
                start_new_session=True,
            )
        finally:
            os.close(writes)
        try:
            outcome, stdout, stderr = _attend(
                process, code.encode(errors="surrogatepass"), limits, began + limits.seconds
            )
        finally:
            _end(process)
        reported = report.read()
    if reported != READY and outcome is None:
        reason = reported.removeprefix(READY) or stderr.strip() or f"it ended with {process.returncode}".encode()
        raise SandboxError(f"generated code cannot be confined here: {reason.decode(errors='replace')}", _CURE)
    if outcome is None:
        outcome = "ok" if process.returncode == 0 else "killed" if process.returncode > 128 else "failed"
    return SandboxResult(
        outcome,
        process.returncode,
        stdout.decode(errors="replace"),
        stderr.decode(errors="replace"),
        time.monotonic() - began,
    )


def require_sandbox() -> None:
    """Make sure that generated code can be run on this machine.

    Raises:
        SandboxError: it cannot be confined; the message says what could not be restricted.
    """
    run_python("")


def _orders(limits: SandboxLimits, root: str, report: int) -> list[str]:
    """Return what `sandbox_child.py` must know, as `name=value` arguments."""
    if sys.platform != "linux":
        raise SandboxError("generated code cannot be confined here: namespaces are Linux's", "run on Linux")
    python = os.path.realpath(sys.executable)
    visible = [path for path in _SYSTEM_LIBRARIES if os.path.lexists(path)]
    for path in (sysconfig.get_path("stdlib"), sysconfig.get_config_var("LIBDIR"), python):
        if path and not any(path == seen or path.startswith(f"{seen}/") for seen in visible):
            visible.append(path)
    orders = {
        **limits.model_dump(),
        "root": root,
        "python": python,
        "visible": "\n".join(visible),
        "filter": filter_program().hex(),
        "report": report,
        "parent": os.getpid(),
    }
    return [f"{name}={value}" for name, value in orders.items()]


def _attend(
    process: subprocess.Popen[bytes], code: bytes, limits: SandboxLimits, deadline: float
) -> tuple[Outcome | None, bytes, bytes]:
    """Feed the code, gather the output, and stop at the deadline or the limit; None means that it ended by itself."""
    assert process.stdin and process.stdout and process.stderr
    gathered = {process.stdout: bytearray(), process.stderr: bytearray()}
    room = limits.output_kib * 1024
    outcome: Outcome | None = None
    with selectors.DefaultSelector() as selector:
        try:
            process.stdin.write(code)
            process.stdin.close()
        except BrokenPipeError:
            pass  # it ended before it read: its exit code says why
        for stream in gathered:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and outcome is None:
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fileobj)
                gathered[key.fileobj] += data[:room]  # type: ignore[index]
                room -= len(data)
            if room < 0:
                outcome = "output"
            elif time.monotonic() >= deadline:
                outcome = "timeout"
    if outcome is None:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            outcome = "timeout"
    return outcome, bytes(gathered[process.stdout]), bytes(gathered[process.stderr])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End whatever is left and wait until it is gone: `sandbox_child.py` kills the namespace's first process when asked
    to terminate, and the kernel ends all within before it lets that one go."""
    process.terminate()
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream:
            stream.close()
