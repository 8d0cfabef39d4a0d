"""How much arithmetic a model takes, and what hardware could do: the two sides of its utilisation (MFU).

Counted as in PaLM (arXiv 2204.02311, appendix B), a matrix product of an (a, b) weight with a token being 2ab operations
forward and 4ab backward, 2ab of them for the weight's own gradient:

    6 x weights that are trained and multiply a token + 4 x those that are frozen + 12 x heads' width x T x blocks passed

The last term is attention (scores and values, forward and backward) at sequence length T, whatever a mask saves. Embeddings
are looked up, not multiplied, and norms and biases are no matrices; the head counts, tied or not. What activation checkpointing
computes again does not count. With d the width, f the inner width, h the heads' width, k the keys' (fewer heads: grouped
queries), V the vocabulary and L the blocks, the weights that multiply a token are:

    Llama, Qwen2, PhoneLM, MobileLLM, phi-3   L (2dh + 2dk + 3df) + dV   gated: three matrices an MLP
    MobileLLM-LS                              2L (2dh + 2dk + 3df) + dV  L blocks kept, each passed twice
    Phi (phi-1, 1.5, 2)                       L (2dh + 2dk + 2df) + dV   side by side or in a row is the same count
    GPT-Neo (TinyStories)                     L (4dd + 2df) + dV         local attention (256 tokens) counts as the whole row

They are counted from the model's own parameters, so other architectures count, too. Known is only what stands in linear layers:
experts, state spaces and convolutions are not multiplied by every token once, so a model that has any has no figure.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from training.layer_sharing import RepeatedBlock

if TYPE_CHECKING:
    from training.model import LanguageModel
    from training.parallel import World

PEAKS = {"H100": 989e12, "H200": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "V100": 125e12}
"""Dense bf16 operations a second (V100: fp16), by a part of the device's name; from their data sheets."""
MEASURED_SIZE, MEASURED_SECONDS = 1024, 0.15


def flops_per_token(model: LanguageModel, sequence_length: int) -> int | None:
    """Return floating-point operations of training on one token, forward and backward, at a sequence length.

    None where the formula does not hold; see above.
    """
    if not _is_plain(model):
        return None
    products = 0
    for block in model.blocks:
        times = block.times if isinstance(block, RepeatedBlock) else 1
        products += times * sum(_products(parameter) for parameter in block.parameters() if parameter.ndim >= 2)
    products += _products(model.model.get_output_embeddings().weight)
    config = model.model.config
    heads = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    passes = sum(block.times if isinstance(block, RepeatedBlock) else 1 for block in model.blocks)
    return products + 12 * heads * sequence_length * passes


def _products(weight: torch.Tensor) -> int:
    """Return the operations a token takes with one matrix; a frozen one needs no gradient of its own."""
    return (6 if weight.requires_grad else 4) * weight.numel()


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
    """Return what a device can do in bf16 by its data sheet, operations a second; None where there is none here."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in sorted(PEAKS.items(), key=lambda entry: -len(entry[0])) if part in name), None)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return what a device reaches in a square matrix product, operations a second: the best of many within 0.15 s."""
    left, right = (torch.ones(MEASURED_SIZE, MEASURED_SIZE, dtype=dtype, device=device) for _ in range(2))
    best, began = math.inf, time.perf_counter()
    while time.perf_counter() - began < MEASURED_SECONDS or best == math.inf:
        start = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * MEASURED_SIZE**3 / best


def peak_of_world(world: World, dtype: torch.dtype) -> float:
    """Return what all workers together can do, operations a second: by data sheet, else measured, at the same time.

    A busy machine lowers a measured peak, and so raises the utilisation that is reckoned with it. All ranks call this.
    """
    dist.barrier()
    known = peak_flops(world.device)
    peak = torch.tensor([known or measured_peak(world.device, dtype)], dtype=torch.float64, device=world.device)
    dist.all_reduce(peak)
    return float(peak.item())
