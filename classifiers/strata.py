"""Fair shares: how many to take from each stratum so that no large one crowds out the small ones."""

from __future__ import annotations

from collections.abc import Sequence


def fair_shares(sizes: Sequence[int], wanted: int) -> list[int]:
    """Return how many to take from each stratum: an equal share, or all of a stratum that has less than that.

    What small strata leave unused is shared among the rest ("water filling"); a remainder goes to the first strata that
    still have some. The sum is min(wanted, sum(sizes)).
    """
    shares = [0] * len(sizes)
    left = min(wanted, sum(sizes))
    open_strata = [number for number, size in enumerate(sizes) if size]
    while left and open_strata:
        each = max(1, left // len(open_strata))  # all open strata have equal shares so far
        for number in open_strata[:left]:
            more = min(each, sizes[number] - shares[number])
            shares[number] += more
            left -= more
        open_strata = [number for number in open_strata if shares[number] < sizes[number]]
    return shares
