"""GGUF: files that are read back and compared, what strays too far is not kept, and reasons where llama.cpp is not there.

llama.cpp's own tools are stood in for; the files are real ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from corpus import python_documents
from stand_in_llama_cpp import install

from training.gguf_converter import cuts_as_gpt2
from training.gguf_export import read_back, write_gguf
from training.hf_folder import write_hf_folder
from training.presets import build_model, model_config
from training.proof import closeness, log_probabilities, random_rows
from training.tokenizer import as_hugging_face, train_bpe


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    texts = iter([document.text for document in python_documents(10)])
    as_hugging_face(train_bpe(texts, 640), 128).save_pretrained(folder / "tokenizer")
    config = model_config("phi-demo-3m", vocab_size=640, hidden_size=64, intermediate_size=128, num_attention_heads=2,
                          num_hidden_layers=2)  # fmt: skip
    model = build_model(config, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)  # untrained weights are so small that nothing shows
    write_hf_folder(model, folder / "model", folder / "tokenizer")
    return folder


def predictions(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    rows = random_rows(640, 128)
    return rows, log_probabilities(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), rows)


def test_files_are_proved_and_what_strays_is_not_kept(made: Path, tmp_path: Path) -> None:
    rows, known = predictions(made / "model")
    tools = install(tmp_path / "llama.cpp")
    found = write_gguf(made / "model", ["q4_0", "q8_0", "f16"], tmp_path / "gguf", str(tools), rows, known)
    assert found["f16"]["file"] == "model-f16.gguf" and found["f16"]["divergence"] < 1e-4
    assert "file" in found["q4_0"], found["q4_0"]
    assert 1e-5 < found["q4_0"]["divergence"] <= found["q4_0"]["allowed"] == 0.5
    assert found["q4_0"]["bytes"] < 0.5 * found["f16"]["bytes"]
    assert "diverge by" in found["q8_0"]["left_out"] and "0.02 are allowed" in found["q8_0"]["left_out"]
    assert sorted(path.name for path in (tmp_path / "gguf").iterdir()) == ["model-f16.gguf", "model-q4_0.gguf"]
    again = closeness(known, log_probabilities(read_back(tmp_path / "gguf" / "model-q4_0.gguf", made / "model"), rows))
    assert again.divergence == pytest.approx(found["q4_0"]["divergence"], rel=1e-3)


def test_missing_tools_and_refusals_are_reasons(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    rows, known = predictions(made / "model")
    found = write_gguf(made / "model", ["f16", "q4_k_m"], tmp_path / "gguf", "", rows, known)
    assert found["f16"]["left_out"] == "there is no convert_hf_to_gguf.py on PATH; set llama_cpp to llama.cpp's folder"
    assert "no convert_hf_to_gguf.py and no llama-quantize on PATH" in found["q4_k_m"]["left_out"]
    tools = install(tmp_path / "llama.cpp")
    (tools / "build" / "bin" / "llama-quantize").unlink()
    found = write_gguf(made / "model", ["q4_0"], tmp_path / "gguf", str(tools), rows, known)
    assert found["q4_0"]["left_out"] == f"there is no llama-quantize in {tools} or on PATH"
    other = tmp_path / "other"
    other.mkdir()
    for path in (made / "model").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    value = json.loads((other / "tokenizer.json").read_text())
    value["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, value["pre_tokenizer"]],
    }
    (other / "tokenizer.json").write_text(json.dumps(value))
    found = write_gguf(other, ["f16"], tmp_path / "gguf", str(tools), rows, known)
    assert "refuses the model: NotImplementedError: BPE pre-tokenizer was not recognized" in found["f16"]["left_out"]
    assert list((tmp_path / "gguf").iterdir()) == []


def test_only_gpt2s_cut_is_taken_for_it(made: Path) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(made / "model")
    assert cuts_as_gpt2(loaded)
    loaded.backend_tokenizer.pre_tokenizer.use_regex = False
    assert not cuts_as_gpt2(loaded)
