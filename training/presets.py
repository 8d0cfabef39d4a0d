"""Model presets: a name -> a transformers configuration of a published (or demo) size, and how its paper trained it.

Architectures are transformers' own classes, so every checkpoint is a plain Hugging Face folder that needs no remote code.
The sizes are those of the papers; a test counts the parameters on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from hornbook.errors import ModelError, RecipeError
from hornbook.settings import nearest
from training.architectures import gpt_neo, llama, phi, phi3

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Preset:
    """A model as its paper has it.

    Attributes:
        config: makes the configuration; its arguments override fields.
        loop: the paper's settings of the training loop, for those that a recipe leaves open.
        repeats: how often each block runs in succession (MobileLLM-LS: 2).
    """

    config: Callable[..., Any]
    loop: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 1


CONTEXT_FIELDS = ("max_position_embeddings", "original_max_position_embeddings", "rope_parameters")
"""What may change between a trained model and one that goes on from its weights; see `training.long_context`."""
TINYSTORIES = {
    "learning_rate": 5e-4, "betas": (0.9, 0.95), "weight_decay": 0.1, "global_batch": 1_280, "sequence_length": 512,
    "schedule": {"kind": "constant"},
}  # fmt: skip
PHI_1 = {
    "learning_rate": 1e-3, "weight_decay": 0.1, "global_batch": 1_024, "sequence_length": 2_048,
    "schedule": {"kind": "linear", "warmup_steps": 750, "floor": 0.0},
}  # fmt: skip
PHI_1_5 = {
    "learning_rate": 2e-4, "betas": (0.9, 0.98), "epsilon": 1e-7, "weight_decay": 0.1, "global_batch": 2_048,
    "sequence_length": 2_048, "schedule": {"kind": "constant"},
}  # fmt: skip
MOBILELLM = {
    "learning_rate": 5e-4, "reference_batch": 256, "betas": (0.9, 0.95), "epsilon": 1e-8, "weight_decay": 0.1, "global_batch": 256,
    "sequence_length": 2_048, "schedule": {"kind": "cosine", "warmup_steps": 1_000, "floor": 0.1},
}  # fmt: skip
PHONELM = {
    "learning_rate": 4e-4, "betas": (0.9, 0.95), "weight_decay": 0.1, "sequence_length": 2_048,
    "schedule": {"kind": "cosine", "warmup_steps": 500, "floor": 0.1},
}  # fmt: skip
HAMMERLLM = {
    "learning_rate": 5e-4, "global_batch": 1_024, "sequence_length": 2_048,
    "schedule": {"kind": "cosine-clamped", "warmup_steps": 2_000, "floor": 0.1},
}  # fmt: skip
PHI2_ZH = {
    "learning_rate": 5e-4, "global_batch": 128, "sequence_length": 320,
    "schedule": {"kind": "cosine", "warmup_steps": 1_000, "floor": 0.0},
}  # fmt: skip


def _tinystories(layers: int, width: int) -> Preset:
    return Preset(gpt_neo(layers, width), TINYSTORIES)


def _mobilellm(layers: int, width: int, heads: int, kv_heads: int, inner: int, repeats: int = 1) -> Preset:
    return Preset(llama(layers, width, heads, kv_heads, inner, vocabulary=32_000, tied=True), MOBILELLM, repeats)


def _phonelm(layers: int, width: int, heads: int, inner: int) -> Preset:
    """Gated ReLU; every head has its own keys and values."""
    size = (layers, width, heads, heads, inner)
    return Preset(llama(*size, vocabulary=49_152, activation="relu", epsilon=1e-6, tied=True), PHONELM)


PRESETS: dict[str, Preset] = {
    "phi-demo-3m": Preset(phi(4, 192, 6, rotary=16, vocabulary=4_096, context=256)),
    "llama-7m": Preset(llama(8, 256, 4, 4, 688, vocabulary=4_096, tied=True)),
    "tinystories-1m": _tinystories(8, 64),
    "tinystories-3m": _tinystories(8, 128),
    "tinystories-8m": _tinystories(8, 256),
    "tinystories-28m": _tinystories(8, 512),
    "tinystories-33m": _tinystories(4, 768),
    "phi-1-small": Preset(phi(20, 1_024, 16, rotary=32), PHI_1),
    "phi-1": Preset(phi(24, 2_048, 32, rotary=32, dropout=0.1), PHI_1),
    "phi-1.5": Preset(phi(24, 2_048, 32, rotary=32), PHI_1_5),
    "phi-2": Preset(phi(32, 2_560, 32, rotary=32)),
    "phi-3-mini": Preset(phi3(32, 3_072, 32, 32, 8_192, vocabulary=32_064)),
    "phi-3-small": Preset(phi3(32, 4_096, 32, 8, 14_336, vocabulary=100_352)),
    "phi-3-medium": Preset(phi3(40, 5_120, 40, 10, 17_920, vocabulary=32_064)),
    "mobilellm-125m": _mobilellm(30, 576, 9, 3, 1_536),
    "mobilellm-350m": _mobilellm(32, 960, 15, 5, 2_560),
    "mobilellm-600m": _mobilellm(40, 1_152, 18, 6, 3_072),
    "mobilellm-1b": _mobilellm(54, 1_280, 20, 5, 3_584),
    "mobilellm-1.5b": _mobilellm(54, 1_600, 25, 5, 4_352),
    "mobilellm-125m-ls": _mobilellm(30, 576, 9, 3, 1_536, repeats=2),
    "mobilellm-350m-ls": _mobilellm(32, 960, 15, 5, 2_560, repeats=2),
    "mobilellm-600m-ls": _mobilellm(40, 1_152, 18, 6, 3_072, repeats=2),
    "mobilellm-1b-ls": _mobilellm(54, 1_280, 20, 5, 3_584, repeats=2),
    "mobilellm-1.5b-ls": _mobilellm(54, 1_600, 25, 5, 4_352, repeats=2),
    "phonelm-0.5b": _phonelm(24, 1_024, 16, 4_864),
    "phonelm-1.5b": _phonelm(19, 2_560, 16, 6_816),
    "hammerllm-1.4b": Preset(llama(22, 2_048, 32, 4, 5_632, vocabulary=105_789, tied=False), HAMMERLLM),
    "phi2-zh-0.2b": Preset(phi(16, 768, 12, rotary=32, vocabulary=35_840, context=512, inner=4_096), PHI2_ZH),
}


def find_preset(preset: str | Mapping[str, Any]) -> Preset:
    """Return a preset by its name, or one made of the fields of a `config.json`.

    Raises:
        ModelError: there is no preset of that name.
    """
    if not isinstance(preset, str):
        from training.custom_model import custom_config

        return Preset(partial(custom_config, preset))
    if preset not in PRESETS:
        raise ModelError(
            f"there is no model preset {preset!r}{nearest(preset, list(PRESETS))}",
            "name a preset, the path of a config.json, or give the fields of one",
        )
    return PRESETS[preset]


def model_config(preset: str | Mapping[str, Any], **overrides: Any) -> PreTrainedConfig:
    """Return the configuration of a preset; `overrides` are fields of its transformers configuration class.

    Raises:
        ModelError: there is no such preset, or a custom one cannot be trained.
        RecipeError: rotary positions that the model cannot have.
    """
    from huggingface_hub.errors import StrictDataclassError

    config = find_preset(preset).config
    changes = {
        name: overrides.pop(name) for name in CONTEXT_FIELDS if name in overrides and "rope_parameters" in overrides
    }
    try:
        made = config(**overrides)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ModelError(
            f"no such model can be made of {preset!r}: {error}", "correct the fields under `model`"
        ) from error
    if not changes:
        return made
    from training.long_context import with_context

    return with_context(made, changes)


def check_fields(known: PreTrainedConfig, overrides: Mapping[str, Any]) -> None:
    """Raise RecipeError if a configuration does not have one of the fields that are to be overridden."""
    for name in overrides:
        if not hasattr(known, name):
            raise RecipeError(
                f"{known.model_type} has no configuration field {name}{nearest(name, list(known.to_dict()))}",
                "under `model` stand fields of the architecture's transformers configuration",
            )


def try_config(preset: str | Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Make a model of a configuration, without its memory; one of our own presets also reads a few tokens.

    Raises:
        ModelError: there is no such preset, or none can be made with these sizes.
        RecipeError: a field that its configuration does not have, or rotary positions that the model cannot have.
    """
    import torch

    from training.model import LanguageModel

    known = model_config(preset)
    check_fields(known, overrides)
    config = model_config(preset, **overrides)
    try:
        with torch.device("meta"):
            model = empty_model(config)
            if isinstance(preset, str):  # others may look at values (mixtures of experts), which there are none of
                LanguageModel(model, eos=0).hidden(torch.zeros(1, 2, dtype=torch.int64))
    except Exception as error:  # whatever an architecture does with sizes that do not go together
        sizes = ", ".join(f"{name} {value}" for name, value in overrides.items())
        raise ModelError(
            f"a {known.model_type} with {sizes or 'these sizes'} cannot be computed: {str(error).strip().splitlines()[0]}",
            "heads must divide the width, key-value heads the heads; correct the fields under `model`",
        ) from error


def build_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Return a freshly initialised float32 model on the CPU; the same config and seed give the same weights.

    Uses the fastest exact attention that the class has: SDPA, or eager where it refuses SDPA (GPT-Neo).
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return empty_model(config)


def count_parameters(config: PreTrainedConfig) -> int:
    """Return the exact number of parameters, tied ones once, without allocating them."""
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in empty_model(config).parameters())


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a float32 model of a configuration, on the device and with the random numbers that torch is set to."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    attention = "sdpa" if kind._supports_sdpa else "eager"
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
