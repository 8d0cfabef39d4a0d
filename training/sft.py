"""Supervised fine-tuning: a pretrained model learns to answer, from conversations, one to a row.

Only what the assistant says is trained on (the pack stage marks it). A conversation longer than a row loses its end.
"""

from __future__ import annotations

from pydantic import Field

from training.tuning import Tuning, TuningLoopSettings, TuningSettings


class SftLoopSettings(TuningLoopSettings):
    """The loop's settings with defaults for conversations."""

    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.01, ge=0, description="Decay of matrices; biases and norms have none.")
    global_batch: int = Field(16, ge=1, description="Conversations per optimizer step, over all workers.")


class SftSettings(TuningSettings):
    """How long and how a model is tuned."""

    epochs: float = Field(3.0, gt=0, description="How often each conversation is seen.")
    loop: SftLoopSettings = Field(SftLoopSettings(), description="How it is trained.")


class Sft(Tuning):
    """Tunes a model on packed conversations."""

    kind = "sft"
    Settings = SftSettings
    settings: SftSettings
    form = "chat"
    rows = "documents"
