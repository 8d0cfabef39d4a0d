"""What one worker's memory will hold while it trains, reckoned before anything is allocated.

With N parameters, of them t trained, W workers that share them (those of a group, in hybrid sharding), b bytes of the compute
type (2 in bf16, 4 in fp32):

    weights        4N/W     float32 shards
    gradients      4t/W     and, where a step has several microbatches, 4t more: FSDP sums them up whole
    optimizer      8t/W     AdamW's two moments; Muon has one of its matrices (4)
    average        4N/W     if the settings ask for one
    gathered       bN       all weights where they stay gathered (zero1); else embedding, head and two blocks
    reduction      (b + 4) x the largest group of parameters: its whole gradient, and what is summed over the workers
    activations    what the backward pass needs of the forward one, plus the largest block's gradients
    loss           hidden states' gradient, the head's in float32, and a chunk of logits
    overhead       15% of all that: what allocators and kernels take for themselves (7% to 26% on a CPU)

The activations are not a formula: one forward pass is run on the meta device, where tensors have shapes and no memory, and what
autograd keeps is added up. So they hold for any architecture; attention counts as fused (queries, keys, values, output), on a CPU
with the probabilities that it keeps. One that
does not run there is taken for an ordinary block: 34 bytes a token and unit of width in bf16 (arXiv 2205.05198).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from training.cpu_attention import kept_probabilities, serves
from training.layer_sharing import RepeatedBlock
from training.loss import CHUNK_LOGITS
from training.parallel import compute_dtype

if TYPE_CHECKING:
    from training.model import LanguageModel
    from training.settings import LoopSettings


OVERHEAD = 0.15


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at the worst moment of a step."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    gathered: float
    reduction: float
    activations: float
    loss: float
    overhead: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory: counted once, on the real model.

    Attributes:
        parameters: how many, tied ones once.
        trained: of these, how many are not frozen.
        matrices: of the trained ones, how many stand in matrices of blocks, which Muon takes.
        root: parameters outside the blocks.
        block: parameters of the largest block.
        passes: blocks that a token goes through.
        width, vocabulary: of the hidden states, of the logits.
        config: of transformers.
        document_mask: whether packed documents are kept apart.
        eos: end-of-text id.
    """

    parameters: int
    trained: int
    matrices: int
    root: int
    block: int
    passes: int
    width: int
    vocabulary: int
    config: Any
    document_mask: bool
    eos: int


def shape_of(model: LanguageModel) -> Shape:
    """Return a model's shape; it may lie on any device, but not be sharded yet."""
    blocks = list(model.blocks)
    inside = {parameter for block in blocks for parameter in block.parameters()}
    everything = list(model.parameters())
    head = model.model.get_output_embeddings().weight
    return Shape(
        parameters=_count(everything),
        trained=_count(parameter for parameter in everything if parameter.requires_grad),
        matrices=_count(parameter for parameter in inside if parameter.requires_grad and parameter.ndim == 2),
        root=_count(parameter for parameter in everything if parameter not in inside),
        block=max(_count(block.parameters()) for block in blocks),
        passes=sum(block.times if isinstance(block, RepeatedBlock) else 1 for block in blocks),
        width=head.shape[1],
        vocabulary=head.shape[0],
        config=model.model.config,
        document_mask=model.document_mask,
        eos=model.eos,
    )


class MemoryModel:
    """Foretells the memory of a model under any settings; the forward pass on the meta device is run once per row count.

    Args:
        shape: of the model.
        device: of the workers.
        rows_per_draw: rows of what `microbatch` counts: two of a preference's pairs.
    """

    def __init__(self, shape: Shape, device: torch.device, rows_per_draw: int = 1) -> None:
        self.shape, self.device, self._each = shape, device, rows_per_draw
        self._kept: dict[tuple[int, int, torch.dtype], Kept] = {}

    def __call__(self, settings: LoopSettings, workers: int) -> Memory:
        """Return what one of `workers` workers will hold."""
        shape, dtype = self.shape, compute_dtype(settings.precision, self.device)
        size = dtype.itemsize
        share = math.ceil(settings.global_batch / workers)
        rows = min(settings.microbatch, share) * self._each
        tokens = rows * settings.sequence_length
        by_muon = shape.matrices if settings.optimizer == "muon" else 0
        twice = settings.sharding in ("full", "hybrid") or (settings.sharding == "auto" and self.device.type == "cuda")
        gathered = min(shape.parameters, shape.root + 2 * shape.block) if twice else shape.parameters
        if settings.sharding == "hybrid":
            workers = settings.shard_group or int(os.environ.get("LOCAL_WORLD_SIZE", str(workers)))
        chunk = min(tokens, max(1, CHUNK_LOGITS.get(self.device.type, 1 << 26) // shape.vocabulary))
        parts = {
            "weights": 4 * shape.parameters / workers,
            "gradients": 4 * shape.trained / workers + (4 * shape.trained if share > settings.microbatch else 0),
            "optimizer": (8 * (shape.trained - by_muon) + 4 * by_muon) / workers,
            "average": 4 * shape.parameters / workers if settings.average is not None else 0,
            "gathered": size * gathered,
            "reduction": (size + 4) * max(shape.root, shape.block),
            "activations": self._activations(settings, rows, dtype),
            "loss": size * tokens * shape.width
            + 4 * shape.vocabulary * shape.width
            + (8 + 2 * size) * chunk * shape.vocabulary,
        }
        return Memory(**parts, overhead=OVERHEAD * sum(parts.values()))

    def _activations(self, settings: LoopSettings, rows: int, dtype: torch.dtype) -> float:
        key = rows, settings.sequence_length, dtype
        if key not in self._kept:
            self._kept[key] = kept_by_autograd(self.shape, *key)
        kept, passes = self._kept[key], self.shape.passes
        probabilities = 0
        if self.device.type == "cpu" and settings.attention == "auto" and serves(self.shape.config):
            heads = self.shape.config.num_attention_heads
            probabilities = dtype.itemsize * kept_probabilities(rows, heads, settings.sequence_length)
        inputs = rows * settings.sequence_length * self.shape.width * dtype.itemsize
        of_blocks = {
            "none": (kept.block + probabilities) * passes,
            "selective": (inputs + kept.products) * passes + kept.block,  # one block is computed again at a time
            "full": inputs * passes + kept.block,
        }[settings.activation_checkpointing]
        return (
            of_blocks + kept.rest + kept.block
        )  # the last: gradients of one block's activations while it goes backward


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass keeps for the backward one."""

    block: float
    """Of the mean block."""
    products: float
    """Of these, about what products with weights and attention give."""
    rest: float
    """Of everything outside the blocks."""


def kept_by_autograd(shape: Shape, rows: int, length: int, dtype: torch.dtype) -> Kept:
    """Return what a forward pass of rows of a length keeps, found on the meta device."""
    try:
        return _kept_on_meta(shape, rows, length, dtype)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError):  # whatever a custom model needs
        block = 17.0 * dtype.itemsize * rows * length * shape.width
        return Kept(block, block / 2, block)


def _kept_on_meta(shape: Shape, rows: int, length: int, dtype: torch.dtype) -> Kept:
    from transformers import AutoModelForCausalLM

    from training.model import LanguageModel

    with torch.device("meta"):
        twin = LanguageModel(AutoModelForCausalLM.from_config(shape.config), shape.eos, shape.document_mask).to(dtype)
        tokens = torch.zeros(rows, length, dtype=torch.int64)
    attention = FusedAttention()
    own = {parameter.untyped_storage()._cdata for parameter in twin.parameters()}
    inside: dict[int, Any] = {}
    outside: dict[int, Any] = {}
    kept = outside

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in inside and storage._cdata not in outside:
            kept[storage._cdata] = storage  # held, or another one may come to lie there
        return tensor

    def enter(*ignored: object) -> None:
        nonlocal kept
        kept = inside

    def leave(*ignored: object) -> None:
        nonlocal kept
        kept = outside

    for block in twin.blocks:
        block.register_forward_pre_hook(enter)
        block.register_forward_hook(leave)
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept), attention:
        held = twin.hidden(tokens)  # the graph lives as long as it
    kept_inside, rest = (float(sum(storage.nbytes() for storage in found.values())) for found in (inside, outside))
    del held
    return Kept(kept_inside / len(twin.blocks), attention.products / len(twin.blocks), rest)


class FusedAttention(torch.overrides.TorchFunctionMode):
    """Lets attention on the meta device keep what fused kernels keep, not all its scores.

    Attributes:
        products: bytes that products with weights and attention gave.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `scaled_dot_product_attention`."""
        attends = function is functional.scaled_dot_product_attention
        found = _attend(*args, **(kwargs or {})) if attends else function(*args, **(kwargs or {}))
        if attends or function in (functional.linear, torch.addmm):
            self.products += found.numel() * found.element_size()
        return found


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *ignored: Any,
    **more: Any,
) -> torch.Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = attn_mask.to(query.dtype)  # as the kernels do, each time
    found: torch.Tensor = _Kept.apply(query, key, value, attn_mask)
    return found


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> Any:
        output = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, sums, *([] if mask is None else [mask]))
        return output


def _count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in set(parameters))
