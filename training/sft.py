"""Supervised fine-tuning: a pretrained model learns to answer, from conversations, one to a row or several side by side.

Only what the assistant says is trained on (the pack stage marks it). Conversations that share a row see nothing of each other:
attention and positions end where one does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hornbook.stage import StageContext, StageResult
from training.over_long import report_over_long
from training.paper_tuning import Paper, as_in_paper
from training.shards import Rows
from training.tuning import Tuning, TuningLoopSettings, TuningSettings

if TYPE_CHECKING:
    from training.job import Job


class SftLoopSettings(TuningLoopSettings):
    """The loop's settings with defaults for conversations."""

    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.01, ge=0, description="Decay of matrices; biases and norms have none.")
    global_batch: int = Field(16, ge=1, description="Rows per optimizer step, over all workers.")


class SftSettings(TuningSettings):
    """How long and how a model is tuned."""

    epochs: float = Field(3.0, gt=0, description="How often each conversation is seen.")
    paper: Paper | None = Field(
        None,
        description="What is left open here and in `loop` is as in this paper's tuning; see docs/training/tuning.md.",
    )
    loop: SftLoopSettings = Field(SftLoopSettings(), description="How it is trained.")
    packing: Literal["none", "best-fit"] = Field(
        "none",
        description="none: a conversation a row, padded. best-fit: as many as fit, none seeing another; rows are fewer.",
    )
    over_long: Literal["cut", "drop", "reject"] = Field(
        "cut",
        description="A conversation longer than a row: cut its end off; drop it; or reject: drop it and list it in the "
        "artifact's rejects.parquet.",
    )


class Sft(Tuning):
    """Tunes a model on packed conversations."""

    kind = "sft"
    Settings = SftSettings
    settings: SftSettings
    form = "chat"
    rows = "documents"

    def __init__(self, name: str, settings: SftSettings, seed: int) -> None:
        super().__init__(name, as_in_paper(settings, settings.paper), seed)

    def with_rows(self, job: Job) -> Job:
        """Return the job with conversations laid into rows as the settings say."""
        rows: Rows = "documents" if self.settings.packing == "none" else "best-fit"
        return replace(job, rows=rows, over_long="cut" if self.settings.over_long == "cut" else "drop")

    def run(self, context: StageContext) -> StageResult:
        """Tune, from the latest checkpoint of an earlier attempt if there is one; say how many conversations did not fit."""
        sources = self._job(context).open("train")
        return report_over_long(context, super().run(context), sources, self.settings.over_long)
