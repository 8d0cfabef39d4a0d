"""Calls of tools, measured: what counts as right, and a model that has learned its calls by heart beside one that has not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from corpus import corpus, python_documents
from finished_artifact import finish
from in_process import finished

from hornbook.artifact import Artifact
from hornbook.chat import Message, chat_meta, plain_text
from hornbook.documents import Document, content_key, document_id
from hornbook.errors import DataError
from hornbook.settings import validate
from hornbook.store import Store
from training.evaluate_calls import EvaluateCalls, Wanted, wanted_calls
from training.hf_folder import write_hf_folder
from training.presets import build_model, model_config
from training.tokenizer import as_hugging_face, train_bpe

WEATHER = '[{"id": 0, "name": "weather", "arguments": {"city": "Rome", "days": 2}}]'
TOOLS: list[dict[str, Any]] = [
    {
        "name": "weather", "description": "Tell the weather.",
        "arguments": {"properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 2}}, "required": ["city"]},
        "returns": None, "examples": [],
    }
]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "readable", "right", "share"),
    [
        (WEATHER, True, True, 1.0),
        (' [{"name": "weather", "id": 0, "arguments": {"days": 2.0, "city": "Rome"}}]\n', True, True, 1.0),
        ('[{"id": 0, "name": "weather", "arguments": {"city": "Rome", "days": true}}]', True, False, 0.5),
        ('[{"id": 0, "name": "weather", "arguments": {"city": "rome", "days": 2}}]', True, False, 0.5),
        ('[{"id": 0, "name": "weather", "arguments": {"city": "Rome", "days": 2, "at": 1}}]', True, False, 2 / 3),
        ('[{"id": 0, "name": "wether", "arguments": {"city": "Rome", "days": 2}}]', True, False, 0.0),
        (WEATHER[:-1] + "," + WEATHER[1:].replace('"id": 0', '"id": 1'), True, False, 1.0),
        ("[]", True, False, 0.0),
        (WEATHER[:-4], False, False, 0.0),
        ("I cannot.", False, False, 0.0),
    ],
)  # fmt: skip
def test_a_call_is_right_if_tool_and_arguments_are(written: str, readable: bool, right: bool, share: float) -> None:
    found = Wanted(WEATHER, "json").compared(written)
    assert (not found["problem"], found["right"], found["calls"]) == (readable, right, 1)
    assert found["share"] == pytest.approx(share)


def test_defaults_may_be_left_out_and_no_call_can_be_right() -> None:
    chat = [Message(role="user", content="Weather in Rome?"), Message(role="assistant", content=WEATHER)]
    prompt, wanted = wanted_calls(json.dumps({**chat_meta(chat), "tools": TOOLS}))
    assert prompt == chat[:1]
    assert wanted.compared('[{"id": 3, "name": "weather", "arguments": {"city": "Rome"}}]')["right"]
    assert not Wanted(WEATHER, "json").compared('[{"id": 3, "name": "weather", "arguments": {"city": "Rome"}}]')[
        "right"
    ]
    none = Wanted("[]", "json")
    assert none.compared("[]")["right"] and not none.compared(WEATHER)["right"]
    assert Wanted('$result0 = f(a="x")$\n$result1 = g(b=result0)$', "code").compared(
        '$result0 = f(a="x")$\n$result1 = g(b=result0)$'
    )["right"]
    with pytest.raises(ValueError, match="last turn"):
        wanted_calls(json.dumps(chat_meta([*chat, chat[0]])))


CITIES = ("Rome", "Bonn", "Oslo", "Kyiv")


def request(city: str) -> list[Message]:
    call = json.dumps([{"id": 0, "name": "weather", "arguments": {"city": city}}])
    return [Message(role="user", content=f"Is it warm in {city}?"), Message(role="assistant", content=call)]


def model(store: Store, name: str, steps: int) -> Artifact:
    """A tiny model that has seen the requests `steps` times."""
    artifact = Artifact(store, f"artifacts/{name}")
    folder = artifact.local_folder()
    texts = [document.text for document in python_documents(5)] + [str(request(city)) for city in CITIES] * 20
    tokenizer = as_hugging_face(train_bpe(iter(texts), 700), 128)
    tokenizer.save_pretrained(folder / "tokenizer")
    network: Any = build_model(
        model_config("phi-demo-3m", vocab_size=704, hidden_size=64, intermediate_size=128, num_attention_heads=2,
                     num_hidden_layers=2, max_position_embeddings=128), seed=0,
    )  # fmt: skip
    rows = [tokenizer.apply_chat_template(request(city), return_dict=True)["input_ids"] for city in CITIES]
    inputs = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(steps):
        network(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    write_hf_folder(network, folder / "model", folder / "tokenizer")
    finish(artifact, "model", kind="sft", files=[f"model/{path.name}" for path in (folder / "model").iterdir()])
    return artifact


def test_a_model_that_knows_its_calls_is_told_from_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hornbook.cluster.expected_gpus", lambda: 0.0)  # asks Ray
    store = Store(str(tmp_path))
    documents = [
        Document(document_id(row), content_key(city.encode()), plain_text(request(city)), "calls", "chat",
                 meta={**chat_meta(request(city)), "tools": TOOLS, "form": "json"})
        for row, city in enumerate(CITIES)
    ]  # fmt: skip
    talk = [Message(role="user", content="Hi"), Message(role="assistant", content="Hello.")]
    documents.append(Document(document_id(4), content_key(b"talk"), "Hi", "calls", "chat", meta=chat_meta(talk)))
    made = corpus(store, "calls", documents)

    def figures(name: str, known: Artifact, **settings: Any) -> Any:
        values = {"validation_share": 1.0, "max_tokens": 40, "batch": 3} | settings
        stage = EvaluateCalls(name, validate(EvaluateCalls.Settings, values, name), 0)
        return finished(stage, store, model=[known], documents=[made])

    knows = model(store, "knows", 120)
    found = figures("known", knows)
    assert found.manifest.metrics == {
        "requests": 4, "accuracy": 1.0, "readable": 1.0, "soft_accuracy": 1.0,
        "by_form": {"json": {"requests": 4, "accuracy": 1.0, "readable": 1.0, "soft_accuracy": 1.0}},
    }  # fmt: skip
    assert found.manifest.reasons == {"no-calls": 1}
    before = figures("unknown", model(store, "new", 0)).manifest.metrics
    assert (before["requests"], before["accuracy"], before["readable"]) == (4, 0.0, 0.0)
    with pytest.raises(DataError, match="no request was asked"):
        figures("none", knows, validation_share=1e-9)
