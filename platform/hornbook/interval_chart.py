"""Means with error bars as inline SVG: a row for each name, its interval, its mean, and the single values behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hornbook.charts import CHARACTER, RIGHT, SIZES, _Frame, _p, _svg, _text, _tick_writer, nice_ticks, number

TOP, BOTTOM, ROW, CAP = 10, 46, 44, 5
"""Pixels above the rows, below them, of a row, and of half an error bar's cap."""

Place = Callable[[float], float]
"""Maps a value to its pixel on the axis."""


@dataclass(frozen=True)
class Interval:
    """One row of the chart: `low` and `high` are the ends of its error bar, None where there is none."""

    name: str
    colour: str
    mean: float
    low: float | None
    high: float | None
    values: Sequence[float] = ()


def interval_chart(rows: Sequence[Interval], *, label: str, x_label: str, zero: bool = False) -> Markup:
    """Draw the rows one below the other over a common axis.

    Args:
        label: what the chart shows, for screen readers.
        x_label: axis title with its unit.
        zero: the axis takes in 0, with a line there: for differences.

    Returns:
        Both drawings (wide and narrow), or nothing without rows.
    """
    if not rows:
        return Markup()
    ends = [value for row in rows for value in (row.mean, row.low, row.high, *row.values) if value is not None]
    ends += [0.0] * zero
    spread = max(ends) - min(ends) or abs(ends[0]) or 1.0
    low, high = min(ends) - 0.04 * spread, max(ends) + 0.04 * spread
    left = round(16 + CHARACTER * max(len(row.name) for row in rows))
    drawings = []
    for size, width, _ in SIZES:
        frame = _Frame(width, TOP + ROW * len(rows) + BOTTOM, low, high, 0, 1)

        def x(value: float, width: int = width) -> float:
            return left + (value - low) / (high - low) * (width - left - RIGHT)

        body = _axis(frame, x, left, 6 if width > 500 else 3, x_label)
        if zero:
            body.append(_line("threshold", x(0.0), TOP, x(0.0), frame.height - BOTTOM))
        for place, row in enumerate(rows):
            body += _row(row, x, TOP + ROW * (place + 0.5), left)
        drawings.append(_svg(size, frame, label, body, ""))
    return Markup("\n").join(drawings)


def _axis(frame: _Frame, x: Place, left: int, wanted: int, title: str) -> list[Markup]:
    bottom = frame.height - BOTTOM
    ticks = [tick for tick in nice_ticks(frame.low_x, frame.high_x, wanted) if frame.low_x <= tick <= frame.high_x]
    write = _tick_writer(ticks) if len(ticks) > 1 else number
    parts = []
    for tick in ticks:
        parts += [_line("grid", x(tick), TOP, x(tick), bottom), _text(x(tick), bottom + 19, write(tick), "middle")]
    parts.append(_line("axis", left, bottom, frame.width - RIGHT, bottom))
    parts.append(_text(frame.width / 2, frame.height - 8, title, "middle", "title"))
    return parts


def _row(row: Interval, x: Place, y: float, left: int) -> list[Markup]:
    parts = [_text(left - 10, y + 4, row.name, "end", "strong")]
    title = f"{row.name}: {number(row.mean, 4)}"
    if row.low is not None and row.high is not None:
        title += f", 95% interval {number(row.low, 4)} to {number(row.high, 4)}"
        kind = f"line {row.colour}"
        parts.append(_line(kind, x(row.low), y, x(row.high), y))
        parts += [_line(kind, x(end), y - CAP, x(end), y + CAP) for end in (row.low, row.high)]
    dot = Markup('<circle class="dot {}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>')
    for value in row.values:
        parts.append(dot.format(f"{row.colour} faint", _p(x(value)), _p(y + 12), 3, number(value, 4)))
    parts.append(dot.format(row.colour, _p(x(row.mean)), _p(y), 5, title))
    return parts


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, _p(x1), _p(y1), _p(x2), _p(y2))
