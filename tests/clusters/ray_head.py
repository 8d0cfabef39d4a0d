"""A Ray head of the tests' own, started as a user starts one: `ray start --head` with a token, on free ports."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class RayHead:
    """The running head: the addresses of its Jobs API, control store and metrics, its store, and its clients' environment."""

    address: str
    control_store: str
    metrics: str
    store: Path
    environment: dict[str, str]

    def ray(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the `ray` command from the repository's root; an empty variable is taken out of the environment."""
        environment = {name: value for name, value in {**self.environment, **variables}.items() if value}
        return subprocess.run(
            [str(BIN / "ray"), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
        )

    def submit(self, *command: str, runtime_env: str = "clusters/runtime_env.yaml") -> subprocess.CompletedProcess[str]:
        """Run `ray job submit` as the README says; it follows the job and leaves with its exit code."""
        return self.ray("job", "submit", "--address", self.address, "--runtime-env", runtime_env, "--", *command)

    def hornbook(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of hornbook's that only looks at the head's store."""
        environment = {**self.environment, "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-m", "hornbook.cli", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)


@contextmanager
def ray_head(token: str) -> Iterator[RayHead]:
    """Start a head node with token authentication and its dashboard on loopback; stop just its own processes."""
    folder = Path(tempfile.mkdtemp(prefix="hb-"))  # short: Ray puts sockets below it
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment |= {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # what activating the environment does
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "HORNBOOK_STORE": str(folder / "store"),
    }
    ports = _free_ports(6)
    options = ["port", "dashboard-port", "ray-client-server-port", "metrics-export-port"]
    options += ["dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--dashboard-host=127.0.0.1"]
    command += ["--node-ip-address=127.0.0.1", f"--temp-dir={folder}", f"--object-store-memory={1 << 28}"]
    command += [f"--{option}={port}" for option, port in zip(options, ports, strict=True)]
    log = (folder / "ray-start.log").open("w")
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    head = RayHead(
        address=f"http://127.0.0.1:{ports[1]}",
        control_store=f"127.0.0.1:{ports[0]}",
        metrics=f"http://127.0.0.1:{ports[3]}",
        store=folder / "store",
        environment=environment,
    )
    try:
        _wait(process, f"{head.address}/api/version", folder / "ray-start.log")
        yield head
    finally:
        # Nothing here is worth an orderly end, which takes Ray up to 20 s: take down what this one process started.
        own = psutil.Process(process.pid)
        for one in [*own.children(recursive=True), own]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(20)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):  # it is up, and it asks for the token
                return
        except OSError:
            pass
        time.sleep(0.3)
    raise RuntimeError(f"ray start did not come up:\n{log.read_text()}")
