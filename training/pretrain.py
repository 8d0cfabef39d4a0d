"""Pretrains a model on a mixture of packed corpora, in phases, with Ray Train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from hornbook.errors import RecipeError
from hornbook.plan import derive_seed
from hornbook.settings import Settings, nearest, runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult, TokenLocation
from training.launch import locate_token, open_corpora, run_job
from training.mixture import PhaseSettings
from training.presets import PRESETS
from training.settings import LoopSettings

if TYPE_CHECKING:
    from training.job import Job

VOCABULARY_MULTIPLE = 64  # matrix products over the vocabulary run faster on round sizes


class PretrainSettings(Settings):
    """Which model is trained, on what, for how long."""

    preset: str = Field("phi-demo-3m", description="Name of a model preset.")
    model: dict[str, Any] = Field(default_factory=dict, description="Fields of the model's configuration to change.")
    phases: tuple[PhaseSettings, ...] = Field(..., min_length=1, description="Phases in order, each with its mixture.")
    max_epochs: float = Field(4.0, gt=0, description="No source is gone through more often, all phases together.")
    loop: LoopSettings = Field(LoopSettings(), description="How it is trained.")
    workers: int | None = runtime(None, ge=1, description="Training workers; default: one per GPU, or two on CPUs.")
    max_failures: int = runtime(3, ge=0, description="How often dead workers are started again.")


class Pretrain(Stage):
    """Trains from nothing; leaves a Hugging Face folder, metrics and the last checkpoints."""

    kind = "pretrain"
    produces = "model"
    Settings = PretrainSettings
    inputs: ClassVar[Mapping[str, Input]] = {"tokens": Input("tokens", many=True), "tokenizer": Input("tokenizer")}
    settings: PretrainSettings

    def check(self) -> None:
        """Refuse an unknown preset."""
        if self.settings.preset not in PRESETS:
            known = nearest(self.settings.preset, list(PRESETS))
            raise RecipeError(f"{self.name}.preset: no model preset {self.settings.preset!r}{known}")

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return the steps and the tokens they take."""
        steps, loop = sum(phase.steps for phase in self.settings.phases), self.settings.loop
        return Expected(
            planned=steps, unit="steps", rows=steps, tokens=steps * loop.global_batch * loop.sequence_length
        )

    def run(self, context: StageContext) -> StageResult:
        """Train, from the latest checkpoint of an earlier attempt if there is one."""
        tokenizer = context.input("tokenizer").local_folder("tokenizer")
        return run_job(context, self._job(context), tokenizer, self.settings.workers, self.settings.max_failures)

    def locate_token(self, context: StageContext, step: int, row: int, position: int) -> TokenLocation:
        """Return where a training token came from: batches are a function of (seed, step), so they are planned again."""
        return locate_token(self._job(context), step, row, position)

    def _job(self, context: StageContext) -> Job:
        from training.job import Job

        corpora = open_corpora(context, context.input("tokenizer").local_folder("tokenizer"), "text")
        vocabulary = -(-corpora[0].index.vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        return Job(
            settings=self.settings.loop,
            corpora=corpora,
            rows="windows",
            phases=self.settings.phases,
            max_epochs=self.settings.max_epochs,
            seed=derive_seed(context.seed, "training"),
            artifact=context.artifact,
            preset=self.settings.preset,
            overrides={"vocab_size": vocabulary} | self.settings.model,
        )
