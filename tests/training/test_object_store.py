"""The whole chain on an object store: from files to an exported model, and training that finds its checkpoints there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from corpus import chat_documents, corpus
from test_resume import deterministic
from test_stages import run_stage

from hornbook.artifact import Artifact
from hornbook.models import resolve
from hornbook.pipeline import Finished, run_recipe
from hornbook.recipe import check_recipe
from hornbook.store import Store
from training.archive import Archive
from training.metrics import parse_metrics
from training.pack import Pack
from training.sft import Sft

# One put holds at most some megabytes on the S3 server of the tests, so everything is tiny.
STEPS = 12
LOOP = {
    "global_batch": 4, "sequence_length": 64, "microbatch": 2, "validate_every": 6, "checkpoint_every": 4,
    "validation_rows": 4,
}  # fmt: skip
MODEL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}
RECIPE: dict[str, Any] = {
    "name": "chain",
    "seed": 7,
    "engine": {"kind": "echo"},
    "stages": {
        "web": {
            "kind": "installed-python", "files": 48, "part_rows": 24,
            "distributions": ["jinja2", "click", "idna", "rich", "pydantic"],
        },
        "grades": {"kind": "annotate", "inputs": {"documents": "web"}, "sample": 30, "part_rows": 16},
        "vectors": {"kind": "embed", "inputs": {"documents": "web"}},
        "quality": {
            "kind": "quality", "trees": 20,
            "inputs": {"documents": "web", "embeddings": "vectors", "annotations": "grades"},
        },
        "scores": {"kind": "score", "inputs": {"documents": "web", "embeddings": "vectors", "scorer": "quality"}},
        "tokenizer": {"kind": "tokenizer", "inputs": {"documents": ["web"]}, "vocabulary": 512},
        "pack": {
            "kind": "pack", "source": "web", "validation_share": 0.2,
            "inputs": {"documents": "web", "tokenizer": "tokenizer", "scores": "scores"},
        },
        "pretrain": {
            "kind": "pretrain", "inputs": {"tokens": ["pack"], "tokenizer": "tokenizer"}, "model": MODEL,
            "phases": [{"name": "stable", "steps": STEPS}], "max_epochs": 50, "loop": LOOP,
        },
        "export": {
            "kind": "export", "inputs": {"model": "pretrain"}, "serving": {"kind": "echo"},
            "sampling": {"max_tokens": 8},
        },
    },
}  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def run(store: Store, **options: Any) -> Finished:
    return run_recipe(check_recipe(RECIPE, "test recipe"), store, say=lambda line: None, **options)


def rows(artifact: Artifact) -> list[dict[str, Any]]:
    return list(parse_metrics(artifact.store.read(f"{artifact.folder}/metrics.jsonl").decode()))


@pytest.fixture(scope="module")
def store(s3_url: str) -> Store:
    return Store(s3_url.replace("STORE", "chain"))


@pytest.fixture(scope="module")
def made(store: Store, ray_cluster: None) -> Finished:
    return run(store)


def test_every_stage_is_made_on_the_object_store(store: Store, made: Finished, tmp_path: Path) -> None:
    assert {stage["state"] for stage in made.run.value["stages"].values()} == {"made"}
    pretrained = made.artifacts["pretrain"]
    assert [row["step"] for row in rows(pretrained)] == list(range(1, STEPS + 1))
    assert len(store.names(f"{pretrained.folder}/checkpoints")) == 2
    inputs = {
        "documents": {"sums": corpus(store, "sums", chat_documents(40))},
        "tokenizer": {"tokenizer": made.artifacts["tokenizer"]},
    }
    packed = run_stage(Pack, store, "pack-sums", {"form": "chat", "validation_share": 0.1}, inputs)
    inputs = {"model": {"pretrain": pretrained}, "tokens": {"pack-sums": packed}}
    tuned = run_stage(Sft, store, "sft", {"epochs": 1, "loop": LOOP, "workers": 1}, inputs)
    assert tuned.manifest.metrics["loss"] and (tuned.local_folder("model") / "config.json").exists()


def test_what_is_served_is_what_was_exported(
    store: Store, made: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica on another node resolves the model from the store; the card tells the export from its source."""
    monkeypatch.setenv("HORNBOOK_CACHE", str(tmp_path))
    exported = made.artifacts["export"]
    url = store.describe(f"{exported.folder}/model", options=True)
    found = resolve(url)
    files = {name: store.read(f"{exported.folder}/model/{name}") for name, _ in store.files(f"{exported.folder}/model")}
    assert "README.md" in files and {file.name: file.read_bytes() for file in found.path.iterdir()} == files
    assert resolve(url).path == found.path
    card = files["README.md"]
    store.write(f"{exported.folder}/model/README.md", card[::-1])  # of the same size
    assert (resolve(url).path / "README.md").read_bytes() == card[::-1]
    store.write(f"{exported.folder}/model/README.md", card)


TWO_NODES = """
import sys, json
import ray
from ray.cluster_utils import Cluster
from hornbook.pipeline import run_recipe
from hornbook.recipe import check_recipe
from hornbook.store import Store

recipe, url, head, worker = json.loads(sys.argv[1])
cluster = Cluster()
cluster.add_node(num_cpus=0, env_vars={"HORNBOOK_CACHE": head})
cluster.add_node(num_cpus=4, env_vars={"HORNBOOK_CACHE": worker})
ray.init(address=cluster.address, log_to_driver=False)
finished = run_recipe(check_recipe(recipe, "test recipe"), Store(url), only=["pretrain"])
print(finished.artifacts["pretrain"].folder)
ray.shutdown()
cluster.shutdown()
"""


def test_new_machines_go_on_from_the_store(store: Store, made: Finished, tmp_path: Path) -> None:
    """The head has no processors, so every worker runs on the other node, which has a cache of its own, empty as the
    head's."""
    artifact, before = made.artifacts["pretrain"], rows(made.artifacts["pretrain"])
    assert not Archive(store, artifact.folder).cache.exists(), "a finished run leaves its cache behind"
    last = store.names(f"{artifact.folder}/checkpoints")[-1]
    store.delete(f"{artifact.folder}/checkpoints/{last}/checkpoint.json")  # as if killed after step 8 was saved
    store.delete(f"{artifact.folder}/manifest.json")
    store.delete(f"{artifact.folder}/model")
    head, worker = tmp_path / "head", tmp_path / "worker"
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, json.dumps([RECIPE, store.url, str(head), str(worker)])],
        env={**os.environ, "HORNBOOK_CACHE": str(head)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert artifact.folder in done.stdout.splitlines(), "it is not the same artifact"
    after = rows(artifact)
    assert deterministic(after) == deterministic(before)
    assert after[:8] == before[:8] and after[8:] != before[8:], "it did not start from step 8"
    assert len(store.names(f"{artifact.folder}/checkpoints")) == 2
    assert list((worker / "artifacts").glob("pack-*")), "the worker read the tokens through the other node's cache"
    assert not list(tmp_path.glob("*/training/*")), "a cache is left behind"
