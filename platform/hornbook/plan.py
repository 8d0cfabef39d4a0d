"""Plans: pure functions from (seed, row number) to choices, so that a plan of a billion rows costs no memory.

`permute` is the core: a seeded permutation of range(n) that can be evaluated at any position in constant memory.
Mixtures shuffle sequences with it; `Combinations` walks through seed cells so that every prefix is balanced.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence

import numpy as np

ROUNDS = 6
GOLDEN = (math.sqrt(5) - 1) / 2


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed from names and numbers (`derive_seed(recipe_seed, "stories", row)`), stable for ever."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def row_random(*parts: object) -> random.Random:
    """Return a random generator that belongs to one planned row alone."""
    return random.Random(derive_seed(*parts))


def permute(positions: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return where a seeded permutation of range(size) sends each position; int64 in, int64 out, same shape.

    A balanced Feistel network over the next power of four, walked in cycles until the value falls below `size`
    (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Constant memory, any order of evaluation.

    Raises:
        ValueError: a position is not in range(size).
    """
    positions = np.asarray(positions, dtype=np.int64)
    if positions.size and (positions.min() < 0 or positions.max() >= size):
        raise ValueError(f"a position is outside range({size})")
    if size <= 1:
        return positions.copy()
    half_bits = max(1, (int(size - 1).bit_length() + 1) // 2)
    keys = [np.uint64(derive_seed(seed, "feistel", step)) for step in range(ROUNDS)]
    values = _feistel(positions.astype(np.uint64), half_bits, keys)
    outside = values >= size
    while outside.any():
        values[outside] = _feistel(values[outside], half_bits, keys)
        outside = values >= size
    return values.astype(np.int64)


def golden_choice(weights: Sequence[float], row: int, seed: int) -> int:
    """Return which of several weighted choices a row takes: in proportion to their weights in every prefix of rows.

    The rows walk the unit circle by the golden ratio, whose multiples fall most evenly (Knuth, TAOCP 3, 6.4); it is
    irrational, so that the walk meets no axis of a plan in step.
    """
    if len(weights) == 1:
        return 0
    start = derive_seed(seed, "golden") / (1 << 63)
    position = (start + row * GOLDEN) % 1.0 * math.fsum(weights)
    for choice, weight in enumerate(weights):
        position -= weight
        if position < 0:
            return choice
    return len(weights) - 1


class Combinations:
    """All combinations of one choice per axis, each once, every prefix balanced: `combinations[row]` is a tuple of indices.

    Row r takes choice r mod n of an axis of n choices, shifted by one each time the axes before it and this one have met
    in all the pairs that such a walk can give (every least common multiple of their sizes); the choices of an axis are
    shuffled by the seed. So in the first rows, however many, no choice of an axis is taken more than once oftener than another.

    Args:
        axes: how many choices each axis has.
        seed: another seed is another order.
    """

    def __init__(self, axes: Sequence[int], seed: int) -> None:
        self.axes = tuple(axes)
        self._orders = [
            permute(np.arange(size), size, derive_seed(seed, "axis", axis)) for axis, size in enumerate(axes)
        ]

    def __len__(self) -> int:
        return math.prod(self.axes)

    def __getitem__(self, row: int) -> tuple[int, ...]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} combinations")
        chosen = []
        before = 1
        for size, order in zip(self.axes, self._orders, strict=True):
            walked = row % (before * size)
            chosen.append(int(order[(walked + walked // math.lcm(before, size)) % size]))
            before *= size
        return tuple(chosen)


def _feistel(values: np.ndarray, half_bits: int, keys: list[np.uint64]) -> np.ndarray:
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << shift) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit words (the finaliser of SplitMix64; Steele, Lea, Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
