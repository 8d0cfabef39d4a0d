"""Figures with intervals: how an estimate is made of the parts of a pilot, and how estimates are multiplied and added up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hornbook.pilot import Chunk, Pilot

LEVEL_Z = 1.6449
"""Standard normal quantile of a two-sided 90% interval."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Quantity:
    """A figure with its interval."""

    value: float
    low: float
    high: float

    def __mul__(self, other: Quantity | float) -> Quantity:
        by = other if isinstance(other, Quantity) else Quantity(other, other, other)
        return Quantity(self.value * by.value, self.low * by.low, self.high * by.high)

    def __add__(self, other: Quantity | float) -> Quantity:
        more = other if isinstance(other, Quantity) else Quantity(other, other, other)
        return Quantity(self.value + more.value, self.low + more.low, self.high + more.high)


NONE = Quantity(0.0, 0.0, 0.0)


def wilson(successes: float, trials: float, z: float = LEVEL_Z) -> Quantity:
    """Return a share with Wilson's interval: of 90%, or of another level by its standard normal quantile `z`."""
    share, square = successes / trials, z**2
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = z / (1 + square / trials) * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    return Quantity(share, max(0.0, centre - half), min(1.0, centre + half))


def per_planned(pilot: Pilot, figure: str | Callable[[Chunk], float]) -> Quantity:
    """Return a figure of the pilot's chunks, a field or a function of them, per planned row.

    It is the ratio of the sums, its interval from a bootstrap over the chunks (90%).
    """
    read = figure if callable(figure) else lambda chunk: getattr(chunk, figure)
    values = np.array([read(chunk) for chunk in pilot.chunks], dtype=float)
    planned = np.array([chunk.planned for chunk in pilot.chunks], dtype=float)
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    ratios = values[drawn].sum(axis=1) / planned[drawn].sum(axis=1)
    low, high = np.quantile(ratios, (0.05, 0.95))
    value = float(values.sum() / planned.sum())
    return Quantity(value, min(value, float(low)), max(value, float(high)))


def in_quadrature(quantities: Sequence[Quantity]) -> Quantity:
    """Return the sum of quantities that vary independently: their half-widths add in quadrature."""
    value = sum(each.value for each in quantities)
    low = math.sqrt(sum((each.value - each.low) ** 2 for each in quantities))
    high = math.sqrt(sum((each.high - each.value) ** 2 for each in quantities))
    return Quantity(value, value - low, value + high)
