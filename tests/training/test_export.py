"""Exported folders: the trainer's logits, no remote code, and real engines on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from corpus import finish, python_documents
from transformers import AutoTokenizer

from hornbook.artifact import Artifact
from hornbook.engines.interface import Reply, Request, Sampling
from hornbook.errors import ModelError
from hornbook.events import Events
from hornbook.settings import validate
from hornbook.stage import StageContext
from hornbook.store import Store
from training.export import Export, greedy_agreement, sample_with_transformers
from training.hf_folder import write_hf_folder
from training.presets import build_model, model_config
from training.tokenizer import as_hugging_face, train_bpe


@pytest.fixture(scope="module")
def model_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An untrained demo model with a tokenizer, as pretraining leaves it."""
    folder = tmp_path_factory.mktemp("made")
    texts = iter([document.text for document in python_documents(40)])
    as_hugging_face(train_bpe(texts, 1024), 256).save_pretrained(folder / "tokenizer")
    store = Store(str(tmp_path_factory.mktemp("store")))
    artifact = Artifact(store, "artifacts/pretrain")
    model = build_model(model_config("phi-demo-3m", vocab_size=1024), seed=0)
    write_hf_folder(model, folder / "model", folder / "tokenizer")
    store.upload(folder / "model", f"{artifact.folder}/model")
    files = [f"model/{name}" for name, _ in store.files(f"{artifact.folder}/model")]
    finish(artifact, "pretrain", "model", {}, metrics={"steps": 3, "loss": 2.5}, files=files)
    return artifact


def export(
    source: Artifact, pools: list[Any], open_engine: Callable[..., Any] | None = None, **settings: Any
) -> Artifact:
    from hornbook.engines.pool import EnginePool

    def open_pool(settings: Any, wait: bool = True) -> Any:
        pools.append(EnginePool(settings))
        return pools[-1].handle()

    opening: Callable[..., Any] = open_engine or open_pool
    store = source.store
    artifact = Artifact(store, "artifacts/export")
    context = StageContext(
        artifact=artifact, inputs={"model": [source]}, input_stages={"model": ["pretrain"]}, stage="export", seed=0,
        run="test", events=Events(store, "runs/test"), stop_requested=lambda: False, open_engine=opening,
    )  # fmt: skip
    try:
        result = Export("export", validate(Export.Settings, settings, "export"), 0).run(context)
    finally:
        for pool in pools:
            pool.close()
    finish(artifact, "export", "model", {"model": {"pretrain": source}}, metrics=result.metrics, files=result.files)
    return artifact


def test_the_folder_gives_the_trainers_logits(model_artifact: Artifact) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    trained = build_model(model_config("phi-demo-3m", vocab_size=1024), seed=0).eval()
    folder = model_artifact.local_folder() / "model"
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32).eval()
    tokens = torch.randint(0, 1024, (2, 50))
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, trained(tokens).logits)
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == [0, 4] and generation.bos_token_id == 0
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path, model_artifact: Artifact) -> None:
    model = build_model(model_config("phi-demo-3m", vocab_size=512), seed=0)
    with pytest.raises(ModelError, match="has 1024 entries, the model 512"):
        write_hf_folder(model, tmp_path, model_artifact.local_folder() / "model")


QUICK = {"sampling": {"max_tokens": 4}, "starts": ["def add("]}


class Scripted:
    """Stands for an engine's handle: writes what `change` makes of transformers' greedy tokens."""

    def __init__(self, folder: Path, change: Callable[[list[int]], str]) -> None:
        self.folder, self.change = folder, change

    async def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        _, greedy = sample_with_transformers(self.folder, validate(Export.Settings, QUICK, "export"), 0)
        return [Reply(self.change(ids), "stop") for ids in greedy]


def test_a_near_tie_passes_and_a_model_loaded_wrongly_does_not(model_artifact: Artifact) -> None:
    folder = model_artifact.local_folder("model")
    decode = AutoTokenizer.from_pretrained(folder).decode

    def figures(change: Callable[[list[int]], str]) -> tuple[float, float]:
        metrics = export(model_artifact, [], lambda engine: Scripted(folder, change), **QUICK).manifest.metrics
        return metrics["greedy_agreement"], metrics["first_token_agreement"]

    assert figures(lambda ids: str(decode(ids))) == (1, 1)
    agreement, first = figures(lambda ids: str(decode(ids[:1])) + " otherwise, all of it")
    assert 0 < agreement < 0.5 and first == 1
    with pytest.raises(ModelError, match="only 0% of the prompts have the same first greedy token"):
        figures(lambda ids: "§" + str(decode(ids)))


def test_what_was_proved_stands_in_manifest_and_card(model_artifact: Artifact, tmp_path: Path) -> None:
    folder = model_artifact.local_folder("model")
    decode = AutoTokenizer.from_pretrained(folder).decode
    engine = Scripted(folder, lambda ids: str(decode(ids)))
    made = export(
        model_artifact, [], lambda settings: engine, **QUICK, gguf=["q4_0"], llama_cpp=str(tmp_path), licence="mit"
    )
    metrics = made.manifest.metrics
    assert metrics["proof"] == {"largest": 0.0, "divergence": 0.0, "agreement": 1.0, "allowed": 1e-3}
    assert "there is no convert_hf_to_gguf.py" in metrics["gguf"]["q4_0"]["left_out"]
    card = (made.local_folder() / "model" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n") and "by 0.0e+00 nats at most (allowed: 1e-03)" in card
    assert "GGUF q4_0: not made: there is no convert_hf_to_gguf.py" in card


def test_a_model_that_vllm_has_not_is_exported_with_the_reason(model_artifact: Artifact, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    model = build_model(
        model_config("tinystories-1m", vocab_size=1024, num_layers=2, attention_types=[[["global", "local"], 1]]),
        seed=0,
    )
    artifact = Artifact(store, "artifacts/pretrain")
    write_hf_folder(model, artifact.local_folder("model"), model_artifact.local_folder("model"))
    finish(artifact, "pretrain", "model", {}, files=["model/config.json"])

    def no_engine(settings: Any) -> Any:
        raise AssertionError("no engine is asked")

    metrics = export(artifact, [], no_engine, **QUICK).manifest.metrics
    assert metrics["not_served"].startswith("vLLM has no GPT-Neo")
    assert {sample["engine"] for sample in metrics["samples"]} == {"transformers"} and metrics["proof"][
        "largest"
    ] == 0.0


def test_agreement_counts_tokens_up_to_the_first_difference(model_artifact: Artifact) -> None:
    folder = model_artifact.local_folder("model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("def add(self, other):", add_special_tokens=False)["input_ids"]
    begun = str(tokenizer.decode(ids[:3]))
    assert greedy_agreement(folder, [ids], [begun]) == (3 / len(ids), 1.0)
    odd: list[Any] = [
        tokenizer.convert_tokens_to_ids(letter) for letter in "def"
    ]  # written letter by letter: one token when read
    assert greedy_agreement(folder, [odd], ["def"]) == (1.0, 1.0)
    assert greedy_agreement(folder, [[], ids, []], ["", "", "def"]) == (0.0, 1 / 3)


@pytest.mark.slow
def test_transformers_and_vllm_write_the_same_greedy_words(model_artifact: Artifact, ray_cluster: None) -> None:
    sampling = {"max_tokens": 12, "temperature": 0.8}
    exported = export(model_artifact, [], serving={"kind": "vllm", "max_num_seqs": 8}, sampling=sampling)
    metrics = exported.manifest.metrics
    assert {sample["engine"] for sample in metrics["samples"]} == {"transformers", "vllm"}
    assert len(metrics["samples"]) == 15 and metrics["first_token_agreement"] >= 0.5
    card = (exported.local_folder() / "model" / "README.md").read_text()
    assert "`pretrain` (test), digest" in card and '"loss": 2.5' in card
