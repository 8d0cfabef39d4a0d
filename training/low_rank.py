"""Low-rank adaptation (LoRA, arXiv 2106.09685) through peft: small matrices beside the frozen ones are all that is trained.

The adapters are folded into the weights when training is over: what a stage leaves is a plain model, as after full tuning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from hornbook.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoraSettings(Settings):
    """How large the adapters are. DroidCall: rank 8, alpha 16."""

    rank: int = Field(8, ge=1, description="Inner size of the adapters.")
    alpha: int = Field(16, gt=0, description="They count alpha / rank times.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Of what enters them.")


class LowRankModel:
    """A model with adapters in all its linear layers but the head.

    Attributes:
        model: the transformers model, changed in place; only the adapters' parameters ask for gradients.
    """

    def __init__(self, model: PreTrainedModel, settings: LoraSettings, seed: int) -> None:
        import torch
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel

        config = LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules="all-linear"
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._tuner: Any = LoraModel(model, config, "default")
        self.model: PreTrainedModel = self._tuner.model

    def merged(self) -> PreTrainedModel:
        """Return the plain model with the adapters folded into its weights; it is the same object without them."""
        plain: PreTrainedModel = self._tuner.merge_and_unload()
        for parameter in plain.parameters():
            parameter.requires_grad_(True)
        return plain
