"""`metrics.jsonl`: one row per step, each step exactly once, however often the run was killed and resumed; `samples.jsonl` likewise."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


class MetricsFile:
    """Appends rows; opened at a step, it first drops rows of steps that the checkpoint does not hold.

    Args:
        path: the file; made if missing.
        step: optimizer steps that the resumed checkpoint holds (0: a fresh start).
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= step]
        temporary = path.with_name(f".{path.name}")
        temporary.write_text("".join(kept))
        temporary.replace(path)
        self._waiting: list[str] = []

    def append(self, row: dict[str, Any]) -> None:
        """Append one row; it is in the file when this returns. Raises OSError as `write` does."""
        self._waiting.append(json.dumps(row) + "\n")
        self.write()

    def write(self) -> None:
        """Write rows that could not be written before. Raises OSError: they still wait, and the file is as it was."""
        if not self._waiting:
            return
        size = self.path.stat().st_size
        try:
            with self.path.open("a") as file:
                file.write("".join(self._waiting))
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
            raise
        self._waiting = []


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a metrics file; a torn last line is passed over."""
    if path.exists():
        yield from parse_metrics(path.read_text())


def parse_metrics(text: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a metrics file's text; a torn last line is passed over."""
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def json_ready(row: dict[str, Any]) -> dict[str, Any]:
    """Turn non-finite numbers, which JSON lacks, into None, those by source, too."""
    return {key: _json_ready(value) for key, value in row.items()}


def _json_ready(value: Any) -> Any:
    if isinstance(value, dict):
        return json_ready(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
