"""The one chat record, used from generation to tuning: a list of messages in a document's `meta["chat"]`.

The record is what counts; the document's `text` is a plain rendering for people. Training renders the record with the
tokenizer's own chat template, so that a model never sees two templates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypedDict

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn: `role` is system, user or assistant."""

    role: str
    content: str


def chat_meta(messages: Sequence[Message]) -> dict[str, Any]:
    """Return the `meta` entry of a chat document."""
    return {"chat": [dict(message) for message in messages]}


def plain_text(messages: Sequence[Message]) -> str:
    """Render a chat for people: one paragraph a turn, the role first."""
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def chat_of(meta: str) -> list[Message]:
    """Return the chat record of a document from its `meta` JSON.

    Raises:
        ValueError: there is none, a role is unknown, a turn is empty, or no assistant speaks; the message says which.
    """
    chat = json.loads(meta).get("chat")
    if not isinstance(chat, list) or not chat:
        raise ValueError("no chat record in meta")
    for number, message in enumerate(chat):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(
                f"turn {number}: unknown role {message.get('role') if isinstance(message, dict) else message!r}"
            )
        if not str(message.get("content", "")).strip():
            raise ValueError(f"turn {number}: empty")
    if all(message["role"] != "assistant" for message in chat):
        raise ValueError("no assistant turn to learn from")
    return chat
