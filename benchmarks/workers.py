"""Starts a command as several workers of one machine, as torchrun would, for benchmarks that compare numbers of workers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def run_workers(command: list[str], workers: int) -> dict[str, Any]:
    """Run a command as some workers; return the JSON that the first one printed last. Exits with their errors if one fails."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = []
    for rank in range(workers):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers}
        values = {name: str(value) for name, value in (ranks | {"MASTER_PORT": port}).items()}
        environment = environment_with(values | {"MASTER_ADDR": "127.0.0.1"})
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    outputs = [process.communicate() for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(b"\n".join(error for _, error in outputs).decode()[-4000:])
    found: dict[str, Any] = json.loads(outputs[0][0].splitlines()[-1])
    return found


def environment_with(values: dict[str, str]) -> dict[str, str]:
    """Return this process's environment, in which Python finds this repository's packages first, and `values`."""
    path = os.pathsep.join([str(ROOT / "platform"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path} | values
