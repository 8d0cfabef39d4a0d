"""What a block keeps of its forward pass for the backward one, and what it computes again: memory against arithmetic.

`full` keeps a block's input only, for a third more arithmetic. `selective` also keeps what products with weights and fused
attention gave, and computes the cheap rest again (norms, activations, rotations): no product is done twice.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from training import cpu_attention  # noqa: F401 # names the operation below
from training.settings import ActivationCheckpointing

_aten = torch.ops.aten
KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
    torch.ops.hornbook.attend.default,
}
"""What `selective` keeps. Not `bmm`: unfused attention's scores are as many as a row's tokens squared."""


def checkpoint_block(block: nn.Module, mode: ActivationCheckpointing) -> None:
    """Let a block compute activations again in the backward pass, in place; its parameters keep their names.

    Before compilation and sharding: both then see the checkpoint as a part of the block.
    """
    if mode == "none":
        return
    inner = block.forward

    def forward(*arguments: Any, **keywords: Any) -> Any:
        return checkpoint(inner, *arguments, use_reentrant=False, **keywords)

    def selective_forward(*arguments: Any, **keywords: Any) -> Any:
        keep = functools.partial(create_selective_checkpoint_contexts, _policy)  # here: torch.compile reads no closure
        return checkpoint(inner, *arguments, use_reentrant=False, context_fn=keep, **keywords)

    block.forward = selective_forward if mode == "selective" else forward


def _policy(context: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
