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

from hornbook import machine, models
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


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("owner/name", "owner/name"),
        ("s3://KEY:SECRET@bucket/store/artifacts/sft-0123abcd/model?endpoint_override=inside:9000", "sft-0123abcd"),
        ("/home/me/models/my-model/", "my-model"),
        ("~/models/my-model", "my-model"),
    ],
)
def test_a_published_name_holds_no_path_and_no_key(name: str, short: str) -> None:
    assert models.short_name(name) == short


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


INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}


@pytest.mark.parametrize("index", [True, False], ids=["index", "no index yet"])
def test_a_folder_that_lacks_a_shard_is_refused(folder: Path, index: bool) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps(INDEX))
    with pytest.raises(ModelError, match="lacks 1 of its weight files, model-00002-of-00002"):
        models.resolve(str(folder))
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"more")
    assert models.resolve(str(folder)).path == folder


@pytest.fixture
def hub_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`somebody/model` in a Hugging Face cache, as an interrupted download leaves it: one shard of two."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "hub" / "models--somebody--model", "0123456789" * 4
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    cached = shutil.copytree(folder, repository / "snapshots" / commit)
    (cached / "model.safetensors").rename(cached / "model-00001-of-00002.safetensors")
    (cached / "model.safetensors.index.json").write_text(json.dumps(INDEX))
    return cached


def test_an_interrupted_download_is_not_taken_for_the_model(hub_model: Path) -> None:
    assert not models.is_here("somebody/model")
    with pytest.raises(ModelError):
        models.resolve("somebody/model")
    (hub_model / "model-00002-of-00002.safetensors").write_bytes(b"more")
    assert models.is_here("somebody/model")
    assert models.digest("somebody/model") == hub_model.name


def test_a_dry_run_says_what_it_would_download_and_does_not(
    hub_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    from hornbook.inspection import plan_tree
    from hornbook.pipeline import plan_recipe
    from hornbook.recipe import check_recipe
    from hornbook.store import Store

    fetch = huggingface_hub.snapshot_download

    def only_local(*names: Any, local_files_only: bool = False, **options: Any) -> str:
        assert local_files_only, "a dry run downloads"
        return fetch(*names, local_files_only=True, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", only_local)
    stages = {"stories": {"kind": "stories", "rows": 4, "engine": {"model": "somebody/model"}}}
    recipe = check_recipe({"name": "dry", "seed": 1, "stages": stages}, "test recipe")
    lines = list(plan_tree(recipe, plan_recipe(recipe, Store(str(tmp_path / "store")))))
    assert lines[1].startswith("`-- stories [make]") and "(after the download of somebody/model)" in lines[1]


def test_there_is_one_cache_folder_and_its_home_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HORNBOOK_CACHE", "~/elsewhere")
    assert machine.cache_folder() == Path.home() / "elsewhere" == models.cache_folder()
    monkeypatch.setenv("HORNBOOK_CACHE", "")
    assert machine.cache_folder() == Path.home() / ".cache" / "hornbook"


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
