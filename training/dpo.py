"""Direct preference optimisation: a tuned model learns from pairs of answers, one wanted, one not (arXiv 2305.18290).

What the model thought of each answer before the first step is worked out then; no second model is kept in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from hornbook.settings import runtime
from training.tuning import Tuning, TuningLoopSettings, TuningSettings

if TYPE_CHECKING:
    from training.job import Preference


class PreferenceLoopSettings(TuningLoopSettings):
    """The loop's settings with defaults for preferences."""

    learning_rate: float = Field(2e-5, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="Decay of matrices; biases and norms have none.")
    global_batch: int = Field(16, ge=1, description="Pairs per optimizer step, over all workers.")
    microbatch: int = runtime(8, ge=1, description="Pairs per forward pass of one worker.")


class DpoSettings(TuningSettings):
    """How a model learns what is preferred."""

    beta: float = Field(0.1, gt=0, description="How strongly the model is held to its former self; larger is closer.")
    length_normalised: bool = Field(
        False, description="Compare mean instead of summed log-probabilities, so that longer answers are not favoured."
    )
    epochs: float = Field(1.0, gt=0, description="How often each pair is seen.")
    loop: PreferenceLoopSettings = Field(PreferenceLoopSettings(), description="How it is trained.")


class Dpo(Tuning):
    """Tunes a model on packed preferences."""

    kind = "dpo"
    Settings = DpoSettings
    settings: DpoSettings
    form = "preference"
    rows = "pairs"

    def preference(self) -> Preference:
        """Return how strongly the model is held to its former self, and how answers are compared."""
        from training.job import Preference

        return Preference(self.settings.beta, self.settings.length_normalised)
