"""What a stage's engines were asked for and what that cost, as sums in the counts of parts.

Money is counted where a reply is kept, at the price it was bought for: so it lies in the commit record beside the rows that it
paid for, adds up over every attempt at a stage, and does not change when the price does. What was paid for and then lost (a
part that was never committed) is not in it; the ledger of the engine's pool counts that, for one run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from hornbook.engines.budget import cost
from hornbook.engines.interface import EngineSettings, Reply, engines_of

MONEY = "money"


def usage_counts(engines: Mapping[str, EngineSettings], replies: Iterable[tuple[str, Reply]]) -> dict[str, float]:
    """Return the counts of a part: `prompt_tokens`, `completion_tokens` and, where an engine has a price, `money`.

    Where a stage asks several engines, each sum is there for each of them too, as `completion_tokens:judge`.

    Args:
        engines: the engines that a stage asks, by settings field.
        replies: which of them was asked, and its reply, for every reply that was not taken over from earlier.
    """
    counts: Counter[str] = Counter()
    for field, reply in replies:
        used: dict[str, float] = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
        money = cost(engines[field], reply.prompt_tokens, reply.completion_tokens).money
        used |= {MONEY: money} if money else {}
        counts.update(used)
        if len(engines) > 1:
            counts.update({f"{name}:{field}": value for name, value in used.items()})
    return dict(counts)


def by_engine(counts: Mapping[str, float], name: str, settings: Any) -> dict[str, float]:
    """Return one of the sums of `usage_counts`, by the settings field of the engine; without those that have none of it."""
    engines = engines_of(settings)
    if len(engines) == 1:
        return {field: counts[name] for field in engines if counts.get(name)}
    return {field: counts[f"{name}:{field}"] for field in engines if counts.get(f"{name}:{field}")}
