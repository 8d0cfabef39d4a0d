"""The fields of a KubeRay RayJob, three floors deep, with their types: the API server refuses others, after the user has waited.

Facts of KubeRay's ray.io/v1 types as of 1.6 and of Kubernetes' core/v1 pods, as the manifest of a RayJob uses them. What is
below (`ANY`) is Kubernetes' own and is left to the API server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ANY = "anything"
QUANTITY = re.compile(r"^[+-]?(\d+|\d+\.\d*|\.\d+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?\d+)?$")
PLAIN: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


@dataclass(frozen=True)
class Words:
    """A string out of a few."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class MapOf:
    """A mapping with free keys and values of one type."""

    values: Any


@dataclass(frozen=True)
class ListOf:
    """A list of items of one type."""

    items: Any


@dataclass(frozen=True)
class Fields:
    """A mapping with known keys; some of them required."""

    known: Mapping[str, Any]
    required: tuple[str, ...] = ()


STRINGS = MapOf("string")
QUANTITIES = MapOf("quantity")
RESOURCES = Fields({"limits": QUANTITIES, "requests": QUANTITIES, "claims": ListOf(ANY)})
ENV = ListOf(Fields({"name": "string", "value": "string", "valueFrom": ANY}, ("name",)))
PULL = Words(("Always", "IfNotPresent", "Never"))
PORT = Fields(
    {
        "containerPort": "integer",
        "hostIP": "string",
        "hostPort": "integer",
        "name": "string",
        "protocol": Words(("TCP", "UDP", "SCTP")),
    },
    ("containerPort",),
)
VOLUME_MOUNT = Fields(
    {
        "mountPath": "string",
        "mountPropagation": "string",
        "name": "string",
        "readOnly": "boolean",
        "recursiveReadOnly": "string",
        "subPath": "string",
        "subPathExpr": "string",
    },
    ("name", "mountPath"),
)
CONTAINER = Fields(
    {
        "args": ListOf("string"),
        "command": ListOf("string"),
        "env": ENV,
        "envFrom": ListOf(ANY),
        "image": "string",
        "imagePullPolicy": PULL,
        "lifecycle": ANY,
        "livenessProbe": ANY,
        "name": "string",
        "ports": ListOf(PORT),
        "readinessProbe": ANY,
        "resizePolicy": ListOf(ANY),
        "resources": RESOURCES,
        "restartPolicy": "string",
        "securityContext": ANY,
        "startupProbe": ANY,
        "stdin": "boolean",
        "stdinOnce": "boolean",
        "terminationMessagePath": "string",
        "terminationMessagePolicy": "string",
        "tty": "boolean",
        "volumeDevices": ListOf(ANY),
        "volumeMounts": ListOf(VOLUME_MOUNT),
        "workingDir": "string",
    },
    ("name",),
)
TOLERATION = Fields(
    {
        "effect": Words(("NoSchedule", "PreferNoSchedule", "NoExecute")),
        "key": "string",
        "operator": Words(("Exists", "Equal")),
        "tolerationSeconds": "integer",
        "value": "string",
    }
)
POD = Fields(
    {
        "activeDeadlineSeconds": "integer",
        "affinity": ANY,
        "automountServiceAccountToken": "boolean",
        "containers": ListOf(CONTAINER),
        "dnsConfig": ANY,
        "dnsPolicy": "string",
        "enableServiceLinks": "boolean",
        "ephemeralContainers": ListOf(ANY),
        "hostAliases": ListOf(ANY),
        "hostIPC": "boolean",
        "hostNetwork": "boolean",
        "hostPID": "boolean",
        "hostUsers": "boolean",
        "hostname": "string",
        "imagePullSecrets": ListOf(ANY),
        "initContainers": ListOf(CONTAINER),
        "nodeName": "string",
        "nodeSelector": STRINGS,
        "os": ANY,
        "overhead": QUANTITIES,
        "preemptionPolicy": "string",
        "priority": "integer",
        "priorityClassName": "string",
        "readinessGates": ListOf(ANY),
        "resourceClaims": ListOf(ANY),
        "resources": RESOURCES,
        "restartPolicy": Words(("Always", "OnFailure", "Never")),
        "runtimeClassName": "string",
        "schedulerName": "string",
        "schedulingGates": ListOf(ANY),
        "securityContext": ANY,
        "serviceAccount": "string",
        "serviceAccountName": "string",
        "setHostnameAsFQDN": "boolean",
        "shareProcessNamespace": "boolean",
        "subdomain": "string",
        "terminationGracePeriodSeconds": "integer",
        "tolerations": ListOf(TOLERATION),
        "topologySpreadConstraints": ListOf(ANY),
        "volumes": ListOf(ANY),
    },
    ("containers",),
)
TEMPLATE = Fields({"metadata": ANY, "spec": POD})
HEAD_GROUP = Fields(
    {
        "enableIngress": "boolean",
        "headService": ANY,
        "labels": STRINGS,
        "rayStartParams": STRINGS,
        "resources": STRINGS,
        "serviceType": Words(("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")),
        "template": TEMPLATE,
    },
    ("template",),
)
WORKER_GROUP = Fields(
    {
        "groupName": "string",
        "idleTimeoutSeconds": "integer",
        "labels": STRINGS,
        "maxReplicas": "integer",
        "minReplicas": "integer",
        "numOfHosts": "integer",
        "rayStartParams": STRINGS,
        "replicas": "integer",
        "resources": STRINGS,
        "scaleStrategy": Fields({"workersToDelete": ListOf("string")}),
        "suspend": "boolean",
        "template": TEMPLATE,
    },
    ("groupName", "maxReplicas", "minReplicas", "template"),
)
AUTOSCALER = Fields(
    {
        "env": ENV,
        "envFrom": ListOf(ANY),
        "idleTimeoutSeconds": "integer",
        "image": "string",
        "imagePullPolicy": PULL,
        "resources": RESOURCES,
        "securityContext": ANY,
        "upscalingMode": Words(("Default", "Aggressive", "Conservative")),
        "version": Words(("v1", "v2")),
        "volumeMounts": ListOf(VOLUME_MOUNT),
    }
)
AUTH = Fields({"enableK8sTokenAuth": "boolean", "mode": Words(("disabled", "token")), "secretName": "string"})
CLUSTER = Fields(
    {
        "authOptions": AUTH,
        "autoscalerOptions": AUTOSCALER,
        "enableInTreeAutoscaling": "boolean",
        "gcsFaultToleranceOptions": ANY,
        "headGroupSpec": HEAD_GROUP,
        "headServiceAnnotations": STRINGS,
        "managedBy": "string",
        "rayVersion": "string",
        "suspend": "boolean",
        "upgradeStrategy": ANY,
        "workerGroupSpecs": ListOf(WORKER_GROUP),
    },
    ("headGroupSpec",),
)
RAYJOB = Fields(
    {
        "activeDeadlineSeconds": "integer",
        "backoffLimit": "integer",
        "clusterSelector": STRINGS,
        "deletionStrategy": ANY,
        "entrypoint": "string",
        "entrypointNumCpus": "number",
        "entrypointNumGpus": "number",
        "entrypointResources": "string",
        "jobId": "string",
        "managedBy": "string",
        "metadata": STRINGS,
        "preRunningDeadlineSeconds": "integer",
        "rayClusterSpec": CLUSTER,
        "runtimeEnvYAML": "string",
        "shutdownAfterJobFinishes": "boolean",
        "submissionMode": Words(("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")),
        "submitterConfig": Fields({"backoffLimit": "integer"}),
        "submitterPodTemplate": TEMPLATE,
        "suspend": "boolean",
        "ttlSecondsAfterFinished": "integer",
    }
)


def field_problems(value: Any, wanted: Any, where: str) -> Iterator[str]:
    """Yield what of a value does not fit: unknown fields, missing ones, values of another type."""
    if wanted == ANY:
        return
    if isinstance(wanted, str):
        if not _fits(value, wanted):
            yield f"{where}: {value!r} is not {'an' if wanted[0] in 'aeiou' else 'a'} {wanted}"
    elif isinstance(wanted, Words):
        if value not in wanted.words:
            yield f"{where}: {value!r} is none of {', '.join(wanted.words)}"
    elif isinstance(wanted, ListOf):
        if not isinstance(value, list):
            yield f"{where}: {value!r} is not a list"
            return
        for number, item in enumerate(value):
            yield from field_problems(item, wanted.items, f"{where}[{number}]")
    elif not isinstance(value, Mapping):
        yield f"{where}: {value!r} is not a mapping"
    elif isinstance(wanted, MapOf):
        for name, item in value.items():
            yield from field_problems(item, wanted.values, f"{where}.{name}")
    else:
        yield from (f"{where}.{name} is missing" for name in wanted.required if value.get(name) is None)
        for name, item in value.items():
            if name not in wanted.known:
                yield f"{where}.{name}: KubeRay knows no such field"
            elif item is not None:
                yield from field_problems(item, wanted.known[name], f"{where}.{name}")


def _fits(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "quantity":
        return isinstance(value, int | float) or (isinstance(value, str) and bool(QUANTITY.match(value)))
    return isinstance(value, PLAIN[kind])
