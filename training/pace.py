"""How fast a run goes, and in what memory: the figures of a metrics row that say nothing about the model."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch

ETA_STEPS = 50


class Pace:
    """Measures steps from one to the next, so that whatever happens between (validation, a checkpoint) is in one of them.

    Args:
        steps: of the whole run.
        flops: operations of training on one token; None: unknown, and then no `mfu`.
        peak: what all workers together can do, operations a second.
        device: of this worker.
    """

    def __init__(self, steps: int, flops: int | None, peak: float, device: torch.device) -> None:
        self._steps, self._flops, self._peak, self._device = steps, flops, peak, device
        self._began, self._waited = time.perf_counter(), 0.0
        self._recent: deque[float] = deque(maxlen=ETA_STEPS)
        self._first = True

    def step(self, done: int, tokens: int, waited: float) -> dict[str, Any]:
        """Return the figures of the step that ends now.

        Args:
            done: steps done.
            tokens: that it trained on, over all workers.
            waited: seconds that the loader was waited for, since the run began.

        `tokens_per_second` and `mfu` are those of the step; `memory_bytes` is this worker's peak (`peak_memory`);
        `eta_seconds` goes by the last 50 steps, the first one left out: it compiles.
        """
        now = time.perf_counter()
        seconds, wait = now - self._began, waited - self._waited
        self._began, self._waited = now, waited
        if not self._first or done == self._steps:
            self._recent.append(seconds)
        self._first = False
        usual = sum(self._recent) / len(self._recent) if self._recent else seconds
        return {
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            **({"mfu": tokens / seconds * self._flops / self._peak} if self._flops else {}),
            "loader_wait_share": wait / seconds,
            "memory_bytes": peak_memory(self._device),
            "eta_seconds": (self._steps - done) * usual,
        }


def peak_memory(device: torch.device) -> int:
    """Return the most bytes this process held so far: of tensors on its GPU, or resident ones on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux; `ru_maxrss` there counts a parent's memory, too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) << 10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


def forget_peak(device: torch.device) -> None:
    """Let the peak of memory begin anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
