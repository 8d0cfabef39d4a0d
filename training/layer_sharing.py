"""Blocks that run several times in succession, as in MobileLLM-LS (arXiv 2402.14905): more depth, no more parameters.

In training there is one block with its parameters, behind a wrapper that calls it repeatedly, so that checkpointing,
compilation and sharding see one block. On disk the model is unrolled: a plain folder of its architecture with every block
written as often as it runs, which any engine loads; `block_repeats` in its configuration says that it can be folded again.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hornbook.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REPEATS = "block_repeats"
BLOCK = re.compile(r"^(model\.layers\.)(\d+)\.")


class RepeatedBlock(nn.Module):
    """A block that is its own successor `times` times."""

    def __init__(self, block: nn.Module, times: int) -> None:
        super().__init__()
        self.block = block
        self.times = times

    def forward(self, hidden: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """Return the hidden states behind the last pass, (rows, T, width)."""
        for _ in range(self.times):
            hidden = self.block(hidden, **arguments)
        return hidden


def share_blocks(model: PreTrainedModel, times: int) -> PreTrainedModel:
    """Make each block of a Llama run `times` times in succession, in place; without a KV cache, as in training.

    Raises:
        ModelError: the model is no Llama.
    """
    if model.config.model_type != "llama":
        raise ModelError(
            f"{model.config.model_type} cannot share blocks", "use a Llama preset, such as mobilellm-125m-ls"
        )
    layers: list[nn.Module] = list(model.base_model.layers)  # type: ignore[arg-type]
    model.base_model.layers = nn.ModuleList(RepeatedBlock(block, times) for block in layers)
    return model


def unrolled(model: PreTrainedModel) -> PreTrainedModel:
    """Return a plain model that gives the same logits: every shared block is written as often as it runs.

    A model without shared blocks is returned as it is.
    """
    from transformers import AutoModelForCausalLM

    times = _repeats(model)
    if times == 1:
        return model
    config = copy.deepcopy(model.config)
    config.num_hidden_layers *= times
    setattr(config, REPEATS, times)
    attention = model.config._attn_implementation
    with torch.random.fork_rng(devices=[]):
        plain = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=model.dtype)
    weights: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        plain_name = name.replace(".block.", ".", 1)
        if found := BLOCK.match(plain_name):
            rest = plain_name[found.end() :]
            weights |= {f"{found[1]}{int(found[2]) * times + turn}.{rest}": value for turn in range(times)}
        else:
            weights[plain_name] = value
    plain.load_state_dict(weights)
    return plain


def folded(model: PreTrainedModel) -> PreTrainedModel:
    """Return an unrolled model with its blocks shared again, to train it further; any other as it is.

    Raises:
        ModelError: blocks that should be copies of each other differ.
    """
    from transformers import AutoModelForCausalLM

    times = int(getattr(model.config, REPEATS, 1))
    if times == 1:
        return model
    layers: list[nn.Module] = list(model.base_model.layers)  # type: ignore[arg-type]
    for number, block in enumerate(layers):
        first = layers[number - number % times].state_dict()
        if any(not torch.equal(value, first[name]) for name, value in block.state_dict().items()):
            raise ModelError(
                f"blocks {number - number % times} and {number} are not copies, but {REPEATS} is {times}",
                f"remove {REPEATS} from the model's config.json to train all blocks apart",
            )
    config = copy.deepcopy(model.config)
    config.num_hidden_layers //= times
    attention = model.config._attn_implementation
    with torch.random.fork_rng(devices=[]):
        small = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=model.dtype)
    weights = {}
    for name, value in model.state_dict().items():
        found = BLOCK.match(name)
        if found and int(found[2]) % times:
            continue
        weights[f"{found[1]}{int(found[2]) // times}.{name[found.end() :]}" if found else name] = value
    small.load_state_dict(weights)
    return share_blocks(small, times)


def _repeats(model: PreTrainedModel) -> int:
    layers = getattr(model.base_model, "layers", [])
    return layers[0].times if len(layers) and isinstance(layers[0], RepeatedBlock) else 1
