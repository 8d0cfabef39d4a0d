"""The best of a run instead of its last: phi-1 chose, of the weights of every 1,000 steps, those that did best on held-out text.

The checkpoints of these steps are the candidates, and the last one; what was measured of each stands in its manifest.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from hornbook.settings import Settings
from training.settings import LoopSettings

if TYPE_CHECKING:
    from training.archive import Archive
    from training.checkpoint import Checkpoint


class BestOfSettings(Settings):
    """Which weights a stage leaves."""

    every: int = Field(
        1000, ge=1, description="Steps between candidates, which are checkpoints; the last step is one, too."
    )
    by: str = Field("mean", description="The source whose validation loss decides, or `mean` over all sources.")


def with_candidates(loop: LoopSettings, best_of: BestOfSettings | None) -> LoopSettings:
    """Return the loop's settings so that it makes the candidates, measures them and keeps the best one."""
    if best_of is None:
        return loop
    return loop.model_copy(update={"checkpoint_every": best_of.every, "best_by": best_of.by})


def best(last: Checkpoint, folder: Path, best_of: BestOfSettings, archive: Archive | None = None) -> Checkpoint:
    """Return the candidate of the lowest validation loss, of equals the first; a torn one is passed over with a warning.

    Args:
        last: the run's last checkpoint; it is the answer where no loss was measured.
        folder: of the checkpoints.
        archive: where they last, if not in `folder`.
    """
    from training.checkpoint import kept, whole

    candidates = [
        found
        for found in kept(folder, archive)
        if found.score is not None
        and math.isfinite(found.score)
        and (found.step % best_of.every == 0 or found.step == last.step)  # not one saved because somebody said stop
    ]
    for found in sorted(candidates, key=lambda found: (found.score or 0.0, found.step)):
        if (sound := whole(found, archive)) is not None:
            return sound
    return last
