"""Engines answer every request with text or with a failure of its own, whatever the model, the network or the
operating system does."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hornbook.engines import openai_engine
from hornbook.engines.echo_engine import EchoEngine
from hornbook.engines.interface import Engine, EngineSettings, Reply, Request, Sampling
from hornbook.engines.openai_engine import OpenAIEngine
from hornbook.errors import EngineError


def request(text: str, seed: int = 0, choices: tuple[str, ...] = (), tag: str = "") -> Request:
    return Request(({"role": "user", "content": text},), seed, choices, tag)


def ask(engine: Engine, requests: list[Request], sampling: Sampling | None = None) -> list[Reply]:
    async def conversation() -> list[Reply]:
        await engine.start()
        try:
            return await engine.generate(requests, sampling or Sampling())
        finally:
            await engine.close()

    return asyncio.run(conversation())


# --- echo ------------------------------------------------------------------------------------------------------------


def echo(**settings: Any) -> EchoEngine:
    return EchoEngine(EngineSettings(kind="echo", **settings))


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


class Endpoint:
    """An OpenAI-compatible server on the loopback that behaves as badly as a test wants."""

    def __init__(self) -> None:
        self.behaviour: Callable[[int, BaseHTTPRequestHandler], None] = lambda number, handler: well(handler)
        self.seen: list[tuple[float, dict[str, Any], str]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.seen.append((time.monotonic(), body, self.headers.get("Authorization", "")))
                endpoint.behaviour(len(endpoint.seen), self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def engine(self, **settings: Any) -> OpenAIEngine:
        return OpenAIEngine(EngineSettings(kind="openai", model="m", base_url=self.url, **settings))


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def well(handler: BaseHTTPRequestHandler, text: str = "Hello.", **choice: Any) -> None:
    answer = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    send(handler, 200, json.dumps({"choices": [answer], "usage": usage}).encode())


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(openai_engine, "FIRST_WAIT", 0.01)
    made = Endpoint()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_openai_sends_the_key_and_the_sampling(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    (reply,) = ask(endpoint.engine(), [request("hi", seed=5)], Sampling(top_k=9))
    assert reply == Reply("Hello.", "stop", 7, 3)
    _, body, authorization = endpoint.seen[0]
    assert authorization == "Bearer secret"
    assert (body["seed"], body["top_k"], body["model"]) == (5, 9, "m")
    assert "min_p" not in body


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
def test_openai_tries_again_and_gives_up_per_request(
    endpoint: Endpoint, misbehave: Callable[[BaseHTTPRequestHandler], None]
) -> None:
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
    def refuse_some(number: int, handler: BaseHTTPRequestHandler) -> None:
        content = endpoint.seen[number - 1][1]["messages"][0]["content"]
        {"down": lambda: send(handler, 503, b""), "bad": lambda: send(handler, 400, b"too long")}.get(
            content, lambda: well(handler)
        )()

    endpoint.behaviour = refuse_some
    down, good, bad = ask(endpoint.engine(max_num_seqs=1), [request("down"), request("good"), request("bad")])
    assert (down.finish_reason, down.error) == ("error", f"status 503 ({openai_engine.ATTEMPTS} attempts)")
    assert good.text == "Hello."
    assert bad.error == "status 400: too long"


def test_openai_stops_at_a_refused_key_without_showing_it(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    endpoint.behaviour = lambda number, handler: send(handler, 401, b"no")
    with pytest.raises(EngineError, match="OPENAI_API_KEY") as raised:
        ask(endpoint.engine(), [request("hi")])
    assert "secret" not in str(raised.value)


def test_openai_keeps_to_its_rate_and_its_budget(endpoint: Endpoint) -> None:
    began = time.monotonic()
    replies = ask(
        endpoint.engine(requests_per_minute=600, max_total_tokens=100),
        [request("hi", seed=n) for n in range(6)],
        Sampling(max_tokens=30),
    )
    assert [reply.error[:6] for reply in replies].count("budget") == 3
    assert max(when for when, _, _ in endpoint.seen) - began >= 0.2


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
