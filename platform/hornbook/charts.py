"""Small charts as inline SVG: a line chart and a histogram, drawn here so that the report needs no library and no request.

A chart comes in two widths, and the style sheet shows the one that fits: text inside a scaled SVG would be unreadable on a
phone. Colours are CSS classes (`c0`, `c1`, ... one per source, `ink` for what belongs to none), so dark mode needs no second
drawing.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

SIZES = (("wide", 760, 320), ("narrow", 360, 260))
MAX_POINTS = 400
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 36, 46
TICK_PIXELS = 42
CHARACTER = 6.6
"""Width of an average character of chart text in pixels, to tell whether a label fits."""


COLOURS = 8
"""Colour classes c0, c1, ... of the style sheet."""


@dataclass(frozen=True)
class Series:
    """A line: its name, its colour class, its points (x, y), and whether the points are marked."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    marked: bool = False
    faint: bool = False
    """Drawn thin and pale, and left out of the legend: the raw values behind a smoothed line."""


@dataclass(frozen=True)
class Band:
    """A named stretch of the x axis: a training phase."""

    name: str
    start: float
    stop: float


@dataclass(frozen=True)
class Ribbon:
    """The interval around a line: its colour class, and its points (x, low, high)."""

    colour: str
    points: Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class _Frame:
    """Maps data to pixels of one drawing."""

    width: int
    height: int
    low_x: float
    high_x: float
    low_y: float
    high_y: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.low_x) / (self.high_x - self.low_x) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self.height - BOTTOM - (value - self.low_y) / (self.high_y - self.low_y) * (self.height - TOP - BOTTOM)


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_label: str,
    bands: Sequence[Band] = (),
    ribbons: Sequence[Ribbon] = (),
    threshold: float | None = None,
    height_share: float = 1.0,
    counted: bool = False,
) -> Markup:
    """Draw lines over a common x axis; bands are shaded and named at the top, ribbons lie behind the lines.

    Args:
        label: what the chart shows, for screen readers.
        x_label: axis title with its unit.
        y_label: axis title with its unit.
        height_share: height as a share of the usual one; a lower chart has no room to name its bands.
        counted: shares by whole numbers: no ticks between whole x, and y begins at 0.

    Returns:
        Both drawings, or nothing if no series has a point.
    """
    points = [point for line in series for point in line.points]
    if not points:
        return Markup()
    xs = [x for x, _ in points] + [edge for band in bands for edge in (band.start, band.stop)]
    edges = [edge for ribbon in ribbons for _, *interval in ribbon.points for edge in interval]
    low_y, high_y = _y_range([y for _, y in points] + edges + [0.0] * counted)
    drawings = []
    for size, width, height in SIZES:
        frame = _Frame(width, round(height * height_share), *_widened(min(xs), max(xs)), low_y, high_y)
        body = [*_bands(frame, bands, named=height_share == 1.0), *_axes(frame, x_label, y_label, counted)]
        body += [_ribbon(frame, ribbon) for ribbon in ribbons if ribbon.points]
        for line in series:
            body += _line(frame, line)
        if threshold is not None:
            body += _threshold(frame, threshold)
        shown = [line for line in series if not line.faint]
        drawings.append(_svg(size, frame, label, body, _hover(frame, shown, x_label)))
    return Markup("\n").join(drawings)


def histogram(
    edges: Sequence[float],
    counts: Mapping[str, Sequence[float]],
    *,
    colours: Mapping[str, str],
    label: str,
    x_label: str,
    y_label: str,
    threshold: float | None = None,
) -> Markup:
    """Draw stacked bars, one colour per source, and the threshold as a line.

    Args:
        edges: bin edges, one more than there are bins.
        counts: per source, one count per bin.

    Returns:
        Both drawings, or nothing if edges and counts do not fit each other.
    """
    bins = len(edges) - 1
    if bins < 1 or not counts or any(len(values) != bins for values in counts.values()):
        return Markup()
    totals = [sum(values[index] for values in counts.values()) for index in range(bins)]
    low_x = min(edges[0], threshold if threshold is not None else edges[0])
    high_x = max(edges[-1], threshold if threshold is not None else edges[-1])
    drawings = []
    for size, width, height in SIZES:
        frame = _Frame(width, height, *_widened(low_x, high_x), 0.0, nice_ticks(0, max(*totals, 1))[-1])
        body = _axes(frame, x_label, y_label)
        for index in range(bins):
            left, right = frame.x(edges[index]), frame.x(edges[index + 1])
            gap = 1 if right - left > 4 else 0
            base = 0.0
            for source, values in counts.items():
                if values[index] <= 0:
                    continue
                top, bottom = frame.y(base + values[index]), frame.y(base)
                title = (
                    f"{source}: {number(values[index])} from {number(edges[index], 3)} to {number(edges[index + 1], 3)}"
                )
                body.append(
                    Markup('<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                        colours.get(source, "ink"),
                        _p(left + gap / 2),
                        _p(top),
                        _p(right - left - gap),
                        _p(bottom - top),
                        title,
                    )
                )
                base += values[index]
        if threshold is not None:
            body += _threshold(frame, threshold)
        drawings.append(_svg(size, frame, label, body, ""))
    return Markup("\n").join(drawings)


def named_colours(names: Iterable[str], colours: Mapping[str, str]) -> dict[str, str]:
    """Return the sources' own colours, and the next free ones for names that are no source of the run."""
    free = (f"c{(len(colours) + index) % COLOURS}" for index in itertools.count())
    return {name: colours.get(name) or next(free) for name in names}


def thinned(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Return at most about `limit` points: the mean of each run of neighbours, so that no spike is picked by chance."""
    if len(points) <= limit:
        return list(points)
    means = []
    for index in range(limit):
        group = points[index * len(points) // limit : (index + 1) * len(points) // limit]
        means.append((group[-1][0], sum(y for _, y in group) / len(group)))
    return means


def smoothed(points: Sequence[tuple[float, float]], half_life: float) -> list[tuple[float, float]]:
    """Return an exponential moving average over x, started at the first value and free of its bias."""
    result: list[tuple[float, float]] = []
    total = weight = 0.0
    before: float | None = None
    for x, y in points:
        keep = 0.5 ** ((x - before) / half_life) if before is not None and half_life > 0 else 0.0
        total, weight, before = total * keep + y, weight * keep + 1.0, x
        result.append((x, total / weight))
    return result


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round tick values that cover low to high, steps of 1, 2 or 5 times a power of ten."""
    if _flat(low, high):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, 1 - math.floor(math.log10(step)))
    return [round(index * step, decimals) for index in range(first, last + 1)]


def number(value: float, digits: int = 2) -> str:
    """Write a number for people: thousands separators, and `digits` significant decimals only where it has a fraction."""
    if not math.isfinite(value):
        return "not finite"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:,.{digits}f}"


def _y_range(values: Sequence[float]) -> tuple[float, float]:
    """Round outwards; a first value far above the rest (an untrained model's loss) still fits."""
    low, high = min(values), max(values)
    if _flat(low, high):
        low, high = low - abs(low) * 0.1 - 0.5, high + abs(high) * 0.1 + 0.5
    if 0 <= low < 0.35 * high:
        low = 0.0
    ticks = nice_ticks(low, high)
    return ticks[0], ticks[-1]


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low - 0.5, high + 0.5) if _flat(low, high) else (low, high)


def _flat(low: float, high: float) -> bool:
    """Tell whether a range is too narrow to draw: floats have about 15 digits."""
    return high - low <= max(1e-10, 1e-9 * max(abs(low), abs(high)))


def _p(pixels: float) -> str:
    return f"{pixels:.1f}".removesuffix(".0")


def _axes(frame: _Frame, x_label: str, y_label: str, whole_x: bool = False) -> list[Markup]:
    bottom, right = frame.height - BOTTOM, frame.width - RIGHT
    parts = []
    ticks = nice_ticks(frame.low_y, frame.high_y, max(2, round((bottom - TOP) / TICK_PIXELS)))
    write = _tick_writer(ticks)
    for value in ticks:
        if frame.low_y <= value <= frame.high_y:
            y = _p(frame.y(value))
            parts.append(Markup('<line class="grid" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(LEFT, y, right, y))
            parts.append(_text(LEFT - 8, frame.y(value) + 4, write(value), "end"))
    ticks = nice_ticks(frame.low_x, frame.high_x, 8 if frame.width > 500 else 4)
    if whole_x:
        ticks = [value for value in ticks if value == int(value)]
    write = _tick_writer(ticks)
    for value in ticks:
        if frame.low_x <= value <= frame.high_x:
            x = _p(frame.x(value))
            parts.append(
                Markup('<line class="tick" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(x, bottom, x, bottom + 5)
            )
            label = write(value)
            fits = frame.x(value) + len(label) * CHARACTER / 2 <= frame.width
            parts.append(_text(frame.x(value) if fits else right, bottom + 19, label, "middle" if fits else "end"))
    parts.append(Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(LEFT, bottom, right, bottom))
    parts.append(_text((LEFT + right) / 2, frame.height - 8, x_label, "middle", "title"))
    parts.append(_text(2, 13, y_label, "start", "title"))
    return parts


def _tick_writer(ticks: Sequence[float]) -> Callable[[float], str]:
    """Return a function that writes all ticks of an axis with the same decimals."""
    step = ticks[1] - ticks[0]
    if 0 < step < 1e-3:
        return lambda value: "0" if value == 0 else f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return lambda value: f"{value:,.{decimals}f}"


def _bands(frame: _Frame, bands: Sequence[Band], named: bool) -> list[Markup]:
    parts = []
    for index, band in enumerate(bands):
        left, right = frame.x(band.start), frame.x(band.stop)
        height = frame.height - TOP - BOTTOM
        shade = "band odd" if index % 2 else "band"
        parts.append(
            Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"><title>phase {}</title></rect>').format(
                shade, _p(left), TOP, _p(right - left), height, band.name
            )
        )
        if named and len(band.name) * CHARACTER < right - left:
            parts.append(_text((left + right) / 2, TOP + 14, band.name, "middle", "phase"))
    return parts


def _line(frame: _Frame, line: Series) -> list[Markup]:
    points = [(frame.x(x), frame.y(y)) for x, y in line.points]
    path = " ".join(f"{_p(x)},{_p(y)}" for x, y in points)
    kind = "line faint" if line.faint else "line"
    parts = [Markup('<polyline class="{} {}" points="{}"/>').format(kind, line.colour, path)]
    if line.marked or len(points) == 1:
        parts += [
            Markup('<circle class="dot {}" cx="{}" cy="{}" r="{}"/>').format(
                line.colour, _p(x), _p(y), 3 if len(points) < 40 else 2
            )
            for x, y in points
        ]
    return parts


def _ribbon(frame: _Frame, ribbon: Ribbon) -> Markup:
    upper = [(x, high) for x, _, high in ribbon.points]
    lower = [(x, low) for x, low, _ in reversed(ribbon.points)]
    corners = " ".join(f"{_p(frame.x(x))},{_p(frame.y(y))}" for x, y in upper + lower)
    return Markup('<polygon class="ribbon {}" points="{}"/>').format(ribbon.colour, corners)


def _threshold(frame: _Frame, threshold: float) -> list[Markup]:
    x = frame.x(threshold)
    text = f"threshold {number(threshold, 3)}"
    room_right = x + 6 + len(text) * CHARACTER <= frame.width - RIGHT
    ends = (_p(x), TOP - 10, _p(x), frame.height - BOTTOM)
    return [
        Markup('<line class="halo" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(*ends),
        Markup('<line class="threshold" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(*ends),
        _text(x + 6 if room_right else x - 6, TOP - 6, text, "start" if room_right else "end", "strong"),
    ]


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(kind, _p(x), _p(y), anchor, text)


def _hover(frame: _Frame, series: Sequence[Series], x_label: str) -> str:
    """Return what the page's few lines of script need to show values under the pointer, as JSON."""
    lines = [
        {
            "name": line.name,
            "colour": line.colour,
            "points": [[round(frame.x(x), 1), round(frame.y(y), 1), number(x), number(y, 3)] for x, y in line.points],
        }
        for line in series
    ]
    return json.dumps({"unit": x_label, "lines": lines}, separators=(",", ":"), ensure_ascii=False)


def _svg(size: str, frame: _Frame, label: str, body: Sequence[Markup], hover: str) -> Markup:
    data = Markup(' data-hover="{}" data-bottom="{}" data-top="{}"').format(hover, frame.height - BOTTOM, TOP)
    return Markup(
        '<svg class="chart {}" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}"{}>{}</svg>'
    ).format(
        size,
        frame.width,
        frame.height,
        frame.width,
        frame.height,
        escape(label),
        data if hover else "",
        Markup("").join(body),
    )
