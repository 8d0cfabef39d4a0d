"""What a kind's own code may do wrong, said clearly: the user's class is the part of the system that nobody has tested.

What it gives for one row and cannot be used is a reject; what fails for the whole stage is an error with method, file and line.
"""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generators.checks import Refused
from hornbook.documents import KEY_BYTES, canonical_json
from hornbook.errors import HornbookError, RecipeError

if TYPE_CHECKING:
    from generators.prompted import Parsed, Prompt, PromptedStage

SHOWN = 200
NOT_ITS_FAULT = (KeyboardInterrupt, asyncio.CancelledError, GeneratorExit)
"""What passes through a kind's code and is not its own; all else that it raises is, SystemExit included."""


def usable_prompt(value: Any) -> Prompt:
    """Return what `prompt()` gave. Raises Refused (`prompt-failed`) where it is not a Prompt that can be asked and kept."""
    from generators.prompted import Prompt

    if not isinstance(value, Prompt):
        raise Refused("prompt-failed", f"prompt() returned {value!r:.{SHOWN}}, not a Prompt")
    if not _is_chat(value.messages):
        raise Refused(
            "prompt-failed", f"messages are {value.messages!r:.{SHOWN}}, not a tuple of {{role, content}} with texts"
        )
    if not isinstance(value.parents, tuple) or not all(
        isinstance(key, bytes) and len(key) == KEY_BYTES for key in value.parents
    ):
        raise Refused("prompt-failed", f"parents are {value.parents!r:.{SHOWN}}, not a tuple of keys of documents")
    if not isinstance(value.schema, str):
        raise Refused("prompt-failed", f"schema is {value.schema!r:.{SHOWN}}, not a JSON Schema as text")
    if value.schema:
        try:
            json.loads(value.schema)
        except (ValueError, RecursionError) as error:
            raise Refused("prompt-failed", f"schema is {value.schema!r:.{SHOWN}}, which is no JSON: {error}") from None
    if not isinstance(value.required, tuple | list) or not all(isinstance(word, str) for word in value.required):
        raise Refused("prompt-failed", f"required is {value.required!r:.{SHOWN}}, not a tuple of words or sentences")
    _require_json(value.seeds, "seeds", "prompt-failed")
    return value


def usable_parsed(value: Any) -> Parsed:
    """Return what `parse()` or `write()` gave. Raises Refused where it is not a Parsed that can be kept, or its text empty."""
    from generators.prompted import Parsed

    if not isinstance(value, Parsed) or not isinstance(value.text, str):
        raise Refused("parse-failed", f"parse() returned {value!r:.{SHOWN}}, not a Parsed with a text")
    if not value.text.strip():
        raise Refused("empty", "parse() left nothing of the answer")
    if not _is_unicode(value.text):
        raise Refused("parse-failed", "the text holds half a surrogate pair, which is no Unicode")
    _require_json(value.meta, "meta", "parse-failed")
    return value


@contextmanager
def kind_error(stage: PromptedStage, method: str) -> Iterator[None]:
    """Turn whatever a method of the kind raises into a RecipeError that names the kind, the method, the file and the line."""
    try:
        yield
    except (Refused, HornbookError, *NOT_ITS_FAULT):
        raise
    except BaseException as error:
        raise RecipeError(
            f"stages.{stage.name}: {method} of the kind {stage.kind!r} fails: {describe(error)}",
            "mend it and run again: replies that were written are taken over",
        ) from error


def describe(error: BaseException) -> str:
    """Return an exception's type and message, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""  # rejects may be published
    return f"{type(error).__name__}: {error}{where}"


def _is_chat(messages: Any) -> bool:
    return isinstance(messages, Sequence) and all(
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        and _is_unicode(message["content"])
        for message in messages
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_json(value: Any, name: str, reason: str) -> None:
    try:
        if not isinstance(value, Mapping):
            raise TypeError(f"a {type(value).__name__}, not a mapping")
        canonical_json(dict(value)).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused(reason, f"{name} cannot be kept as JSON: {error}") from None
