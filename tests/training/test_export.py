"""Exported folders: the trainer's logits, no remote code, and real engines on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from corpus import finish, python_documents

from hornbook.artifact import Artifact
from hornbook.errors import ModelError
from hornbook.events import Events
from hornbook.settings import validate
from hornbook.stage import StageContext
from hornbook.store import Store
from training.export import Export
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


def export(source: Artifact, pools: list[Any], **settings: Any) -> Artifact:
    from hornbook.engines.pool import EnginePool

    def open_engine(engine: Any) -> Any:
        pools.append(EnginePool(engine))
        return pools[-1].handle()

    store = source.store
    artifact = Artifact(store, "artifacts/export")
    context = StageContext(
        artifact=artifact, inputs={"model": [source]}, input_stages={"model": ["pretrain"]}, stage="export", seed=0,
        run="test", events=Events(store, "runs/test"), stop_requested=lambda: False, open_engine=open_engine,
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


@pytest.mark.slow
def test_transformers_and_vllm_write_the_same_greedy_words(model_artifact: Artifact, ray_cluster: None) -> None:
    sampling = {"max_tokens": 12, "temperature": 0.8}
    exported = export(model_artifact, [], serving={"kind": "vllm", "max_num_seqs": 8}, sampling=sampling)
    metrics = exported.manifest.metrics
    assert {sample["engine"] for sample in metrics["samples"]} == {"transformers", "vllm"}
    assert len(metrics["samples"]) == 15 and metrics["greedy_agreement"] >= 0.5
    card = (exported.local_folder() / "model" / "README.md").read_text()
    assert "`pretrain` (test), digest" in card and '"loss": 2.5' in card
