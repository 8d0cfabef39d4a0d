"""What a stage makes of its engine: an outage is never data, and every replica gets its share of the work."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint, send, well

from hornbook.artifact import Artifact
from hornbook.errors import EngineError
from hornbook.parts import read_commits
from hornbook.pipeline import Finished, run_recipe
from hornbook.recipe import check_recipe
from hornbook.run_view import read_run
from hornbook.runs import load_run
from hornbook.spending import spending
from hornbook.store import Store

pytestmark = pytest.mark.usefixtures("ray_cluster")

STORY = "Once there was a small dog who could not find its ball. It looked and looked. Then it found it."


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


def write_stories(store: Store, engine: dict[str, Any], **settings: Any) -> Finished:
    stage = {"kind": "stories", "engine": {"model": "m", **engine}, **settings}
    recipe = check_recipe({"name": "one-stage", "seed": 1, "stages": {"stories": stage}}, "test recipe")
    return run_recipe(recipe, store, say=lambda line: None)


def committed(store: Store) -> tuple[int, int]:
    """Return the rows and rejects that the last run's stage has committed as drafts."""
    folder = load_run(store, "latest").value["stages"]["stories"]["folder"]
    records = list(read_commits(store, f"{folder}/drafts"))
    assert not Artifact(store, folder).complete
    return sum(record.rows for record in records), sum(record.rejected for record in records)


@pytest.mark.parametrize("fault", ["outage", "budget"])
def test_an_outage_stops_the_stage_and_a_rerun_makes_what_is_missing(
    endpoint: Endpoint, tmp_path: Path, fault: str
) -> None:
    def story(number: int, handler: BaseHTTPRequestHandler) -> None:
        if fault == "outage" and number > 9:
            send(handler, 503, b"")
        else:
            well(handler, STORY)

    endpoint.behaviour = story
    store = Store(str(tmp_path / "store"))
    plan = {"rows": 16, "part_rows": 2, "parts_in_flight": 2, "sampling": {"max_tokens": 30}}
    plan |= {"checks": {"near_duplicates": False}, "required_words": 0}  # the endpoint says the same to all
    engine = {"kind": "openai", "base_url": endpoint.url, "outage_seconds": 0.2}
    budget = {"max_total_tokens": 150} if fault == "budget" else {}
    with pytest.raises(EngineError, match="goes on where it stood"):
        write_stories(store, {**engine, **budget}, **plan)
    rows, rejected = committed(store)
    asked = len(endpoint.seen)
    answered = 9 if fault == "outage" else asked
    assert (0 < rows < 16) and rejected == 0 and rows <= answered < 16
    endpoint.behaviour = lambda number, handler: well(handler, STORY)
    again = write_stories(store, engine, **plan)
    counts = again.artifacts["stories"].manifest.counts
    assert (counts["rows"], counts["rejected"]) == (16, 0)
    assert len(endpoint.seen) - asked == 16 - answered, "what was answered is not asked again"


def test_parts_in_flight_are_each_replicas(tmp_path: Path) -> None:
    log = tmp_path / "log"
    engine = {"kind": "echo", "replicas": 2, "echo_tokens_per_second": 60, "request_log": str(log)}
    write_stories(Store(str(tmp_path / "store")), engine, rows=10, part_rows=1, parts_in_flight=1)
    under_way, most = 0, 0
    for line in log.read_text().splitlines():
        under_way += 1 if line.startswith("taken") else -1
        most = max(most, under_way)
    assert most == 2


def test_a_stage_stops_at_its_money_and_goes_on_when_it_is_raised(endpoint: Endpoint, tmp_path: Path) -> None:
    """16 rows in parts of 4, a reply costs 0.307 and may cost 0.48: after 12 replies a further one might be too dear for 4."""
    endpoint.behaviour = lambda number, handler: well(handler, STORY)
    store = Store(str(tmp_path / "store"))
    sampling = {"max_tokens": 4, "stop": ["THE END"]}
    plan = {"rows": 16, "part_rows": 4, "parts_in_flight": 2, "sampling": sampling, "required_words": 0}
    plan |= {"checks": {"near_duplicates": False}}  # the endpoint says the same to all
    prices = {"price_per_million_prompt_tokens": 1_000, "price_per_million_completion_tokens": 100_000}
    engine = {"kind": "openai", "base_url": endpoint.url, **prices}
    with pytest.raises(EngineError, match=r"3\.684 of max_money=4; the next request may cost") as stopped:
        write_stories(store, {**engine, "max_money": 4}, **plan)
    assert "raise engine.max_money" in stopped.value.cure
    assert len(endpoint.seen) == 12 and committed(store)[0] <= 12
    first = read_run(store, load_run(store, "latest").id)
    again = write_stories(store, {**engine, "max_money": 9}, **plan)
    counts = again.artifacts["stories"].manifest.counts
    assert (counts["rows"], counts["rejected"]) == (16, 0)
    asked = [body["messages"][0]["content"] for _, body, _ in endpoint.seen]
    assert len(asked) == len(set(asked)) == 16, "nothing is asked twice"
    assert all(body["stop"] == ["THE END"] for _, body, _ in endpoint.seen)
    assert counts["money"] == pytest.approx(16 * 0.307), "both attempts"
    second = read_run(store, again.run.id)
    paid = [[row["paid"] for row in spending(run)] for run in (first, second)]
    assert paid == [["3.68"], ["1.23"]]  # each run its own


def test_money_for_less_than_a_part_is_not_lost(endpoint: Endpoint, tmp_path: Path) -> None:
    """A reply costs 0.3, and 0.5 buy one: of a part of four rows each run makes one, and the fourth run has it whole."""
    endpoint.behaviour = lambda number, handler: well(handler, STORY)
    prices = {"max_money": 0.5, "price_per_million_completion_tokens": 100_000}
    engine = {"kind": "openai", "base_url": endpoint.url, **prices}
    plan = {"rows": 4, "part_rows": 4, "sampling": {"max_tokens": 4}, "required_words": 0}
    plan |= {"checks": {"near_duplicates": False}}
    store = Store(str(tmp_path / "store"))
    for run in (1, 2, 3):
        with pytest.raises(EngineError, match=r"the next request may cost 0\.4"):
            write_stories(store, engine, **plan)
        assert len(endpoint.seen) == run
    counts = write_stories(store, engine, **plan).artifacts["stories"].manifest.counts
    assert (counts["rows"], counts["reused"], len(endpoint.seen)) == (4, 0, 4)
    assert counts["money"] == pytest.approx(1.2)
