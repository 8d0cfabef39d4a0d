"""Which tools a row of function calls asks for: one, or two or three that go together, some with results in arguments.

What goes together is read off the catalogue: a result fits an argument of its type and format (`hornbook.tools.fits`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hornbook.plan import Combinations, row_random
from hornbook.tools import Catalogue, fits


@dataclass(frozen=True)
class Combination:
    """Tools to call in this order, and which argument is which result.

    Attributes:
        tools: their names.
        links: (place of the call, its argument, place of the earlier call whose result it is).
    """

    tools: tuple[str, ...]
    links: tuple[tuple[int, str, int], ...] = ()


def tool_combinations(catalogue: Catalogue, seed: int) -> list[Combination]:
    """Return combinations of two or three tools: nested, in chains or joined, and apart, about as many of each.

    nested: the result of one is an argument of the other. chains: of three, each of the next. joined: the results of two are
    arguments of a third. apart: two with nothing to do with each other. The larger groups are cut, in an order that the seed
    gives, to as many as there are nested ones.
    """
    links = [
        (source.name, target.name, argument)
        for source, target in itertools.permutations(catalogue, 2)
        for argument, schema in target.arguments.items()
        if fits(schema, source.returns)
    ]
    nested = [Combination((source, target), ((1, argument, 0),)) for source, target, argument in links]
    threes = [
        Combination((source, middle, target), ((1, first, 0), (2, second, 1)))
        for (source, middle, first), (again, target, second) in itertools.product(links, links)
        if middle == again and source != target
    ] + [
        Combination((left, right, target), ((2, first, 0), (2, second, 1)))
        for (left, target, first), (right, same, second) in itertools.product(links, links)
        if target == same and left != right and first < second
    ]
    apart = [Combination(pair) for pair in itertools.permutations(catalogue.tools, 2)]
    chosen = list(nested)
    for name, group in (("threes", threes), ("apart", apart)):
        row_random(seed, "combinations", name).shuffle(group)
        chosen += group[: len(nested) or len(group)]
    return chosen


class CallPlan(Combinations):
    """The walk of rows through single tools and combinations: `plan[row]` is (1 for a combination else 0, *indices).

    The first `seed_rows` rows take single tools; of those after them a share takes combinations, evenly spread. Each of the
    two has a balanced walk of its own, and no row takes what another one took.
    """

    def __init__(self, single: Sequence[int], combined: Sequence[int], share: float, seed_rows: int, seed: int) -> None:
        super().__init__(single, seed)
        self._single, self._combined = Combinations(single, seed), Combinations(combined, seed)
        self._share, self.seed_rows = share, seed_rows

    def __len__(self) -> int:
        single, combined = len(self._single), len(self._combined)
        if single <= self.seed_rows:
            return single
        low, high = 0, single + combined + 1  # rows after the seeds: `low` are there, `high` are not
        while high - low > 1:
            middle = (low + high) // 2
            taken = self._combinations_before(middle)
            there = taken <= combined and self.seed_rows + middle - taken <= single
            low, high = (middle, high) if there else (low, middle)
        return self.seed_rows + low

    def __getitem__(self, row: int) -> tuple[int, ...]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        after = row - self.seed_rows
        if after < 0:
            return (0, *self._single[row])
        before = self._combinations_before(after)
        if self._combinations_before(after + 1) > before:
            return (1, *self._combined[before])
        return (0, *self._single[row - before])

    def _combinations_before(self, rows: int) -> int:
        """Return how many of the first `rows` rows after the seeds are combinations."""
        return int(rows * self._share)
