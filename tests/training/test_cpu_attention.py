"""Attention on a CPU is attention: against torch's own under a mask, and behind every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from training.cpu_attention import CPU_ATTENTION_KEEPING, attend, kept_probabilities, use_cpu_attention
from training.loss import IGNORED
from training.model import LanguageModel
from training.presets import build_model, model_config

LENGTH = 300  # three blocks of queries, the last one short


def first_keys_of(rows: int, documents: float) -> torch.Tensor | None:
    """Draw where documents begin; with a probability of 0, None."""
    if not documents:
        return None
    begins = torch.rand(rows, LENGTH) < documents
    return torch.where(begins, torch.arange(LENGTH), 0).cummax(dim=1).values


def with_gradients(attention: Any, tensors: list[torch.Tensor], arriving: torch.Tensor) -> list[torch.Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    mixed = attention(*leaves)
    mixed.backward(arriving.to(mixed.dtype))
    return [mixed.detach(), *[leaf.grad for leaf in leaves if leaf.grad is not None]]


@pytest.mark.parametrize(("shared", "documents", "window"), [(4, 0.0, 0), (2, 0.02, 0), (1, 0.0, 50), (4, 0.01, 140)])
def test_it_is_torchs_attention_under_a_mask(shared: int, documents: float, window: int) -> None:
    torch.manual_seed(0)
    first_keys = first_keys_of(2, documents)
    tensors = [torch.randn(2, heads, LENGTH, 16, dtype=torch.float64) for heads in (4, shared, shared)]
    arriving = torch.randn(2, LENGTH, 4, 16, dtype=torch.float64)
    queries, keys = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    allowed = (keys <= queries).expand(2, 1, LENGTH, LENGTH)
    allowed = allowed & (keys > queries - window) if window else allowed
    allowed = allowed & (keys >= first_keys[:, None, :, None]) if first_keys is not None else allowed

    def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed, enable_gqa=True)
        return mixed.transpose(1, 2)

    def ours(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attend(query, key, value, first_keys, 16**-0.5, window)

    expected = with_gradients(plain, tensors, arriving)
    for one, other in zip(with_gradients(ours, tensors, arriving), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    narrow = [tensor.bfloat16() for tensor in tensors]
    for attention in (ours, plain):  # rounding to bf16 costs no more than in torch's own kernel
        for one, other in zip(with_gradients(attention, narrow, arriving), expected, strict=True):
            assert (one.double() - other).norm() / other.norm() < 6e-3


@pytest.mark.parametrize("preset", ["phi-demo-3m", "mobilellm-125m", "tinystories-3m", "phi-3-mini"])
@pytest.mark.parametrize("document_mask", [True, False])
def test_models_give_the_same_loss_and_gradients(preset: str, document_mask: bool) -> None:
    size: dict[str, Any] = {"vocab_size": 97, "hidden_size": 48}
    if preset == "tinystories-3m":
        size |= {"num_heads": 3, "window_size": 40, "num_layers": 2, "attention_types": [[["global", "local"], 1]]}
    else:
        size |= {"num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 64, "pad_token_id": 0}
        size |= {"num_key_value_heads": 1} if preset == "mobilellm-125m" else {}
        size |= {"num_key_value_heads": 3} if preset == "phi-3-mini" else {}
    plain, ours = (build_model(model_config(preset, **size), 1).double().eval() for _ in range(2))
    use_cpu_attention(ours)
    assert ours.config._attn_implementation == CPU_ATTENTION_KEEPING
    torch.manual_seed(0)
    tokens, targets = torch.randint(0, 97, (2, 150)), torch.randint(0, 97, (2, 150))
    targets[:, ::7] = IGNORED
    losses = [LanguageModel(model, 0, document_mask)(tokens, targets) for model in (plain, ours)]
    for loss in losses:
        loss.backward()
    # GPT-Neo's own way works in float32 whatever the model is
    tolerance = 1e-4 if preset == "tinystories-3m" else 1e-10
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-7, atol=0)
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=tolerance, atol=tolerance)


def test_a_model_with_dropout_in_its_attention_keeps_its_own() -> None:
    model = build_model(model_config("phi-demo-3m", num_hidden_layers=1, attention_dropout=0.1), 1)
    use_cpu_attention(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("documents", [0.0, 0.02])
def test_kept_probabilities_change_nothing_but_time_and_memory(documents: float) -> None:
    """The backward pass gets the same numbers from the forward one as it would work out again."""
    torch.manual_seed(0)
    first_keys = first_keys_of(3, documents)
    tensors = [torch.randn(3, heads, LENGTH, 16).bfloat16() for heads in (4, 2, 2)]
    arriving = torch.randn(3, LENGTH, 4, 16)

    def attention(keep: bool) -> list[torch.Tensor]:
        return with_gradients(lambda q, k, v: attend(q, k, v, first_keys, 0.25, keep=keep), tensors, arriving)

    for one, other in zip(attention(True), attention(False), strict=True):
        assert torch.equal(one, other)


def test_probabilities_are_kept_for_short_rows_only() -> None:
    assert kept_probabilities(2, 4, LENGTH) == 2 * 4 * (128 * 128 + 128 * 256 + 44 * 300)
    assert kept_probabilities(8, 32, 8_192) == 0
