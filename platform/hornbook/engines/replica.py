"""The Ray actors around an engine: one replica that owns it, and the ledger that outlives replicas and counts.

A replica dies with its engine, so that Ray restarts both. Calls are shared (many at once) or exclusive (nothing else in
flight): the latter is how the pool finds the prompt that kills an engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hornbook.engines.budget import Budget, Cost, LedgerAccount, Verdict
from hornbook.engines.choose import make_engine
from hornbook.engines.interface import Engine, EngineDied, EngineSettings, Reply, Request, Sampling
from hornbook.errors import HornbookError

_START_ATTEMPTS_AFTER_A_CRASH = 3
_WAIT_BETWEEN_STARTS = 5.0
"""Seconds; a crashed engine's memory may take a moment to come free."""

_SECONDS_A_TICKET_HOLDS = 30.0

Packed = list[tuple[Any, ...]]
"""Requests or replies as plain tuples: pickles several times faster than dataclasses."""


@dataclass(frozen=True)
class EngineStats:
    """What the replicas of a pool have done so far; seconds are summed over replicas.

    `starts` counts the replicas that loaded their engine, `restarts` those that did so again after they died.
    `money` is what was spent at the engine settings' prices, in their currency; 0 where they name none.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    errors: int = 0
    starts: int = 0
    restarts: int = 0
    in_flight: int = 0
    busy_seconds: float = 0.0
    money: float = 0.0


class Ledger:
    """Counts across restarts: a replica reports here what it did, because its own memory dies with it.

    The budget is here for the same reason, and because all replicas share it.
    """

    def __init__(self) -> None:
        self._budget = Budget()
        self._total = EngineStats()
        self._starts: dict[int, int] = {}
        self._in_flight: dict[int, int] = {}

    def started(self, replica: int) -> None:
        """Note a start of `replica`; whatever its predecessor had in flight is gone."""
        self._starts[replica] = self._starts.get(replica, 0) + 1
        self._in_flight[replica] = 0
        self._budget.abandon(replica)

    def reserve(self, replica: int, asked: Cost, limit: Cost) -> tuple[Verdict, Cost]:
        """Reserve what a replica's request may cost; also return what is spent."""
        return self._budget.reserve(replica, asked, limit), self._budget.spent

    def settle(self, replica: int, reserved: Cost, used: Cost) -> None:
        """Replace a reservation by what its request used."""
        self._budget.settle(replica, reserved, used)

    def report(self, replica: int, in_flight: int, done: dict[str, float]) -> None:
        """Add what `replica` finished since its last report."""
        self._in_flight[replica] = in_flight
        self._total = replace(self._total, **{name: getattr(self._total, name) + value for name, value in done.items()})

    def lost(self) -> None:
        """Count a request that killed its engine: no replica lived to report it."""
        self._total = replace(self._total, requests=self._total.requests + 1, errors=self._total.errors + 1)

    def stats(self) -> EngineStats:
        """Return the sums."""
        return replace(
            self._total,
            starts=len(self._starts),
            restarts=sum(starts - 1 for starts in self._starts.values()),
            in_flight=sum(self._in_flight.values()),
            money=self._budget.spent.money,
        )


class Gate:
    """A shared/exclusive lock for one asyncio loop; an exclusive entrant holds newcomers back until it was served."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._shared = 0
        self._waiting = 0
        self._alone = False

    @contextlib.asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Enter beside others."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone and self._waiting == 0)
            self._shared += 1
        try:
            yield
        finally:
            async with self._changed:
                self._shared -= 1
                self._changed.notify_all()

    async def enter_alone(self) -> None:
        """Enter once all who are inside have left; newcomers wait until `leave_alone`."""
        async with self._changed:
            self._waiting += 1
            try:
                await self._changed.wait_for(lambda: not self._alone and self._shared == 0)
                self._alone = True
            finally:
                self._waiting -= 1
                self._changed.notify_all()

    async def leave_alone(self) -> None:
        """Let the others in again."""
        async with self._changed:
            self._alone = False
            self._changed.notify_all()


class Replica:
    """One engine in one Ray actor, started on the first call that needs it."""

    def __init__(self, settings: EngineSettings, number: int, ledger_name: str) -> None:
        import ray

        self.settings = settings
        self._number = number
        self._ledger: Any = ray.get_actor(ledger_name)
        self._ticket = ""
        self._engine: Engine | None = None
        self._starting = asyncio.Lock()
        self._gate = Gate()
        self._in_flight = 0
        self._busy_since = 0.0

    async def ready(self) -> None:
        """Start the engine unless it runs. Raises the engine's EngineError or ModelError when it cannot start."""
        async with self._starting:
            if self._engine is None:
                engine = await self._started()
                self._metrics = _Metrics(self.settings)
                await self._ledger.started.remote(self._number)  # Awaited: the first prompt may be the last.
                self._engine = engine

    async def generate(self, requests: Packed, sampling: Sampling) -> Packed:
        """Answer packed requests with packed replies, beside other calls."""
        await self.ready()
        async with self._gate.shared():
            return await self._generate(requests, sampling)

    async def reserve(self) -> str:
        """Keep the engine free of other work for one `generate_alone`, which must come soon; return its ticket.

        Two calls rather than one: the caller knows that a death before the ticket was not its prompts' doing.
        """
        await self.ready()
        await self._gate.enter_alone()
        ticket = uuid.uuid4().hex
        self._ticket = ticket
        asyncio.get_running_loop().call_later(_SECONDS_A_TICKET_HOLDS, self._expire, ticket)
        return ticket

    async def generate_alone(self, ticket: str, requests: Packed, sampling: Sampling) -> Packed | None:
        """Answer with nothing else in flight; None where the ticket has expired or was a dead incarnation's."""
        if ticket != self._ticket:
            return None
        self._ticket = ""
        try:
            return await self._generate(requests, sampling)
        finally:
            await self._gate.leave_alone()

    async def close(self) -> None:
        """Stop the engine."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await engine.close()

    def _expire(self, ticket: str) -> None:
        """Do not wait for ever for a caller that took a ticket and died."""
        if ticket == self._ticket:
            self._ticket = ""
            self._expiring = asyncio.ensure_future(self._gate.leave_alone())

    async def _started(self) -> Engine:
        import ray

        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        attempts = _START_ATTEMPTS_AFTER_A_CRASH if restarted else 1
        while True:
            engine = make_engine(self.settings, LedgerAccount(self._ledger, self._number))
            try:
                await engine.start()
                return engine
            except HornbookError:
                await engine.close()
                attempts -= 1
                if attempts == 0:
                    raise
                await asyncio.sleep(_WAIT_BETWEEN_STARTS)

    async def _generate(self, packed: Packed, sampling: Sampling) -> Packed:
        if self._engine is None:
            raise EngineDied("the engine is closed")
        requests = unpack_requests(packed)
        busy = self._begin(len(requests))
        replies: list[Reply] = []
        try:
            replies = await self._engine.generate(requests, sampling)
            return pack_replies(replies)
        except EngineDied as death:
            # The actor goes with its engine: Ray then starts both anew, and every caller sees the same thing.
            print(f"hornbook: {death}", file=sys.stderr, flush=True)
            os._exit(1)
        finally:
            await self._end(len(requests), replies, busy)

    def _begin(self, count: int) -> float:
        now = time.monotonic()
        busy = now - self._busy_since if self._in_flight else 0.0
        self._busy_since = now
        self._in_flight += count
        return busy

    async def _end(self, count: int, replies: list[Reply], busy: float) -> None:
        """Report to the ledger; awaited, so that what a caller has replies for is in the stats, and its money settled."""
        now = time.monotonic()
        done = {
            "requests": len(replies),
            "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
            "completion_tokens": sum(reply.completion_tokens for reply in replies),
            "errors": sum(reply.finish_reason == "error" for reply in replies),
            "busy_seconds": busy + now - self._busy_since,
        }
        self._busy_since = now
        self._in_flight -= count
        self._metrics.add(done)
        await self._ledger.report.remote(self._number, self._in_flight, done)


class _Metrics:
    """Counters for Ray's dashboard and Prometheus, tagged by model."""

    def __init__(self, settings: EngineSettings) -> None:
        from ray.util.metrics import Counter

        tags = {"model": settings.model, "engine": settings.kind}
        described = {
            "requests": ("hornbook_requests_total", "Requests answered, failed ones included."),
            "prompt_tokens": ("hornbook_prompt_tokens_total", "Prompt tokens read."),
            "completion_tokens": ("hornbook_tokens_total", "Tokens written."),
            "errors": ("hornbook_request_errors_total", "Requests that failed."),
        }
        self._counters = {}
        for name, (metric, description) in described.items():
            self._counters[name] = Counter(metric, description=description, tag_keys=tuple(tags))
            self._counters[name].set_default_tags(tags)

    def add(self, done: dict[str, float]) -> None:
        """Add to each counter what a batch contributed."""
        for name, counter in self._counters.items():
            if done[name] > 0:
                counter.inc(done[name])


def pack_requests(requests: Sequence[Request]) -> Packed:
    """Turn requests into plain tuples."""
    return [
        (request.messages, request.seed, request.choices, request.tag, request.schema, request.avoid)
        for request in requests
    ]


def unpack_requests(packed: Packed) -> list[Request]:
    """Turn plain tuples back into requests."""
    return [Request(*fields) for fields in packed]


def pack_replies(replies: Sequence[Reply]) -> Packed:
    """Turn replies into plain tuples."""
    return [
        (
            reply.text,
            reply.finish_reason,
            reply.prompt_tokens,
            reply.completion_tokens,
            reply.error,
            reply.choice_probabilities,
        )
        for reply in replies
    ]


def unpack_replies(packed: Packed) -> list[Reply]:
    """Turn plain tuples back into replies."""
    return [Reply(*fields) for fields in packed]
