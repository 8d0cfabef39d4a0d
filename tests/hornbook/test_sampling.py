"""`hornbook sample`: a model that refuses to write is said at once, and a chat goes on when the context is full."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hornbook.errors import ModelError
from hornbook.sampling import stream
from hornbook.store import Store

CONTEXT = 64
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} . {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random chat model of a few thousand parameters and 64 positions, as a Hugging Face folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    words = ["<unk>", "</s>", "user", "assistant", ":", ".", *(f"w{number}" for number in range(58))]
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=None, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """Return or raise what `work` does; fail when it takes longer."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, f"no answer in {seconds} s"
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def sample(folder: Path, tmp_path: Path, prompt: str | None, max_tokens: int, plain: bool = False) -> Iterator[str]:
    return stream(Store(str(tmp_path)), str(folder), prompt, max_tokens, 0.0, 0.9, 0, plain)


def test_a_model_that_refuses_to_write_is_an_error_and_no_hang(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="max_new_tokens"):
        within(60, lambda: list(sample(model, tmp_path, "w1 w2", max_tokens=0)))


def test_text_streams_in_pieces(model: Path, tmp_path: Path) -> None:
    pieces = within(60, lambda: list(sample(model, tmp_path, "w1 w2", max_tokens=12, plain=True)))
    assert pieces[0] == "w1 w2"
    assert len("".join(pieces[1:]).split()) == 12
    assert len(pieces) > 4


def test_a_chat_forgets_its_oldest_turns_when_the_context_is_full(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten turns of 20 tokens and more do not fit into 64 positions; each is answered all the same."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("w1 w2 w3 w4 w5\n" * 10))
    text = within(60, lambda: "".join(sample(model, tmp_path, None, max_tokens=12)))
    answers = text.splitlines()
    assert len(answers) == 10
    assert all(len(answer.split()) == 12 for answer in answers)


def test_a_prompt_that_fills_the_context_is_said(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="context of 64 tokens"):
        within(60, lambda: list(sample(model, tmp_path, "w1 " * 80, max_tokens=5)))
