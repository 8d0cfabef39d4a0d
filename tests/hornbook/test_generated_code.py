"""The kinds that run what a model writes, from the recipe to the corpus: an endpoint plays a model that can program."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint, well

from hornbook.artifact import Artifact
from hornbook.pipeline import run_recipe
from hornbook.recipe import check_recipe
from hornbook.store import Store

SOLUTIONS = {
    "adds": "return [number + 1 for number in values]",
    "keeps": "return [number for number in values if number > 1] + [number + 2]",
    "is wrong": "return values",
    "never ends": "while True: pass",
}
EXERCISE = '''```python
def {name}(values: list[int], number: int = 1) -> list[int]:
    """Return something for {name}."""
    {body}


assert {name}([1, 2]) == {result}
assert {name}([]) == {empty}
```'''
RESULTS = {"adds": ("[2, 3]", "[]"), "keeps": ("[2, 3]", "[3]"), "is wrong": ("[0]", "[]"), "never ends": ("[]", "[0]")}


def way_of(name: str) -> str:
    return list(SOLUTIONS)[zlib.crc32(name.encode()) % len(SOLUTIONS)]


@pytest.fixture
def model() -> Iterator[Endpoint]:
    endpoint = Endpoint()

    def write(number: int, handler: BaseHTTPRequestHandler) -> None:
        (name,) = re.findall(r"function `(\w+)`", endpoint.seen[number - 1][1]["messages"][-1]["content"])
        result, empty = RESULTS[way_of(name)]
        well(handler, EXERCISE.format(name=name, body=SOLUTIONS[way_of(name)], result=result, empty=empty))

    endpoint.behaviour = write
    yield endpoint
    endpoint.close()


def rows(artifact: Artifact, role: str = "data") -> list[dict[str, Any]]:
    return [row for table in artifact.tables(role) for row in table.to_pylist()]


def test_exercises_that_hold_are_kept_once(tmp_path: Path, model: Endpoint, ray_cluster: None) -> None:
    stage = {
        "kind": "exercises",
        "rows": 24,
        "part_rows": 6,
        "engine": {"kind": "openai", "model": "m", "base_url": model.url},
        "checks": {"near_duplicates": False},
        "limits": {"seconds": 30, "cpu_seconds": 1, "memory_mib": 256},
    }
    recipe = check_recipe({"name": "code", "stages": {"exercises": stage}}, "here")
    artifact = run_recipe(recipe, Store(str(tmp_path)), say=lambda line: None).artifacts["exercises"]
    documents, rejects = rows(artifact), rows(artifact, "rejects")
    names = [json.loads(row["meta"])["name"] for row in documents]
    wanted = Counter(way_of(re.findall(r"function `(\w+)`", row["unit"])[0]) for row in rejects)
    wanted.update(map(way_of, names))
    assert sum(wanted.values()) == 24 and min(wanted.values()) > 1, "the plan has some of each"
    assert sorted(map(way_of, names)) == ["adds", "keeps"], "the second of the same syntax tree is a duplicate"
    reasons = Counter(row["reason"] for row in rejects)
    assert reasons["asserts-fail"] == wanted["is wrong"]
    assert reasons["timeout"] == wanted["never ends"]
    assert reasons["ast-duplicate"] == wanted["adds"] + wanted["keeps"] - 2
    assert sum(reasons.values()) == 22
    for row in documents:
        assert row["kind"] == "code" and row["text"].startswith("def ") and "assert" not in row["text"]
        assert len(json.loads(row["meta"])["asserts"]) == 2
