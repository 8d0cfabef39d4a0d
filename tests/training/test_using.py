"""A tuned model in use: a conversation in the terminal, and vLLM's server on its folder, asked through OpenAI's client."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpus import python_documents

from hornbook.errors import ModelError
from hornbook.sampling import load_model
from hornbook.serving import served_name, server
from hornbook.store import Store
from hornbook.terminal_chat import Conversation
from training.hf_folder import write_hf_folder
from training.presets import build_model, model_config
from training.tokenizer import as_hugging_face, train_bpe

CONTEXT = 128


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained demo model with ChatML."""
    folder = tmp_path_factory.mktemp("made")
    texts = iter([document.text for document in python_documents(20)])
    as_hugging_face(train_bpe(texts, 1024, template="chatml"), CONTEXT, "chatml").save_pretrained(folder / "tokenizer")
    made = build_model(model_config("phi-demo-3m", vocab_size=1024, max_position_embeddings=CONTEXT), seed=0)
    write_hf_folder(made, folder / "small", folder / "tokenizer")
    return folder / "small"


def test_a_conversation_remembers_forgets_and_ends(model: Path, tmp_path: Path) -> None:
    conversation = Conversation(load_model(Store(str(tmp_path)), str(model)), "Be kind.", max_tokens=8, temperature=0)
    said: list[str] = []
    remarks: list[str] = []
    conversation.converse(["Hi", "", "/what", "Why?", "word " * 200], said.append, remarks.append)
    assert [message["role"] for message in conversation.messages] == ["system", *["user", "assistant"] * 2]
    assert "".join(said).count("\n") >= 2 and len(said) > 4
    assert "/exit" in remarks[0] and "context of 128 tokens" in remarks[1]
    first = conversation.messages[2]["content"]
    conversation.converse(["/new", "Hi"], said.append, remarks.append)
    assert [message["content"] for message in conversation.messages] == ["Be kind.", "Hi", first]
    conversation.converse(["/system", "/exit", "Hi"], said.append, remarks.append)
    assert conversation.messages == []
    conversation.converse(["/system Be short.", *["Tell me more of it, please."] * 8], said.append, remarks.append)
    assert conversation.messages[0]["content"] == "Be short." and len(conversation.messages) < 12


def test_a_model_without_a_template_does_not_chat(model: Path, tmp_path: Path) -> None:
    loaded = load_model(Store(str(tmp_path)), str(model))
    loaded.tokenizer.chat_template = None
    with pytest.raises(ModelError, match="has no chat template"):
        Conversation(loaded)


def test_the_servers_command_fits_machine_and_model(model: Path, tmp_path: Path) -> None:
    found = server(model, "mine", "127.0.0.1", 8123, 4096, on_cpu=True, more=["--api-key", "a b"])
    words = shlex.split(str(found))
    assert {"VLLM_NO_USAGE_STATS=1", "--enforce-eager", "--no-enable-chunked-prefill", "a b"} <= set(words)
    assert words[words.index("--max-model-len") + 1] == str(CONTEXT)
    assert words[words.index("--model") + 1] == str(model) and words[words.index("--served-model-name") + 1] == "mine"
    assert "--enforce-eager" not in server(model, "mine", "127.0.0.1", 8123, None, on_cpu=False).command
    assert served_name("latest/export", model) == "export" and served_name(str(model), model) == "small"
    with pytest.raises(ModelError, match="no model folder"):
        server(tmp_path, "mine", "127.0.0.1", 8123, None, on_cpu=True)
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neo"}')
    with pytest.raises(ModelError, match="vLLM has no GPT-Neo"):
        server(tmp_path, "mine", "127.0.0.1", 8123, None, on_cpu=True)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_act": "relu"}')
    command = server(tmp_path, "mine", "127.0.0.1", 8123, None, on_cpu=True).command
    assert command[command.index("--model-impl") + 1] == "transformers", "vLLM's own Llama gates with SiLU only"
    assert "--model-impl" not in words


@pytest.mark.slow
def test_the_server_answers_openais_client(model: Path, tmp_path: Path) -> None:
    import openai

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "hornbook.cli", "serve", str(model), "--name", "mine", "--port", str(port)]
    environment = {**os.environ, "HORNBOOK_STORE": str(tmp_path / "store"), "VLLM_LOGGING_LEVEL": "ERROR"}
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                names = [found.id for found in client.models.list()]
                break
            except openai.APIConnectionError:
                time.sleep(0.5)
        assert names == ["mine"]
        reply = client.chat.completions.create(
            model="mine", messages=[{"role": "user", "content": "Hi"}], max_tokens=8, temperature=0
        )
        loaded = load_model(Store(str(tmp_path)), str(model))
        assert reply.usage is not None and reply.usage.prompt_tokens == len(
            loaded.tokenizer.apply_chat_template(
                [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=True
            )["input_ids"]
        )
        assert reply.choices[0].message.content
    finally:
        process.terminate()
        process.wait(60)
