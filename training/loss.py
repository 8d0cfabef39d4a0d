"""Cross entropy that never holds all logits.

Logits of 16 rows of 2,048 tokens over 50,000 words are 6.5 GB in float32, more than the rest of the step. Here the output
head is applied to a few thousand tokens at a time, and the gradient of each chunk is worked out at once, while its logits
are there: nothing of size tokens x vocabulary is kept, and no product is computed twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

IGNORED = -100
CHUNK_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Logits that exist at a time: what stays near a processor, and enough to fill a GPU."""
CHUNK_TOKENS = {"cpu": 256, "cuda": 2_048}
"""Fewer tokens than this at a time are not worth it: each chunk adds to the gradient of the whole head. (20 tokens of 50,257
words took two and a half times as long as 256 of them.)"""


WORDS = 1 << 15
"""Words whose share of a chunk's gradient is worked out at a time, so as to hold no second gradient of the head."""


def chunk_tokens(device: torch.device, vocabulary: int) -> int:
    """Return how many tokens' logits exist at a time."""
    kind = "cpu" if device.type == "cpu" else "cuda"
    return max(CHUNK_TOKENS[kind], CHUNK_LOGITS[kind] // vocabulary)


def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    chunk: int | None = None,
    compiled: bool = False,
) -> torch.Tensor:
    """Return the summed cross entropy, float32 scalar, of softmax(hidden @ weight.T + bias) against targets.

    Args:
        hidden: (tokens, width), any float dtype.
        weight: (vocabulary, width).
        bias: (vocabulary,) or None.
        targets: int64 (tokens,); IGNORED (-100) counts nothing.
        chunk: tokens whose logits exist at a time; default: `chunk_tokens`.
        compiled: pass over logits twice, by torch.compile, instead of once for each operation: for GPUs. On a CPU torch's own
            softmax is three times as fast as a compiled one.

    Equal to functional.cross_entropy(..., reduction="sum") on float32 logits, in value and gradients.
    """
    chunk = chunk or chunk_tokens(hidden.device, len(weight))
    total: torch.Tensor = _ChunkedCrossEntropy.apply(hidden, weight, bias, targets, chunk, compiled)
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
        compiled: bool,
    ) -> torch.Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=wide)
        of_hidden, of_weight, of_bias, *_ = ctx.needs_input_grad
        hidden_gradient = torch.zeros_like(hidden) if of_hidden else None
        weight_gradient = torch.zeros_like(weight, dtype=wide) if of_weight else None
        bias_gradient = torch.zeros_like(bias, dtype=wide) if of_bias and bias is not None else None
        loss_and_gradient = _compiled() if compiled else _loss_and_gradient
        for low in range(0, len(hidden), chunk):
            part, wanted = hidden[low : low + chunk], targets[low : low + chunk]
            logits = functional.linear(part, weight, bias)
            loss, gradient = loss_and_gradient(logits, wanted, any(ctx.needs_input_grad))
            total += loss
            if gradient is None:
                continue
            if bias_gradient is not None:
                bias_gradient += gradient.sum(0, dtype=wide)
            narrow = gradient.to(hidden.dtype)
            if hidden_gradient is not None:
                hidden_gradient[low : low + chunk] = narrow @ weight
            if weight_gradient is not None:  # None where the head is frozen
                for word in range(0, len(weight), WORDS):
                    weight_gradient[word : word + WORDS] += narrow[:, word : word + WORDS].t() @ part
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        ctx.dtypes = (weight.dtype, bias.dtype if bias is not None else None)
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            hidden.mul_(scale.to(hidden.dtype)) if hidden is not None else None,  # in place: nobody else has them
            weight.mul_(scale).to(weight_dtype) if weight is not None else None,
            bias.mul_(scale).to(bias_dtype) if bias is not None else None,
            None,
            None,
            None,
        )


def _loss_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, with_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the summed loss, and its gradient by the logits (tokens, vocabulary), both at least float32."""
    counted, safe = targets != IGNORED, targets.clamp(min=0)[:, None]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    gradient = torch.softmax(logits, dim=-1)
    # of the likeliest word, probability = exp(logit - normaliser): the normaliser for no second pass of exponentials
    normaliser = logits.amax(-1) - gradient.amax(-1).log()
    loss = torch.where(counted, normaliser - logits.gather(1, safe)[:, 0], 0.0).sum()
    if not with_gradient:
        return loss, None
    gradient.scatter_add_(1, safe, torch.full_like(safe, -1, dtype=gradient.dtype))
    return loss, gradient.mul_(counted[:, None])


@functools.cache
def _compiled() -> Callable[[torch.Tensor, torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor | None]]:
    """Return the same as one reading of the logits for the sums and one for the gradient, which has their dtype."""

    def loss_and_gradient(
        logits: torch.Tensor, targets: torch.Tensor, with_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        narrow, counted, safe = logits.dtype, targets != IGNORED, targets.clamp(min=0)[:, None]
        logits = logits.to(torch.promote_types(narrow, torch.float32))
        normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
        loss = torch.where(counted, (normaliser - logits.gather(1, safe))[:, 0], 0.0).sum()
        if not with_gradient:
            return loss, None
        wanted = torch.arange(logits.shape[1], device=logits.device) == safe
        gradient = torch.exp(logits - normaliser) - torch.where(wanted, 1.0, 0.0)
        return loss, (gradient * counted[:, None]).to(narrow)

    return torch.compile(loss_and_gradient)
