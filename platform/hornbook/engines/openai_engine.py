"""Text from any OpenAI-compatible endpoint: a vLLM server elsewhere or a hosted model.

The world out there answers late, refuses, or sends garbage; each request gets its retries and then fails alone. The key
comes from an environment variable and goes nowhere but into the request's header.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hornbook.engines.interface import EngineSettings, Reply, Request, Sampling, failed
from hornbook.engines.request_log import RequestLog
from hornbook.errors import EngineError

if TYPE_CHECKING:
    import httpx

ATTEMPTS = 6
FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0
"""Seconds between attempts: FIRST_WAIT doubled each time up to LONGEST_WAIT, less up to half at random so that clients
spread out."""

_TOKENS_OF_A_SHORT_ANSWER = 8


class _Retry(Exception):
    """An attempt failed in a way that another may not; `after` is what the server asked to wait, in seconds."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class OpenAIEngine:
    """Keeps at most `max_num_seqs` requests under way, within the rate limit and the token budget."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self._log = RequestLog(settings.request_log)
        self._slots = asyncio.Semaphore(settings.max_num_seqs)
        self._next_send = 0.0
        self._tokens_spent = 0
        self._tokens_reserved = 0
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Check the settings and open the client; the endpoint is first asked when there is something to ask."""
        import httpx

        if not self.settings.base_url.startswith(("http://", "https://")):
            raise EngineError(
                f"engine 'openai': base_url is {self.settings.base_url!r}, not a URL",
                "set base_url to the endpoint, for example http://127.0.0.1:8000/v1",
            )
        key = os.environ.get(self.settings.api_key_env, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=self.settings.max_num_seqs)
        self._client = httpx.AsyncClient(headers=headers, limits=limits, timeout=self.settings.timeout_seconds)

    async def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        """Answer `requests`. Raises EngineError where the endpoint refuses the key or does not know the model."""
        return list(await asyncio.gather(*(self._answer(request, sampling) for request in requests)))

    async def close(self) -> None:
        """Close the connections and the request log."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None
        self._log.close()

    async def _answer(self, request: Request, sampling: Sampling) -> Reply:
        async with self._slots:
            reserved = _likely_tokens(request, sampling)
            budget = self.settings.max_total_tokens
            if budget and self._tokens_spent + self._tokens_reserved + reserved > budget:
                return failed(f"budget: {self._tokens_spent} of max_total_tokens={budget} are spent")
            self._tokens_reserved += reserved
            try:
                self._log.taken([request])
                reply = await self._ask_until_answered(request, sampling)
            finally:
                self._tokens_reserved -= reserved
            self._tokens_spent += reply.prompt_tokens + reply.completion_tokens
            self._log.done([request])
            return reply

    async def _ask_until_answered(self, request: Request, sampling: Sampling) -> Reply:
        body = _body(self.settings.model, request, sampling)
        reason = ""
        for attempt in range(ATTEMPTS):
            await self._wait_for_turn()
            try:
                async with asyncio.timeout(self.settings.timeout_seconds):
                    return await self._ask(body, request)
            except TimeoutError:
                reason, asked = f"no reply within {self.settings.timeout_seconds:g} s", 0.0
            except _Retry as retry:
                reason, asked = str(retry), retry.after
            if attempt + 1 < ATTEMPTS:
                backoff = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.0)
                await asyncio.sleep(max(backoff, min(asked, LONGEST_WAIT)))
        return failed(f"{reason} ({ATTEMPTS} attempts)")

    async def _wait_for_turn(self) -> None:
        """Space the sends evenly, so that `requests_per_minute` holds in every window."""
        if self.settings.requests_per_minute:
            now = time.monotonic()
            turn = max(now, self._next_send)
            self._next_send = turn + 60.0 / self.settings.requests_per_minute
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
        if response.status_code in (401, 403):
            raise EngineError(
                f"{url} refuses the key (status {response.status_code})",
                f"put a valid key into the environment variable {self.settings.api_key_env}, on every node",
            )
        if response.status_code == 404:
            raise EngineError(f"{url} answers 404 for model {self.settings.model!r}", "check base_url and model")
        if response.status_code in (408, 409, 429) or response.status_code >= 500:
            raise _Retry(f"status {response.status_code}", _retry_after(response.headers.get("retry-after", "")))
        if response.status_code != 200:
            return failed(f"status {response.status_code}: {response.text[:200]}")
        try:
            return _reply(json.loads(response.content), request)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Retry(f"the reply makes no sense ({type(error).__name__}): {response.text[:80]!r}") from None


def _likely_tokens(request: Request, sampling: Sampling) -> int:
    """Guess a request's tokens generously, prompt at three characters a token, so that the budget holds."""
    characters = sum(len(message["content"]) for message in request.messages)
    return characters // 3 + (_TOKENS_OF_A_SHORT_ANSWER if request.choices else sampling.max_tokens)


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
    return body


def _retry_after(header: str) -> float:
    try:
        return max(0.0, float(header))
    except ValueError:
        return 0.0  # The header may also carry a date; our own backoff serves then.


def _reply(data: dict[str, Any], request: Request) -> Reply:
    choice = data["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise ValueError("no text")
    usage = data.get("usage") or {}
    prompt_tokens, completion_tokens = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
    if request.choices:
        return _chosen(choice, text, request.choices, prompt_tokens, completion_tokens)
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        return Reply("", "error", prompt_tokens, completion_tokens, error=f"finish reason {reason!r}")
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
