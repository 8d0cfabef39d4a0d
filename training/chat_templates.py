"""Chat templates that a tokenizer is given: how a conversation becomes text, and what of it the assistant says.

There is one template per model, the tokenizer's own: packing, tuning, `hornbook chat` and engines all render with it.
`{% generation %}` marks what the assistant says, its end included, so that tuning knows what to train on. A role that a
template does not know is an error. With a form of calls a template also takes `tools`, `tool_calls` and the role `tool`, as
OpenAI's interface has them, and writes them as the kind `function-calls` does.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hornbook.tool_calls import HOW_TO_WRITE, TOOLS_FOLLOW, WRITE_NOTHING_ELSE, Form

TemplateName = Literal["phi-3", "chatml", "question-answer", "question-answer-zh"]


@dataclass(frozen=True)
class Turns:
    """What stands around the turns of a conversation.

    Attributes:
        tokens: special tokens that it needs beside end-of-text.
        system, user, assistant: what opens a turn of each.
        end: what closes a turn; the assistant learns to write it. Empty: the last answer ends with end-of-text, others
            with nothing (within a conversation end-of-text would begin another document).
    """

    tokens: tuple[str, ...]
    system: str
    user: str
    assistant: str
    end: str


TEMPLATES: Mapping[str, Turns] = {
    "phi-3": Turns(
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), "<|system|>\n", "<|user|>\n", "<|assistant|>\n", "<|end|>"
    ),
    "chatml": Turns(
        ("<|im_start|>", "<|im_end|>"), "<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"
    ),
    "question-answer": Turns((), "", "##Question:\n", "##Answer:\n", ""),
    "question-answer-zh": Turns((), "", "##提问:\n", "##回答:\n", ""),
}  # fmt: skip
"""phi-3 (arXiv 2404.14219); ChatML (PhoneLM and many others); Phi2-mini-Chinese, whose system prompt bears no mark."""

CONVERSATION = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ ASSISTANT }}{% generation %}{{ message['content'] + END }}{% endgeneration %}{{ BEHIND_ANSWER }}"
    "{% elif message['role'] == 'user' %}{{ USER + message['content'] + BEHIND }}"
    "{% elif message['role'] == 'system' %}{{ SYSTEM + message['content'] + BEHIND }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ASSISTANT }}{% endif %}"
)


def chat_template(name: TemplateName, calls: Form | None = None) -> str:
    """Return a template in Jinja, as transformers and vLLM read it.

    Args:
        name: one of TEMPLATES.
        calls: also take tools and their calls, in this form.
    """
    turns = TEMPLATES[name]
    words = {
        "ASSISTANT": _literal(turns.assistant),
        "USER": _literal(turns.user),
        "SYSTEM": _literal(turns.system),
        "END": _literal(turns.end) if turns.end else "(eos_token if loop.last else '')",
        "BEHIND_ANSWER": _literal("\n") if turns.end else "'' if loop.last else '\\n'",
        "BEHIND": _literal(turns.end + "\n"),
    }
    return (_with_calls(calls) if calls else "") + _filled(CONVERSATION, words)


def end_of_turn(tokenizer: Any) -> int | None:
    """Return the token that ends an answer in a tokenizer's chat template, as far as the template marks answers."""
    if "{% generation %}" not in (tokenizer.chat_template or ""):
        return None
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
    )  # fmt: skip
    said = [token for token, own in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True) if own]
    return int(said[-1]) if said and said[-1] in tokenizer.all_special_ids else None


def _with_calls(form: Form) -> str:
    """Return what turns tools and calls into plain messages, before the conversation is rendered."""
    text = (importlib.resources.files("training") / "chat_templates.calls.jinja").read_text(encoding="utf-8")
    words = {
        "FORM": _literal(form),
        "TOOLS_FOLLOW": _literal(TOOLS_FOLLOW),
        "HOW_TO_WRITE": _literal(f"{HOW_TO_WRITE[form]} {WRITE_NOTHING_ELSE}"),
    }
    return _filled("".join(line.strip() for line in text.splitlines()), words)


def _filled(template: str, words: Mapping[str, str]) -> str:
    """Return a template with its words in capitals replaced."""
    return re.sub("|".join(rf"\b{word}\b" for word in words), lambda match: words[match[0]], template)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
