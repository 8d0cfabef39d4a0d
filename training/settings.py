"""The settings of the training loop, apart from it so that `hornbook stages` reads them without loading torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hornbook.settings import Settings, runtime
from training.schedule import ScheduleSettings

Precision = Literal["auto", "bf16", "fp32"]
Sharding = Literal["auto", "full", "zero1", "hybrid"]
ActivationCheckpointing = Literal["none", "selective", "full"]
Attention = Literal["auto", "dense", "flex"]
Recorded = Literal["tensorboard", "mlflow", "wandb"]


class ProfileSettings(Settings):
    """Which steps are profiled."""

    first: int = runtime(10, alias="from", ge=1, description="The first one; by the tenth, all is compiled and warm.")
    steps: int = runtime(3, ge=1, description="How many.")


class LoopSettings(Settings):
    """How a model is trained, whatever on."""

    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for the matrices of the blocks, AdamW for the rest, at one learning rate."
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon's.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate.")
    reference_batch: int | None = Field(
        None,
        ge=1,
        description="Rows per step that `learning_rate` is meant for: with another global_batch it scales in proportion.",
    )
    weight_decay: float = Field(0.1, ge=0, description="Decay of matrices; biases and norms have none.")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's averaging of gradients and their squares.")
    epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the whole gradient; longer ones are scaled down.")
    leap: float | None = Field(
        None, gt=1, description="A step whose gradient norm is more than this many times its running mean is left out."
    )
    average: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Keep a moving average of the weights with this decay; it is what is validated, and what the stage leaves.",
    )
    schedule: ScheduleSettings = Field(ScheduleSettings(), description="How the learning rate moves.")
    global_batch: int = Field(32, ge=1, description="Rows per optimizer step, over all workers.")
    sequence_length: int = Field(256, ge=2, description="Tokens per row.")
    document_mask: bool = Field(True, description="Packed documents do not see each other.")
    precision: Precision = Field("auto", description="bf16 or fp32 compute; auto: bf16 where the hardware has it.")
    microbatch: int = runtime(16, ge=1, description="Rows per forward pass of one worker.")
    compile: bool | None = runtime(None, description="torch.compile each block; default: on a GPU.")
    sharding: Sharding = runtime(
        "auto",
        description="full: a block's weights are gathered where it computes, forward and backward; zero1: once a step; hybrid: "
        "full inside each group of workers, whose groups are replicas; auto: full on GPUs, zero1 on CPUs.",
    )
    shard_group: int | None = runtime(
        None, ge=1, description="Workers that share one replica in hybrid sharding; default: those of a node."
    )
    activation_checkpointing: ActivationCheckpointing = runtime(
        "none",
        description="selective: keep products and attention, compute the rest again in the backward pass; full: keep each "
        "block's input only.",
    )
    attention: Attention = runtime(
        "auto",
        description="How packed documents are kept apart: dense: a mask over all pairs of positions; flex: by blocks of them, "
        "on a GPU only; auto: flex on a GPU, where the model can.",
    )
    checkpoint_every: int = runtime(100, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = runtime(2, ge=1, description="How many checkpoints stay: the newest ones.")
    milestone_every: int | None = runtime(
        None, ge=1, description="Checkpoints of steps that this divides stay for good, to branch off from, say."
    )
    best_by: str | None = runtime(
        None, description="The checkpoint of the lowest validation loss stays, too: of this source, or `mean` over all."
    )
    asynchronous_checkpoints: bool = runtime(
        True, description="Write checkpoints beside the steps that follow; takes host memory of a checkpoint's size."
    )
    on_failed_checkpoint: Literal["stop", "continue"] = runtime(
        "stop", description="What happens if a checkpoint cannot be written; the last one of a run must be, always."
    )
    validate_every: int = runtime(50, ge=1, description="Steps between validations; the last step validates always.")
    validation_rows: int = Field(32, ge=0, description="Held-out rows per source in a validation.")
    record: tuple[Recorded, ...] = runtime(
        (),
        description="Where figures go beside metrics.jsonl: tensorboard, mlflow, wandb; each is a package to install.",
    )
    sample_prompts: tuple[str, ...] = runtime(
        (), description="What the model goes on from, now and then, to be looked at."
    )
    sample_every: int = runtime(100, ge=1, description="Steps between samples; the last step samples always.")
    sample_tokens: int = runtime(40, ge=1, description="Longest sample, in tokens.")
    sample_temperature: float = runtime(0.0, ge=0, description="0 is greedy.")
    profile: ProfileSettings | None = runtime(None, description="Profile some steps of the first worker.")
    preflight: Literal["auto", "off"] = runtime(
        "auto", description="auto: refuse what cannot fit before the first step; of a long run, say what it will take."
    )
    patience: int = Field(5, ge=1, description="Steps in a row that are left out before the run stops.")

    @property
    def peak_rate(self) -> float:
        """The learning rate at this batch: scaled linearly with it (arXiv 1706.02677), if there is a reference."""
        return self.learning_rate * (self.global_batch / self.reference_batch if self.reference_batch else 1.0)
