"""Packing without Ray: tokenizers that cannot serve, and best-fit rows from a recipe's settings back to the documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from corpus import chat_documents, corpus, python_documents
from finished_artifact import finish
from in_process import context_of, finished

from hornbook.artifact import Artifact
from hornbook.errors import DataError, ModelError, RecipeError
from hornbook.store import Store
from training.pack import Pack, PackSettings
from training.pretrain import Pretrain, PretrainSettings
from training.tokenizer import as_hugging_face, load_tokenizer, train_bpe


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HORNBOOK_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def web(store: Store) -> Artifact:
    return corpus(store, "web", python_documents(30))


def tokenizer(store: Store, web: Artifact, name: str, **changes: str | None) -> Artifact:
    """Return a tokenizer's artifact with some of its fields changed."""
    artifact = Artifact(store, f"artifacts/{name}")
    folder = store.local / artifact.folder / "tokenizer" if store.local else Path()
    texts = (text for table in web.tables() for text in table.column("text").to_pylist())
    made = as_hugging_face(train_bpe(texts, 512), 2048)
    for field, value in changes.items():
        setattr(made, field, value)
    made.save_pretrained(folder)
    finish(artifact, "tokenizer", kind="tokenizer", files=[f"tokenizer/{path.name}" for path in folder.iterdir()])
    return artifact


def test_a_tokenizer_without_an_end_of_text_is_refused(store: Store, web: Artifact) -> None:
    endless = tokenizer(store, web, "endless", eos_token=None)
    with pytest.raises(ModelError, match="has no end-of-text token"):
        finished(Pack("pack-endless", PackSettings(), seed=1), store, documents=[web], tokenizer=[endless])


@pytest.mark.parametrize("template", [None, "{% for message in messages %}{{ message['content'] }}{% endfor %}"])
def test_a_tokenizer_without_a_template_that_marks_answers_is_refused(
    store: Store, web: Artifact, template: str | None
) -> None:
    name = "plain" if template else "mute"
    mute = tokenizer(store, web, name, chat_template=template)
    chats = corpus(store, f"chats-{name}", chat_documents(5))
    stage = Pack(f"pack-{name}", PackSettings(form="chat"), seed=1)
    with pytest.raises(ModelError, match="has no chat template that marks"):
        finished(stage, store, documents=[chats], tokenizer=[mute])


def test_conversations_that_the_template_refuses_are_rejects(store: Store, web: Artifact) -> None:
    template = (
        "{% for message in messages %}{% if '3' in message['content'] %}{{ raise_exception('no threes') }}{% endif %}"
        "{% generation %}{{ message['content'] }}{% endgeneration %}{% endfor %}"
    )
    strict = tokenizer(store, web, "strict", chat_template=template)
    documents = chat_documents(20)
    chats = corpus(store, "chats-strict", documents)
    packed = finished(
        Pack("pack-strict", PackSettings(form="chat"), seed=1), store, documents=[chats], tokenizer=[strict]
    )
    assert packed.manifest.reasons == {"bad-chat": sum("3" in document.text for document in documents)}
    (reject, *_) = (row for table in packed.tables("rejects") for row in table.to_pylist())
    assert "no threes" in reject["detail"]


def test_best_fit_is_a_setting_and_every_token_is_traced(store: Store, web: Artifact) -> None:
    words = tokenizer(store, web, "words")
    packed = finished(Pack("pack-web", PackSettings(), seed=1), store, documents=[web], tokenizer=[words])
    values = {
        "packing": "best-fit", "phases": [{"name": "all", "tokens": {"web": 40_000}}], "epoch_caps": {"web": 9},
        "loop": {"global_batch": 4, "sequence_length": 256},
    }  # fmt: skip
    stage = Pretrain("pretrain", PretrainSettings.model_validate(values), seed=1)
    context = context_of(stage, store, tokens=[packed], tokenizer=[words])
    context.input_stages = {"tokens": ["web"], "tokenizer": ["words"]}
    job = stage._job(context)
    source = job.open("train")["web"]
    mixture = job.mixture(job.open("train"))
    assert source.rows == "best-fit" and job.document_mask
    assert job.steps == mixture.steps == round(40_000 / source.row_tokens / 4)
    loaded = load_tokenizer(words.local_folder("tokenizer"))
    loaded.backend_tokenizer.encode_special_tokens = True
    texts = {row["key"]: row["text"] for table in web.tables() for row in table.to_pylist()}
    checked = 0
    for step in range(1, job.steps + 1, 7):
        for row, sequence in enumerate(mixture.batch(step - 1).sequence):
            tokens, trained = source.read(np.array([sequence]))
            for position in (1, 100, 200, 254):
                if not trained[0, position] or tokens[0, position] == 0:
                    continue
                found = stage.locate_token(context, step, row, position)
                ids = loaded.backend_tokenizer.encode(texts[found.key], add_special_tokens=False).ids
                assert ids[found.offset] == tokens[0, position]
                checked += 1
    assert checked > 20


def test_impossible_phases_are_named(store: Store, web: Artifact) -> None:
    for phases, message in (
        ([{"name": "all"}], "needs steps"),
        ([{"name": "all", "steps": 5, "learning_rate": 1e-4}], "has a learning_rate and no schedule"),
    ):
        with pytest.raises(ValueError, match=message):
            PretrainSettings.model_validate({"phases": phases})
    words = tokenizer(store, web, "few-words")
    packed = finished(Pack("pack-few", PackSettings(source="few"), seed=1), store, documents=[web], tokenizer=[words])
    for options, error, message in (
        ({"phases": [{"name": "all", "steps": 10**6}]}, RecipeError, "4 allowed"),
        ({"phases": [{"name": "all", "tokens": {"nobody": 1e6}}]}, RecipeError, "weighs nobody, which is no source"),
        ({"phases": [{"name": "all", "steps": 1}], "epoch_caps": {"x": 1}}, RecipeError, "epoch_caps names x"),
        ({"phases": [{"name": "all", "steps": 1}], "loop": {"sequence_length": 10**6}}, RecipeError, "no source holds"),
    ):
        stage = Pretrain("p", PretrainSettings.model_validate(options), seed=1)
        context = context_of(stage, store, tokens=[packed], tokenizer=[words])
        job = stage._job(context)
        with pytest.raises(error, match=message):
            job.mixture(job.open("train"))
    chats = corpus(store, "few-chats", chat_documents(5))
    talk = finished(Pack("talk", PackSettings(form="chat"), seed=1), store, documents=[chats], tokenizer=[words])
    with pytest.raises(DataError, match="holds chat, this stage trains on text"):
        stage._job(context_of(stage, store, tokens=[talk], tokenizer=[words]))
