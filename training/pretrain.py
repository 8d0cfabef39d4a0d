"""Pretrains a model on a mixture of packed corpora, in phases, with Ray Train."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from hornbook.errors import DataError, HornbookError, ModelError, RecipeError
from hornbook.plan import derive_seed
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult, TokenLocation
from training.best import BestOfSettings, with_candidates
from training.corpora import locate_token, open_corpora
from training.custom_model import read_config
from training.launch import preflight_table, run_job
from training.mixture import PhaseSettings
from training.positions import positions_of, require_room
from training.presets import CONTEXT_FIELDS, PRESETS, find_preset, model_config, try_config
from training.settings import LoopSettings
from training.source_names import check_best, check_form, check_phases, source_names
from training.stretches import WhenDry
from training.tokenizer import load_tokenizer
from training.trunk import check_place, find_trunk

if TYPE_CHECKING:
    from training.job import Job

VOCABULARY_MULTIPLE = 64  # matrix products over the vocabulary run faster on round sizes


class PretrainSettings(Settings):
    """Which model is trained, on what, for how long."""

    preset: str | dict[str, Any] = Field(
        "phi-demo-3m",
        description="Name of a model preset, or path of a Hugging Face config.json or its folder, or the fields of one.",
    )
    model: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of the model's configuration to change; with a model as input, those of its positions only.",
    )
    grow: bool = Field(
        False, description="With a model as input: grow it to the preset's size first; it computes the same then."
    )
    phases: tuple[PhaseSettings, ...] = Field(..., min_length=1, description="Phases in order, each with its mixture.")
    fork: str | None = Field(
        None,
        description="ARTIFACT@STEP: start from the checkpoint that another run keeps of this step, its weights, optimizer and "
        "step; the phases follow it, the schedule counts from that run's first step. `hornbook fork` writes it.",
    )
    max_epochs: float = Field(4.0, gt=0, description="No source is gone through more often, all phases together.")
    epoch_caps: dict[str, float] = Field(
        default_factory=dict, description="The same for single sources, in place of max_epochs."
    )
    when_dry: WhenDry = Field(
        "refuse",
        description="When a source has been gone through that often. refuse: do not begin. repeat it all the same. renormalise: "
        "go on with the others, in proportion to their weights. stop: end the run there.",
    )
    packing: Literal["concatenate", "best-fit"] = Field(
        "concatenate",
        description="concatenate: every row full, documents cut where rows end. best-fit: no document cut that fits into a "
        "row, a little padding.",
    )
    loop: LoopSettings = Field(
        LoopSettings(),
        description="How it is trained; what is left open here is as in the preset's paper, if it has one.",
    )
    seed: int | None = Field(
        None,
        ge=0,
        description="Another number is another draw of weights, order and dropout, all else equal; beside the recipe's seed.",
    )
    best_of: BestOfSettings | None = Field(
        None, description="Leave the best weights of every so many steps, by validation loss, instead of the last."
    )
    workers: int | None = runtime(None, ge=1, description="Training workers; default: one per GPU, or two on CPUs.")
    min_workers: int | None = runtime(
        None, ge=1, description="Go on with as few workers as this while a node is gone; default: wait for all of them."
    )
    max_failures: int = runtime(3, ge=0, description="How often dead workers are started again.")


class Pretrain(Stage):
    """Trains from nothing, or from a model; leaves a Hugging Face folder, metrics and the last checkpoints."""

    kind = "pretrain"
    produces = "model"
    Settings = PretrainSettings
    inputs: ClassVar[Mapping[str, Input]] = {
        "tokens": Input("tokens", many=True),
        "tokenizer": Input("tokenizer"),
        "model": Input("model", optional=True),
    }
    settings: PretrainSettings

    def __init__(self, name: str, settings: PretrainSettings, seed: int) -> None:
        super().__init__(name, with_paper_loop(with_config_read(settings)), seed)
        self._start: Stage | None = None

    def check(self) -> None:
        """Refuse an unknown preset, a configuration that cannot be trained, and a fork of what is no artifact's step."""
        check_place(self.name, self.settings.fork)
        try:
            preset = find_preset(self.settings.preset)
            if not isinstance(self.settings.preset, str):
                preset.config()
        except ModelError as error:
            raise RecipeError(f"{self.name}.preset: {error.message}", error.cure) from error

    def check_inputs(self, inputs: Mapping[str, Sequence[Stage]]) -> None:
        """Refuse what is not packed as text, and phases that name what is no source of this stage."""
        check_form(self.name, "text", inputs["tokens"])
        known = source_names(self.name, inputs["tokens"])
        check_phases(self.name, self.settings.phases, self.settings.epoch_caps, known)
        check_best(self.name, self.settings.loop, self.settings.best_of, known)
        self._start = next(iter(inputs.get("model", ())), None)

    def ready(self) -> None:
        """Refuse a model that cannot be built, or rows longer than its context, before any stage of the run begins.

        A warm-up that outlasts the run is said: a paper's, in a short trial.
        """
        if self._start is None or self.settings.grow:
            try:
                try_config(self.settings.preset, self.settings.model)
            except HornbookError as error:
                raise RecipeError(f"stages.{self.name}.model: {error.message}", error.cure) from error
        require_room(self.name, self.settings.loop.sequence_length, self.positions())
        warmup, phases = self.settings.loop.schedule.warmup_steps, self.settings.phases
        steps = sum(phase.steps for phase in phases)
        if not self.settings.fork and warmup >= steps and all(phase.steps and not phase.schedule for phase in phases):
            print(
                f"{self.name}: the warm-up takes {warmup:,} steps and the run {steps:,}: the learning rate never reaches its "
                "peak (loop.schedule.warmup_steps)",
                file=sys.stderr,
            )

    def positions(self) -> int | None:
        """Return the positions that the model will have, None if that cannot be told from the recipe."""
        if (own := self.settings.model.get("max_position_embeddings")) is not None:
            return int(own)
        if self._start is not None and not self.settings.grow:
            return positions_of(self._start)
        config = model_config(self.settings.preset, **self.settings.model)
        return getattr(config, "max_position_embeddings", None)

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return the steps and the tokens they take."""
        loop = self.settings.loop
        each = loop.global_batch * loop.sequence_length
        steps = sum(phase.expected_steps(each) for phase in self.settings.phases)  # those after a fork
        return Expected(planned=steps, unit="steps", rows=steps, tokens=steps * each)

    def run(self, context: StageContext) -> StageResult:
        """Train, from the latest checkpoint of an earlier attempt if there is one."""
        tokenizer = context.input("tokenizer").local_folder("tokenizer")
        if start := context.optional_input("model"):
            fixed = [name for name in self.settings.model if name not in CONTEXT_FIELDS]
            if fixed and not self.settings.grow:
                raise RecipeError(
                    f"stages.{self.name}.model: the model comes from {start.manifest.stage} with its {', '.join(fixed)}",
                    f"leave out all but {', '.join(CONTEXT_FIELDS)}, or set grow: true",
                )
            require_same_words(start.local_folder("model"), tokenizer)
        return run_job(
            context, self._job(context), tokenizer, self.settings.workers, self.settings.max_failures,
            self.settings.min_workers,
        )  # fmt: skip

    def preflight(self, context: StageContext) -> Sequence[Sequence[str]]:
        """Return what the run will take, from its first steps."""
        return preflight_table(context, self._job(context), self.settings.workers)

    def locate_token(self, context: StageContext, step: int, row: int, position: int) -> TokenLocation:
        """Return where a training token came from: batches are a function of (seed, step), so they are planned again."""
        return locate_token(self._job(context), step, row, position)

    def _job(self, context: StageContext) -> Job:
        from training.job import Job

        corpora = open_corpora(context, context.input("tokenizer").local_folder("tokenizer"), "text")
        vocabulary = -(-corpora[0].index.vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        own = () if self.settings.seed is None else (self.settings.seed,)
        return Job(
            settings=with_candidates(self.settings.loop, self.settings.best_of),
            corpora=corpora,
            rows="windows" if self.settings.packing == "concatenate" else "best-fit",
            phases=self.settings.phases,
            max_epochs=self.settings.max_epochs,
            epoch_caps=self.settings.epoch_caps,
            when_dry=self.settings.when_dry,
            seed=derive_seed(context.seed, "training", *own),
            artifact=context.artifact,
            preset=self.settings.preset,
            overrides={"vocab_size": vocabulary} | self.settings.model,
            start=context.optional_input("model"),
            grow=self.settings.grow,
            tokenizer=(context.input("tokenizer"), "tokenizer"),
            trunk=find_trunk(context.artifact, self.settings.fork) if self.settings.fork else None,
            best_of=self.settings.best_of,
        )


def require_same_words(model: Path, tokenizer: Path) -> None:
    """Refuse a tokenizer that has other ids for a model's words; it may have more words than the model's own.

    Raises:
        DataError: naming a word.
    """
    known, wanted = (load_tokenizer(folder).get_vocab() for folder in (model, tokenizer))
    for word, number in known.items():
        if wanted.get(word) != number:
            raise DataError(
                f"the model's tokenizer has {word!r} as id {number}, {tokenizer} has it as {wanted.get(word)}",
                "use the model's tokenizer, or one that only adds words to it",
            )


def with_paper_loop(settings: PretrainSettings) -> PretrainSettings:
    """Return the settings with what the recipe leaves open in `loop` as the preset's paper has it.

    A recipe that names a schedule takes none of the paper's; its own learning rate is not scaled with the batch as the
    paper's is.
    """
    paper = PRESETS[settings.preset].loop if isinstance(settings.preset, str) and settings.preset in PRESETS else {}
    if not paper:
        return settings
    chosen = {name: getattr(settings.loop, name) for name in settings.loop.model_fields_set}
    if "learning_rate" in chosen:
        paper = {name: value for name, value in paper.items() if name != "reference_batch"}
    return settings.model_copy(update={"loop": LoopSettings.model_validate({**paper, **chosen})})


def with_config_read(settings: PretrainSettings) -> PretrainSettings:
    """Return the settings with a preset that is a path replaced by what stands there, so that it counts as a setting.

    Raises:
        RecipeError: it cannot be read.
    """
    fields = read_config(settings.preset) if isinstance(settings.preset, str) else None
    return settings if fields is None else settings.model_copy(update={"preset": fields})
