"""What a person sees while a stage works: a bar with an ETA in a terminal, a line every ten seconds in a log.

The same numbers go to Ray's metrics, so that the dashboard shows them too.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from typing import Any, TextIO

LOG_SECONDS = 10.0
WIDE = 120
"""Columns of a terminal that has room for a long bar."""
MOST_TIMES = 6
"""While nothing is finished, lines come ever less often, up to so many times LOG_SECONDS apart: an engine may load for minutes."""


class Progress:
    """Progress of one stage, counted in planned units. In a log a thread writes the line, so that a long part, the start
    of an engine or a slow last step does not look like a hang.

    Args:
        stage: the stage's name.
        total: planned units; 0 if unknown.
        unit: what they are called (`rows`, `documents`, `steps`).
        done: units that were finished before (a resumed stage); they do not count in the rate.
    """

    def __init__(self, stage: str, total: int, unit: str = "rows", done: int = 0) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.done = self._done_before = done
        self.rejected = 0
        self.tokens = 0.0
        self.note = ""
        self.figures = ""
        self._left: tuple[float, float] | None = None
        self._began = time.monotonic()
        self._gauges: dict[str, Any] = {}
        self._bar: Any = None
        self._closed = threading.Event()
        if sys.stderr.isatty():
            self._bar = _rich_bar(stage, total, done)
        else:
            threading.Thread(target=self._say, args=(sys.stderr,), name=f"progress of {stage}", daemon=True).start()

    def advance(self, units: int, rejected: int = 0, tokens: float = 0, note: str = "") -> None:
        """Count finished units (rejected ones included) and the tokens written for them."""
        self.done += units
        self.rejected += rejected
        self.tokens += tokens
        self.note = note or self.note
        if self._bar is not None:
            self._bar.update(0, completed=self.done, figures=self._figures().removeprefix(", "))
        self._publish()

    def tell(self, figures: str, left: float) -> None:
        """Set what is shown in place of the rates since the work began, and the seconds left, as somebody knows them better."""
        self.figures, self._left = figures, (time.monotonic(), left)

    def say(self, text: str) -> None:
        """Print lines between the progress."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def line(self) -> str:
        """Return the progress as one line of text."""
        share = f" ({100 * self.done / self.total:.0f}%)" if self.total else ""
        of = f"/{self.total:,}" if self.total else ""
        return f"{self.done:,}{of} {self.unit}{share}{self._figures()}{self._eta()}"

    def close(self) -> None:
        """End the bar, or the lines."""
        self._closed.set()
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the stage's work began."""
        return time.monotonic() - self._began

    def _say(self, stream: TextIO) -> None:
        waited, due = 0, 1
        while not self._closed.wait(LOG_SECONDS):
            waited += 1
            if waited < due and self.done == self._done_before:
                continue
            print(f"{self.stage}: {self.line()}", file=stream, flush=True)
            waited, due = 0, min(2 * due, MOST_TIMES)

    def _rate(self) -> float:
        return (self.done - self._done_before) / max(self.seconds, 1e-9)

    def _figures(self) -> str:
        if self.done == self._done_before:
            return f", none finished yet after {duration(self.seconds)}" + (f", {self.note}" if self.note else "")
        if self.figures:
            return f", {self.figures}"
        figures = f", {self._rate():,.1f} {self.unit}/s"
        if self.tokens:
            figures += f", {self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s"
        if self.rejected:
            figures += f", {self.rejected:,} rejected"
        return figures + (f", {self.note}" if self.note else "")

    def _eta(self) -> str:
        rate = self._rate()
        if not self.total or self.done >= self.total or rate <= 0:
            return ""
        if self._left is not None:
            told, left = self._left
            return f", ETA {duration(max(0.0, left - (time.monotonic() - told)))}"
        return f", ETA {duration((self.total - self.done) / rate)}"

    def _publish(self) -> None:
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        if not self._gauges:
            from ray.util.metrics import Gauge

            for name in ("done", "planned", "rejected", "tokens"):
                self._gauges[name] = Gauge(f"hornbook_stage_{name}", f"{name} units of a stage", tag_keys=("stage",))
        values = {"done": self.done, "planned": self.total, "rejected": self.rejected, "tokens": self.tokens}
        for name, value in values.items():
            self._gauges[name].set(value, tags={"stage": self.stage})


def duration(seconds: float) -> str:
    """Return seconds as a person writes them: `42 s`, `3 min 10 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Return bytes as a person writes them: `512 B`, `3.2 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def money(amount: float) -> str:
    """Return an amount of money as a person writes it, in the currency of the prices: `12.50`, and of little two digits."""
    digits = 2 if not amount or abs(amount) >= 0.1 else 1 - math.floor(math.log10(abs(amount)))
    return f"{amount:,.{digits}f}"


def _rich_bar(stage: str, total: int, done: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    console = Console(stderr=True)
    bar = RichProgress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=20 if console.width >= WIDE else 10),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        # Where the line is too long, the last figures are cut off and not the count or the ETA.
        TextColumn("{task.fields[figures]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        console=console,
        expand=True,
    )
    bar.add_task(stage, total=total or None, completed=done, figures="")
    bar.start()
    return bar
