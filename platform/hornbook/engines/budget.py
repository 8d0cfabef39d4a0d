"""A token budget: what a request may cost is reserved before it is sent and settled by what it did cost.

One count per run, not per engine: a pool's budget lives in its ledger, which outlives replicas and their restarts.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal, Protocol

from hornbook.errors import EngineError

Verdict = Literal["granted", "wait", "spent"]

_SECONDS_BETWEEN_QUESTIONS = 0.2


class Budget:
    """The count. `owner` is whose requests they are: the number of a replica."""

    def __init__(self) -> None:
        self.spent = 0
        self._reserved: dict[int, int] = {}

    def reserve(self, owner: int, tokens: int, limit: int) -> Verdict:
        """Reserve tokens for a request: granted, or wait (what is under way may cost less than feared), or spent."""
        under_way = sum(self._reserved.values())
        if self.spent + under_way + tokens <= limit:
            self._reserved[owner] = self._reserved.get(owner, 0) + tokens
            return "granted"
        return "wait" if under_way else "spent"

    def settle(self, owner: int, reserved: int, used: int) -> None:
        """Replace a reservation by what its request used."""
        self._reserved[owner] = self._reserved.get(owner, 0) - reserved
        self.spent += used

    def abandon(self, owner: int) -> None:
        """Count what a dead owner had reserved as spent: the endpoint may well have written, and charged, all of it."""
        self.spent += self._reserved.pop(owner, 0)


class Account(Protocol):
    """An engine's way to the budget that it shares."""

    async def reserve(self, tokens: int, limit: int) -> tuple[Verdict, int]:
        """Return `Budget.reserve`'s verdict and how many tokens are spent."""

    def settle(self, reserved: int, used: int) -> None:
        """Replace a reservation by what its request used."""


class OwnAccount:
    """The account of an engine that runs outside a pool: a budget of its own."""

    def __init__(self) -> None:
        self._budget = Budget()

    async def reserve(self, tokens: int, limit: int) -> tuple[Verdict, int]:
        """See Account."""
        return self._budget.reserve(0, tokens, limit), self._budget.spent

    def settle(self, reserved: int, used: int) -> None:
        """See Account."""
        self._budget.settle(0, reserved, used)


class LedgerAccount:
    """The account of a pool's replica: the budget is in the ledger actor."""

    def __init__(self, ledger: Any, replica: int) -> None:
        self._ledger, self._replica = ledger, replica

    async def reserve(self, tokens: int, limit: int) -> tuple[Verdict, int]:
        """See Account."""
        return await self._ledger.reserve.remote(self._replica, tokens, limit)

    def settle(self, reserved: int, used: int) -> None:
        """See Account."""
        self._ledger.settle.remote(self._replica, reserved, used)


async def reserve(account: Account, tokens: int, limit: int) -> None:
    """Wait until the budget grants a request's tokens.

    Raises EngineError when it is spent; by then nothing is under way any more, so that no reply that was paid for is lost.
    """
    while True:
        verdict, spent = await account.reserve(tokens, limit)
        if verdict == "granted":
            return
        if verdict == "spent":
            raise EngineError(
                f"the token budget is spent: {spent:,} of max_total_tokens={limit:,}; the next request may take {tokens:,}",
                "raise engine.max_total_tokens (it counts one run), or just run again: it goes on where it stood",
            )
        await asyncio.sleep(_SECONDS_BETWEEN_QUESTIONS)
