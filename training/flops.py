"""How much arithmetic a model takes, and what hardware could do: the two sides of its utilisation (MFU).

Counted as in PaLM (arXiv 2204.02311, appendix B): a matrix product with a parameter takes 2 operations a token forward and 4
backward, so 6 for every weight that multiplies, head included, embeddings looked up not; attention takes 12 x heads' width x
sequence length a block and token (scores and values, forward and backward), whatever the mask saves. A block that runs twice
counts twice. What activation checkpointing computes again does not count.

Known is only what stands in linear layers: experts, state spaces and convolutions are not multiplied by every token once, so a
model that has any has no figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from training.layer_sharing import RepeatedBlock

if TYPE_CHECKING:
    from training.model import LanguageModel

PEAKS = {"H100": 989e12, "H200": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "V100": 125e12}
"""Dense bf16 operations a second (V100: fp16), by a part of the device's name; from their data sheets."""


def flops_per_token(model: LanguageModel, sequence_length: int) -> int | None:
    """Return floating-point operations of training on one token, forward and backward, at a sequence length.

    None where the formula does not hold; see above.
    """
    if not _is_plain(model):
        return None
    multiplied = 0
    for block in model.blocks:
        times = block.times if isinstance(block, RepeatedBlock) else 1
        multiplied += times * sum(parameter.numel() for parameter in block.parameters() if parameter.ndim >= 2)
    head = model.model.get_output_embeddings()
    multiplied += head.weight.numel()
    config = model.model.config
    heads = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    passes = sum(block.times if isinstance(block, RepeatedBlock) else 1 for block in model.blocks)
    return 6 * multiplied + 12 * heads * sequence_length * passes


def _is_plain(model: LanguageModel) -> bool:
    """Say whether blocks attend, and all their matrices are those of linear layers that see every token."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    config = model.model.config
    if not getattr(config, "num_attention_heads", None) or not getattr(config, "hidden_size", None):
        return False
    if any("expert" in name for name, _ in model.blocks.named_modules()):
        return False
    modules = [module for block in model.blocks for module in block.modules()]
    linear = {
        parameter for module in modules if isinstance(module, nn.Linear | Conv1D) for parameter in module.parameters()
    }
    return all(parameter in linear for parameter in model.blocks.parameters() if parameter.ndim >= 2)


def peak_flops(device: torch.device) -> float | None:
    """Return what a device can do in bf16, operations a second; None where it is not known (CPUs differ too much)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in sorted(PEAKS.items(), key=lambda entry: -len(entry[0])) if part in name), None)
