"""TRL on the same conversations and pairs: the tokens that tuning learns from, and the loss and gradients of preferences."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus import corpus, preference_documents, python_documents
from finished_artifact import finish
from in_process import finished

from hornbook.artifact import Artifact
from hornbook.chat import Message, chat_meta, plain_text
from hornbook.documents import Document, content_key, document_id
from hornbook.settings import validate
from hornbook.stage import Stage
from hornbook.store import Store
from training.chat_templates import TEMPLATES, TemplateName
from training.loader import inputs_and_targets
from training.pack import Pack
from training.packed import shard_index
from training.preference_model import PreferenceModel
from training.presets import build_model, model_config
from training.shards import TokenSource
from training.tokenizer import as_hugging_face, load_tokenizer, train_bpe

LENGTH = 200
SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tokenizer(store: Store, template: TemplateName) -> Artifact:
    artifact = Artifact(store, f"artifacts/tokenizer-{template}")
    texts = iter([document.text for document in python_documents(5)])
    as_hugging_face(train_bpe(texts, 600, template=template), 256, template).save_pretrained(
        artifact.local_folder() / "tokenizer"
    )
    finish(artifact, "tokenizer", kind="tokenizer")
    return artifact


def packed(store: Store, form: str, documents: list[Document], words: Artifact, rows: Any) -> TokenSource:
    settings = validate(Pack.Settings, {"form": form, "validation_share": 0, "source": form}, "pack")
    stage: Stage = Pack(f"pack-{Path(words.folder).name}", settings, 0)
    made = finished(
        stage, store, documents=[corpus(store, f"of-{Path(words.folder).name}", documents)], tokenizer=[words]
    )
    return TokenSource(made.local_folder(), "train", LENGTH, rows, shard_index(made))


def conversations() -> list[list[Message]]:
    """One to three questions each, some below a system prompt."""
    found = []
    for number in range(8):
        chat = [Message(role="system", content="Do sums.")] if number % 2 else []
        for more in range(1 + number % 3):
            chat.append(Message(role="user", content=f"What is {number} plus {more}?"))
            chat.append(Message(role="assistant", content=f"It is {number + more}.\nSure."))
        found.append(chat)
    return found


def small_model(words: Artifact) -> Any:
    return build_model(model_config("phi-demo-3m", vocab_size=640, **SMALL), seed=0)


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_tuning_learns_from_the_tokens_that_trl_learns_from(tmp_path: Path, template: TemplateName) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    store = Store(str(tmp_path))
    words = tokenizer(store, template)
    chats = conversations()
    documents = [
        Document(
            document_id(row), content_key(str(chat).encode()), plain_text(chat), "sums", "chat", meta=chat_meta(chat)
        )
        for row, chat in enumerate(chats)
    ]
    source = packed(store, "chat", documents, words, "documents")
    trainer = SFTTrainer(
        small_model(words),
        args=SFTConfig(str(tmp_path / "trl"), assistant_only_loss=True, use_cpu=True, bf16=False, report_to=[], max_length=None,
                       remove_unused_columns=False),
        train_dataset=Dataset.from_list([{"messages": chat} for chat in chats]),
        processing_class=load_tokenizer(words.local_folder("tokenizer")),
    )  # fmt: skip
    dataset: Any = trainer.train_dataset
    theirs = trainer.data_collator([dataset[row] for row in range(len(chats))])
    tokens, trained = source.read(np.arange(len(chats)))
    for row in range(len(chats)):
        length = int(theirs["attention_mask"][row].sum())
        assert tokens[row, :length].tolist() == theirs["input_ids"][row, :length].tolist()
        assert trained[row, :length].tolist() == (theirs["labels"][row, :length] != -100).tolist()
        assert not trained[row, length:].any() and trained[row].sum() > 8


def test_the_loss_and_gradients_of_pairs_are_trls(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    store = Store(str(tmp_path))
    words = tokenizer(store, "phi-3")
    source = packed(store, "preference", preference_documents(6), words, "pairs")
    tokens, trained = source.read(np.arange(6))
    pairs = []
    for row in range(0, 12, 2):
        start, ends = int(trained[row].argmax()), [int(np.flatnonzero(trained[row + side])[-1]) + 1 for side in (0, 1)]
        pairs.append(
            {
                "prompt_ids": tokens[row, :start].tolist(),
                "chosen_ids": tokens[row, start : ends[0]].tolist(),
                "rejected_ids": tokens[row + 1, start : ends[1]].tolist(),
            }
        )
    former = small_model(words)
    model = copy.deepcopy(former)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.02
            )
    ours = PreferenceModel(copy.deepcopy(model), 0, beta=0.3)
    inputs, targets = (torch.from_numpy(array) for array in inputs_and_targets(tokens, trained))
    with torch.no_grad():
        reference = PreferenceModel(former, 0, 0.3)(inputs, targets)
    loss, right, margin = ours(inputs, targets, reference.view(torch.int32)) / 6
    loss.backward()

    trainer = DPOTrainer(
        model,
        ref_model=copy.deepcopy(former),
        args=DPOConfig(str(tmp_path / "trl"), beta=0.3, use_cpu=True, bf16=False, report_to=[], max_length=None,
                       gradient_checkpointing=False),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=load_tokenizer(words.local_folder("tokenizer")),
    )  # fmt: skip
    theirs = trainer.compute_loss(model, trainer.data_collator(pairs))
    theirs.backward()
    assert abs(float(loss) - np.log(2)) > 0.01
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    figures = trainer._metrics["train" if model.training else "eval"]
    assert right.item() == pytest.approx(figures["rewards/accuracies"][-1])
    assert margin.item() == pytest.approx(figures["rewards/margins"][-1], rel=1e-4)
    for (name, mine), other in zip(ours.model.named_parameters(), model.parameters(), strict=True):
        assert mine.grad is not None and other.grad is not None
        assert (mine.grad - other.grad).norm() <= 1e-4 * other.grad.norm() + 1e-9, name
