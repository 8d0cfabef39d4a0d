"""Linear layers for inference on a CPU: weights reordered once for oneDNN, in float32 or bfloat16.

What torch does by itself multiplies float32 matrices with a library that, on AMD processors, uses half of their width, and
reorders bfloat16 weights anew in every call. Everything between the linear layers stays float32: sums, norms, softmax.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

TYPICAL_ROWS = 1024  # oneDNN chooses the weights' order for so many; it multiplies any number of rows

NARROW = {"bert", "roberta", "xlm-roberta"}
"""Architectures in which what a linear layer gives may go on as bfloat16: norms and sums there widen it by themselves."""
PACKED = NARROW | {"mpnet", "distilbert", "llama", "qwen2", "qwen3", "mistral"}
"""Architectures that use their linear layers as functions and never look at their weights."""


class PackedLinear(nn.Module):
    """A linear layer that computes in `precision` and returns that, or what it was given.

    Args:
        linear: the layer to take weights from.
        precision: of its weights and products; sums are float32.
        narrow: whether to return `precision` instead of the input's type.
    """

    def __init__(self, linear: nn.Linear, precision: torch.dtype, narrow: bool) -> None:
        super().__init__()
        weight = linear.weight.detach().to(precision).contiguous()
        self.bias = None if linear.bias is None else linear.bias.detach().to(precision)
        self.precision, self.narrow = precision, narrow
        self._operations: Any = torch.ops.mkldnn if can_pack() else None
        self.packed = self._operations._reorder_linear_weight(weight, TYPICAL_ROWS) if self._operations else weight

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return (..., outputs) of values (..., inputs)."""
        narrowed = values.to(self.precision)
        if self._operations:
            product = self._operations._linear_pointwise(narrowed, self.packed, self.bias, "none", [], "")
        else:
            product = nn.functional.linear(narrowed, self.packed, self.bias)
        return product if self.narrow else product.to(values.dtype)


def can_pack() -> bool:
    """Tell whether this torch has oneDNN's operations; they are what its own compiler calls, and have no public name."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_linears(model: nn.Module, precision: torch.dtype, narrow: bool) -> None:
    """Replace all linear layers of a float32 model, whose other parts stay float32."""
    for name, child in model.named_children():
        if type(child) is nn.Linear:
            setattr(model, name, PackedLinear(child, precision, narrow))
        else:
            pack_linears(child, precision, narrow)
