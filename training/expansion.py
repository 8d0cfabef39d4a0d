"""Grows a trained model into a larger one of the same architecture that computes the same function, to train it on.

phi-2 was started from phi-1.5's weights. Here width grows by whole factors: every hidden unit, head and inner unit is copied, and
what reads the copies shares its weights out among them, by uneven shares, or the copies would stay equal for ever (Net2Net,
arXiv 1511.05641). Depth grows by blocks that add nothing yet: copies of their neighbours with outputs of zero (LiGO's and
LLaMA Pro's way, arXiv 2303.00980, 2401.02415).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hornbook.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

WIDTHS = {
    "llama": ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    "phi3": ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    "phi": ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    "gpt_neo": ("hidden_size", "num_heads"),
}
"""Fields that grow with the width, by architecture."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "wpe.weight")
FINAL_NORMS = ("model.norm.", "final_layernorm.", "ln_f.")
OUTPUTS = ("o_proj.", "down_proj.", "dense.", "fc2.", "out_proj.", "c_proj.")
"""What adds a block's part to the hidden states."""
UNEVEN = 0.2  # shares of copies differ by up to this much of an even share


def expanded(model: PreTrainedModel, config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Return a model of a larger configuration that gives the logits of `model`, up to rounding; float32.

    Args:
        model: plain, of an architecture in WIDTHS.
        config: of the same architecture and vocabulary; widths a whole multiple of the model's, all the same one; as many
            blocks or more.
        seed: of the shares.

    Raises:
        ModelError: the configuration cannot hold the model.
    """
    from transformers import AutoModelForCausalLM

    times = _width_factor(model.config, config)
    attention = model.config._attn_implementation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        larger = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
        small = {name: value.detach().float() for name, value in model.state_dict().items()}
        sources = _block_sources(model.config.num_hidden_layers, config.num_hidden_layers)
        weights: dict[str, torch.Tensor] = {}
        for name, wanted in larger.state_dict().items():
            source, new_block = _source_name(name, sources)
            grown = _grown(name, small[source], times, config)
            if grown.shape != wanted.shape:
                raise ModelError(
                    f"{name} would grow to {tuple(grown.shape)}, the larger model has {tuple(wanted.shape)}",
                    "let all widths be the same multiple of the smaller model's",
                )
            weights[name] = torch.zeros_like(grown) if new_block and _is_output(name) else grown
    larger.load_state_dict(weights)
    return larger


def _width_factor(small: Any, large: Any) -> int:
    if small.model_type != large.model_type or small.model_type not in WIDTHS:
        raise ModelError(
            f"a {small.model_type} cannot grow into a {large.model_type}",
            f"both must be the same of {', '.join(WIDTHS)}",
        )
    if small.vocab_size != large.vocab_size:
        raise ModelError(
            f"the model knows {small.vocab_size} words, the larger one {large.vocab_size}",
            "set model.vocab_size to the smaller model's",
        )
    factors = {name: getattr(large, name) / getattr(small, name) for name in WIDTHS[small.model_type]}
    times = int(next(iter(factors.values())))
    if times < 1 or any(factor != times for factor in factors.values()):
        grown = ", ".join(f"{name} {factor:g}" for name, factor in factors.items())
        raise ModelError(f"widths must grow by one whole factor; these would: {grown}", "choose other sizes")
    if large.num_hidden_layers < small.num_hidden_layers:
        raise ModelError(
            f"the larger model has {large.num_hidden_layers} blocks, the smaller one {small.num_hidden_layers}",
            "raise model.num_hidden_layers",
        )
    if large.num_hidden_layers > small.num_hidden_layers and small.model_type == "gpt_neo":
        raise ModelError("a gpt_neo cannot grow deeper: its blocks see near and far in turn", "let it grow wider only")
    return times


def _block_sources(small: int, large: int) -> list[tuple[int, bool]]:
    """Return which block each block of the larger model is made from, and whether it is a new one, spread evenly."""
    sources = [number * small // large for number in range(large)]
    return [(source, number > 0 and sources[number - 1] == source) for number, source in enumerate(sources)]


def _source_name(name: str, sources: list[tuple[int, bool]]) -> tuple[str, bool]:
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdigit():  # the number of the block comes first
            source, new = sources[int(part)]
            return ".".join([*parts[:place], str(source), *parts[place + 1 :]]), new
    return name, False


def _is_output(name: str) -> bool:
    return any(f".{output}" in name for output in OUTPUTS)


def _grown(name: str, weight: torch.Tensor, times: int, config: Any) -> torch.Tensor:
    if times == 1 or weight.ndim == 0:
        return weight
    if name.endswith(EMBEDDINGS):
        return weight.repeat(1, times)
    if name.startswith("lm_head"):
        tied = bool(config.tie_word_embeddings)
        if weight.ndim == 1:
            return weight
        return weight.repeat(1, times) if tied else _shared_out(weight, times, copies=1)
    if weight.ndim == 1:
        # A tied head reads every copy in full: the norm before it makes up for that.
        share = times if config.tie_word_embeddings and any(norm in name for norm in FINAL_NORMS) else 1
        return torch.cat([piece.repeat(times) for piece in _fused(name, weight, config, times)]) / share
    return torch.cat([_shared_out(piece, times, copies=times) for piece in _fused(name, weight, config, times)])


def _fused(name: str, weight: torch.Tensor, config: Any, times: int) -> tuple[torch.Tensor, ...]:
    """Return the pieces of a product that computes several things at once (phi-3): each is copied by itself."""
    if ".qkv_proj." in name:
        size = config.hidden_size // config.num_attention_heads
        queries = config.num_attention_heads // times * size
        keys = config.num_key_value_heads // times * size
        return weight.split([queries, keys, keys])
    if ".gate_up_proj." in name:
        return weight.chunk(2)
    return (weight,)


def _shared_out(weight: torch.Tensor, times: int, copies: int) -> torch.Tensor:
    """Return `copies` copies of the rows of a matrix whose inputs come `times` times; shares of the copies sum to one.

    weight: (outputs, inputs) -> (copies x outputs, times x inputs).
    """
    shares = 1.0 + UNEVEN * (2.0 * torch.rand(copies, 1, times, weight.shape[1]) - 1.0)
    shares /= shares.sum(dim=2, keepdim=True)
    return (shares * weight[None, :, None, :]).reshape(copies * weight.shape[0], times * weight.shape[1])
