"""Engines answer every request with text or with a failure of its own, whatever the model, the network or the
operating system does."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint, send, well
from engine_calls import ask, echo
from hypothesis import given
from hypothesis import strategies as st

from hornbook.engines import openai_engine
from hornbook.engines.interface import EngineSettings, Reply, Request, Sampling
from hornbook.engines.openai_engine import OpenAIEngine
from hornbook.errors import EngineError


def request(text: str, seed: int = 0, choices: tuple[str, ...] = (), tag: str = "") -> Request:
    return Request(({"role": "user", "content": text},), seed, choices, tag)


# --- echo ------------------------------------------------------------------------------------------------------------


@given(prompt=st.text(max_size=200), seed=st.integers(0, 2**63 - 1), limit=st.integers(1, 200))
def test_echo_is_a_function_of_prompt_and_seed(prompt: str, seed: int, limit: int) -> None:
    sampling = Sampling(max_tokens=limit)
    (alone,) = ask(echo(), [request(prompt, seed)], sampling)
    among_others = ask(echo(), [request("x", 1), request(prompt, seed), request("y", 2)], sampling)
    assert among_others[1] == alone
    assert alone.completion_tokens == len(alone.text.split()) <= limit
    if alone.finish_reason == "length":
        assert alone.completion_tokens == limit
    else:
        assert alone.text.endswith(".")


def test_echo_varies_with_the_seed_and_refuses_long_prompts() -> None:
    one, other, long = ask(echo(max_model_len=64), [request("a", 1), request("a", 2), request("a " * 99)])
    assert one.text != other.text
    assert (long.finish_reason, long.error) == ("error", "prompt has 100 tokens, max_model_len is 64")


def test_echo_chooses_with_probabilities() -> None:
    (reply,) = ask(echo(), [request("good?", choices=("A", "B", "C"))])
    assert reply.text == max(reply.choice_probabilities, key=lambda choice: reply.choice_probabilities[choice])
    assert sum(reply.choice_probabilities.values()) == pytest.approx(1)


def test_the_request_log_has_a_line_for_what_was_taken_and_what_was_done(tmp_path: Path) -> None:
    log = tmp_path / "requests.log"
    ask(echo(request_log=str(log)), [request("a", tag="stories/1"), request("b", tag="stories/2")])
    said = Counter(tuple(line.split()[:2]) for line in log.read_text().splitlines())
    assert said == {(what, f"stories/{row}"): 1 for what in ("taken", "done") for row in (1, 2)}


# --- openai ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(openai_engine, "FIRST_WAIT", 0.01)
    made = Endpoint()
    yield made
    made.close()


def test_openai_sends_the_key_and_the_sampling(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    (reply,) = ask(endpoint.engine(), [request("hi", seed=5)], Sampling(top_k=9))
    assert reply == Reply("Hello.", "stop", 7, 3)
    _, body, authorization = endpoint.seen[0]
    assert authorization == "Bearer secret"
    assert (body["seed"], body["top_k"], body["model"]) == (5, 9, "m")
    assert "min_p" not in body and "stop" not in body


def test_openai_sends_the_strings_that_end_a_reply(endpoint: Endpoint) -> None:
    ask(endpoint.engine(), [request("hi")], Sampling(stop=("THE END", "\n\n")))
    assert endpoint.seen[0][1]["stop"] == ["THE END", "\n\n"]


@pytest.mark.parametrize(
    "misbehave",
    [
        lambda handler: send(handler, 429, b"slow down", Retry_After="0.2"),
        lambda handler: send(handler, 500, b"oops"),
        lambda handler: send(handler, 200, b"<html>not json"),
        lambda handler: send(handler, 200, b"{}"),
        lambda handler: send(handler, 200, b'{"choices": [{"message": {"content": null}}]}'),
        lambda handler: send(handler, 200, b'{"choices": [{"mess', length=500),
        lambda handler: time.sleep(1.0),
    ],
    ids=["429", "500", "garbage", "empty", "no text", "half a reply", "silence"],
)
def test_openai_rides_out_what_passes(endpoint: Endpoint, misbehave: Callable[[BaseHTTPRequestHandler], None]) -> None:
    def sometimes(number: int, handler: BaseHTTPRequestHandler) -> None:
        if number <= 2:
            misbehave(handler)
        else:
            well(handler)

    endpoint.behaviour = sometimes
    (reply,) = ask(endpoint.engine(timeout_seconds=0.4), [request("hi")])
    assert (reply.text, len(endpoint.seen)) == ("Hello.", 3)


def test_openai_honours_retry_after(endpoint: Endpoint) -> None:
    endpoint.behaviour = lambda number, handler: (
        send(handler, 429, b"", Retry_After="0.5") if number == 1 else well(handler)
    )
    ask(endpoint.engine(), [request("hi")])
    assert endpoint.seen[1][0] - endpoint.seen[0][0] >= 0.5


def test_openai_fails_one_request_and_answers_the_others(endpoint: Endpoint) -> None:
    behaviours: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {
        "long": lambda handler: send(handler, 400, b"too long"),
        "large": lambda handler: send(handler, 413, b""),
        "bad": lambda handler: send(handler, 422, b"filtered"),
        "mute": lambda handler: well(handler, None, finish_reason="tool_calls"),
    }
    endpoint.behaviour = lambda number, handler: behaviours.get(endpoint.asked(number), well)(handler)
    asked = ["long", "good", "large", "bad", "mute"]
    replies = ask(endpoint.engine(max_num_seqs=1), [request(text) for text in asked])
    errors = [reply.error for reply in replies]
    assert errors[:4] == ["status 400: too long", "", "status 413: ", "status 422: filtered"]
    assert errors[4].startswith("the reply has no text (finish reason 'tool_calls')")
    assert replies[1].text == "Hello."
    assert len(endpoint.seen) == 4 + openai_engine.ATTEMPTS_AT_A_TEXT


@pytest.mark.parametrize(
    ("misbehave", "said"),
    [
        (lambda handler: send(handler, 503, b""), "status 503"),
        (lambda handler: send(handler, 429, b""), "status 429"),
        (lambda handler: send(handler, 429, b"", Retry_After="3600"), "left alone for 3600 s"),
        (lambda handler: send(handler, 200, b"<html>please log in"), "makes no sense"),
        (lambda handler: send(handler, 200, b'{"choices": [{"mess', length=500), "RemoteProtocolError"),
        (lambda handler: time.sleep(0.5), "no reply within 0.2 s"),
    ],
    ids=["503", "429", "a long wait", "garbage", "half a reply", "silence"],
)
def test_an_endpoint_that_stays_down_is_an_error_and_no_rows_failure(
    endpoint: Endpoint, misbehave: Callable[[BaseHTTPRequestHandler], None], said: str
) -> None:
    endpoint.behaviour = lambda number, handler: (
        well(handler) if endpoint.asked(number) == "good" else misbehave(handler)
    )
    began = time.monotonic()
    with pytest.raises(EngineError, match=said) as raised:
        ask(endpoint.engine(outage_seconds=0.6, timeout_seconds=0.2), [request("down", tag="tales/9"), request("good")])
    assert "goes on where it stood" in raised.value.cure
    assert "tales/9" in raised.value.message
    assert time.monotonic() - began < 3


def test_an_endpoint_that_is_not_there_is_an_error(endpoint: Endpoint) -> None:
    engine = OpenAIEngine(EngineSettings(kind="openai", base_url="http://127.0.0.1:9/v1", outage_seconds=0.1))
    with pytest.raises(EngineError, match="ConnectError"):
        ask(engine, [request("hi")])


@pytest.mark.parametrize("status", [301, 402, 404])
def test_what_the_endpoint_says_to_every_request_is_an_error(endpoint: Endpoint, status: int) -> None:
    endpoint.behaviour = lambda number, handler: send(handler, status, b"elsewhere")
    with pytest.raises(EngineError, match=str(status)):
        ask(endpoint.engine(), [request("hi")])


def test_a_busy_endpoint_that_serves_others_is_not_down(endpoint: Endpoint) -> None:
    def refuse_until_the_others_are_served(number: int, handler: BaseHTTPRequestHandler) -> None:
        others = sum(body["messages"][0]["content"] == "hi" for _, body, _ in endpoint.seen)
        if endpoint.asked(number) == "last" and others < 30:
            return send(handler, 429, b"")
        time.sleep(0.03)
        well(handler)

    endpoint.behaviour = refuse_until_the_others_are_served
    crowd = [request("last"), *[request("hi", seed) for seed in range(30)]]
    replies = ask(endpoint.engine(max_num_seqs=2, outage_seconds=0.3), crowd)
    assert {reply.error for reply in replies} == {""}


def test_retry_after_may_be_a_date() -> None:
    later = formatdate(time.time() + 100, usegmt=True)
    assert 90 < openai_engine._retry_after(later) <= 100
    assert openai_engine._retry_after("soon") == 0.0


def test_openai_stops_at_a_refused_key_without_showing_it(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    endpoint.behaviour = lambda number, handler: send(handler, 401, b"no")
    with pytest.raises(EngineError, match="OPENAI_API_KEY") as raised:
        ask(endpoint.engine(), [request("hi")])
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("key", ["secret\u2019", "sec\nret", "se\x00cret"])
def test_a_key_that_is_none_is_refused_without_showing_it(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr("os.environ", {**os.environ, "OPENAI_API_KEY": key})  # the real one takes no zero bytes
    with pytest.raises(EngineError, match="OPENAI_API_KEY") as raised:
        ask(endpoint.engine(), [request("hi")])
    assert "sec" not in str(raised.value) + raised.value.cure and not endpoint.seen


def test_a_line_end_after_the_key_is_no_part_of_it(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret\n")
    ask(endpoint.engine(), [request("hi")])
    assert endpoint.seen[0][2] == "Bearer secret"


def test_an_address_that_is_none_is_the_users_error() -> None:
    with pytest.raises(EngineError, match="base_url"):
        ask(
            OpenAIEngine(EngineSettings(kind="openai", model="m", base_url="http://localhost:port/v1")), [request("hi")]
        )


def test_half_a_character_at_the_end_of_a_reply_can_be_kept(endpoint: Endpoint) -> None:
    endpoint.behaviour = lambda number, handler: well(handler, "A fox \ud83e\udd8a and \ud83e")
    (reply,) = ask(endpoint.engine(), [request("hi")])
    assert reply.text == "A fox \U0001f98a and \ufffd"


def test_those_who_wait_behind_what_failed_do_not_try_it_again(endpoint: Endpoint) -> None:
    endpoint.behaviour = lambda number, handler: send(handler, 401, b"no")

    async def crowd(engine: OpenAIEngine) -> list[Any]:
        await engine.start()
        calls = [engine.generate([request("hi", seed)], Sampling()) for seed in range(20)]
        try:
            return [
                await asyncio.gather(*calls, return_exceptions=True),
                await engine.generate([request("later")], Sampling()),
            ]
        finally:
            await engine.close()

    with pytest.raises(EngineError, match="401"):
        asyncio.run(crowd(endpoint.engine(max_num_seqs=2)))
    assert len(endpoint.seen) <= 4, "two at once, and the one that came when all had gone"
    assert endpoint.asked(len(endpoint.seen)) == "later"


def test_openai_keeps_to_its_rate(endpoint: Endpoint) -> None:
    began = time.monotonic()
    ask(endpoint.engine(requests_per_minute=1200, replicas=2), [request("hi", seed=n) for n in range(4)])
    assert max(when for when, _, _ in endpoint.seen) - began >= 0.3  # half of the rate is this replica's


def test_a_spent_budget_is_an_error_once_nothing_is_under_way(endpoint: Endpoint) -> None:
    engine = endpoint.engine(max_total_tokens=100, max_num_seqs=4)

    async def spend() -> list[Any]:
        await engine.start()
        crowd = (engine.generate([request("hi", seed)], Sampling(max_tokens=30)) for seed in range(12))
        try:
            return await asyncio.gather(*crowd, return_exceptions=True)
        finally:
            await engine.close()

    results = asyncio.run(spend())
    answered = [result for result in results if isinstance(result, list)]
    assert len(answered) == len(endpoint.seen) == 8  # 10 tokens each; a ninth might take 30
    errors = [result for result in results if not isinstance(result, list)]
    assert all(isinstance(error, EngineError) and "80 of max_total_tokens=100" in error.message for error in errors)
    assert "max_total_tokens" in errors[0].cure


def test_openai_reads_choices_from_the_first_tokens_alternatives(endpoint: Endpoint) -> None:
    alternatives = [
        {"token": " A", "logprob": -0.5},
        {"token": "B", "logprob": -1.5},
        {"token": "The", "logprob": -2.0},
    ]
    endpoint.behaviour = lambda number, handler: well(
        handler, "The A", logprobs={"content": [{"top_logprobs": alternatives}]}
    )
    (reply,) = ask(endpoint.engine(), [request("?", choices=("A", "B"))])
    assert reply.text == "A"
    assert reply.choice_probabilities["A"] == pytest.approx(1 / (1 + 2.718281828**-1))
    endpoint.behaviour = lambda number, handler: well(handler, "neither")
    (reply,) = ask(endpoint.engine(), [request("?", choices=("A", "B"))])
    assert reply.finish_reason == "error"


def test_openai_without_an_address_says_so() -> None:
    with pytest.raises(EngineError, match="base_url"):
        ask(OpenAIEngine(EngineSettings(kind="openai")), [])
