"""Grown models compute what the smaller ones did, and their copies part ways in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hornbook.errors import ModelError
from training.expansion import expanded
from training.model import LanguageModel
from training.presets import build_model, model_config

SMALL: dict[str, dict[str, Any]] = {
    "phi-demo-3m": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2,
                    "num_hidden_layers": 2},
    "tinystories-1m": {"hidden_size": 32, "num_heads": 2, "num_layers": 2, "window_size": 7,
                       "attention_types": [[["global", "local"], 1]]},
    "mobilellm-125m": {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
                       "num_hidden_layers": 2},
    "hammerllm-1.4b": {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
                       "num_hidden_layers": 2},
    "phi-3-mini": {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
                   "num_hidden_layers": 2, "pad_token_id": None},
}  # fmt: skip
COUNTED = {"num_hidden_layers", "num_layers", "attention_types", "window_size", "pad_token_id"}


def larger(preset: str, times: int, blocks: int) -> Any:
    size = {name: value if name in COUNTED else times * value for name, value in SMALL[preset].items()}
    if preset == "tinystories-1m":
        size |= {"num_layers": blocks, "attention_types": [[["global", "local"], blocks // 2]]}
    else:
        size["num_hidden_layers"] = blocks
    return model_config(preset, vocab_size=97, **size)


def trained(preset: str) -> Any:
    """A model whose norms and biases are not those of initialisation."""
    model = build_model(model_config(preset, vocab_size=97, **SMALL[preset]), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize(
    ("preset", "times", "blocks"),
    [
        (preset, times, blocks)
        for preset in SMALL
        for times, blocks in [(1, 4), (2, 2), (3, 2), (2, 6)]
        if blocks == 2 or preset != "tinystories-1m"  # which cannot grow deeper
    ],
)
def test_a_grown_model_gives_the_same_logits(preset: str, times: int, blocks: int) -> None:
    small = trained(preset)
    grown = expanded(small, larger(preset, times, blocks), seed=3).eval()
    tokens = torch.randint(1, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = small(input_ids=tokens).logits
        torch.testing.assert_close(grown(input_ids=tokens).logits, expected, rtol=1e-3, atol=1e-3)


def test_copies_part_ways_and_new_blocks_learn() -> None:
    grown = expanded(trained("hammerllm-1.4b"), larger("hammerllm-1.4b", 2, 4), seed=3)
    tokens = torch.randint(1, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    LanguageModel(grown, eos=0)(tokens, tokens.roll(-1, 1)).backward()
    block = grown.model.layers[1]  # a new one
    assert block.mlp.down_proj.weight.abs().sum() == 0 and block.mlp.down_proj.weight.grad.abs().sum() > 0
    gradient = grown.model.layers[0].mlp.up_proj.weight.grad
    one, other = gradient.chunk(2)
    assert not torch.allclose(one, other)


def test_blocks_that_alternate_do_not_grow_deeper() -> None:
    with pytest.raises(ModelError, match="a gpt_neo cannot grow deeper"):
        expanded(trained("tinystories-1m"), larger("tinystories-1m", 1, 4), seed=1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (model_config("phi-demo-3m", vocab_size=97), "a llama cannot grow into a phi"),
        (model_config("mobilellm-125m", vocab_size=96), "knows 97 words, the larger one 96"),
        (model_config("mobilellm-125m", vocab_size=97), "widths must grow by one whole factor"),
        (larger("mobilellm-125m", 2, 1), "has 1 blocks, the smaller one 2"),
    ],
)
def test_what_cannot_hold_the_model_is_refused(config: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        expanded(trained("mobilellm-125m"), config, seed=1)
