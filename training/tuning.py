"""What both ways of tuning share: a model and packed rows in, epochs over them, a tuned model out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from hornbook.errors import RecipeError
from hornbook.plan import derive_seed
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult, TokenLocation
from training.best import BestOfSettings, with_candidates
from training.corpora import locate_token, open_corpora
from training.launch import preflight_table, run_job
from training.low_rank import LoraSettings
from training.mixture import PhaseSettings
from training.positions import positions_of, require_room
from training.schedule import ScheduleSettings
from training.settings import LoopSettings
from training.shards import Rows
from training.source_names import check_best, check_form, source_names

if TYPE_CHECKING:
    from training.job import Job, Preference


class TuningLoopSettings(LoopSettings):
    """The loop's settings with a tuner's defaults."""

    schedule: ScheduleSettings = Field(
        ScheduleSettings(kind="cosine", warmup_steps=5), description="How the learning rate moves."
    )


class TuningSettings(Settings):
    """How long and how a model is tuned."""

    epochs: float = Field(1.0, gt=0, description="How often each row is seen.")
    steps: int | None = Field(None, ge=1, description="Optimizer steps, in place of epochs.")
    lora: LoraSettings | None = Field(
        None, description="Train adapters of this size only, and fold them in at the end."
    )
    loop: TuningLoopSettings = Field(TuningLoopSettings(), description="How it is trained.")
    best_of: BestOfSettings | None = Field(
        None, description="Leave the best weights of every so many steps, by validation loss, instead of the last."
    )
    workers: int | None = runtime(None, ge=1, description="Training workers; default: one per GPU, or two on CPUs.")
    min_workers: int | None = runtime(
        None, ge=1, description="Go on with as few workers as this while a node is gone; default: wait for all of them."
    )
    max_failures: int = runtime(3, ge=0, description="How often dead workers are started again.")


class Tuning(Stage):
    """Tunes a model on packed rows.

    Class attributes:
        form: how the rows were packed.
        rows: how they are cut.
    """

    produces = "model"
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input("model"), "tokens": Input("tokens", many=True)}
    settings: TuningSettings
    form: ClassVar[str]
    rows: ClassVar[Rows]
    _start: Stage | None = None

    def check_inputs(self, inputs: Mapping[str, Sequence[Stage]]) -> None:
        """Refuse what is packed in another form, and a best checkpoint by what is no source of this stage."""
        check_form(self.name, self.form, inputs["tokens"])
        known = source_names(self.name, inputs["tokens"])
        check_best(self.name, self.settings.loop, self.settings.best_of, known)
        self._start = inputs["model"][0]

    def ready(self) -> None:
        """Refuse rows longer than the model's context, before any stage of the run begins."""
        require_room(self.name, self.settings.loop.sequence_length, self.positions())

    def positions(self) -> int | None:
        """Return the positions that the model will have, None if that cannot be told from the recipe."""
        return positions_of(self._start) if self._start else None

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
        return run_job(
            context, self._job(context), tokenizer, self.settings.workers, self.settings.max_failures,
            self.settings.min_workers,
        )  # fmt: skip

    def preflight(self, context: StageContext) -> Sequence[Sequence[str]]:
        """Return what the tuning will take, from its first steps."""
        return preflight_table(context, self._job(context), self.settings.workers)

    def locate_token(self, context: StageContext, step: int, row: int, position: int) -> TokenLocation:
        """Return where a token came from: each row is one conversation, or one pair, in its chosen answer."""
        return locate_token(self._job(context), step, row, position)

    def with_rows(self, job: Job) -> Job:
        """Return the job with its rows cut as the settings say."""
        return job

    def preference(self) -> Preference | None:
        """Return the settings of preference tuning, if rows are pairs."""
        return None

    def _job(self, context: StageContext) -> Job:
        from training.job import Job

        model = context.input("model")
        job = Job(
            settings=with_candidates(self.settings.loop, self.settings.best_of),
            corpora=open_corpora(context, model.local_folder("model"), self.form),
            rows=self.rows,
            phases=(),
            max_epochs=1.0,
            seed=derive_seed(context.seed, "training"),
            artifact=context.artifact,
            start=model,
            lora=self.settings.lora,
            preference=self.preference(),
            tokenizer=(model, "model"),
            best_of=self.settings.best_of,
        )
        job = self.with_rows(job)
        rows = sum(len(source) for source in job.open("train").values())
        steps, batch = self._steps(rows), self.settings.loop.global_batch
        most = math.ceil(self.settings.epochs) + 1
        if self.settings.steps is None and 0 < rows * most < steps * batch:  # whoever says steps means them
            raise RecipeError(
                f"{self.name}: {self.settings.epochs:g} epochs of {rows} rows are not even {steps} steps of {batch} rows",
                f"set loop.global_batch to {rows} or less, or tune on more rows",
            )
        epochs = math.ceil(steps * batch / max(rows, 1)) + 1
        return replace(job, phases=[PhaseSettings(name=self.kind, steps=steps)], max_epochs=epochs)

    def _steps(self, rows: int) -> int:
        return self.settings.steps or max(1, round(self.settings.epochs * rows / self.settings.loop.global_batch))
