"""Attention of small models in bfloat16 on a CPU, out of three plain steps.

torch's own fused attention keeps memory down for long texts, but on processors without matrix tiles it takes a third of the time of
a small model. At a few hundred tokens the products of all pairs fit into the caches, and oneDNN's matrix product is three times as
fast as the fused one.
"""

from __future__ import annotations

from typing import Any

import torch

NAME = "hornbook-bfloat16"
LONGEST = 1024  # tokens; the memory of all pairs grows with the square


def use_plain_attention(model: Any) -> None:
    """Let a transformers model without causal mask attend by `plain_attention`, if its texts are short enough for it."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    if getattr(model.config, "max_position_embeddings", LONGEST + 1) > LONGEST:
        return
    AttentionInterface.register(NAME, plain_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def plain_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Return what each token attends to, (rows, length, heads, size), and no weights: transformers' interface.

    Args:
        module: the layer, not looked at.
        query: (rows, heads, length, size), as are key and value.
        key: likewise.
        value: likewise.
        attention_mask: bool (rows or 1, 1, length, length), True where a token may look; None: everywhere.
        scaling: of the products; default: 1 / sqrt(size).
        unused: dropout and such, which inference has not.
    """
    rows, heads, length, size = query.shape
    flat = (rows * heads, length, size)
    scaling = size**-0.5 if scaling is None else scaling
    weights = torch.bmm((query * scaling).reshape(flat), key.reshape(flat).transpose(1, 2))
    if attention_mask is not None:
        masked = weights.view(rows, heads, length, length).masked_fill_(~attention_mask, float("-inf"))
        weights = masked.view(rows * heads, length, length)
    found = torch.bmm(torch.softmax(weights, -1), value.reshape(flat))
    return found.view(rows, heads, length, size).transpose(1, 2).contiguous(), None
