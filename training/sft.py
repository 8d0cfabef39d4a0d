"""Supervised fine-tuning: a pretrained model learns to answer, from conversations, one to a row.

Only what the assistant says is trained on (the pack stage marks it). A conversation longer than a row loses its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from hornbook.plan import derive_seed
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult, TokenLocation
from training.launch import locate_token, open_corpora, run_job
from training.mixture import PhaseSettings
from training.schedule import ScheduleSettings
from training.settings import LoopSettings

if TYPE_CHECKING:
    from training.job import Job


class TuningLoopSettings(LoopSettings):
    """The loop's settings with a tuner's defaults."""

    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.01, ge=0, description="Decay of matrices; biases and norms have none.")
    schedule: ScheduleSettings = Field(
        ScheduleSettings(kind="cosine", warmup_steps=5), description="How the learning rate moves."
    )
    global_batch: int = Field(16, ge=1, description="Conversations per optimizer step, over all workers.")


class SftSettings(Settings):
    """How long and how a model is tuned."""

    epochs: float = Field(3.0, gt=0, description="How often each conversation is seen.")
    loop: TuningLoopSettings = Field(TuningLoopSettings(), description="How it is trained.")
    workers: int | None = runtime(None, ge=1, description="Training workers; default: one per GPU, or two on CPUs.")
    max_failures: int = runtime(3, ge=0, description="How often dead workers are started again.")


class Sft(Stage):
    """Tunes a model on packed conversations."""

    kind = "sft"
    produces = "model"
    Settings = SftSettings
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input("model"), "tokens": Input("tokens", many=True)}
    settings: SftSettings

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return the steps."""
        rows = [found.rows for found in inputs["tokens"]]
        if any(row is None for row in rows):
            return Expected(unit="steps")
        steps = self._steps(sum(row or 0 for row in rows))
        return Expected(planned=steps, unit="steps", rows=steps)

    def run(self, context: StageContext) -> StageResult:
        """Tune, from the latest checkpoint of an earlier attempt if there is one."""
        tokenizer = context.input("model").local_folder("model")
        return run_job(context, self._job(context), tokenizer, self.settings.workers, self.settings.max_failures)

    def locate_token(self, context: StageContext, step: int, row: int, position: int) -> TokenLocation:
        """Return where a token came from; each row is one conversation."""
        return locate_token(self._job(context), step, row, position)

    def _job(self, context: StageContext) -> Job:
        from training.job import Job

        model = context.input("model")
        tokenizer = model.local_folder("model")
        corpora = open_corpora(context, tokenizer, "chat")
        rows = sum(shard.documents for corpus in corpora for shard in corpus.index.splits["train"])
        return Job(
            settings=self.settings.loop,
            corpora=corpora,
            rows="documents",
            phases=[PhaseSettings(name="sft", steps=self._steps(rows))],
            max_epochs=math.ceil(self.settings.epochs) + 1,
            seed=derive_seed(context.seed, "training"),
            artifact=context.artifact,
            start=model,
        )

    def _steps(self, rows: int) -> int:
        return max(1, round(self.settings.epochs * rows / self.settings.loop.global_batch))
