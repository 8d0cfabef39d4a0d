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
        self._waiting = b""

    def append(self, row: dict[str, Any]) -> None:
        """Append one row; it is in the file when this returns. A full disk delays it until the next one, and never ends a run."""
        self._waiting += json.dumps(row).encode() + b"\n"
        with contextlib.suppress(OSError):
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                whole = os.fstat(file).st_size
                if os.write(file, self._waiting) == len(self._waiting):
                    self._waiting = b""
                else:  # no room for all of it: a torn row would spoil the one behind it
                    os.ftruncate(file, whole)
            finally:
                os.close(file)


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
    """Turn non-finite numbers, which JSON lacks, into None."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
