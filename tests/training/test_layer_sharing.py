"""Shared blocks: the same logits unrolled, the gradients of all passes in one block, and a way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hornbook.errors import ModelError
from training.layer_sharing import folded, share_blocks, unrolled
from training.model import LanguageModel
from training.presets import build_model, model_config
from training.pretrain import PretrainSettings, with_paper_loop

SIZE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1,
    "num_hidden_layers": 3,
}  # fmt: skip


def shared() -> Any:
    return share_blocks(build_model(model_config("mobilellm-125m-ls", **SIZE), seed=1).double(), 2)


def test_an_unrolled_model_gives_the_same_logits_in_a_plain_folder(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = shared()
    tokens = torch.randint(1, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    plain = unrolled(model)
    plain.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert loaded.config.num_hidden_layers == 6 and type(loaded).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
        torch.testing.assert_close(loaded(input_ids=tokens).logits, expected, rtol=1e-12, atol=1e-12)
        again = folded(loaded)
        torch.testing.assert_close(again(input_ids=tokens, use_cache=False).logits, expected, rtol=1e-12, atol=1e-12)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())


def test_a_shared_block_gets_the_gradients_of_all_its_passes() -> None:
    model = shared()
    plain: Any = unrolled(model)
    tokens = torch.randint(1, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    wanted = tokens.roll(-1, 1)
    for each in (model, plain):
        LanguageModel(each, eos=0)(tokens, wanted).backward()
    for number, block in enumerate(model.base_model.layers):
        twins = [plain.base_model.layers[2 * number + turn] for turn in range(2)]
        for name, parameter in block.block.named_parameters():
            both = sum(dict(twin.named_parameters())[name].grad for twin in twins)
            torch.testing.assert_close(parameter.grad, both, rtol=1e-10, atol=1e-12)


def test_blocks_that_differ_are_not_folded_and_other_architectures_share_none() -> None:
    plain: Any = unrolled(shared())
    with torch.no_grad():
        plain.base_model.layers[1].mlp.up_proj.weight += 1
    with pytest.raises(ModelError, match="blocks 0 and 1 are not copies"):
        folded(plain)
    small = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 2}
    model = build_model(model_config("phi-demo-3m", **small), seed=1)
    assert folded(model) is model and unrolled(model) is model
    with pytest.raises(ModelError, match="phi cannot share blocks"):
        share_blocks(model, 2)


def test_what_a_recipe_leaves_open_is_as_in_the_paper() -> None:
    phases = [{"name": "all", "steps": 10}]
    settings = {"preset": "phi-1.5", "phases": phases, "loop": {"learning_rate": 1e-3, "microbatch": 4}}
    loop = with_paper_loop(PretrainSettings.model_validate(settings)).loop
    assert (loop.learning_rate, loop.microbatch, loop.betas, loop.epsilon) == (1e-3, 4, (0.9, 0.98), 1e-7)
    assert (loop.schedule.kind, loop.global_batch, loop.clip) == ("constant", 2_048, 1.0)
    settings = {"preset": "phi-demo-3m", "phases": phases}
    plain = PretrainSettings.model_validate(settings)
    assert with_paper_loop(plain) == plain
