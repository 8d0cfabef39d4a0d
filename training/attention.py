"""How a model's attention learns which documents a packed row holds.

`dense` hands it a mask over all pairs of positions: exact anywhere. `flex` hands it a mask of blocks, so that FlexAttention
(torch) passes over blocks of pairs that no document has: on a GPU, where alone it has a backward pass.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch

from hornbook.errors import RecipeError
from training.cpu_attention import CPU_ATTENTION, CPU_ATTENTION_KEEPING, first_keys
from training.document_mask import document_attention, document_positions
from training.settings import Attention

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel

FLEX = "flex_attention"
"""What transformers calls it."""
SMALLEST_HEAD = 16
"""A head's width from which FlexAttention's kernels multiply."""
ATTEND_TO_ALL = ("llama", "phi", "phi3", "gpt_neo")
"""Architectures whose blocks take one mask over the whole row. GPT-Neo's local ones narrow it themselves."""


def document_arguments(model: PreTrainedModel, numbers: torch.Tensor) -> dict[str, Any]:
    """Return what a model's forward takes to keep documents apart. numbers: int64 (rows, T), each token's document.

    Other architectures get the positions alone: transformers sees documents where they begin anew, and makes each block's
    own mask (windows, chunks). `training.custom_model` tries whether one really does.
    """
    positions = document_positions(numbers)
    if model.config.model_type not in ATTEND_TO_ALL or getattr(model.config, "sliding_window", None):
        return {"position_ids": positions}
    kind = model.config._attn_implementation
    if kind == FLEX:
        return {"attention_mask": document_blocks(numbers), "position_ids": positions}
    if kind in (CPU_ATTENTION, CPU_ATTENTION_KEEPING):
        return {"attention_mask": first_keys(positions), "position_ids": positions}
    allowed = document_attention(numbers)
    if kind == "eager":  # adds its mask to the scores
        dtype = next(model.parameters()).dtype
        allowed = torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
    return {"attention_mask": allowed, "position_ids": positions}


def document_blocks(numbers: torch.Tensor) -> BlockMask:
    """Return `document_attention` of document numbers, int64 (rows, T), as blocks for FlexAttention."""
    from torch.nn.attention.flex_attention import create_block_mask

    def allowed(row: Any, head: Any, query: Any, key: Any) -> Any:
        return (query >= key) & (numbers[row, query] == numbers[row, key])

    rows, length = numbers.shape
    return create_block_mask(allowed, rows, None, length, length, device=numbers.device)


def resolve_attention(
    attention: Attention, model: PreTrainedModel, device: torch.device, document_mask: bool
) -> Literal["dense", "flex"]:
    """Return what a model will use on a device; `auto` is flex on a GPU, where the model can and documents are kept apart.

    Raises:
        RecipeError: flex is asked for where it cannot be.
    """
    obstacle = _obstacle(model, device)
    if attention == "flex" and obstacle:
        raise RecipeError(f"loop.attention is flex, but {obstacle}", "set loop.attention to auto or dense")
    wanted = attention == "flex" or (attention == "auto" and document_mask)
    return "flex" if wanted and not obstacle else "dense"


def set_attention(
    attention: Attention, model: PreTrainedModel, device: torch.device, dtype: torch.dtype, document_mask: bool
) -> None:
    """Let a model attend as asked, in place; dtype: what it computes in. Raises RecipeError as `resolve_attention` does."""
    chosen = resolve_attention(attention, model, device, document_mask)
    if chosen == "flex" and (attention == "flex" or flex_runs(model, device, dtype)):
        use_flex(model)


def use_flex(model: PreTrainedModel) -> None:
    """Let a model attend with FlexAttention, in place."""
    config: Any = model.config
    if config.model_type != "gpt_neo":
        model.set_attn_implementation(FLEX)
        return
    blocks: Any = model.base_model.h
    for block in blocks:
        attention = block.attn.attention
        attention._attn = functools.partial(
            _gpt_neo_flex, window=config.window_size if attention.attention_type == "local" else None
        )
    config._attn_implementation = FLEX


def flex_runs(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> bool:
    """Try FlexAttention on a device, forward and backward, at the size of a model's heads; warns where it fails.

    A kernel that does not compile for this GPU should cost speed, not the run.
    """
    from transformers.integrations.flex_attention import compile_friendly_flex_attention

    config: Any = model.config
    shape = (1, config.num_attention_heads, 256, _head_size(config))
    numbers = torch.arange(256, device=device)[None] // 100
    try:
        query, key, value = (torch.zeros(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
        output: Any = compile_friendly_flex_attention(query, key, value, True, block_mask=document_blocks(numbers))
        output.sum().backward()
    except Exception as error:  # whatever the compiler raises
        warnings.warn(f"attention is dense, as FlexAttention does not run here: {error}", stacklevel=2)
        return False
    return True


def _obstacle(model: PreTrainedModel, device: torch.device) -> str:
    if device.type == "cpu":
        return "FlexAttention has no backward pass on a CPU"
    if getattr(model.config, "attention_dropout", 0.0):
        return "FlexAttention drops no attention out (the model's attention_dropout)"
    if _head_size(model.config) < SMALLEST_HEAD:
        return f"FlexAttention needs heads at least {SMALLEST_HEAD} wide, the model's are {_head_size(model.config)}"
    if model.config.model_type != "gpt_neo" and not model._supports_flex_attn:
        return f"{type(model).__name__} does not support it"
    return ""


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or int(config.hidden_size // config.num_attention_heads)


def _gpt_neo_flex(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, window: int | None
) -> tuple[torch.Tensor, None]:
    """Attend as GPT-Neo does: unscaled scores, and in local blocks no further back than the window."""
    from transformers.integrations.flex_attention import compile_friendly_flex_attention

    def near(score: Any, row: Any, head: Any, query: Any, key: Any) -> Any:
        return torch.where(query - key < window, score, -float("inf"))

    output: Any = compile_friendly_flex_attention(
        query,
        key,
        value,
        training=True,
        score_mod=None if window is None else near,
        block_mask=attention_mask,
        scale=1.0,
    )
    return output, None
