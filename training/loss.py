"""Cross entropy that never holds all logits.

Logits of 16 rows of 2,048 tokens over 50,000 words are 6.5 GB in float32, more than the rest of the step. Here the output
head is applied to a few thousand tokens at a time, and the gradient of each chunk is worked out at once, while its logits
are there: nothing of size tokens x vocabulary is kept, and no product is computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

IGNORED = -100
CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits that exist at a time: what stays in a processor's cache (256 rows of 4,096 words were a third faster than 2,048
rows), and enough to fill a GPU."""


def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    chunk: int | None = None,
) -> torch.Tensor:
    """Return the summed cross entropy, float32 scalar, of softmax(hidden @ weight.T + bias) against targets.

    Args:
        hidden: (tokens, width), any float dtype.
        weight: (vocabulary, width).
        bias: (vocabulary,) or None.
        targets: int64 (tokens,); IGNORED (-100) counts nothing.
        chunk: tokens whose logits exist at a time; default: by CHUNK_LOGITS.

    Equal to functional.cross_entropy(..., reduction="sum") on float32 logits, in value and gradients.
    """
    chunk = chunk or max(1, CHUNK_LOGITS.get(hidden.device.type, 1 << 26) // len(weight))
    total: torch.Tensor = _ChunkedCrossEntropy.apply(hidden, weight, bias, targets, chunk)
    return total


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        chunk: int,
    ) -> torch.Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=wide)
        of_hidden, of_weight, of_bias, *_ = ctx.needs_input_grad
        hidden_gradient = torch.zeros_like(hidden) if of_hidden else None
        weight_gradient = torch.zeros_like(weight, dtype=wide) if of_weight else None
        bias_gradient = torch.zeros_like(bias, dtype=wide) if of_bias and bias is not None else None
        for low in range(0, len(hidden), chunk):
            part, wanted = hidden[low : low + chunk], targets[low : low + chunk]
            counted = wanted != IGNORED
            safe = wanted.clamp(min=0)[:, None]
            logits = functional.linear(part, weight, bias).to(wide)
            gradient = torch.softmax(logits, dim=-1)
            # of the likeliest word, probability = exp(logit - normaliser): the normaliser for no second pass of exponentials
            normaliser = logits.amax(-1) - gradient.amax(-1).log()
            total += torch.where(counted, normaliser - logits.gather(1, safe)[:, 0], 0.0).sum()
            if not any(ctx.needs_input_grad):
                continue
            gradient.scatter_add_(1, safe, torch.full_like(safe, -1, dtype=wide))
            gradient *= counted[:, None]
            if bias_gradient is not None:
                bias_gradient += gradient.sum(0)
            narrow = gradient.to(hidden.dtype)
            if hidden_gradient is not None:
                hidden_gradient[low : low + chunk] = narrow @ weight
            if weight_gradient is not None:  # None where the head is frozen
                weight_gradient += narrow.t() @ part
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        ctx.dtypes = (weight.dtype, bias.dtype if bias is not None else None)
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            hidden * scale.to(hidden.dtype) if hidden is not None else None,
            (weight * scale).to(weight_dtype) if weight is not None else None,
            (bias * scale).to(bias_dtype) if bias is not None else None,
            None,
            None,
        )
