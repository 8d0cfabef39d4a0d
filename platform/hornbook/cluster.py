"""The Ray cluster: connect to one or start one on this machine, know what it has, refuse what cannot work on it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook.errors import ClusterError, StoreError
from hornbook.machine import processors
from hornbook.ray_address import require_ray_at

if TYPE_CHECKING:
    from hornbook.store import Store

OBJECT_STORE_BYTES = 1 << 30  # hornbook moves counts through Ray, not rows

EXPECTED_GPUS_VARIABLE = "HORNBOOK_EXPECTED_GPUS"
"""The environment variable that says what the cluster may grow to where nobody else can: under KubeRay, say."""

BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the launcher file on the head, with each node type's resources filled in."""

_started_here = False  # Ray, by this process: a launcher file that lies about on this machine says nothing of it


@dataclass(frozen=True)
class Resources:
    """What the cluster has."""

    nodes: int
    cpus: float
    gpus: float


@contextmanager
def cluster() -> Iterator[Resources]:
    """Connect to the cluster that RAY_ADDRESS (or the Ray job) names, else start one here; leave it at the end.

    Raises:
        ClusterError: it cannot be reached or started.
    """
    import ray

    if ray.is_initialized():
        yield resources()
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")  # without it the dashboard's Train tab stays empty
    # Ray Data's actors draw an error line of Ray's core each («constructor arguments in the object store») that a user
    # can do nothing about; Ray's own log files keep it.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves the engine beside any other process
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
    address = os.environ.get("RAY_ADDRESS") or ("auto" if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") else "local")
    options: dict[str, Any] = {"address": address, "logging_level": "ERROR", "log_to_driver": False}
    if address == "local":
        options |= {
            "num_cpus": processors(),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    require_ray_at(address)
    global _started_here
    _started_here = address == "local"
    try:
        ray.init(**options)
    except Exception as error:
        raise ClusterError(
            f"Ray at {address} cannot be used: {error}", _connection_cure(address, str(error))
        ) from error
    try:
        yield resources()
    finally:
        ray.shutdown()


def resources() -> Resources:
    """Return what the connected cluster has."""
    import ray

    total = ray.cluster_resources()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return Resources(nodes=len(alive), cpus=total.get("CPU", 0.0), gpus=total.get("GPU", 0.0))


def expected_gpus() -> float:
    """Return how many GPUs the connected cluster has or, where it scales by itself, may grow to; the larger.

    A cluster whose GPU nodes come when they are asked for has none at first: whoever counts the live ones never asks. What
    it may grow to is taken from HORNBOOK_EXPECTED_GPUS if that is set, else from what the autoscaler told Ray, else from
    the launcher file on the head. An autoscaler without a limit counts as one GPU.

    Raises:
        ClusterError: HORNBOOK_EXPECTED_GPUS is not a whole number.
    """
    alive = resources().gpus
    wanted = os.environ.get(EXPECTED_GPUS_VARIABLE)
    if wanted:
        if not wanted.isdigit():
            raise ClusterError(
                f"{EXPECTED_GPUS_VARIABLE}={wanted!r} is not a whole number", "set it to one or unset it"
            )
        return max(alive, float(wanted))
    return max(alive, _gpus_of_autoscaler(), _gpus_of_launcher())


def _gpus_of_autoscaler() -> float:
    """Return the most GPUs of the cluster configuration that an autoscaler reported to Ray; 0 where none did.

    Ray's own libraries ask the same way. Ray 2.60's open autoscalers report none; managed ones do.
    """
    import ray

    try:
        gpus = float((ray._private.state.state.get_max_resources_from_cluster_config() or {}).get("GPU", 0))
    except Exception:  # private, so it may be gone or changed with the next Ray
        return 0.0
    return 1.0 if gpus >= sys.maxsize else gpus


def _gpus_of_launcher() -> float:
    """Return the most GPUs of the launcher file on this machine, if this is the head of the cluster we joined; else 0."""
    import ray.util
    import yaml

    head = ray.get_runtime_context().gcs_address.rsplit(":", 1)[0]
    if _started_here or head != ray.util.get_node_ip_address():
        return 0.0
    try:
        config = yaml.safe_load(BOOTSTRAP_CONFIG.expanduser().read_text())
        room, gpus = int(config["max_workers"]), 0.0
        each = {name: float(kind.get("resources", {}).get("GPU", 0)) for name, kind in _worker_types(config).items()}
        for name, kind in sorted(_worker_types(config).items(), key=lambda item: -each[item[0]]):
            nodes = min(room, int(kind.get("max_workers", room)))
            room -= nodes
            gpus += nodes * each[name]
        return gpus + float(config["available_node_types"][config["head_node_type"]].get("resources", {}).get("GPU", 0))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return 0.0  # no launcher file, or not one of `ray up`


def _worker_types(config: Any) -> dict[str, Any]:
    return {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}


def require_shared_store(store: Store) -> None:
    """Refuse a store on this machine's disk when the cluster has several machines.

    Raises:
        StoreError: with the cure. HORNBOOK_STORE_SHARED=1 vouches for a network disk.
    """
    import ray

    if store.local is None or os.environ.get("HORNBOOK_STORE_SHARED") == "1":
        return
    hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(hosts) > 1:
        raise StoreError(
            f"the store {store.url} is on one machine's disk, but the cluster has {len(hosts)} machines",
            "set HORNBOOK_STORE to an s3:// or gs:// URL, or, if that path is a disk that all of them mount, "
            "set HORNBOOK_STORE_SHARED=1",
        )


def _connection_cure(address: str, error: str) -> str:
    if "token" in error.lower() or "auth" in error.lower() or "Unauthenticated" in error:
        return "the cluster wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the token's file"
    if address == "local":
        return "check free memory and disk under /tmp/ray (`hornbook doctor`), then run again"
    return "start one with `ray start --head`, unset RAY_ADDRESS to run on this machine, or check `ray status`"
