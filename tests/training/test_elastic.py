"""A run that may go on with fewer workers does so when machines are gone."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_object_store import RECIPE

from hornbook.artifact import Artifact
from hornbook.store import Store
from training.archive import Archive
from training.checkpoint import kept
from training.metrics import parse_metrics

STEPS = 300

THREE_NODES = """
import json, sys, threading, time
import ray
from ray.cluster_utils import Cluster
from hornbook.pipeline import run_recipe
from hornbook.recipe import check_recipe
from hornbook.store import Store

recipe, url = json.loads(sys.argv[1])
cluster = Cluster()
cluster.add_node(num_cpus=1)
others = [cluster.add_node(num_cpus=1) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)
store = Store(url)

def take_away():
    while not any(name.endswith("checkpoint.json") for name, _ in store.files("artifacts")):
        time.sleep(0.1)
    for node in others:
        cluster.remove_node(node, allow_graceful=False)

threading.Thread(target=take_away, daemon=True).start()
finished = run_recipe(check_recipe(recipe, "test recipe"), store, only=["pretrain"])
print(finished.artifacts["pretrain"].folder)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_run_goes_on_with_the_workers_that_there_is_room_for(s3_url: str, tmp_path: Path) -> None:
    """Two workers of 0.75 processors, on three machines of one; two machines are lost after the first checkpoint."""
    recipe = copy.deepcopy(RECIPE)
    recipe["stages"]["pretrain"] |= {
        "phases": [{"name": "stable", "steps": STEPS}], "max_epochs": 500, "workers": 2, "min_workers": 1,
    }  # fmt: skip
    recipe["stages"]["pretrain"]["loop"] = {
        **recipe["stages"]["pretrain"]["loop"], "checkpoint_every": 25, "keep_checkpoints": 99, "validate_every": 99,
    }  # fmt: skip
    store = Store(s3_url.replace("STORE", "elastic"))
    done = subprocess.run(
        [sys.executable, "-c", THREE_NODES, json.dumps([recipe, store.url])],
        env={**os.environ, "HORNBOOK_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    artifact = Artifact(store, done.stdout.splitlines()[-1])
    steps = [row["step"] for row in parse_metrics(store.read(f"{artifact.folder}/metrics.jsonl").decode())]
    assert steps == list(range(1, STEPS + 1))
    worlds = [found.world for found in reversed(kept(tmp_path, Archive(store, artifact.folder)))]
    assert worlds[0] == 2 and worlds[-1] == 1, worlds
