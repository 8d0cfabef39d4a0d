"""Rows of published instruction sets as chat records: one function a format, from a row to its conversations.

The formats are those that PhoneLM's data preparation reads, and the three that its table lists without a reader (APIGen,
Glaive, The Stack Smol). A function returns conversations (most rows give one), or a plain text where a set holds no talk. A
row that is not of its format raises ValueError with what is wrong; `checked_chat` then judges turns and roles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hornbook.chat import Message

Row = Mapping[str, Any]
Conversations = list[list[Message]] | str

NAMES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant", "gpt": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
"""What sets call the three roles."""

GLAIVE_TURN = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):")


def turn(role: str, content: Any, where: str) -> Message:
    """Return a turn. Raises ValueError: a role of no known name, or a content that is no text."""
    if NAMES.get(str(role).lower()) is None:
        raise ValueError(f"{where}: unknown role {role!r}")
    if not isinstance(content, str):
        raise ValueError(f"{where}: {type(content).__name__}, not text")
    return Message(role=NAMES[str(role).lower()], content=content.strip())


def field(row: Row, *names: str) -> str:
    """Return the first of some fields that a row has. Raises ValueError: it has none, or no text in it."""
    for name in names:
        if name in row:
            if not isinstance(row[name], str):
                raise ValueError(f"{name}: {type(row[name]).__name__}, not text")
            return row[name]
    raise ValueError(f"no field {' or '.join(names)} (there are: {', '.join(map(str, row))})")


def _exchange(question: str, answer: str, system: str = "") -> list[list[Message]]:
    turns = [("system", system)] if system.strip() else []
    turns += [("user", question), ("assistant", answer)]
    return [[turn(role, content, role) for role, content in turns]]


def _turns(found: Any, where: str, role: str, content: str) -> list[list[Message]]:
    if not isinstance(found, list):
        raise ValueError(f"{where} is no list of turns")
    return [
        [
            turn(each.get(role, ""), each.get(content), f"{where}, turn {number}")
            if isinstance(each, Mapping)
            else _no_turn(where, number)
            for number, each in enumerate(found)
        ]
    ]


def _no_turn(where: str, number: int) -> Message:
    raise ValueError(f"{where}, turn {number}: not an object")


def magicoder(row: Row) -> Conversations:
    """Magicoder's OSS-Instruct (problem, solution) and Evol-Instruct (instruction, response)."""
    return _exchange(field(row, "problem", "instruction"), field(row, "solution", "response"))


def instruction(row: Row) -> Conversations:
    """Sets with instruction, an optional input below it, and output: COIG-CQIA, Evol-Instruct-Code, MathInstruct."""
    below = row.get("input")
    asked = field(row, "instruction")
    if isinstance(below, str) and below.strip():
        asked = f"{asked.rstrip()}\n\n{below}"
    return _exchange(asked, field(row, "output"))


def share_gpt(row: Row) -> Conversations:
    """Turns with from and value: SlimOrca, OpenHermes 2.5 (whose rows may have a system prompt of their own)."""
    (found,) = _turns(row.get("conversations"), "conversations", "from", "value")
    prompt = row.get("system_prompt")
    if isinstance(prompt, str) and prompt.strip() and found and found[0]["role"] != "system":
        found.insert(0, turn("system", prompt, "system_prompt"))
    return [found]


def open_hermes(row: Row) -> Conversations:
    """OpenHermes 2.5 (turns) and the first OpenHermes (instruction, input, output)."""
    return share_gpt(row) if "conversations" in row else instruction(row)


def ultra_chat(row: Row) -> Conversations:
    """UltraChat: `data`, texts in turns beginning with the user; or `messages` with roles, as in its 200k selection."""
    if "messages" in row:
        return _turns(row["messages"], "messages", "role", "content")
    texts = row.get("data")
    if not isinstance(texts, list):
        raise ValueError(f"no field data or messages (there are: {', '.join(map(str, row))})")
    roles = ("user", "assistant")
    return [[turn(roles[number % 2], text, f"data, turn {number}") for number, text in enumerate(texts)]]


def commit_pack(row: Row) -> Conversations:
    """CommitPackFT: the commit's subject asks for a change of the old file, the new file is the answer."""
    old, language = field(row, "old_contents"), str(row.get("lang", "")).lower()
    asked = field(row, "subject", "message")
    if old.strip():
        asked = f"{asked}\n\n```{language}\n{old.rstrip()}\n```"
    return _exchange(asked, f"```{language}\n{field(row, 'new_contents').rstrip()}\n```")


def oasst_tree(row: Row) -> Conversations:
    """OpenAssistant's trees: every path from the root to a leaf is a conversation."""
    root = row.get("prompt")
    if not isinstance(root, Mapping):
        raise ValueError("no field prompt that holds the tree's root")
    return list(_paths(root))


def _paths(root: Mapping[str, Any]) -> Iterator[list[Message]]:
    """Yield paths, left ones first; a user's turn at the end is left out, and so are paths that say nothing new then."""
    seen: set[str] = set()
    stack: list[tuple[Mapping[str, Any], list[Message]]] = [(root, [])]
    while stack:  # trees can be deeper than Python's stack
        message, before = stack.pop()
        path = [
            *before,
            turn(message.get("role", ""), message.get("text"), f"message {message.get('message_id', '?')}"),
        ]
        replies = message.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
            raise ValueError(f"message {message.get('message_id', '?')}: its replies are no list of messages")
        stack += [(reply, path) for reply in reversed(replies)]
        if not replies:
            kept = path if path[-1]["role"] == "assistant" else path[:-1]
            named = json.dumps(kept)
            if kept and named not in seen:
                seen.add(named)
                yield kept


def oasst_messages(rows: Sequence[Row]) -> Row:
    """Return the tree (as `oasst_tree` reads it) of a set's flat messages: all rows of one `message_tree_id`.

    Raises:
        ValueError: no root or several, two messages of one name, or one whose parent is not among them.
    """
    if odd := [name for row in rows for name in ("message_id", "parent_id") if isinstance(row.get(name), list | dict)]:
        raise ValueError(f"{odd[0]} is no name")
    nodes = {row.get("message_id"): {**row, "replies": []} for row in rows}
    if len(nodes) < len(rows):
        raise ValueError("two messages have the same message_id, or none")
    roots = []
    for node in nodes.values():
        parent = node.get("parent_id")
        if parent is None:
            roots.append(node)
        elif parent in nodes and parent != node.get("message_id"):
            nodes[parent]["replies"].append(node)
        else:
            raise ValueError(f"message {node.get('message_id')}: its parent {parent} is not in the tree")
    if len(roots) != 1:
        raise ValueError(f"{len(roots)} messages have no parent, one must be the root")
    return {"prompt": roots[0]}


def api_gen(row: Row) -> Conversations:
    """APIGen (xLAM function calling): tools and answers are JSON; calls are answered in hornbook's `json` form."""
    tools, answers = _json(row, "tools"), _json(row, "answers")
    calls = [
        {"id": number, "name": call["name"], "arguments": call.get("arguments", {})}
        for number, call in enumerate(answers)
        if isinstance(call, Mapping) and isinstance(call.get("name"), str)
    ]
    if len(calls) != len(answers):
        raise ValueError("answers: a call without a name")
    system = "\n".join([CALLS, *(json.dumps(tool, ensure_ascii=False) for tool in tools)])
    return _exchange(field(row, "query"), json.dumps(calls, ensure_ascii=False), system)


CALLS = (
    'Call the tools below as a JSON list, each call {"id": 0, "name": "tool", "arguments": {"argument": "value"}}. '
    "If none of them can help, write []."
)


def _json(row: Row, name: str) -> list[Any]:
    value = row.get(name)
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {error}") from None
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    return value


def glaive(row: Row) -> Conversations:
    """Glaive: function calling (`system` and `chat` with marked turns), or code assistant (question, answer).

    What a function returned is a user's turn that says so: a model must not learn to write it.
    """
    if "chat" not in row:
        return _exchange(field(row, "question"), field(row, "answer"))
    pieces = GLAIVE_TURN.split(field(row, "chat"))
    if pieces[0].strip():
        raise ValueError(f"chat begins with no turn: {pieces[0].strip()[:40]!r}")
    system = field(row, "system").strip().removeprefix("SYSTEM:").strip() if row.get("system") else ""
    turns = [turn("system", system, "system")] if system else []
    for mark, text in zip(pieces[1::2], pieces[2::2], strict=True):
        content = text.replace("<|endoftext|>", "").strip()
        if mark == "FUNCTION RESPONSE":
            turns.append(turn("user", f"Function response: {content}", "chat"))
        else:
            turns.append(turn(mark, content, "chat"))
    return [turns]


def stack_smol(row: Row) -> Conversations:
    """The Stack Smol: files of code, no talk: the text is a document as it is."""
    return field(row, "content")


FORMATS: dict[str, Callable[[Row], Conversations]] = {
    "magicoder": magicoder,
    "coig-cqia": instruction,
    "slim-orca": share_gpt,
    "ultra-chat": ultra_chat,
    "evol-instruct-code": instruction,
    "commit-pack-ft": commit_pack,
    "open-hermes": open_hermes,
    "oasst2": oasst_tree,
    "math-instruct": instruction,
    "api-gen": api_gen,
    "glaive": glaive,
    "the-stack-smol": stack_smol,
    "messages": ultra_chat,
}
"""By the name that recipes use. `messages`: what most newer sets have, a list of {role, content}."""
