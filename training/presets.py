"""Model presets: a name -> a transformers configuration of a published (or demo) size, and a freshly initialised model.

Architectures are transformers' own classes, so every checkpoint is a plain Hugging Face folder that needs no remote code.
The sizes are those of the papers; a test counts the parameters on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hornbook.errors import ModelError
from hornbook.settings import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def _phi(layers: int, width: int, heads: int, rotary_share: float, vocabulary: int, context: int) -> Callable[..., Any]:
    """phi (arXiv 2306.11644): parallel attention and MLP behind one LayerNorm, partial rotary positions, untied head."""

    def config(**overrides: Any) -> PreTrainedConfig:
        from transformers import PhiConfig

        values: dict[str, Any] = {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "hidden_act": "gelu_new",
            "max_position_embeddings": context,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": rotary_share,
            },
            "tie_word_embeddings": False,
            "architectures": ["PhiForCausalLM"],
        }
        return PhiConfig(**values | overrides)

    return config


def _tinystories(layers: int, width: int) -> Callable[..., Any]:
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


def _mobilellm(layers: int, width: int, heads: int, kv_heads: int, inner: int) -> Callable[..., Any]:
    """MobileLLM (arXiv 2402.14905): deep and thin, SwiGLU, grouped queries, shared input and output embedding."""

    def config(**overrides: Any) -> PreTrainedConfig:
        from transformers import LlamaConfig

        values: dict[str, Any] = {
            "vocab_size": 32_000,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2_048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "tie_word_embeddings": True,
            "architectures": ["LlamaForCausalLM"],
        }
        return LlamaConfig(**values | overrides)

    return config


PRESETS: dict[str, Callable[..., Any]] = {
    "phi-demo-3m": _phi(4, 192, 6, 0.5, vocabulary=4_096, context=256),
    "phi-1-small": _phi(20, 1_024, 16, 0.5, vocabulary=51_200, context=2_048),
    "phi-1": _phi(24, 2_048, 32, 0.5, vocabulary=51_200, context=2_048),
    "tinystories-1m": _tinystories(8, 64),
    "tinystories-3m": _tinystories(8, 128),
    "tinystories-8m": _tinystories(8, 256),
    "tinystories-28m": _tinystories(8, 512),
    "tinystories-33m": _tinystories(4, 768),
    "mobilellm-125m": _mobilellm(30, 576, 9, 3, 1_536),
    "mobilellm-350m": _mobilellm(32, 960, 15, 5, 2_560),
}


def model_config(preset: str, **overrides: Any) -> PreTrainedConfig:
    """Return the configuration of a preset; `overrides` are fields of its transformers configuration class.

    Raises:
        ModelError: there is no such preset.
    """
    if preset not in PRESETS:
        raise ModelError(f"there is no model preset {preset!r}{nearest(preset, list(PRESETS))}")
    return PRESETS[preset](**overrides)


def build_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Return a freshly initialised float32 model on the CPU; the same config and seed give the same weights.

    Uses the fastest exact attention that the class has: SDPA, or eager where it refuses SDPA (GPT-Neo).
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _from_config(config, torch.float32)


def count_parameters(config: PreTrainedConfig) -> int:
    """Return the exact number of parameters, tied ones once, without allocating them."""
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in _from_config(config, torch.float32).parameters())


def _from_config(config: PreTrainedConfig, dtype: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    attention = "eager" if config.model_type == "gpt_neo" else "sdpa"
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
