"""The pool keeps its promises while its engines are killed: every request is answered once, and only killers are
rejected."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from endpoint import Endpoint

from hornbook.engines import pool as engine_pool
from hornbook.engines.interface import EngineSettings, Reply, Request, Sampling
from hornbook.engines.pool import EngineHandle, EnginePool, _layout
from hornbook.errors import ClusterError, EngineError, ModelError

pytestmark = pytest.mark.usefixtures("ray_cluster")


def request(text: str, seed: int = 0, choices: tuple[str, ...] = (), tag: str = "") -> Request:
    return Request(({"role": "user", "content": text},), seed, choices, tag)


def batches(count: int, size: int, poison: tuple[str, ...] = ()) -> list[list[Request]]:
    tags = [[f"{batch}/{row}" for row in range(size)] for batch in range(count)]
    return [
        [request("POISON" if tag in poison else "a story", row, tag=tag) for row, tag in enumerate(b)] for b in tags
    ]


async def generate_all(handle: EngineHandle, work: list[list[Request]], **sampling: int) -> list[list[Reply]]:
    return list(await asyncio.gather(*(handle.generate(batch, Sampling(**sampling)) for batch in work)))


def log_counts(log: Path) -> tuple[Counter[str], Counter[str], list[int]]:
    """Return how often each tag was taken and done, and the engines' process ids in order of appearance."""
    lines = [line.split() for line in log.read_text().splitlines()]
    taken, done = (Counter(tag for what, tag, _ in lines if what == wanted) for wanted in ("taken", "done"))
    return taken, done, list(dict.fromkeys(int(pid) for *_, pid in lines))


def test_replies_come_in_order_and_are_counted() -> None:
    with EnginePool(EngineSettings(kind="echo", replicas=2)) as pool:
        work = batches(6, 5)
        replies = asyncio.run(generate_all(pool.handle(), work))
        again = asyncio.run(generate_all(pool.handle(), work))
        stats = pool.stats()
    assert replies == again
    assert len({reply.text for reply in replies[0]}) == 5
    assert (stats.requests, stats.errors, stats.restarts, stats.in_flight) == (60, 0, 0, 0)
    assert stats.completion_tokens == 2 * sum(reply.completion_tokens for batch in replies for reply in batch)


def test_prompts_that_kill_the_engine_are_rejected_and_nothing_else(tmp_path: Path) -> None:
    log = tmp_path / "log"
    settings = EngineSettings(kind="echo", echo_dies_on="POISON", echo_tokens_per_second=500, request_log=str(log))
    poison = ("1/3", "1/4")
    with EnginePool(settings) as pool:
        replies = asyncio.run(generate_all(pool.handle(), batches(3, 9, poison)))
        stats = pool.stats()
    failed = {f"{b}/{r}" for b, batch in enumerate(replies) for r, reply in enumerate(batch) if reply.error}
    assert failed == set(poison)
    assert all("died while answering this prompt alone" in replies[int(t[0])][int(t[2])].error for t in poison)
    taken, done, engines = log_counts(log)
    assert set(done) == {tag for tag in taken if tag not in poison}
    assert (stats.requests, stats.errors, stats.restarts) == (27, 2, len(engines) - 1)
    assert max(taken[tag] for tag in poison) <= 4


def test_a_killed_engine_costs_only_what_was_in_flight(tmp_path: Path) -> None:
    log = tmp_path / "log"
    settings = EngineSettings(kind="echo", echo_tokens_per_second=100, request_log=str(log))

    async def kill_midway(handle: EngineHandle) -> list[list[Reply]]:
        first = await generate_all(handle, batches(1, 4))
        work = asyncio.create_task(generate_all(handle, batches(5, 4)[1:]))
        await asyncio.sleep(0.25)
        os.kill(log_counts(log)[2][0], signal.SIGKILL)
        return first + await work

    with EnginePool(settings) as pool:
        replies = asyncio.run(kill_midway(pool.handle()))
    assert all(reply.finish_reason == "stop" for batch in replies for reply in batch)
    taken, done, engines = log_counts(log)
    assert len(engines) == 2
    assert set(done) == set(taken)
    assert all(taken[tag] == 1 for tag in ("0/0", "0/1", "0/2", "0/3"))
    assert max(taken.values()) == 2


def test_an_engine_that_keeps_dying_ends_in_one_error() -> None:
    with (
        EnginePool(EngineSettings(kind="echo", echo_dies_on="POISON", max_restarts=1)) as pool,
        pytest.raises(EngineError, match="restarts are used up"),
    ):
        asyncio.run(generate_all(pool.handle(), batches(1, 4, ("0/1",))))


def test_an_engine_that_cannot_start_says_why_once() -> None:
    with EnginePool(EngineSettings(kind="openai")) as pool, pytest.raises(EngineError, match="base_url") as raised:
        pool.handle()
    assert "Traceback" not in str(raised.value)
    with EnginePool(EngineSettings(model="smollm2-135m-instrukt")) as pool, pytest.raises(ModelError):
        pool.handle()


def test_starting_an_engine_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    with EnginePool(EngineSettings(kind="echo", model="m")) as pool:
        pool.handle()
        pool.handle()
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("starting")]
    assert said == ["starting the engine echo with m ..."]


def test_replicas_that_find_no_place_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    monkeypatch.setattr(engine_pool, "_SECONDS_BETWEEN_WAITING_NOTES", 0.2)
    monkeypatch.setattr(engine_pool, "_PATIENCE_WITH_THE_OTHERS", 1.0)
    elsewhere = placement_group([{"CPU": ray.cluster_resources()["CPU"] - 0.5}])
    ray.get(elsewhere.ready())
    try:
        with EnginePool(EngineSettings(kind="echo", replicas=3)) as pool:
            assert len(pool.handle()) == 1
            replies = asyncio.run(generate_all(pool.handle(), batches(6, 1)))
    finally:
        remove_placement_group(elsewhere)
    assert all(reply.finish_reason == "stop" for (reply,) in replies)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


def test_replicas_share_one_budget_and_a_killed_one_does_not_forget_it(endpoint: Endpoint, tmp_path: Path) -> None:
    log = tmp_path / "log"
    settings = EngineSettings(
        kind="openai",
        base_url=endpoint.url,
        replicas=2,
        max_total_tokens=120,
        price_per_million_prompt_tokens=1_000,
        price_per_million_completion_tokens=100_000,
        request_log=str(log),
    )
    with EnginePool(settings) as pool:
        handle = pool.handle()
        asyncio.run(generate_all(handle, batches(3, 1), max_tokens=30))  # 10 tokens each
        for engine in log_counts(log)[2]:
            os.kill(engine, signal.SIGKILL)
        with pytest.raises(EngineError, match="of max_total_tokens=120"):
            asyncio.run(generate_all(handle, batches(20, 1), max_tokens=30))
        assert pool.stats().money == pytest.approx(9 * 0.307)
    assert len(endpoint.seen) == 9  # 90 are spent; a tenth request might take 32 more


@pytest.mark.parametrize(
    ("settings", "gpus", "layout"),
    [
        ({}, 0, (1, 0)),
        ({}, 8, (8, 1)),
        ({"tensor_parallel": 4}, 8, (2, 4)),
        ({"replicas": 3}, 8, (3, 1)),
        ({"kind": "openai", "replicas": 2}, 8, (2, 0)),
    ],
)
def test_replicas_are_laid_over_all_gpus_that_may_come(settings: dict[str, Any], gpus: int, layout: Any) -> None:
    assert _layout(EngineSettings(**settings), gpus) == layout


def test_more_gpus_than_may_come_are_refused_with_both_cures() -> None:
    with pytest.raises(ClusterError, match="HORNBOOK_EXPECTED_GPUS"):
        _layout(EngineSettings(tensor_parallel=4), 2)


def test_a_handle_works_inside_ray_data() -> None:
    import ray

    class Writer:
        def __init__(self, handle: EngineHandle) -> None:
            self.handle = handle

        async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
            replies = await self.handle.generate([request("row", int(row)) for row in batch["id"]], Sampling())
            yield {"id": batch["id"], "words": [reply.completion_tokens for reply in replies]}

    with EnginePool(EngineSettings(kind="echo")) as pool:
        rows = (
            ray.data.range(64)
            .map_batches(
                Writer,
                fn_constructor_args=(pool.handle(),),
                batch_size=8,
                num_cpus=0.5,
                max_concurrency=4,
                compute=ray.data.ActorPoolStrategy(size=1),
            )
            .take_all()
        )
        assert pool.stats().requests == 64
    assert sorted(row["id"] for row in rows) == list(range(64))


# --- the real engine -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real") / "log"


@pytest.fixture(scope="module")
def real_pool(ray_cluster: None, real_log: Path) -> EnginePool:  # type: ignore[misc]
    with EnginePool(EngineSettings(max_model_len=256, request_log=str(real_log), prefix_order=True)) as pool:
        yield pool


@pytest.mark.slow
def test_the_real_engine_says_how_each_reply_ended(real_pool: EnginePool) -> None:
    questions = [
        request("What is the capital of France? Answer with one word.", 1),
        request("Write a long story about a cat.", 2),
        request("word " * 300, 3),
        request("Is fire hot?", 4, choices=("Yes", "No")),
        request("Is fire hot?", 5, choices=("Yes indeed it is", "No")),
        request("Write a long story about a cat.", 2),
    ]
    short, long, too_long, choice, bad_choice, long_again = asyncio.run(
        real_pool.handle().generate(questions, Sampling(max_tokens=24, temperature=0.7))
    )
    assert short.finish_reason == "stop" and "Paris" in short.text
    assert (long.finish_reason, long.completion_tokens) == ("length", 24)
    assert long_again.text == long.text
    assert too_long.finish_reason == "error" and "max_model_len is 256" in too_long.error
    assert choice.text in ("Yes", "No") and choice.completion_tokens == 1
    assert choice.choice_probabilities[choice.text] >= 0.5
    assert sum(choice.choice_probabilities.values()) == pytest.approx(1)
    assert "not one" in bad_choice.error


@pytest.mark.slow
def test_the_real_engine_stops_at_a_string(real_pool: EnginePool) -> None:
    def told(*stop: str) -> Reply:
        asked = [request("Write a long story about a cat.")]
        return asyncio.run(real_pool.handle().generate(asked, Sampling(max_tokens=12, temperature=0, stop=stop)))[0]

    whole = told()
    end = f" {whole.text.split()[4]}"
    stopped = told("no such words", end)
    assert (whole.finish_reason, stopped.finish_reason) == ("length", "stop")
    assert stopped.text == whole.text[: whole.text.index(end)] and stopped.completion_tokens < 12


GRADE = {
    "type": "object",
    "properties": {
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
        "reason": {"type": "string", "maxLength": 60},
    },
    "required": ["score", "reason"],
    "additionalProperties": False,
}


@pytest.mark.slow
def test_the_real_engine_writes_values_of_a_schema(real_pool: EnginePool) -> None:
    handle = real_pool.handle()
    asked = [replace(request(f"Grade story {n} as JSON.", n), schema=json.dumps(GRADE)) for n in range(6)]
    replies = asyncio.run(handle.generate([*asked, request("Say hello.", 7)], Sampling(max_tokens=64)))
    for reply in replies[:-1]:
        assert reply.finish_reason == "stop"
        assert set(json.loads(reply.text)) == {"score", "reason"} and 1 <= json.loads(reply.text)["score"] <= 5
    assert not replies[-1].text.startswith("{")
    (cut,) = asyncio.run(handle.generate(asked[:1], Sampling(max_tokens=3)))
    assert (cut.finish_reason, cut.completion_tokens) == ("length", 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ('{"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 3}}}', r"stories/3 .*multipleOf"),
        ('{"$ref": "#/$defs/nowhere"}', "points at nothing"),
        ('{"type": "string", "format": "rhyme"}', r"stories/3 .*rhyme"),
        ('{"type": "strin"}', "strin"),
    ],
)
def test_the_real_engine_refuses_a_schema_it_cannot_enforce_and_lives(
    real_pool: EnginePool, schema: str, said: str
) -> None:
    before = real_pool.stats().restarts
    with pytest.raises(EngineError, match=said):
        asyncio.run(
            real_pool.handle().generate([replace(request("a", tag="stories/3"), schema=schema)], Sampling(max_tokens=4))
        )
    assert real_pool.stats().restarts == before


@pytest.mark.slow
def test_the_real_engine_takes_prompts_with_the_same_beginning_together(real_pool: EnginePool, real_log: Path) -> None:
    handle = real_pool.handle()
    asked = [request(f"{n % 2} is where this begins. " + "word " * n, n, tag=f"order/{n % 2}") for n in range(8)]
    replies = asyncio.run(handle.generate(asked, Sampling(max_tokens=2)))
    taken = [line.split()[1] for line in real_log.read_text().splitlines() if line.startswith("taken order/")]
    assert taken == ["order/0"] * 4 + ["order/1"] * 4
    lengths = [reply.prompt_tokens for reply in replies]
    assert lengths == sorted(lengths) and len(set(lengths)) == 8  # the replies are in the order of the requests


@pytest.mark.slow
def test_the_real_engine_avoids_openings_at_the_start_of_a_reply_only(real_pool: EnginePool) -> None:
    asked = request("Write a short story about a dog.", 1)
    greedy = Sampling(max_tokens=12, temperature=0)

    def written(*avoided: str) -> list[str]:
        requests = [replace(asked, avoid=tuple((opening, -100.0) for opening in avoided)), asked]
        avoiding, plain = asyncio.run(real_pool.handle().generate(requests, greedy))
        assert plain.text == usual.text  # beside a request that avoids, others are as they were
        return avoiding.text.split()

    (usual,) = asyncio.run(real_pool.handle().generate([asked], greedy))
    first, second, third, *_ = usual.text.split()
    assert written(first)[0] != first
    assert written(f"{first} {second}")[0] == first and written(f"{first} {second}")[1] != second
    assert written(f"{first} {second} {third}")[:2] == [first, second]
    assert written(f"{first} {second} {third}")[2] != third
    untouched = written(second, f"Zebras {second}", f"{first} {third}", third)
    assert untouched == usual.text.split()


@pytest.mark.slow
def test_the_real_engine_reads_more_prompts_at_once_than_one_step_holds(real_pool: EnginePool) -> None:
    """The CPU engine of vLLM 0.32 dies of a seeded prompt that is read in chunks; ours reads it whole."""
    before = real_pool.stats().restarts
    crowd = [request(f"{number} " + "word " * 150, seed=number) for number in range(20)]
    replies = asyncio.run(real_pool.handle().generate(crowd, Sampling(max_tokens=2)))
    assert [reply.error for reply in replies] == [""] * 20
    assert real_pool.stats().restarts == before


@pytest.mark.slow
def test_nothing_of_the_real_engine_outlives_a_killed_driver(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(
        textwrap.dedent("""
        import os, signal, psutil, ray
        from hornbook.engines.interface import EngineSettings
        from hornbook.engines.pool import EnginePool

        if __name__ == "__main__":
            ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
            pool = EnginePool(EngineSettings(max_model_len=256))
            pool.handle()
            mine = psutil.Process().children(recursive=True)
            print(*[child.pid for child in mine if "VLLM" in " ".join(child.cmdline())], flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    driver = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert driver.returncode == -signal.SIGKILL
    engine_processes = [int(pid) for pid in driver.stdout.split()[-2:]]
    assert len(engine_processes) == 2
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in engine_processes) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(psutil.pid_exists(pid) for pid in engine_processes)
