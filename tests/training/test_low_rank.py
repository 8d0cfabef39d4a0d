"""Adapters: what is trained, what stays frozen, and a plain model at the end that gives the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import open_data, open_loader, small_model, write_data

from training.checkpoint import latest, load_weights
from training.loop import train
from training.low_rank import LoraSettings, LowRankModel
from training.metrics import read_metrics
from training.model import LanguageModel
from training.parallel import World
from training.presets import build_model, model_config
from training.settings import LoopSettings

SIZES: dict[str, dict[str, Any]] = {
    "phi-demo-3m": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 2},
    "tinystories-1m": {"num_heads": 2, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 7},
    "phi-3-mini": {
        "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1,
        "num_hidden_layers": 2, "pad_token_id": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("preset", list(SIZES))
def test_adapters_begin_at_nothing_and_are_folded_in(preset: str) -> None:
    model = build_model(model_config(preset, vocab_size=97, **SIZES[preset]), seed=1).double()
    tokens = torch.randint(1, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        adapted = LowRankModel(model, LoraSettings(rank=2), seed=3)
        torch.testing.assert_close(adapted.model(input_ids=tokens).logits, before)
        for name, parameter in adapted.model.named_parameters():
            assert parameter.requires_grad == ("lora_" in name)
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        wanted = adapted.model(input_ids=tokens).logits
        plain = adapted.merged()
        torch.testing.assert_close(plain(input_ids=tokens).logits, wanted, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(wanted, before)
    assert not [name for name, _ in plain.named_parameters() if "lora" in name or "base_layer" in name]
    assert all(parameter.requires_grad for parameter in plain.parameters())


def test_a_run_changes_the_adapters_alone_and_its_checkpoint_becomes_a_plain_model(
    tmp_path: Path, world: World
) -> None:
    write_data(tmp_path)
    base = small_model().model
    frozen = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}

    def adapted() -> LowRankModel:
        return LowRankModel(small_model().model, LoraSettings(rank=4), seed=1)

    settings = LoopSettings.model_validate(
        {"global_batch": 8, "sequence_length": 64, "microbatch": 8, "validation_rows": 2, "precision": "fp32",
         "learning_rate": 1e-2}
    )  # fmt: skip
    model = LanguageModel(adapted().model, 0)
    train(settings, model, open_loader(tmp_path), open_data(tmp_path, "validation"), tmp_path / "run", world, seed=0)
    rows = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert rows[-1]["loss"] < rows[0]["loss"]
    found = latest(tmp_path / "run" / "checkpoints")
    assert found is not None
    trained = adapted()
    load_weights(found, LanguageModel(trained.model, 0))
    plain = dict(trained.merged().named_parameters())
    assert plain.keys() == frozen.keys()
    changed = {name for name, value in plain.items() if not torch.equal(value, frozen[name])}
    assert changed == {name for name in frozen if ".layers." in name and frozen[name].ndim == 2}
