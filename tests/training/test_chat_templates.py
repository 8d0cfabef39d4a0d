"""Chat templates: what they write, what they mark as the assistant's, and that tools and calls are written as our data has them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from hornbook.tool_calls import FORMS, Form, canonical_calls, render_calls, tool_prompt
from hornbook.tools import parse_catalogue
from training.chat_templates import TEMPLATES, TemplateName, end_of_turn
from training.tokenizer import as_hugging_face, train_bpe

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you."},
]
TEXT = {
    "phi-3": "<|endoftext|><|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n[Hello.<|end|>]\n"
    "<|user|>\nBye<|end|>\n<|assistant|>\n[See you.<|end|>]\n",
    "chatml": "<|endoftext|><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\n[Hello.<|im_end|>]\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n[See you.<|im_end|>]\n",
    "question-answer": "<|endoftext|>Be kind.\n##Question:\nHi\n##Answer:\n[Hello.]\n##Question:\nBye\n##Answer:\n"
    "[See you.<|endoftext|>]",
    "question-answer-zh": "<|endoftext|>Be kind.\n##提问:\nHi\n##回答:\n[Hello.]\n##提问:\nBye\n##回答:\n[See you.<|endoftext|>]",
}
CATALOGUE = """[
 {"name": "find_number", "description": "Find a number.", "returns": {"type": "string"},
  "arguments": {"properties": {"name": {"type": "string", "description": "Whose, \\"é\\"."}}, "required": ["name"]}},
 {"name": "call_number", "description": "Call.",
  "arguments": {"properties": {"number": {"type": "string"}, "speaker": {"type": "boolean"}, "times": {"type": "number"},
    "notes": {"type": "array", "items": {"type": "string"}}, "more": {"type": "object"}}, "required": ["number"]}}
]"""
CALLS: list[dict[str, Any]] = [
    {"id": 0, "name": "find_number", "arguments": {"name": 'Ann "é"\nB'}},
    {
        "id": 1, "name": "call_number",
        "arguments": {"number": "#0", "speaker": True, "times": 2.5, "notes": ["#0", "#07"], "more": {"a": None, "b": [1]}},
    },
]  # fmt: skip


@cache
def tokenizer(template: TemplateName, calls: Form | None = None) -> Any:
    return as_hugging_face(train_bpe(iter(["a kind word"]), 512, template=template), 256, template, calls)


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_a_conversation_is_written_and_marked(template: TemplateName) -> None:
    loaded = tokenizer(template)
    plain = loaded.apply_chat_template(CHAT, tokenize=False)
    assert plain == TEXT[template].replace("[", "").replace("]", "")
    found = loaded.apply_chat_template(CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    said: list[list[int]] = [[]]
    for token, own in zip(found["input_ids"], found["assistant_masks"], strict=True):
        if own:
            said[-1].append(token)
        elif said[-1]:
            said.append([])
    wanted = [part.split("]")[0] for part in TEXT[template].split("[")[1:]]
    assert [loaded.decode(part) for part in said if part] == wanted
    asked = loaded.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert plain.startswith(asked) and plain[len(asked) :].startswith("Hello.")
    end = loaded.convert_ids_to_tokens(end_of_turn(loaded))
    assert end == {"phi-3": "<|end|>", "chatml": "<|im_end|>"}.get(template, "<|endoftext|>")


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_an_unknown_role_is_an_error(template: TemplateName) -> None:
    with pytest.raises(Exception, match="unknown role wizard"):
        tokenizer(template).apply_chat_template([{"role": "wizard", "content": "x"}], tokenize=False)


@pytest.mark.parametrize("form", FORMS)
def test_tools_and_calls_are_written_as_the_generated_ones(form: Form) -> None:
    catalogue = parse_catalogue(CATALOGUE, "here")
    calls = canonical_calls(CALLS, catalogue)
    plain = [
        {"role": "system", "content": tool_prompt(list(catalogue), form)},
        {"role": "user", "content": "Call Ann."},
        {"role": "assistant", "content": render_calls(calls, form, catalogue)},
    ]
    tools = [
        {"type": "function", "function": {
            "name": tool.name, "description": tool.description, "parameters": tool.record()["arguments"],
            **({"returns": tool.returns} if tool.returns else {}),
        }}
        for tool in catalogue
    ]  # fmt: skip
    asked = [
        {"role": "user", "content": "Call Ann."},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": str(call["id"]), "type": "function", "function": {k: call[k] for k in ("name", "arguments")}}
            for call in calls
        ]},
        {"role": "tool", "content": "done"},
    ]  # fmt: skip
    loaded = tokenizer("chatml", form)
    expected = loaded.apply_chat_template(plain, tokenize=False)
    found = loaded.apply_chat_template(asked, tools=tools, tokenize=False)
    assert found == expected + "<|im_start|>user\nFunction response: done<|im_end|>\n"
    mask = loaded.apply_chat_template(
        asked[:2], tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    said = [token for token, own in zip(mask["input_ids"], mask["assistant_masks"], strict=True) if own]
    assert loaded.decode(said) == plain[2]["content"] + "<|im_end|>"
    own = loaded.apply_chat_template([{"role": "system", "content": "Be kind."}, asked[0]], tools=tools, tokenize=False)
    assert own.startswith("<|endoftext|><|im_start|>system\nBe kind.\n\n" + plain[0]["content"])
    assert loaded.apply_chat_template(CHAT, tokenize=False) == TEXT["chatml"].replace("[", "").replace("]", "")
    asked[1]["tool_calls"][0]["function"]["arguments"] = json.dumps({})  # type: ignore[index]
    with pytest.raises(Exception, match="must be an object"):
        loaded.apply_chat_template(asked, tools=tools, tokenize=False)
