"""What the loop trains: a transformers model and its loss behind one forward call.

The loss is computed inside this module's forward because FSDP gathers the root's parameters (embedding and head) only
there; from outside, a plain tensor would meet a sharded one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from training.attention import document_arguments
from training.document_mask import document_numbers
from training.long_context import rotate_by_document
from training.loss import chunked_cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LanguageModel(nn.Module):
    """A causal language model with its summed next-token loss.

    Args:
        model: any transformers causal language model with a linear head.
        eos: end-of-text id, where documents meet in a packed row.
        document_mask: keep the documents of a row from seeing each other.

    Attributes:
        compiled_loss: see `chunked_cross_entropy`.
        kept_gathered: modules whose weights stay gathered over the microbatches of a step; see `training.parallel`.
    """

    def __init__(self, model: PreTrainedModel, eos: int, document_mask: bool = True) -> None:
        super().__init__()
        self.model = model
        self.eos = eos
        self.document_mask = document_mask
        self.compiled_loss = False
        self.kept_gathered: Sequence[nn.Module] = ()
        rotate_by_document(model)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, the unit of checkpointing, compilation and sharding."""
        for module in self.model.base_model.children():
            if isinstance(module, nn.ModuleList):
                return module
        raise TypeError(f"{type(self.model).__name__} has no list of blocks")

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor, numbers: torch.Tensor | None = None) -> torch.Tensor:
        """Return the summed loss, float32 scalar. tokens, targets: int64 (rows, T); targets of -100 count nothing.

        `numbers`, of the same shape, says which document of its row a token belongs to; without, end-of-text tokens do.
        """
        hidden = self.hidden(tokens, numbers)
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        return chunked_cross_entropy(
            hidden.flatten(0, 1), head.weight, bias, targets.flatten(), compiled=self.compiled_loss
        )

    def next_logits(self, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Return the logits behind a position of each row, float32 (rows, V). tokens: int64 (rows, T); last: int64 (rows,)."""
        states = self.hidden(tokens)[torch.arange(len(tokens), device=tokens.device), last]
        logits: torch.Tensor = self.model.get_output_embeddings()(states)
        return logits.float()

    def hidden(self, tokens: torch.Tensor, numbers: torch.Tensor | None = None) -> torch.Tensor:
        """Return the last hidden states, (rows, T, width)."""
        arguments: dict[str, Any] = {}
        if self.document_mask:
            numbers = document_numbers(tokens, self.eos) if numbers is None else numbers
            arguments = document_arguments(self.model, numbers)
        hidden: torch.Tensor = self.model.base_model(input_ids=tokens, use_cache=False, **arguments).last_hidden_state
        return hidden
