"""A model's name means the same folder everywhere, or an error that says what to do."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hornbook import models
from hornbook.errors import ModelError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HORNBOOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    """A model folder in miniature: resolution reads names and bytes, not tensors."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return made


def test_a_folder_resolves_to_itself(folder: Path) -> None:
    resolved = models.resolve(str(folder))
    assert (resolved.path, resolved.licence, resolved.source) == (folder, "mit", "local folder")
    assert resolved.revision == models.digest(str(folder))


def test_the_revision_follows_the_weights_and_nothing_else(folder: Path) -> None:
    before = models.digest(str(folder))
    (folder / "README.md").write_text("another card")
    assert models.digest(str(folder)) == before
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    assert models.digest(str(folder)) != before
    copy = shutil.copytree(folder, folder.parent / "copy")
    assert models.digest(str(copy)) == models.digest(str(folder))


def test_a_damaged_digest_cache_is_ignored(folder: Path, cache: Path) -> None:
    before = models.digest(str(folder))
    for entry in (cache / "digests").iterdir():
        entry.write_text("torn")
    assert models.digest(str(folder)) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135m-instrukt", "did you mean 'smollm2-135m-instruct'"),
        ("no-such-thing-at-all-xyz", "all-minilm-l6-v2, smollm2-135m-instruct"),
        ("/no/such/folder", "has no config.json"),
    ],
)
def test_an_unknown_name_is_the_users_error(cache: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        models.resolve(name)
    assert raised.value.exit_code == 2
    assert raised.value.cure


def test_a_hub_model_without_network_says_what_to_do(cache: Path, tmp_path: Path) -> None:
    script = (
        "from hornbook import errors, models\n"
        "try: models.resolve('nobody/nothing')\n"
        "except errors.ModelError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "neither in the Hugging Face cache" in said.stdout
    assert "hf download nobody/nothing" in said.stdout


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        models.resolve(str(folder))


def test_the_embedding_model_is_its_wheels_folder(cache: Path) -> None:
    resolved = models.resolve("all-minilm-l6-v2")
    assert json.loads((resolved.path / "config.json").read_text())["hidden_size"] == 384
    assert resolved.licence == "Apache-2.0"


def test_a_digest_needs_neither_torch_nor_a_conversion(cache: Path) -> None:
    script = (
        "import sys; from hornbook import models; models.digest('smollm2-135m-instruct'); print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
    assert not (cache / "models").exists()


@pytest.mark.slow
def test_two_processes_convert_once_and_the_result_is_an_ordinary_model(cache: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        first, second = processes.map(models.resolve, ["smollm2-135m-instruct"] * 2)
    assert first == second
    assert [path.name for path in (cache / "models").iterdir() if path.is_dir()] == [first.path.name]

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(first.path)
    model: Any = AutoModelForCausalLM.from_pretrained(first.path)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France? Answer with one word."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0, prompt["input_ids"].shape[1] :])
