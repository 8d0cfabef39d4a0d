"""A budget of tokens and money: what a call may cost is reserved before it is sent, and settled by what it did cost.

One count per run, not per engine: a pool's budget lives in its ledger, which outlives replicas and their restarts.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from hornbook.engines.interface import EngineSettings
from hornbook.errors import EngineError

Verdict = Literal["granted", "wait", "spent"]

_SECONDS_BETWEEN_QUESTIONS = 0.2
_A_ROUNDING_ERROR = 1e-9


@dataclass(frozen=True)
class Cost:
    """Tokens, prompt and reply together, and money in the currency of the prices."""

    tokens: int = 0
    money: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.tokens + other.tokens, self.money + other.money)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.tokens - other.tokens, self.money - other.money)

    def within(self, limit: Cost) -> bool:
        """Tell whether neither exceeds `limit`, in which 0 means no limit."""
        tokens_fit = not limit.tokens or self.tokens <= limit.tokens
        return tokens_fit and (not limit.money or self.money <= limit.money * (1 + _A_ROUNDING_ERROR))


NOTHING = Cost()


def cost(settings: EngineSettings, prompt_tokens: int, completion_tokens: int) -> Cost:
    """Return what so many tokens cost at the engine's prices; only endpoints charge, whatever others inherit from a recipe."""
    if settings.kind != "openai":
        return Cost(prompt_tokens + completion_tokens)
    money = (
        prompt_tokens * settings.price_per_million_prompt_tokens
        + completion_tokens * settings.price_per_million_completion_tokens
    ) / 1e6
    return Cost(prompt_tokens + completion_tokens, money)


def limits(settings: EngineSettings) -> Cost:
    """Return what a run may spend; 0 is no limit."""
    return Cost(settings.max_total_tokens, settings.max_money)


class Budget:
    """The count. `owner` is whose requests they are: the number of a replica."""

    def __init__(self) -> None:
        self.spent = NOTHING
        self._reserved: dict[int, Cost] = {}

    def reserve(self, owner: int, asked: Cost, limit: Cost) -> Verdict:
        """Reserve what a request may cost: granted, or wait (what is under way may cost less than feared), or spent."""
        under_way = sum(self._reserved.values(), NOTHING)
        if (self.spent + under_way + asked).within(limit):
            self._reserved[owner] = self._reserved.get(owner, NOTHING) + asked
            return "granted"
        return "wait" if under_way.tokens else "spent"

    def settle(self, owner: int, reserved: Cost, used: Cost) -> None:
        """Replace a reservation by what its request used."""
        left = self._reserved.get(owner, NOTHING) - reserved
        self._reserved[owner] = left if left.tokens > 0 else NOTHING  # without the dust that subtracting money leaves
        self.spent += used

    def abandon(self, owner: int) -> None:
        """Count what a dead owner had reserved as spent: the endpoint may well have written, and charged, all of it."""
        self.spent += self._reserved.pop(owner, NOTHING)


class Account(Protocol):
    """An engine's way to the budget that it shares."""

    async def reserve(self, asked: Cost, limit: Cost) -> tuple[Verdict, Cost]:
        """Return `Budget.reserve`'s verdict and what is spent."""

    def settle(self, reserved: Cost, used: Cost) -> None:
        """Replace a reservation by what its request used."""


class OwnAccount:
    """The account of an engine that runs outside a pool: a budget of its own."""

    def __init__(self) -> None:
        self._budget = Budget()

    async def reserve(self, asked: Cost, limit: Cost) -> tuple[Verdict, Cost]:
        """See Account."""
        return self._budget.reserve(0, asked, limit), self._budget.spent

    def settle(self, reserved: Cost, used: Cost) -> None:
        """See Account."""
        self._budget.settle(0, reserved, used)


class LedgerAccount:
    """The account of a pool's replica: the budget is in the ledger actor."""

    def __init__(self, ledger: Any, replica: int) -> None:
        self._ledger, self._replica = ledger, replica

    async def reserve(self, asked: Cost, limit: Cost) -> tuple[Verdict, Cost]:
        """See Account."""
        return await self._ledger.reserve.remote(self._replica, asked, limit)

    def settle(self, reserved: Cost, used: Cost) -> None:
        """See Account."""
        self._ledger.settle.remote(self._replica, reserved, used)


async def reserve(account: Account, asked: Cost, limit: Cost, requests: int = 1) -> None:
    """Wait until the budget grants what a call of so many requests may cost.

    Raises EngineError when it is spent; by then nothing is under way any more, so that no reply that was paid for is lost.
    """
    while True:
        verdict, spent = await account.reserve(asked, limit)
        if verdict == "granted":
            return
        if verdict == "spent":
            raise _spent(spent, asked, limit, requests)
        await asyncio.sleep(_SECONDS_BETWEEN_QUESTIONS)


def _spent(spent: Cost, asked: Cost, limit: Cost, requests: int) -> EngineError:
    following = "the next request" if requests == 1 else f"the next call, {requests} requests,"
    if not Cost(spent.tokens + asked.tokens).within(Cost(limit.tokens)):
        what, name = "token", "max_total_tokens"
        said = f"{spent.tokens:,} of max_total_tokens={limit.tokens:,}; {following} may take {asked.tokens:,}"
    else:
        what, name = "money", "max_money"
        said = f"{spent.money:.4g} of max_money={limit.money:g}; {following} may cost {asked.money:.2g}"
    if spent == NOTHING:
        return EngineError(
            f"the {what} budget is too small for what is asked together: {said}",
            f"raise engine.{name}, or lower sampling.max_tokens: what a call may cost at most is set aside for it",
        )
    return EngineError(
        f"the {what} budget is spent: {said}",
        f"raise engine.{name} (it counts one run), or just run again: it goes on where it stood",
    )
