"""An engine without a model: English-looking text from a hash of prompt and seed.

For tests of the plumbing, for fault injection and for scale tests. A recipe must name it; nothing falls back to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
from collections.abc import Mapping, Sequence

from hornbook.engines.echo_json import example
from hornbook.engines.interface import EngineSettings, Reply, Request, Sampling, failed
from hornbook.engines.request_log import RequestLog

_SUBJECTS = (
    "The old baker|A small robot|The quiet girl|My clever cat|The young farmer|A tired teacher|"
    "The brave mouse|One happy child|The green bird|A kind doctor|The lost puppy|Her little brother|"
    "The tall sailor|A curious fox|The new student|His best friend"
)
_VERBS = "found|drew|carried|counted|painted|watched|fixed|shared|lost|wanted|built|dropped|opened|named|washed|hid"
_OBJECTS = (
    "a red lamp|the wooden boat|three blue stones|an empty box|the last apple|a short letter|two warm loaves|"
    "the broken clock|a paper kite|the silver key|many yellow leaves|a long rope|the heavy door|"
    "one simple rule|the tiny map|a deep well"
)
_PLACES = (
    "in the garden|by the river|near the school|under the bridge|at the market|behind the house|on the hill|"
    "after the rain|before the winter|inside the barn|with some help|during the night|along the road|"
    "for the team|without a word|until the morning"
)

_FIRST_HALVES = [f"{subject} {verb}" for subject in _SUBJECTS.split("|") for verb in _VERBS.split("|")]
_SECOND_HALVES = [f"{thing} {place}." for thing in _OBJECTS.split("|") for place in _PLACES.split("|")]
_MOST_SENTENCES = 15
_ASKED = re.compile(r'"([^\W_]{1,30})"|\bsection about ([^(.\n]{1,80})')


class EchoEngine:
    """Answers at once, or as slowly as `echo_tokens_per_second` says; a token is a word."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self._log = RequestLog(settings.request_log)

    async def start(self) -> None:
        """There is nothing to load."""

    async def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        """Answer all `requests`; the pretended writing times of a batch overlap, as continuous batching would have
        it."""
        self._log.taken(requests)
        if self.settings.echo_dies_on:
            self._die_of(requests)
        replies = [self._answer(request, sampling.max_tokens) for request in requests]
        if self.settings.echo_tokens_per_second:
            await asyncio.gather(*map(self._finish_later, requests, replies))
        else:
            self._log.done(requests)
        return replies

    async def close(self) -> None:
        """Close the request log."""
        self._log.close()

    async def _finish_later(self, request: Request, reply: Reply) -> None:
        await asyncio.sleep(reply.completion_tokens / self.settings.echo_tokens_per_second)
        self._log.done([request])

    def _die_of(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if any(self.settings.echo_dies_on in message["content"] for message in request.messages):
                os.kill(os.getpid(), signal.SIGKILL)

    def _answer(self, request: Request, max_tokens: int) -> Reply:
        prompt = "\n".join([message["content"] for message in request.messages])
        prompt_tokens = prompt.count(" ") + 1
        if prompt_tokens >= self.settings.max_model_len:
            return failed(
                f"prompt has {prompt_tokens} tokens, max_model_len is {self.settings.max_model_len}", prompt_tokens
            )
        dice = hashlib.blake2b(f"{request.seed}\n{prompt}".encode("utf-8", "replace"), digest_size=64).digest()
        if request.choices:
            return _choose(request.choices, dice, prompt_tokens)
        text = example(request.schema, dice) if request.schema else _story(dice) + _echoed(request.messages)
        words = text.count(" ") + 1
        limit = min(max_tokens, self.settings.max_model_len - prompt_tokens)
        if words > limit:
            return Reply(" ".join(text.split(" ", limit)[:limit]), "length", prompt_tokens, limit)
        return Reply(text, "stop", prompt_tokens, words)


def _story(dice: bytes) -> str:
    sentences = 3 + dice[0] % (_MOST_SENTENCES - 2)
    return " ".join([f"{_FIRST_HALVES[dice[2 * n + 1]]} {_SECOND_HALVES[dice[2 * n + 2]]}" for n in range(sentences)])


def _echoed(messages: Sequence[Mapping[str, str]]) -> str:
    """Return a sentence of the words that a prompt puts in quotation marks and of its topic: prompts ask in this way."""
    asked = _ASKED.findall(messages[-1]["content"]) if messages else []
    return f" They spoke of {', '.join((word or topic).strip() for word, topic in asked)}." if asked else ""


def _choose(choices: tuple[str, ...], dice: bytes, prompt_tokens: int) -> Reply:
    weights = [1 + dice[n % len(dice)] for n in range(len(choices))]
    probabilities = {choice: weight / sum(weights) for choice, weight in zip(choices, weights, strict=True)}
    likeliest = max(choices, key=lambda choice: probabilities[choice])
    return Reply(likeliest, "stop", prompt_tokens, 1, choice_probabilities=probabilities)
