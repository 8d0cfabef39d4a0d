"""FlexAttention's masks and outputs against the dense ones; its backward pass needs a GPU and is not tried here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from hornbook.errors import RecipeError
from training.attention import document_blocks, flex_runs, resolve_attention, use_flex
from training.document_mask import document_attention, document_numbers
from training.model import LanguageModel
from training.presets import build_model, model_config

WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    "phi-demo-3m": WIDE,
    "phi-3-mini": {**WIDE, "num_key_value_heads": 2, "pad_token_id": None},
    "mobilellm-125m": {**WIDE, "num_key_value_heads": 2},
    "tinystories-1m": {
        "num_heads": 4,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 7,
    },
}
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def packed_rows() -> torch.Tensor:
    tokens = torch.randint(1, 97, (3, 150), generator=torch.Generator().manual_seed(0))
    tokens[0, [4, 5, 60]] = tokens[1, [0, 149]] = 0
    return tokens


def test_blocks_hold_the_dense_mask() -> None:
    numbers = document_numbers(packed_rows(), eos=0)
    rows, length = numbers.shape
    found = create_mask(document_blocks(numbers).mask_mod, rows, 1, length, length, device="cpu")
    assert torch.equal(found, document_attention(numbers))


@pytest.mark.parametrize("preset", list(MODELS))
def test_flex_attends_as_the_dense_mask_does(preset: str) -> None:
    plain = build_model(model_config(preset, vocab_size=97, **MODELS[preset]), seed=1).eval()
    model, tokens = LanguageModel(plain, eos=0), packed_rows()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = model.hidden(tokens)
        use_flex(plain)
        found = model.hidden(tokens)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_attention_is_chosen_by_device_and_model() -> None:
    def small(preset: str, **changes: Any) -> Any:
        return build_model(model_config(preset, vocab_size=97, **MODELS[preset] | changes), seed=1)

    plain = small("mobilellm-125m")
    assert resolve_attention("auto", plain, CPU, document_mask=True) == "dense"
    assert resolve_attention("auto", plain, GPU, document_mask=True) == "flex"
    assert resolve_attention("auto", plain, GPU, document_mask=False) == "dense"
    assert resolve_attention("dense", plain, GPU, document_mask=True) == "dense"
    assert resolve_attention("auto", small("tinystories-1m"), GPU, document_mask=True) == "flex"
    with pytest.raises(RecipeError, match="no backward pass on a CPU"):
        resolve_attention("flex", plain, CPU, document_mask=True)
    dropping = small("phi-demo-3m", attention_dropout=0.1)
    assert resolve_attention("auto", dropping, GPU, document_mask=True) == "dense"
    with pytest.raises(RecipeError, match="drops no attention out"):
        resolve_attention("flex", dropping, GPU, document_mask=True)
    with pytest.raises(RecipeError, match="at least 16 wide, the model's are 8"):
        resolve_attention("flex", small("tinystories-1m", num_heads=8), GPU, document_mask=True)
    with pytest.warns(match="attention is dense"):
        assert not flex_runs(plain, CPU, torch.float32)
