"""A prompt that an endpoint can never answer fails alone; an endpoint that answers nobody fails no row."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from endpoint import Endpoint, send, well

from hornbook.engines import openai_engine
from hornbook.engines.interface import Engine, EngineSettings, Reply, Request, Sampling
from hornbook.errors import EngineError, RecipeError
from hornbook.settings import validate

Behaviour = Callable[[BaseHTTPRequestHandler], None]


def request(text: str, tag: str = "") -> Request:
    return Request(({"role": "user", "content": text},), 0, tag=tag)


def ask(engine: Engine, requests: list[Request]) -> list[Reply]:
    async def conversation() -> list[Reply]:
        await engine.start()
        try:
            return await engine.generate(requests, Sampling())
        finally:
            await engine.close()

    return asyncio.run(conversation())


def asked(endpoint: Endpoint) -> Counter[str]:
    return Counter(body["messages"][0]["content"] for _, body, _ in endpoint.seen)


def chunks_that_break_off(handler: BaseHTTPRequestHandler) -> None:
    """Half a stream: a first chunk, then the connection is gone."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'12\r\n{"choices": [{"mes\r\n')
    handler.close_connection = True


def two_replies_worth(handler: BaseHTTPRequestHandler) -> None:
    send(handler, 200, b'{"choices": []}')


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(openai_engine, "FIRST_WAIT", 0.001)
    made = Endpoint()
    yield made
    made.close()


POISONS: dict[str, tuple[Behaviour, str]] = {
    "500": (lambda handler: send(handler, 500, b"tokenizer crashed"), "status 500"),
    "503": (lambda handler: send(handler, 503, b""), "status 503"),
    "garbage": (lambda handler: send(handler, 200, b"\x80\xff<html>"), "makes no sense"),
    "no choices": (two_replies_worth, "makes no sense"),
    "half a body": (lambda handler: send(handler, 200, b'{"choices": [{"mess', length=500), "RemoteProtocolError"),
    "half a stream": (chunks_that_break_off, "RemoteProtocolError"),
    "a hang": (lambda handler: time.sleep(0.3), "no reply within 0.15 s"),
}


@pytest.mark.parametrize("poison", POISONS)
def test_a_prompt_that_never_gets_an_answer_fails_alone(endpoint: Endpoint, poison: str) -> None:
    """Also when it is the last one left: then a prompt of two tokens tells whether the endpoint is up."""
    misbehave, said = POISONS[poison]
    endpoint.behaviour = lambda number, handler: (
        misbehave(handler) if endpoint.asked(number) == "poison" else well(handler)
    )
    engine = endpoint.engine(timeout_seconds=0.15, outage_seconds=30)
    replies = ask(engine, [request("good"), request("poison", tag="tales/9"), request("fine")])
    assert [reply.finish_reason for reply in replies] == ["stop", "error", "stop"]
    assert said in replies[1].error and "while the endpoint answers others" in replies[1].error
    assert asked(endpoint) == {"good": 1, "fine": 1, "poison": openai_engine.ATTEMPTS_BESIDE_ANSWERS, "Hi": 1}


def test_nobody_is_probed_while_others_are_answered(endpoint: Endpoint) -> None:
    def behave(number: int, handler: BaseHTTPRequestHandler) -> None:
        if endpoint.asked(number) == "poison":
            return send(handler, 500, b"")
        time.sleep(0.02)
        well(handler)

    endpoint.behaviour = behave
    crowd = [request("poison"), *[request(f"good {n}") for n in range(120)]]
    replies = ask(endpoint.engine(max_num_seqs=2), crowd)
    assert Counter(reply.finish_reason for reply in replies) == {"stop": 120, "error": 1}
    assert asked(endpoint)["Hi"] == 0


def test_where_patience_is_short_three_attempts_are_enough(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a quarter of the patience, none cut short by chance: it ends with the fourth attempt, or the third on a slow machine."""
    monkeypatch.setattr(openai_engine, "FIRST_WAIT", 0.2)
    monkeypatch.setattr(openai_engine.random, "uniform", lambda low, high: high)
    endpoint.behaviour = lambda number, handler: (
        send(handler, 500, b"") if endpoint.asked(number) == "poison" else well(handler)
    )
    (reply,) = ask(endpoint.engine(outage_seconds=0.8), [request("poison")])
    assert reply.finish_reason == "error"
    assert 3 <= asked(endpoint)["poison"] <= 4


def test_an_endpoint_that_answers_nobody_fails_no_row_and_is_probed_seldom(endpoint: Endpoint) -> None:
    endpoint.behaviour = lambda number, handler: send(handler, 500, b"")
    with pytest.raises(EngineError, match=r"does not answer tales/\d+: status 500") as raised:
        ask(endpoint.engine(outage_seconds=0.8), [request(f"story {n}", tag=f"tales/{n}") for n in range(16)])
    assert "goes on where it stood" in raised.value.cure
    assert 1 <= asked(endpoint)["Hi"] < sum(asked(endpoint).values()) / 10


def test_a_long_outage_that_ends_costs_no_row(endpoint: Endpoint) -> None:
    began = time.monotonic()
    endpoint.behaviour = lambda number, handler: (
        send(handler, 502, b"") if time.monotonic() < began + 0.7 else well(handler)
    )
    replies = ask(endpoint.engine(outage_seconds=10), [request(f"story {n}") for n in range(8)])
    assert {reply.finish_reason for reply in replies} == {"stop"}
    assert max(asked(endpoint).values()) > openai_engine.ATTEMPTS_BESIDE_ANSWERS


def test_a_limit_on_one_prompt_is_no_fault_of_the_row(endpoint: Endpoint) -> None:
    """429 says that the endpoint is up and busy: that is waited out, however often."""

    def behave(number: int, handler: BaseHTTPRequestHandler) -> None:
        limited = endpoint.asked(number) == "limited" and asked(endpoint)["limited"] <= 10
        send(handler, 429, b"", Retry_After="0.01") if limited else well(handler)

    endpoint.behaviour = behave
    (reply,) = ask(endpoint.engine(), [request("limited")])
    assert (reply.text, asked(endpoint)["limited"]) == ("Hello.", 11)


# --- money -----------------------------------------------------------------------------------------------------------

PRICES: dict[str, Any] = {"price_per_million_prompt_tokens": 1_000.0, "price_per_million_completion_tokens": 100_000.0}
"""A reply of `well`, 7 and 3 tokens, costs 0.307 at these."""


def test_money_that_is_spent_stops_the_stage_and_names_the_cure(endpoint: Endpoint) -> None:
    engine = endpoint.engine(max_money=1.5, max_num_seqs=1, **PRICES)

    async def spend() -> list[Any]:
        await engine.start()
        calls = (engine.generate([request(f"{n}")], Sampling(max_tokens=4)) for n in range(8))
        try:
            return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            await engine.close()

    results = asyncio.run(spend())
    errors = [result for result in results if isinstance(result, EngineError)]
    assert len(endpoint.seen) == len(results) - len(errors) == 4  # 1.228 are spent; a fifth may cost 0.4
    assert "1.228 of max_money=1.5; the next request may cost 0.4" in errors[0].message
    assert "engine.max_money" in errors[0].cure and "goes on where it stood" in errors[0].cure


def test_money_for_less_than_a_call_says_so_before_it_is_sent(endpoint: Endpoint) -> None:
    engine = endpoint.engine(max_money=1.5, **PRICES)

    async def spend() -> None:
        await engine.start()
        try:
            await engine.generate([request(f"{n}") for n in range(8)], Sampling(max_tokens=4))
        finally:
            await engine.close()

    with pytest.raises(EngineError, match="too small for what is asked together") as stopped:
        asyncio.run(spend())
    assert "sampling.max_tokens" in stopped.value.cure and not endpoint.seen


def test_a_limit_without_prices_is_refused() -> None:
    with pytest.raises(RecipeError, match="price_per_million_prompt_tokens"):
        validate(EngineSettings, {"kind": "openai", "max_money": 2}, "stages.tales.engine")


def test_replies_without_a_text_cost_too(endpoint: Endpoint) -> None:
    endpoint.behaviour = lambda number, handler: well(handler, None if number < 3 else "Hello.")
    engine = endpoint.engine(max_money=1.0, **PRICES)

    async def spend() -> None:
        await engine.start()
        try:
            for text in ("a", "b"):
                await engine.generate([request(text)], Sampling(max_tokens=2))
        finally:
            await engine.close()

    with pytest.raises(EngineError, match=r"0\.921 of max_money=1; the next request may cost 0\.2"):
        asyncio.run(spend())
    assert len(endpoint.seen) == 3
