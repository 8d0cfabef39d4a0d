"""The architectures behind the presets: transformers' own classes, as functions from a size to a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def phi(
    layers: int,
    width: int,
    heads: int,
    *,
    rotary: int,
    vocabulary: int = 51_200,
    context: int = 2_048,
    inner: int | None = None,
    dropout: float = 0.0,
) -> Callable[..., Any]:
    """phi (arXiv 2306.11644): parallel attention and MLP behind one LayerNorm, partial rotary positions, untied head.

    `rotary`: how many of a head's dimensions turn with the position. `inner`: the MLP's width, by default four times the model's.
    """

    def config(**overrides: Any) -> PreTrainedConfig:
        from transformers import PhiConfig

        values: dict[str, Any] = {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": inner or 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "hidden_act": "gelu_new",
            "attention_dropout": dropout,
            "resid_pdrop": dropout,
            "max_position_embeddings": context,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": rotary * heads / width,
            },
            "tie_word_embeddings": False,
            "architectures": ["PhiForCausalLM"],
        }
        return PhiConfig(**values | overrides)

    return config


def gpt_neo(layers: int, width: int) -> Callable[..., Any]:
    """TinyStories (arXiv 2305.07759): GPT-Neo with alternating global and local (256) attention, tied embeddings."""

    def config(**overrides: Any) -> PreTrainedConfig:
        from transformers import GPTNeoConfig

        values: dict[str, Any] = {
            "vocab_size": 50_257,
            "hidden_size": width,
            "num_layers": layers,
            "num_heads": 16,
            "attention_types": [[["global", "local"], layers // 2]],
            "window_size": 256,
            "activation_function": "gelu_new",
            "max_position_embeddings": 2_048,
            "tie_word_embeddings": True,
            "architectures": ["GPTNeoForCausalLM"],
        }
        return GPTNeoConfig(**values | overrides)

    return config


def llama(
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    inner: int,
    *,
    vocabulary: int,
    activation: str = "silu",
    epsilon: float = 1e-5,
    tied: bool,
) -> Callable[..., Any]:
    """Llama's block (arXiv 2302.13971): RMSNorm, rotary positions, a gated MLP, grouped queries, no biases.

    MobileLLM (2402.14905) ties the embeddings; PhoneLM (2411.05046) gates with ReLU; HammerLLM unties over a large vocabulary.
    """

    def config(**overrides: Any) -> PreTrainedConfig:
        from transformers import LlamaConfig

        values: dict[str, Any] = {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "hidden_act": activation,
            "rms_norm_eps": epsilon,
            "max_position_embeddings": 2_048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "tie_word_embeddings": tied,
            "architectures": ["LlamaForCausalLM"],
        }
        return LlamaConfig(**values | overrides)

    return config


def phi3(layers: int, width: int, heads: int, kv_heads: int, inner: int, *, vocabulary: int) -> Callable[..., Any]:
    """phi-3 (arXiv 2404.14219): SwiGLU, RMSNorm, rotary positions, untied head; one product for queries, keys and values.

    LongRoPE is a field of the configuration: `rope_parameters: {rope_type: longrope, short_factor, long_factor, ...}`.
    """

    def config(**overrides: Any) -> PreTrainedConfig:
        from transformers import Phi3Config

        values: dict[str, Any] = {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4_096,
            "original_max_position_embeddings": 4_096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
            "tie_word_embeddings": False,
            "architectures": ["Phi3ForCausalLM"],
        }
        return Phi3Config(**values | overrides)

    return config
