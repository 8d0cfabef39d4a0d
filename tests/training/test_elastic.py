"""A run that may go on with fewer workers does so when machines are gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hornbook.artifact import Artifact
from hornbook.store import Store
from training.checkpoint import kept
from training.metrics import parse_metrics

STEPS = 300
RECIPE: dict[str, Any] = {
    "name": "elastic",
    "seed": 7,
    "stages": {
        "web": {"kind": "installed-python", "files": 24, "part_rows": 24, "distributions": ["click", "idna"]},
        "tokenizer": {"kind": "tokenizer", "inputs": {"documents": ["web"]}, "vocabulary": 512},
        "pack": {"kind": "pack", "validation_share": 0.2, "inputs": {"documents": "web", "tokenizer": "tokenizer"}},
        "pretrain": {
            "kind": "pretrain",
            "inputs": {"tokens": ["pack"], "tokenizer": "tokenizer"},
            "model": {
                "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2,
            },
            "phases": [{"name": "stable", "steps": STEPS}],
            "max_epochs": 500,
            "loop": {
                "global_batch": 4, "sequence_length": 64, "microbatch": 2, "validate_every": 99, "validation_rows": 4,
                "checkpoint_every": 25, "keep_checkpoints": 99,
            },
            "workers": 2,
            "min_workers": 1,
        },
    },
}  # fmt: skip

THREE_NODES = """
import json, sys, threading, time
import ray
from ray.cluster_utils import Cluster
from in_process import run_recipe_here
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
made = run_recipe_here(recipe, store)  # in this process but for the training
print("made", made["pretrain"].folder, flush=True)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_run_goes_on_with_the_workers_that_there_is_room_for(tmp_path: Path) -> None:
    """Two workers of 0.75 processors, on three machines of one; two machines are lost after the first checkpoint."""
    store = Store(str(tmp_path / "store"))
    done = subprocess.run(
        [sys.executable, "-c", THREE_NODES, json.dumps([RECIPE, store.url])],
        env={
            **os.environ,
            "HORNBOOK_CACHE": str(tmp_path),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",  # of 60: how long Ray Train waits for a worker that cannot come
        },
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (made,) = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("made ")]  # Ray prints, too
    artifact = Artifact(store, made)
    steps = [row["step"] for row in parse_metrics(store.read(f"{artifact.folder}/metrics.jsonl").decode())]
    assert steps == list(range(1, STEPS + 1))
    worlds = [found.world for found in reversed(kept(artifact.local_folder() / "checkpoints"))]
    assert worlds[0] == 2 and worlds[-1] == 1, worlds
