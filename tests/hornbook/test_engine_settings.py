"""What the engine's settings ask of vLLM, and what they refuse before a row is lost to it."""

from __future__ import annotations

import asyncio
import importlib.util
from typing import Any

import pytest

from hornbook import models
from hornbook.engines.interface import EngineSettings, Reply, Request, Sampling
from hornbook.engines.vllm_engine import VLLMEngine, engine_arguments
from hornbook.errors import EngineError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({}, {"enable_prefix_caching": True, "block_size": 32, "speculative_config": None}),
        ({"prefix_caching": False}, {"enable_prefix_caching": False}),
        ({"kv_block_tokens": 64}, {"block_size": 64}),
        ({"max_num_batched_tokens": 4096}, {"max_num_batched_tokens": 4096}),
        (
            {"max_num_batched_tokens": 64, "max_model_len": 512},
            {"max_num_batched_tokens": 512},
        ),  # prompts are read whole
    ],
)
def test_settings_reach_vllm_on_a_cpu(settings: dict[str, Any], asked: dict[str, Any]) -> None:
    given = engine_arguments(EngineSettings(**settings), "folder")
    assert {name: given.get(name) for name in asked} == asked


@pytest.mark.slow
def test_speculation_reaches_vllm_and_suffix_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    ngram = engine_arguments(EngineSettings(speculation="ngram", speculative_tokens=3), "folder")["speculative_config"]
    assert (ngram["method"], ngram["num_speculative_tokens"]) == ("ngram", 3)
    suffix = EngineSettings(speculation="suffix")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name == "arctic_inference" else found(name, package),
    )
    with pytest.raises(EngineError, match="arctic-inference, which is not installed") as raised:
        engine_arguments(suffix, "folder")
    assert "pip install arctic-inference" in raised.value.cure
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: True if name == "arctic_inference" else found(name, package),
    )
    assert engine_arguments(suffix, "folder")["speculative_config"]["method"] == "suffix"


@pytest.mark.parametrize("sampling", [{"min_p": 0.1}, {"end_bias": 4}])
def test_sampling_that_speculation_cannot_do_stops_the_stage(sampling: dict[str, Any]) -> None:
    """vLLM would refuse each request by itself, and all rows would be rejects."""
    asked = Request(({"role": "user", "content": "Say hello."},), 0)
    with pytest.raises(EngineError, match=r"min_p nor sampling\.end_bias") as raised:
        asyncio.run(VLLMEngine(EngineSettings(speculation="ngram")).generate([asked], Sampling(**sampling)))
    assert "engine.speculation: none" in raised.value.cure


def test_a_conversation_that_the_chat_template_refuses_fails_alone() -> None:
    import transformers

    engine = VLLMEngine(EngineSettings())
    engine._tokenizer = transformers.AutoTokenizer.from_pretrained(models.resolve(engine.settings.model).path)
    user = {"role": "user", "content": "Say hello."}
    chats = [(user,), ({"role": "system", "content": "Be brief."}, user), (user,)]
    plain = engine._tokenize([Request(chat, 0) for chat in chats])
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    engine._tokenizer.chat_template = refuses + engine._tokenizer.chat_template
    first, failure, last = engine._tokenize([Request(chat, 0) for chat in chats])
    assert first == last == plain[0]
    assert isinstance(failure, Reply) and failure.finish_reason == "error" and "no system turns" in failure.error


def test_settings_that_affect_speed_alone_leave_the_identity_as_it_is() -> None:
    fast = EngineSettings(
        prefix_caching=False,
        kv_block_tokens=32,
        prefix_order=True,
        speculation="ngram",
        speculative_tokens=2,
        max_num_batched_tokens=4096,
        price_per_million_prompt_tokens=1,
        max_money=3,
    )
    assert fast.identity() == EngineSettings().identity()
