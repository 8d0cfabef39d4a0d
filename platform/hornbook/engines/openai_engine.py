"""Text from any OpenAI-compatible endpoint: a vLLM server elsewhere or a hosted model.

The world out there answers late, refuses, or sends garbage. What is wrong with one request (too long, filtered) fails that
request alone. What is wrong with the endpoint is waited for, and then stops the stage: a rerun goes on where it stood,
while rows that failed for an outage would stay failed. A request that always fails while others are answered is the row's
own matter again, or else it would stop every run. The key comes from an environment variable and goes nowhere but
into the request's header.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from hornbook.engines.budget import NOTHING, Account, Cost, OwnAccount, cost, limits, reserve
from hornbook.engines.interface import EngineSettings, Reply, Request, Sampling, failed
from hornbook.engines.request_log import RequestLog
from hornbook.engines.schema import parse_schema, violation
from hornbook.errors import EngineError

if TYPE_CHECKING:
    import httpx

FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0
"""Seconds between attempts: FIRST_WAIT doubled each time up to LONGEST_WAIT or a quarter of `outage_seconds`, less up to
half at random so that clients spread out; more where the endpoint asks for it."""

ATTEMPTS_AT_A_TEXT = 3
"""Replies without a text that a request may get before it fails: that is the model's doing, not an outage."""

ATTEMPTS_BESIDE_ANSWERS = 8
FEWEST_ATTEMPTS_BESIDE_ANSWERS = 3
"""Failed attempts (a status 5xx, silence, garbage) after which a request fails alone if others are answered meanwhile: some
40 seconds of asking, so that no row is lost to one bad server among several; the fewest where `outage_seconds` is shorter."""

_PROBE = Request(({"role": "user", "content": "Hi"},), seed=0)

_ENDPOINTS_OWN = (402, 404, 405, 407)
"""Statuses 4xx that say the same to every request: asking again helps as little as failing one row."""

_ASK_AGAIN = (408, 409, 425, 429)
_TOKENS_OF_A_SHORT_ANSWER = 8


class _Retry(Exception):
    """An attempt failed in a way that another may not.

    `after` is what the server asked to wait, in seconds; `busy` says that it is up and refuses for load.
    """

    def __init__(self, reason: str, after: float = 0.0, busy: bool = False) -> None:
        super().__init__(reason)
        self.after, self.busy = after, busy


class _NoText(Exception):
    """The model's reply holds no text, but cost tokens."""

    def __init__(self, reason: str, prompt_tokens: int, completion_tokens: int) -> None:
        super().__init__(reason)
        self.prompt_tokens, self.completion_tokens = prompt_tokens, completion_tokens


class OpenAIEngine:
    """Keeps at most `max_num_seqs` requests under way, within the rate limit and the budget."""

    def __init__(self, settings: EngineSettings, account: Account | None = None) -> None:
        self.settings = settings
        self._account = account or OwnAccount()
        self._log = RequestLog(settings.request_log)
        self._slots = asyncio.Semaphore(settings.max_num_seqs)
        self._limits = limits(settings)
        self._counts = cost(settings, 1, 1).money > 0 or self._limits != NOTHING
        self._next_send = 0.0
        self._last_answer = self._last_failed_probe = -math.inf
        self._probing = asyncio.Lock()
        self._calls = 0
        self._failure: EngineError | None = None
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Check the settings and open the client; the endpoint is first asked when there is something to ask."""
        import httpx

        if not self.settings.base_url.startswith(("http://", "https://")):
            raise EngineError(
                f"engine 'openai': base_url is {self.settings.base_url!r}, not a URL",
                "set base_url to the endpoint, for example http://127.0.0.1:8000/v1",
            )
        key = os.environ.get(self.settings.api_key_env, "").strip()
        if not key.isascii() or not key.isprintable():  # else it would end up in the message of an error about headers
            raise EngineError(
                f"the environment variable {self.settings.api_key_env} holds characters that no key has",
                "set it anew, without quotes, line ends or other marks around the key",
            )
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            httpx.URL(self.settings.base_url)
        except httpx.InvalidURL as error:
            raise EngineError(
                f"engine 'openai': base_url is {self.settings.base_url!r}: {error}", "mend engine.base_url"
            ) from None
        limits = httpx.Limits(max_connections=self.settings.max_num_seqs)
        self._client = httpx.AsyncClient(headers=headers, limits=limits, timeout=self.settings.timeout_seconds)

    async def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        """Answer `requests`.

        Raises EngineError where the endpoint refuses the key, does not know the model, or stays down for longer than
        `outage_seconds`, and where the budget is spent: then before any of them is sent, for a call is answered whole or lost.
        """
        reserved = {number: _likely_cost(self.settings, asked, sampling) for number, asked in enumerate(requests)}
        if self._counts:
            await reserve(self._account, sum(reserved.values(), NOTHING), self._limits, len(requests))
        answers = [
            asyncio.ensure_future(self._answer(number, asked, sampling, reserved))
            for number, asked in enumerate(requests)
        ]
        self._calls += 1
        try:
            return list(await asyncio.gather(*answers))
        except BaseException:  # The batch is lost: do not go on paying for the rest of it.
            for answer in answers:
                answer.cancel()
            await asyncio.gather(*answers, return_exceptions=True)
            raise
        finally:
            self._calls -= 1
            self._failure = self._failure if self._calls else None
            if self._counts and reserved:  # of requests that were never sent
                self._account.settle(sum(reserved.values(), NOTHING), NOTHING)

    async def close(self) -> None:
        """Close the connections and the request log."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None
        self._log.close()

    async def _answer(self, number: int, request: Request, sampling: Sampling, reserved: dict[int, Cost]) -> Reply:
        """Answer a request of a call; what is `reserved` for it, by its number, is settled and taken out there."""
        async with self._slots:
            if self._failure is not None:  # Those who waited behind what failed do not try it all again.
                raise self._failure
            used = NOTHING
            try:
                self._log.taken([request])
                reply, used = await self._ask_until_answered(request, sampling)
            except EngineError as error:
                self._failure = error
                raise
            finally:
                if self._counts:
                    self._account.settle(reserved.pop(number), used)
            self._log.done([request])
            return reply

    async def _ask_until_answered(self, request: Request, sampling: Sampling) -> tuple[Reply, Cost]:
        """Return the reply and what it cost, replies without a text included."""
        body = _body(self.settings.model, request, sampling)
        wasted = NOTHING
        without_text, failures = 0, 0
        down_since, failed_before = 0.0, 0.0
        while True:
            await self._wait_for_turn()
            try:
                reply = await self._attempt(body, request)
                self._last_answer = time.monotonic()
                return reply, wasted + cost(self.settings, reply.prompt_tokens, reply.completion_tokens)
            except _Retry as error:
                retry = error
            except _NoText as nothing:
                wasted += cost(self.settings, nothing.prompt_tokens, nothing.completion_tokens)
                without_text += 1
                if without_text == ATTEMPTS_AT_A_TEXT:
                    return failed(f"{nothing} ({without_text} attempts)"), wasted
                failures = 0
                continue
            now = time.monotonic()
            down_since = down_since if failures else now
            if retry.busy:  # Others are served meanwhile: this one's turn comes.
                down_since = max(down_since, self._last_answer)
            longest = min(LONGEST_WAIT, self.settings.outage_seconds / 4)
            wait = max(min(FIRST_WAIT * 2 ** min(failures, 20), longest) * random.uniform(0.5, 1.0), retry.after)
            failures += 1
            out_of_patience = now + wait - down_since > self.settings.outage_seconds
            enough = FEWEST_ATTEMPTS_BESIDE_ANSWERS if out_of_patience else ATTEMPTS_BESIDE_ANSWERS
            if not retry.busy and failures >= enough and await self._answers_others(since=failed_before):
                return failed(f"{retry} ({failures} attempts, while the endpoint answers others)"), wasted
            if out_of_patience:
                raise self._outage(request, retry, failures)
            failed_before = now
            await asyncio.sleep(wait)

    async def _attempt(self, body: dict[str, Any], request: Request) -> Reply:
        try:
            async with asyncio.timeout(self.settings.timeout_seconds):
                return await self._ask(body, request)
        except TimeoutError:
            raise _Retry(f"no reply within {self.settings.timeout_seconds:g} s") from None

    async def _answers_others(self, since: float) -> bool:
        """Tell whether another prompt was answered since then; where nobody asked, ask one of two tokens."""
        async with self._probing:
            if self._last_answer < since and self._last_failed_probe < since:
                try:
                    probe = await self._attempt(_body(self.settings.model, _PROBE, Sampling(max_tokens=1)), _PROBE)
                    self._account.settle(NOTHING, cost(self.settings, probe.prompt_tokens, probe.completion_tokens))
                except _Retry:
                    self._last_failed_probe = time.monotonic()
                    return False
                except _NoText as nothing:
                    self._account.settle(NOTHING, cost(self.settings, nothing.prompt_tokens, nothing.completion_tokens))
                self._last_answer = time.monotonic()
            return self._last_answer >= since

    def _outage(self, request: Request, retry: _Retry, attempts: int) -> EngineError:
        wants = f", wants to be left alone for {retry.after:.0f} s" if retry.after else ""
        row = f" {request.tag}" if request.tag else ""
        return EngineError(
            f"the endpoint {self.settings.base_url} does not answer{row}: {retry}{wants} ({attempts} attempts)",
            "run again when it does, it goes on where it stood; engine.outage_seconds says how long to wait for it, "
            "engine.timeout_seconds for one reply",
        )

    async def _wait_for_turn(self) -> None:
        """Space the sends evenly, so that this replica's share of `requests_per_minute` holds in every window."""
        if self.settings.requests_per_minute:
            now = time.monotonic()
            turn = max(now, self._next_send)
            self._next_send = turn + 60.0 * (self.settings.replicas or 1) / self.settings.requests_per_minute
            await asyncio.sleep(turn - now)

    async def _ask(self, body: dict[str, Any], request: Request) -> Reply:
        import httpx

        if self._client is None:
            raise EngineError("engine 'openai' was not started")
        url = f"{self.settings.base_url.rstrip('/')}/chat/completions"
        try:
            response = await self._client.post(url, json=body)
        except httpx.HTTPError as error:
            raise _Retry(f"{type(error).__name__}: {error}") from None
        status = response.status_code
        if status in (401, 403):
            raise EngineError(
                f"{url} refuses the key (status {status})",
                f"put a valid key into the environment variable {self.settings.api_key_env}, on every node",
            )
        if status in _ENDPOINTS_OWN or status < 200 or 201 <= status < 400:
            raise EngineError(
                f"{url} answers {status} for model {self.settings.model!r}: {response.text[:200]}",
                "check engine.base_url, engine.model and the account",
            )
        if status in _ASK_AGAIN or status >= 500:
            after = _retry_after(response.headers.get("retry-after", ""))
            raise _Retry(f"status {status}", after, busy=status == 429)
        if status in (400, 422) and request.schema and re.search(r"schema|response_format", response.text):
            raise EngineError(
                f"{url} refuses the JSON Schema of {request.tag or 'a request'} (status {status}): {response.text[:200]}",
                "change the schema to what the endpoint enforces, or use another engine",
            )
        if status != 200:
            return failed(f"status {status}: {response.text[:200]}")
        try:
            return _reply(json.loads(response.content), request)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Retry(f"the reply makes no sense ({type(error).__name__}): {response.text[:80]!r}") from None


def _likely_cost(settings: EngineSettings, request: Request, sampling: Sampling) -> Cost:
    """Guess a request's cost generously, prompt at three characters a token, so that the budget holds."""
    characters = sum(len(message["content"]) for message in request.messages) + len(request.schema)
    completion_tokens = _TOKENS_OF_A_SHORT_ANSWER if request.choices else sampling.max_tokens
    return cost(settings, characters // 3, completion_tokens)


def _body(model: str, request: Request, sampling: Sampling) -> dict[str, Any]:
    """Build the request's JSON. What is not in the official interface goes out only where it is asked for."""
    body: dict[str, Any] = {
        "model": model,
        "messages": list(request.messages),
        "seed": request.seed % 2**63,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    extras = {
        "top_k": (sampling.top_k, 0),
        "min_p": (sampling.min_p, 0.0),
        "repetition_penalty": (sampling.repetition_penalty, 1.0),
        "min_tokens": (sampling.min_tokens, 0),
    }
    body.update({name: value for name, (value, neutral) in extras.items() if value != neutral})
    if request.choices:
        body.update(max_tokens=_TOKENS_OF_A_SHORT_ANSWER, logprobs=True, top_logprobs=20)
    elif request.schema:
        form = {"name": "reply", "schema": parse_schema(request.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def _retry_after(header: str) -> float:
    """Return the seconds that a Retry-After header asks for: a number or a date."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0


def _reply(data: dict[str, Any], request: Request) -> Reply:
    choice = data["choices"][0]
    text = choice["message"].get("content")
    usage = data.get("usage") or {}
    prompt_tokens, completion_tokens = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
    if not isinstance(text, str):
        reason = choice.get("finish_reason")
        raise _NoText(f"the reply has no text (finish reason {reason!r})", prompt_tokens, completion_tokens)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a character, cut at max_tokens
    if request.choices:
        return _chosen(choice, text, request.choices, prompt_tokens, completion_tokens)
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        return Reply("", "error", prompt_tokens, completion_tokens, error=f"finish reason {reason!r}")
    if request.schema and reason == "stop" and (wrong := violation(text, request.schema)):
        return Reply(text, "error", prompt_tokens, completion_tokens, error=wrong)
    return Reply(text, reason, prompt_tokens, completion_tokens)


def _chosen(
    choice: dict[str, Any], text: str, choices: tuple[str, ...], prompt_tokens: int, completion_tokens: int
) -> Reply:
    """Read the choice from the first token's likeliest alternatives, or else from how the text begins."""
    positions = (choice.get("logprobs") or {}).get("content") or []
    weights: dict[str, float] = {}
    for alternative in positions[0].get("top_logprobs", []) if positions else []:
        token = alternative["token"].strip()
        if token in choices:
            weights[token] = weights.get(token, 0.0) + math.exp(alternative["logprob"])
    if weights and (total := sum(weights.values())) > 0:
        probabilities = {name: weights.get(name, 0.0) / total for name in choices}
        likeliest = max(choices, key=lambda name: probabilities[name])
        return Reply(likeliest, "stop", prompt_tokens, completion_tokens, choice_probabilities=probabilities)
    begun = [name for name in sorted(choices, key=len, reverse=True) if text.strip().startswith(name)]
    if begun:
        return Reply(begun[0], "stop", prompt_tokens, completion_tokens)
    return Reply("", "error", prompt_tokens, completion_tokens, error=f"answer {text[:40]!r} is none of the choices")
