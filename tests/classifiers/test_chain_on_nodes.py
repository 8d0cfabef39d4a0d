"""The whole chain on a simulated cluster of four nodes, its driver killed again and again: nothing is lost, nothing differs.

Each node has one processor, so that the four workers of a stage are on four of them. What was begun, and where, is known from
a log that the workers write (`chain_driver`), not from hornbook's books.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from in_process import run_recipe_here
from small_crawl import chain_recipe

from hornbook.artifact import Artifact
from hornbook.store import Store

NODES = 4
DOCUMENTS, PART_ROWS = 240, 15
DELAY = 0.15
SLOW_START_SECONDS = 240.0  # other work may share the machine
TAKEN_AT_ONCE = 2  # by a worker: one part at hand, one waiting
WORK = "/work/"
KILLED_IN = ("unique/work/candidates", "scores")

pytestmark = pytest.mark.slow

CLUSTER = f"""
import sys
from ray.cluster_utils import Cluster
cluster = Cluster()
for _ in range({NODES}):
    cluster.add_node(num_cpus=1, object_store_memory=80 << 20, include_dashboard=False)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def recipe(place: Path) -> dict[str, Any]:
    """The chain's recipe; it lies in the folder, too."""
    found = chain_recipe(place, DOCUMENTS, PART_ROWS)
    (place / "chain.yaml").write_text(yaml.safe_dump(found, sort_keys=False))
    return found


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """A cluster of four nodes in processes of its own, which outlives the drivers."""
    environment = {**os.environ, "CHAIN_LOG": str(place / "begun.txt"), "CHAIN_DELAY": str(DELAY)}
    holder = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin and holder.stdout
    yield holder.stdout.readline().strip()
    holder.stdin.close()
    holder.wait(60)


@pytest.fixture(scope="module")
def by_one_worker(place: Path, recipe: Mapping[str, Any]) -> dict[str, Artifact]:
    """What one worker makes of it, part after part in this process, without Ray."""
    return run_recipe_here(recipe, Store(str(place / "alone")))


def test_killed_over_and_over_on_four_nodes_the_chain_makes_what_one_worker_makes(
    place: Path, recipe: Mapping[str, Any], address: str, by_one_worker: Mapping[str, Artifact]
) -> None:
    store, said = Store(str(place / "store")), place / "said.txt"
    committed: dict[str, bytes] = {}
    lines = amid = 0
    for step in (*KILLED_IN, ""):
        driver = start(place, address, store)
        if step:
            wait(driver, said, lambda: len(records(store, step)) >= 2)  # noqa: B023
            driver.kill()
            driver.wait()
            amid += folder(store, step) + "/manifest.json" not in records(store)
        else:
            assert driver.wait(SLOW_START_SECONDS) == 0, said.read_text()[-3000:]
        found = records(store)
        gone = {name for name in committed if WORK in name}  # the steps of a deduplication that was finished since
        assert all(found[name] == committed[name] for name in committed.keys() - (gone - found.keys()))
        again = {f"{where}/parts/{int(first):012d}.json" for where, first, _ in begun(place)[lines:]}
        assert not again & committed.keys(), "what was done when a driver died was begun by the next"
        committed, lines = found, len(begun(place))

    made = {name: Artifact(store, folder(store, name)) for name in recipe["stages"]}
    assert {name: artifact.manifest.digest for name, artifact in made.items()} == {
        name: artifact.manifest.digest for name, artifact in by_one_worker.items()
    }
    for artifact in made.values():
        counts = artifact.manifest.counts
        assert counts.get("planned", 0) == counts.get("succeeded", 0) + counts.get("rejected", 0)
    assert made["raw"].manifest.counts["planned"] == DOCUMENTS
    assert not any(WORK in name for name in records(store)), "the steps of a finished deduplication are still there"

    assert amid, "the stages ended before the kills"
    parts = Counter((where, first) for where, first, _ in begun(place))
    redone = parts.total() - len(parts)
    assert redone <= len(KILLED_IN) * NODES * TAKEN_AT_ONCE, f"{redone} of {parts.total()} parts were begun again"

    nodes: dict[str, set[str]] = {}
    for where, _, node in begun(place):
        nodes.setdefault(where, set()).add(node)
    assert len(set().union(*nodes.values())) == NODES
    # On a busy machine one worker may have made a whole stage before the others have started.
    several = [name for name, artifact in made.items() if len(nodes.get(artifact.folder, ())) > 1]
    assert len(several) >= len(made) / 2, nodes
    assert made["corpus"].manifest.counts["rows"] > 20
    print(f"{len(KILLED_IN)} kills, {len(parts)} parts, {redone} redone; on several nodes: {several}")


def start(place: Path, address: str, store: Store) -> psutil.Popen:
    """Start a driver on the cluster."""
    environment = {**os.environ, "RAY_ADDRESS": address, "HORNBOOK_STORE": store.url}
    command = [sys.executable, str(Path(__file__).with_name("chain_driver.py")), str(place / "chain.yaml")]
    with (place / "said.txt").open("ab") as output:
        return psutil.Popen(command, env=environment, stdout=output, stderr=output)


def folder(store: Store, step: str) -> str:
    """Return the folder of a stage, or of a step of one, as the newest run's record has it; empty before it begins."""
    runs = store.names("runs")
    stage, _, inside = step.partition("/")
    record = f"runs/{runs[-1]}/run.json" if runs else ""
    if not record or not store.exists(record):
        return ""
    found = str(store.read_json(record)["stages"][stage]["folder"])
    return f"{found}/{inside}".rstrip("/") if found else ""


def records(store: Store, step: str = "") -> dict[str, bytes]:
    """Return the commit records of a step, or all records and manifests that there are, by name."""
    if not step:
        names = [name for name, _ in store.files("artifacts")]
        chosen = [f"artifacts/{name}" for name in names if "/parts/" in name or name.endswith("manifest.json")]
        return {name: store.read(name) for name in chosen}
    where = folder(store, step)
    return dict.fromkeys(store.names(f"{where}/parts"), b"") if where else {}


def begun(place: Path) -> list[tuple[str, str, str]]:
    """Return (artifact, first row, node) of every part in the order in which workers began them."""
    lines = (place / "begun.txt").read_text().splitlines()
    return [(words[0], words[1], words[2]) for words in map(str.split, lines)]


def wait(driver: psutil.Popen, said: Path, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; the driver must still be at work then."""
    end = time.monotonic() + SLOW_START_SECONDS
    while not condition():
        assert driver.poll() is None, f"the driver ended early:\n{said.read_text()[-3000:]}"
        assert time.monotonic() < end, f"waited in vain:\n{said.read_text()[-3000:]}"
        time.sleep(0.02)
