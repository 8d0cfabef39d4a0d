"""Loss on held-out documents: equal to plain transformers', bytes that are the text's own, windows spread evenly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import corpus, finish, python_documents
from in_process import finished
from torch.nn import functional

from hornbook.artifact import Artifact
from hornbook.documents import Document, content_key
from hornbook.errors import ModelError
from hornbook.store import Store
from training.evaluate_loss import EvaluateLoss, EvaluateLossSettings, LossScorer, token_bytes
from training.hf_folder import write_hf_folder
from training.presets import build_model, model_config
from training.tokenizer import as_hugging_face, train_bpe

CONTEXT, VOCABULARY = 32, 512
ODD = "naïve 你好 😀 <|endoftext|> is text here\n" * 9


def make_model(folder: Path, seed: int) -> None:
    """Write an untrained model of one narrow block with a byte-level tokenizer."""
    tokenizer = as_hugging_face(train_bpe(iter([document.text for document in python_documents(5)]), VOCABULARY), 99)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = model_config(
        "phi-demo-3m", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_attention_heads=2,
        num_hidden_layers=1, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    write_hf_folder(build_model(config, seed), folder / "model", folder / "tokenizer")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder, seed=0)
    return folder / "model"


def plainly(scorer: LossScorer, ids: list[int], windows: list[int]) -> float:
    """Return what transformers itself says that some windows of a document's ids cost, in nats."""
    nats = 0.0
    for window in windows:
        cut = torch.tensor([ids[window * CONTEXT : (window + 1) * CONTEXT + 1]])
        with torch.no_grad():
            logits = scorer.model.model(cut[:, :-1]).logits
        nats += functional.cross_entropy(logits[0], cut[0, 1:], reduction="sum").item()
    return nats


def test_a_whole_text_costs_what_transformers_says_and_has_its_own_bytes(model: Path) -> None:
    scorer = LossScorer(model, EvaluateLossSettings(windows=0))
    nats, tokens, size = scorer.loss(ODD)
    ids = [scorer.eos, *scorer.backend.encode(ODD, add_special_tokens=False).ids]
    assert size == len(ODD.encode()) and tokens == len(ids) - 1 and tokens > 3 * CONTEXT
    assert nats == pytest.approx(plainly(scorer, ids, list(range(-(-tokens // CONTEXT)))), rel=1e-5)
    assert scorer.loss("") == (0.0, 0, 0)


def test_windows_are_spread_over_the_document(model: Path) -> None:
    scorer = LossScorer(model, EvaluateLossSettings(windows=3))
    text = "".join(f"value_{number} = {number} * {number}\n" for number in range(200))
    ids = [scorer.eos, *scorer.backend.encode(text, add_special_tokens=False).ids]
    count = -(-(len(ids) - 1) // CONTEXT)
    nats, tokens, size = scorer.loss(text)
    assert tokens == 3 * CONTEXT and 0 < size < len(text) and count > 9
    assert nats == pytest.approx(plainly(scorer, ids, [0, count // 3, 2 * count // 3]), rel=1e-6)
    assert nats != pytest.approx(plainly(scorer, ids, [0, 1, 2]), rel=1e-6)


def test_a_tokenizer_whose_bytes_are_unknown_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="not byte-level"):
        token_bytes(words, Path("somewhere"))


def test_every_document_is_scored_with_every_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hornbook.cluster.expected_gpus", lambda: 0.0)  # there is no Ray to ask
    store = Store(str(tmp_path))
    models = []
    for seed in (0, 1):
        artifact = Artifact(store, f"artifacts/model-{seed}")
        make_model(artifact.local_folder(), seed)
        files = [f"model/{name}" for name, _ in store.files(f"{artifact.folder}/model")]
        finish(artifact, f"model-{seed}", "model", {}, files=files)
        models.append(artifact)
    documents = python_documents(12)
    documents[3] = Document(documents[3].id, content_key(b"3"), "", "web", "code")
    documents[4] = Document(documents[4].id, content_key(b"4"), "x = 1\n", "web", "code", meta={"distribution": "four"})
    corpora = [corpus(store, "web", documents), corpus(store, "other", python_documents(2, "other"))]
    made = finished(
        EvaluateLoss("losses", EvaluateLossSettings(windows=2), seed=0), store, models=models, documents=corpora
    )
    rows = [row for table in made.tables() for row in table.to_pylist()]
    assert made.manifest.counts["planned"] == 28 and made.manifest.reasons == {"empty": 2}
    assert len({row["id"] for row in rows}) == len(rows) == 26
    assert {(row["model"], row["corpus"]) for row in rows} == {
        (model.manifest.digest, name) for model in models for name in ("web", "other")
    }
    assert {row["group"] for row in rows} == {"web", "other", "four"}
    nats = {digest: sum(row["nats"] for row in rows if row["model"] == digest) for digest in {r["model"] for r in rows}}
    assert len({round(value, 3) for value in nats.values()}) == 2  # each with its own weights
    figures = made.manifest.metrics["bits_per_byte"]
    own = [row for row in rows if row["model"] == models[0].manifest.digest and row["corpus"] == "web"]
    expected = sum(row["nats"] for row in own) / np.log(2) / sum(row["bytes"] for row in own)
    assert figures["model-0"]["web"] == pytest.approx(expected, abs=1e-4)
