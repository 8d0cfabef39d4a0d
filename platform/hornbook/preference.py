"""The one record of a preference, from generation to tuning: a prompt, the answer that is wanted, and one that is not.

It lies in a document's `meta`; the document's `text` is a rendering for people. As with chat records (hornbook.chat), training
renders the record with the tokenizer's own chat template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hornbook.chat import ROLES, Message, plain_text

DOCUMENT_KIND = "preference"


@dataclass(frozen=True)
class Preference:
    """A conversation that waits for the assistant, and two answers to it."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


def preference_meta(preference: Preference, **more: Any) -> dict[str, Any]:
    """Return the `meta` of a preference document; `more` says how the pair came to be, training does not read it."""
    return {
        **more,
        "prompt": [dict(message) for message in preference.prompt],
        "chosen": preference.chosen,
        "rejected": preference.rejected,
    }


def preference_text(preference: Preference) -> str:
    """Render a preference for people: the conversation, then both answers, a paragraph each."""
    answers = f"Chosen: {preference.chosen}\n\nRejected: {preference.rejected}"
    return f"{plain_text(preference.prompt)}\n\n{answers}"


def preference_of(meta: str) -> Preference:
    """Return the preference of a document from its `meta` JSON.

    Published sets write a prompt of one turn as a text, and an answer as a turn, alone or behind the prompt's: taken as meant.

    Raises:
        ValueError: there is none, its conversation does not wait for the assistant, or an answer is empty or both are the
            same; the message says which.
    """
    value = json.loads(meta)
    if not isinstance(value, Mapping) or not isinstance(value.get("prompt"), list | str):
        raise ValueError("no preference record in meta")
    prompt = value["prompt"]
    prompt = _conversation([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
    answers = [_answer(value.get(name), name, prompt) for name in ("chosen", "rejected")]
    if answers[0] == answers[1]:
        raise ValueError("chosen and rejected are the same text: there is nothing to prefer")
    return Preference(prompt, *answers)


def _answer(value: Any, name: str, prompt: Sequence[Message]) -> str:
    """Return an answer, be it a text or turns that end with it. Raises ValueError."""
    if isinstance(value, list):
        turns = [(turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else None for turn in value]
        if turns[:-1] not in ([], [(turn["role"], turn["content"]) for turn in prompt]):
            raise ValueError(f"{name}: the turns before its last are not the prompt")
        role, value = (turns[-1] if turns else None) or ("", None)
        if role != "assistant":
            raise ValueError(f"{name}: its last turn is not the assistant's")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: empty, or no text")
    return value


def _conversation(turns: Sequence[Any]) -> tuple[Message, ...]:
    """Return the turns as messages. Raises ValueError unless they are well formed and the user speaks last."""
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or turn.get("role") not in ROLES:
            raise ValueError(f"prompt, turn {number}: unknown role")
        if not isinstance(turn.get("content"), str) or not turn["content"].strip():
            raise ValueError(f"prompt, turn {number}: empty, or no text")
    if not turns or turns[-1]["role"] != "user":
        raise ValueError("prompt: its last turn is not the user's")
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in turns)
