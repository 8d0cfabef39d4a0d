"""A torch profile of a few steps, on request: where the time of a step goes."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from training.settings import ProfileSettings

PROFILE = "profile"
TOP = 30


class Profile:
    """Profiles rank 0 over some steps into `profile/`: `trace.json` for Chrome or Perfetto, and a table of operations.

    Args:
        settings: which steps; None: none, at no cost.
        folder: of the run.
        device: whose kernels count.
    """

    def __init__(self, settings: ProfileSettings | None, folder: Path, device: torch.device) -> None:
        self._settings, self._folder, self._device = settings, folder / PROFILE, device
        self._profiler: torch.profiler.profile | None = None

    def begin(self, step: int) -> None:
        """Note that a step (from 1) begins."""
        if self._settings is None or step != self._settings.first:
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities, record_shapes=True, profile_memory=True)
        self._profiler.start()

    def end(self, step: int) -> None:
        """Note that a step ended; after the last one of the profile its files are there."""
        if self._profiler is None or self._settings is None or step < self._settings.first + self._settings.steps - 1:
            return
        self.close()

    def close(self) -> None:
        """Write what was profiled, if a profile is going on. A disk that is full costs the profile, not the run."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        profiler.stop()
        order = "self_cuda_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self._folder / "trace.json"))
            table = profiler.key_averages().table(sort_by=order, row_limit=TOP, max_name_column_width=60)
            (self._folder / "operations.txt").write_text(table)
        except (OSError, RuntimeError) as error:
            warnings.warn(f"the profile could not be written: {error}", stacklevel=2)
