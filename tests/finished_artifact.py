"""The manifest of an artifact that a test made by hand."""

from __future__ import annotations

from typing import Any

from hornbook.artifact import Artifact, finish_artifact


def finish(artifact: Artifact, produces: str, **values: Any) -> Artifact:
    """Write a manifest with the least that readers need, and with `values`, as `finish_artifact` takes them."""
    inputs = values.get("inputs", {})
    least = {
        "kind": "test", "stage": artifact.folder.rpartition("/")[2], "fingerprint": "0" * 64, "seed": 0, "settings": {},
        "models": {}, "inputs": inputs, "metrics": {}, "seconds": 0.0,
        "input_stages": {role: [found.manifest.stage for found in artifacts] for role, artifacts in inputs.items()},
    }  # fmt: skip
    finish_artifact(artifact, produces=produces, **{**least, **values})
    return artifact
