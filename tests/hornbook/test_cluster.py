"""A cluster whose GPU nodes come only when they are asked for counts as one with GPUs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from hornbook import cluster
from hornbook.cluster import expected_gpus
from hornbook.errors import ClusterError

pytestmark = pytest.mark.usefixtures("ray_cluster")
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HORNBOOK_EXPECTED_GPUS", raising=False)
    monkeypatch.setattr(cluster, "BOOTSTRAP_CONFIG", tmp_path / "ray_bootstrap_config.yaml")


def report(*groups: tuple[dict[str, int], int]) -> None:
    """Report a cluster configuration to Ray, as an autoscaler does."""
    from ray.core.generated import autoscaler_pb2

    messages: Any = autoscaler_pb2
    worker: Any = ray._private.worker.global_worker
    config = messages.ClusterConfig()
    for number, (resources, most) in enumerate(groups):
        group = config.node_group_configs.add(name=f"group-{number}", max_count=most)
        group.resources.update(resources)
    worker.gcs_client.report_cluster_config(config.SerializeToString())


def test_a_cluster_without_gpus_or_autoscaler_expects_none() -> None:
    assert expected_gpus() == 0


def test_the_autoscalers_configuration_counts_before_a_node_is_there() -> None:
    try:
        report(({"CPU": 8}, 1), ({"CPU": 16, "GPU": 4}, 3))
        assert expected_gpus() == 12
        report(({"CPU": 16, "GPU": 4}, -1))
        assert expected_gpus() == 1  # without a limit
    finally:
        report()
    assert expected_gpus() == 0


@pytest.mark.parametrize("broken", [None, {"GPU": None}, sys.maxsize])
def test_a_ray_that_answers_otherwise_is_no_error(monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    state = ray._private.state.state
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: broken)
    assert expected_gpus() == 0


def test_the_environment_may_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HORNBOOK_EXPECTED_GPUS", "6")
    assert expected_gpus() == 6
    monkeypatch.setenv("HORNBOOK_EXPECTED_GPUS", "many")
    with pytest.raises(ClusterError, match="HORNBOOK_EXPECTED_GPUS='many'"):
        expected_gpus()


def test_the_kuberay_manifest_says_what_its_workers_may_become() -> None:
    job = yaml.safe_load((ROOT / "clusters" / "kuberay" / "rayjob.yaml").read_text())["spec"]
    environment = yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]
    gpus = 0
    for group in job["rayClusterSpec"]["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        gpus += group["maxReplicas"] * container["resources"]["limits"]["nvidia.com/gpu"]
    assert environment["HORNBOOK_EXPECTED_GPUS"] == str(gpus)


def test_on_the_head_the_launcher_file_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load((ROOT / "clusters" / "gpu.yaml").read_text())
    config["available_node_types"]["gpu-worker"]["resources"] = {"CPU": 16, "GPU": 1}  # as `ray up` fills it in
    cluster.BOOTSTRAP_CONFIG.write_text(yaml.safe_dump(config))
    assert expected_gpus() == 8
    config["available_node_types"]["big"] = {"resources": {"GPU": 4}, "max_workers": 2}
    cluster.BOOTSTRAP_CONFIG.write_text(yaml.safe_dump(config))
    assert expected_gpus() == 2 * 4 + 6 * 1  # max_workers: 8 holds for all types together
    monkeypatch.setattr(cluster, "_started_here", True)
    assert expected_gpus() == 0  # the file is about another cluster
    monkeypatch.setattr(cluster, "_started_here", False)
    cluster.BOOTSTRAP_CONFIG.write_text("available_node_types: []")
    assert expected_gpus() == 0
