"""What a training stage leaves predicts what it did in training: with adapters, with shared blocks; a damaged folder is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from corpus import python_documents

from hornbook.errors import ModelError
from training.hf_folder import write_hf_folder
from training.layer_sharing import share_blocks, unrolled
from training.low_rank import LoraSettings, LowRankModel
from training.presets import build_model, model_config
from training.proof import closeness, log_probabilities, prove_folder, random_rows
from training.tokenizer import as_hugging_face, train_bpe

LLAMA = {
    "vocab_size": 640, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1,
    "num_hidden_layers": 2,
}  # fmt: skip
ROWS = random_rows(640, 64)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = iter([document.text for document in python_documents(5)])
    as_hugging_face(train_bpe(texts, 600), 128).save_pretrained(folder)
    return folder


def test_folded_adapters_and_unrolled_blocks_are_proved(tmp_path: Path, tokenizer: Path) -> None:
    adapted = LowRankModel(build_model(model_config("mobilellm-125m", **LLAMA), seed=0), LoraSettings(rank=2), seed=1)
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    trained = log_probabilities(adapted.model, ROWS)
    write_hf_folder(adapted.merged(), tmp_path / "lora", tokenizer)
    assert 0 < prove_folder(tmp_path / "lora", ROWS, trained)["largest"] < 1e-4
    shared = share_blocks(build_model(model_config("mobilellm-125m", **LLAMA), seed=0), 2)
    trained = log_probabilities(shared, ROWS)
    write_hf_folder(unrolled(shared), tmp_path / "shared", tokenizer)
    assert prove_folder(tmp_path / "shared", ROWS, trained)["agreement"] == 1.0


def test_a_folder_that_predicts_otherwise_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    model = build_model(model_config("mobilellm-125m", **LLAMA), seed=0)
    trained = log_probabilities(model, ROWS)
    with torch.no_grad():
        dict(model.named_parameters())["model.embed_tokens.weight"][7, 0] += 0.5
    write_hf_folder(model, tmp_path / "model", tokenizer)
    with pytest.raises(ModelError, match="does not predict what the trained model does"):
        prove_folder(tmp_path / "model", ROWS, trained)


def test_what_is_no_number_is_infinitely_far() -> None:
    rows = [torch.log_softmax(torch.randn(3, 5), -1)]
    assert closeness(rows, rows).divergence == 0.0
    found = closeness(rows, [torch.full((3, 5), float("nan"))])
    assert found.largest == found.divergence == float("inf")
