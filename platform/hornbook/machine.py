"""This machine: its cache folder, its processors and memory, as far as several modules ask."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the machine-local cache: HORNBOOK_CACHE, else `~/.cache/hornbook`. It can be deleted at any time."""
    return Path(os.environ.get("HORNBOOK_CACHE") or "~/.cache/hornbook").expanduser()


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
