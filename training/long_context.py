"""Longer contexts for models with rotary positions: LongRoPE (arXiv 2402.13753), as phi-3 was lengthened with.

LongRoPE stretches each dimension's wavelength by a factor of its own, and has two sets of them: texts no longer than the
original context keep the short ones, longer texts are read with the long ones throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hornbook.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class DocumentLongRope(nn.Module):
    """LongRoPE's rotations, where each document of a packed row gets the factors that it would get alone.

    transformers chooses once for all rows of a call, by the longest document among them: a short one's loss would then
    depend on its neighbours, and on how many rows are computed at a time.
    """

    short: torch.Tensor
    long: torch.Tensor

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        frequencies = ROPE_INIT_FUNCTIONS["longrope"]
        self.original = int(config.rope_parameters["original_max_position_embeddings"])
        short, self.scale = frequencies(config)
        long, _ = frequencies(config, seq_len=self.original + 1)
        self.register_buffer("short", short, persistent=False)
        self.register_buffer("long", long, persistent=False)

    @torch.no_grad()
    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines, (rows, T, rotary), in the dtype of `hidden`; position_ids: int64 (rows, T)."""
        numbers = (position_ids == 0).cumsum(dim=1)
        last = position_ids.new_zeros(len(position_ids), position_ids.shape[1] + 1)
        last = last.scatter_reduce(1, numbers, position_ids, "amax").gather(1, numbers)  # of the document, everywhere
        frequencies = torch.where((last >= self.original)[..., None], self.long.float(), self.short.float())
        angles = (position_ids[..., None].float() * frequencies).repeat(1, 1, 2)
        return (angles.cos() * self.scale).to(hidden.dtype), (angles.sin() * self.scale).to(hidden.dtype)


def rotate_by_document(model: PreTrainedModel) -> None:
    """Let a model with LongRoPE choose its factors by document, in place; any other stays as it is."""
    if (getattr(model.config, "rope_parameters", None) or {}).get("rope_type") == "longrope":
        model.base_model.rotary_emb = DocumentLongRope(model.config)


def with_context(config: PreTrainedConfig, changes: Mapping[str, Any]) -> PreTrainedConfig:
    """Return a configuration with other positions: `changes` are fields in `presets.CONTEXT_FIELDS`.

    What `rope_parameters` leaves open stays; a LongRoPE factor that is one number stands for all dimensions; short factors
    left open are 1; the original context is the one that the model has had so far.

    Raises:
        RecipeError: the model learns its positions, or cannot take the factors.
    """
    from huggingface_hub.errors import StrictDataclassError

    former: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    if not former:
        raise RecipeError(
            f"a {config.model_type} learns its positions: its context cannot change", "leave the context as it is"
        )
    given = {"max_position_embeddings": config.max_position_embeddings, **changes}
    rope = {**former, **changes.get("rope_parameters", {})}
    if rope["rope_type"] == "longrope":
        if "long_factor" not in rope:
            raise RecipeError("LongRoPE needs a long_factor", "give one in model.rope_parameters: a number or a list")
        already = former["rope_type"] == "longrope"
        original = former["original_max_position_embeddings"] if already else config.max_position_embeddings
        original = changes.get(
            "original_max_position_embeddings", rope.get("original_max_position_embeddings", original)
        )
        given["original_max_position_embeddings"] = rope["original_max_position_embeddings"] = original
        rope["factor"] = given["max_position_embeddings"] / original
        for name in ("short_factor", "long_factor"):
            rope[name] = _one_each(rope.get(name, 1.0), _rotary_dimensions(config) // 2, name)
    values = config.to_dict() | given | {"rope_parameters": rope}
    try:
        return type(config).from_dict(values)
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise RecipeError(f"a {config.model_type} cannot have these positions: {error}", "correct model") from error


def _rotary_dimensions(config: Any) -> int:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head * config.rope_parameters.get("partial_rotary_factor", 1.0))


def _one_each(factors: Any, count: int, name: str) -> list[float]:
    """Return `count` factors from a number or as many numbers."""
    listed = [float(factors)] * count if isinstance(factors, int | float) else [float(factor) for factor in factors]
    if len(listed) != count:
        raise RecipeError(
            f"model.rope_parameters.{name} has {len(listed)} factors, the model turns {count} pairs of dimensions",
            f"give {count} numbers, or one for all",
        )
    return listed
