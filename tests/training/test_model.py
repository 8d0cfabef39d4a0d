"""Presets, the loss, the document mask: each against transformers' or torch's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from hornbook.errors import ModelError
from training.document_mask import document_attention, document_numbers, document_positions
from training.flops import flops_per_token
from training.layer_sharing import share_blocks
from training.loss import IGNORED, chunked_cross_entropy
from training.model import LanguageModel
from training.presets import PRESETS, build_model, count_parameters, model_config

SMALL: dict[str, dict[str, Any]] = {
    "phi-demo-3m": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 2},
    "tinystories-1m": {"num_heads": 2, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 7},
    "mobilellm-125m": {
        "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1,
        "num_hidden_layers": 2,
    },
    "phonelm-0.5b": {
        "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3,
        "num_hidden_layers": 2,
    },
    "phi-3-mini": {
        "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1,
        "num_hidden_layers": 2, "pad_token_id": None,
    },
}  # fmt: skip


CUSTOM: dict[str, dict[str, Any]] = {
    kind: {
        "model_type": kind, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1,
        "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, **fields,
    }
    for kind, fields in {"mistral": {"sliding_window": 7}, "qwen3": {"head_dim": 16}}.items()
}  # fmt: skip


@pytest.fixture(params=[*SMALL, "mobilellm-125m-ls", *CUSTOM])
def small(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A small model of each architecture, with shared blocks, and of a custom one with and without windows."""
    name = request.param
    if name in CUSTOM:
        yield build_model(model_config(CUSTOM[name], vocab_size=97), seed=1)
    else:
        model = build_model(model_config(name, vocab_size=97, **SMALL[name.removesuffix("-ls")]), seed=1)
        yield share_blocks(model, 2) if name.endswith("-ls") else model


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("phi-demo-3m", 3_355_264),
        ("tinystories-1m", 3_745_984),
        ("phi-1-small", 356_794_368),
        ("phi-2", 2_779_683_840),
        ("phi-3-mini", 3_821_079_552),
        ("llama-7m", 7_377_152),
        ("mobilellm-125m", 124_635_456),
        ("mobilellm-350m", 345_355_200),
        ("mobilellm-600m", 603_188_352),
        ("mobilellm-1b", 1_005_461_760),
        ("mobilellm-1.5b", 1_511_188_800),
        ("mobilellm-125m-ls", 124_635_456),
        ("mobilellm-350m-ls", 345_355_200),
        ("mobilellm-600m-ls", 603_188_352),
        ("mobilellm-1b-ls", 1_005_461_760),
        ("mobilellm-1.5b-ls", 1_511_188_800),
        ("phonelm-0.5b", 509_658_112),
        ("phonelm-1.5b", 1_618_593_280),
        ("hammerllm-1.4b", 1_402_288_128),
        ("phi2-zh-0.2b", 193_651_200),
    ],
)
def test_presets_have_their_exact_size(preset: str, parameters: int) -> None:
    assert count_parameters(model_config(preset)) == parameters


def test_the_larger_presets_have_their_rounded_size() -> None:
    for preset, billions in {"phi-1": 1.4, "phi-1.5": 1.4, "phi-3-small": 7.8, "phi-3-medium": 14.0}.items():
        assert count_parameters(model_config(preset)) / 1e9 == pytest.approx(billions, abs=0.05)


def test_presets_are_named_and_initialised_by_seed() -> None:
    with pytest.raises(ModelError, match="did you mean 'phi-demo-3m'"):
        model_config("phi-demo-3")
    config = model_config("phi-demo-3m", **SMALL["phi-demo-3m"])
    one, same, other = (build_model(config, seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert float(one.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert {name: model_config(name).initializer_range for name in PRESETS} == dict.fromkeys(PRESETS, 0.02)


@pytest.mark.parametrize("bias", [True, False])
def test_the_chunked_loss_is_the_cross_entropy(bias: bool) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(37, 16), torch.randn(97, 16), torch.randn(97)][: 3 if bias else 2]
    targets = torch.randint(0, 97, (37,))
    targets[::5] = IGNORED

    def gradients(chunk: int | None, compiled: bool = False) -> list[torch.Tensor]:
        leaves = [tensor.double().requires_grad_() for tensor in tensors]
        head_bias = leaves[2] if bias else None
        if chunk is None:
            logits = functional.linear(leaves[0], leaves[1], head_bias)
            loss = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        else:
            loss = chunked_cross_entropy(leaves[0], leaves[1], head_bias, targets, chunk, compiled)
        (loss * 0.37).backward()
        return [loss.detach(), *[leaf.grad for leaf in leaves if leaf.grad is not None]]

    expected = gradients(None)
    for chunk, compiled in ((1, False), (8, False), (100, False), (8, True)):
        with torch.compiler.set_stance("force_eager"):  # what a GPU compiles, as it is written
            found = gradients(chunk, compiled)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["64", "32"])
def test_loss_and_gradients_are_transformers_own(small: Any, dtype: torch.dtype, tolerance: float) -> None:
    small = small.to(dtype)
    torch.manual_seed(2)
    tokens = torch.randint(1, 97, (3, 24))
    logits = small(input_ids=tokens, use_cache=False).logits[:, :-1]  # its own `loss` is float32 whatever the model is
    expected = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in small.named_parameters()}
    small.zero_grad()
    wanted = torch.cat([tokens[:, 1:], torch.full((3, 1), IGNORED)], dim=1)
    loss = LanguageModel(small, eos=0)(tokens, wanted) / (wanted != IGNORED).sum()
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    for name, parameter in small.named_parameters():
        assert (parameter.grad - gradients[name]).norm() <= tolerance * gradients[name].norm() + 1e-12, name


def test_packed_documents_see_what_they_would_see_alone(small: Any) -> None:
    small = small.double().eval()
    torch.manual_seed(0)
    documents = [torch.randint(1, 97, (length,)) for length in (11, 1, 20)]
    opened = [torch.cat([torch.zeros(1, dtype=torch.int64), ids]) for ids in documents]
    packed = torch.cat(opened)[None]
    model = LanguageModel(small, eos=0)
    with torch.no_grad():
        together = small.get_output_embeddings()(model.hidden(packed))[0]
        alone = torch.cat([small(input_ids=ids[None], use_cache=False).logits[0] for ids in opened])
        unmasked = small(input_ids=packed, use_cache=False).logits[0]
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-7)  # GPT-Neo attends in float32 always
    assert not torch.allclose(unmasked, alone, atol=1e-3)


def test_packed_rows_give_the_loss_and_gradients_of_their_documents(small: Any) -> None:
    model = LanguageModel(small.double(), eos=0)
    torch.manual_seed(0)
    opened = [torch.cat([torch.zeros(1, dtype=torch.int64), torch.randint(1, 97, (length,))]) for length in (9, 2, 18)]
    targets = [torch.cat([ids[1:], torch.zeros(1, dtype=torch.int64)]) for ids in opened]  # each ends in end-of-text
    alone = torch.stack([model(ids[None], wanted[None]) for ids, wanted in zip(opened, targets, strict=True)]).sum()
    alone.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in small.named_parameters()}
    small.zero_grad()
    packed = model(torch.cat(opened)[None], torch.cat(targets)[None])
    packed.backward()
    torch.testing.assert_close(packed, alone, rtol=1e-6, atol=0)  # GPT-Neo attends in float32 always
    for name, parameter in small.named_parameters():
        assert (parameter.grad - gradients[name]).norm() <= 1e-5 * gradients[name].norm() + 1e-9, name


def test_document_numbers_positions_and_attention() -> None:
    tokens = torch.tensor([[5, 6, 0, 7, 8, 0, 0, 9]])
    numbers = document_numbers(tokens, eos=0)
    assert numbers.tolist() == [[0, 0, 1, 1, 1, 2, 3, 3]]
    assert document_positions(numbers).tolist() == [[0, 1, 0, 1, 2, 0, 0, 1]]
    allowed = document_attention(numbers)[0, 0]
    assert [row.nonzero().flatten().tolist() for row in allowed] == [
        [0], [0, 1], [2], [2, 3], [2, 3, 4], [5], [6], [6, 7]
    ]  # fmt: skip


@pytest.mark.parametrize("preset", ["phi-1-small", "mobilellm-125m", "tinystories-33m", "hammerllm-1.4b"])
def test_flops_are_those_of_the_formula(preset: str) -> None:
    config = model_config(preset)
    with torch.device("meta"):
        model = LanguageModel(AutoModelForCausalLM.from_config(config), eos=0)
    embeddings = sum(
        p.numel() for name, p in model.named_parameters() if "embed" in name or ".wte" in name or ".wpe" in name
    )
    vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    everything = sum(p.numel() for p in model.parameters())
    head = config.vocab_size * config.hidden_size if config.tie_word_embeddings else 0  # tied: looked up and multiplied
    layers = config.num_hidden_layers
    expected = 6 * (everything - embeddings - vectors + head) + 12 * layers * config.hidden_size * 2_048
    assert flops_per_token(model, 2_048) == expected


def test_blocks_that_run_twice_take_twice_the_arithmetic() -> None:
    size = SMALL["mobilellm-125m"]
    plain = LanguageModel(build_model(model_config("mobilellm-125m", vocab_size=97, **size), 1), eos=0)
    head = 6 * 97 * 48
    once = flops_per_token(plain, 64)
    twice = flops_per_token(LanguageModel(share_blocks(plain.model, 2), eos=0), 64)
    assert once and twice and twice - head == 2 * (once - head)
