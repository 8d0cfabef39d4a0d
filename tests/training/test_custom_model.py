"""Any Hugging Face configuration as a preset: what is taken, what is refused and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.errors import ModelError, RecipeError
from hornbook.settings import validate
from training.custom_model import custom_config, require_document_mask
from training.flops import flops_per_token
from training.model import LanguageModel
from training.presets import build_model, count_parameters, model_config
from training.pretrain import Pretrain, PretrainSettings

FIELDS: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1,
    "num_hidden_layers": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
MAMBA = {"model_type": "mamba", "vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2, "pad_token_id": None}


def stage(preset: Any, **settings: Any) -> Pretrain:
    values = {"preset": preset, "phases": [{"name": "all", "steps": 1}], **settings}
    made = Pretrain("pretrain", validate(PretrainSettings, values, "pretrain"), 1)
    made.check()
    return made


def test_a_file_a_folder_and_a_mapping_are_the_same_preset(tmp_path: Path) -> None:
    fields = {
        "model_type": "qwen3",
        "head_dim": 16,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        **FIELDS,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    presets = [stage(given).settings.preset for given in (str(path), str(tmp_path), fields)]
    assert presets == [fields] * 3, "what stands in the file is a setting, so that another file is another artifact"
    config = model_config(presets[0], vocab_size=128)
    assert (config.model_type, config.vocab_size, config.architectures) == ("qwen3", 128, ["Qwen3ForCausalLM"])
    blocks = 2 * (48 * (48 + 2 * 16) + 48 * 48 + 3 * 48 * 96 + 2 * 48 + 2 * 16)
    assert count_parameters(config) == blocks + 48 + 2 * 128 * 48


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ({"model_type": "lama"}, "no architecture 'lama'.*did you mean 'llama'"),
        ({"model_type": "mine", "auto_map": {}}, "needs code of its own, which is not run"),
        ({"model_type": "vit"}, "vit has no causal language model"),
        ({"model_type": "opt", "pad_token_id": 1}, "the blocks of opt cannot be told: its model has 0 lists"),
        ({"model_type": "gemma2", **FIELDS}, r"gemma2 does more to its logits .*final_logit_softcapping: 30"),
        ({"model_type": "llama", **FIELDS, "num_attention_heads": 5}, "no configuration of a llama: .*not a multiple"),
        ({}, "no architecture ''"),
        ("phi-demo", "did you mean 'phi-demo-3m'"),
        ("nowhere/config.json", "nowhere/config.json cannot be read"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(preset: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        stage(preset)


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path) -> None:
    for text, message in (("{", "cannot be read as a model's configuration"), ("[1]", "holds no configuration")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RecipeError, match=message):
            stage(str(tmp_path))


def test_an_architecture_that_mixes_documents_is_refused_their_mask() -> None:
    for kind in ("qwen2", "mistral"):
        require_document_mask(build_model(custom_config({"model_type": kind, **FIELDS}), 0))
    with pytest.raises(ModelError, match="a mamba lets packed documents see each other"):
        require_document_mask(build_model(custom_config(MAMBA), 0))


def test_flops_are_none_where_not_every_weight_meets_every_token() -> None:
    def flops(fields: dict[str, Any]) -> int | None:
        with torch.device("meta"):
            return flops_per_token(LanguageModel(build_model(custom_config(fields), 0), 0), 64)

    assert flops({"model_type": "mixtral", "num_local_experts": 2, **FIELDS}) is None
    assert flops(MAMBA) is None
    weights = 2 * (48 * 80 + 48 * 48 + 3 * 48 * 96) + 97 * 48
    assert flops({"model_type": "qwen2", **FIELDS}) == 6 * weights + 12 * 2 * 48 * 64


def test_the_papers_learning_rate_follows_the_batch_and_a_recipes_own_does_not() -> None:
    def rate(**loop: Any) -> float:
        return stage("mobilellm-125m", loop=loop).settings.loop.peak_rate

    assert rate() == 5e-4 and rate(global_batch=64) == 1.25e-4 and rate(global_batch=1_024) == 2e-3
    assert rate(global_batch=64, learning_rate=1e-3) == 1e-3
    assert rate(global_batch=64, learning_rate=1e-3, reference_batch=128) == 5e-4
    assert stage("phi-1", loop={"global_batch": 8}).settings.loop.peak_rate == 1e-3
