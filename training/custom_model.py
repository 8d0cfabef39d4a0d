"""Any transformers configuration as a preset: what it must have to be trained here, and a trial of its document mask.

The configuration comes as a mapping in the recipe or as a `config.json`. No remote code: the architecture must be one of
transformers' own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook.errors import ModelError, RecipeError
from hornbook.settings import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

NOT_THE_MODEL = ("model_type", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "quantization_config")
"""Fields of a config.json that say nothing of a model to be trained from the start."""
TRIAL_TOKENS, TRIAL_TOLERANCE = 4, 1e-3


def read_config(preset: str) -> dict[str, Any] | None:
    """Return the fields of a `config.json` that a preset's name is the path of, or of its folder; None if it is no path.

    Raises:
        RecipeError: it looks like a path, but there is no such file, or no configuration in it.
    """
    if "/" not in preset and not preset.endswith(".json"):
        return None
    path = Path(preset).expanduser()
    path = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"preset: {path} cannot be read as a model's configuration: {error}",
            "name a preset (docs/training/presets.md), or a config.json that is there",
        ) from error
    if not isinstance(fields, dict):
        raise RecipeError(f"{path} holds no configuration", "name the config.json of a Hugging Face model")
    return fields


def custom_config(fields: Mapping[str, Any], **overrides: Any) -> PreTrainedConfig:
    """Return the configuration that the fields of a `config.json` describe; `overrides` go before them.

    Raises:
        ModelError: transformers has no such architecture, it is no causal language model, or cannot be trained here: its
            blocks stand in no list, or its head is not linear.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    kind = fields.get("model_type", "")
    if kind not in CONFIG_MAPPING:
        remote = "; it needs code of its own, which is not run" if "auto_map" in fields else ""
        raise ModelError(
            f"transformers has no architecture {kind!r}{nearest(str(kind), list(CONFIG_MAPPING))}{remote}",
            "set model_type in the preset's configuration to an architecture of transformers",
        )
    own = {name: value for name, value in fields.items() if name not in NOT_THE_MODEL}
    try:
        config: PreTrainedConfig = CONFIG_MAPPING[kind](**own | overrides)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ModelError(f"this is no configuration of a {kind}: {error}", "correct the preset's fields") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{kind} has no causal language model", "choose an architecture with a ...ForCausalLM class")
    architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    config.architectures = [architecture.__name__]
    from training.presets import empty_model

    with torch.device("meta"):
        require_trainable(empty_model(config))
    return config


def require_trainable(model: PreTrainedModel) -> None:
    """Raise ModelError unless a model has what the trainer builds on: a list of blocks, and a linear head."""
    from torch import nn

    lists = [child for child in model.base_model.children() if isinstance(child, nn.ModuleList)]
    kind = model.config.model_type
    if len(lists) != 1:
        raise ModelError(
            f"the blocks of {kind} cannot be told: its model has {len(lists)} lists of modules, not one",
            "choose a decoder-only architecture",
        )
    head: Any = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ModelError(f"the head of {kind} is {type(head).__name__}, not linear", "choose another architecture")
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        value = getattr(model.config, name, None)
        if value not in (None, 1, 1.0):
            raise ModelError(
                f"{kind} does more to its logits than the head's product ({name}: {value})",
                f"set {name} to null, or choose another architecture",
            )


def require_document_mask(model: PreTrainedModel) -> None:
    """Try whether an architecture keeps packed documents apart: a few tokens behind another document, and alone.

    Raises:
        ModelError: it does not.
    """
    import torch

    from training.model import LanguageModel

    eos, words = 0, torch.arange(1, TRIAL_TOKENS)
    alone = torch.cat([torch.tensor([eos]), words])[None]
    packed = torch.cat([torch.tensor([eos]), words.flip(0), alone[0]])[None]
    trial, training = LanguageModel(model, eos), model.training
    model.eval()
    with torch.no_grad():
        expected, found = trial.hidden(alone), trial.hidden(packed)[:, -TRIAL_TOKENS:]
    model.train(training)
    if (found - expected).norm() > TRIAL_TOLERANCE * expected.norm():
        raise ModelError(
            f"a {model.config.model_type} lets packed documents see each other", "set loop.document_mask to false"
        )
