"""JSON Schemas of replies: told apart early from what is none, and replies held against them.

A reply is never repaired: one that is no JSON value of its schema is a failure that says where it goes wrong.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hornbook.errors import EngineError

if TYPE_CHECKING:
    from jsonschema.protocols import Validator


@functools.lru_cache(maxsize=256)
def parse_schema(text: str) -> Any:
    """Return the schema as an object, or a boolean. Raises EngineError where the text is no JSON Schema (draft 2020-12)."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        schema = json.loads(text)
        Draft202012Validator.check_schema(schema)
        for reference in _references(schema):
            referred(schema, reference)
    except (ValueError, RecursionError) as error:
        raise EngineError(f"a request's JSON Schema is not JSON: {error}", f"it begins {text[:80]!r}") from None
    except LookupError as error:
        raise EngineError(f"a request's JSON Schema: {error.args[0]}", "refer to a part of the schema itself") from None
    except SchemaError as error:
        raise EngineError(
            f"a request's JSON Schema is none: at {error.json_path}: {error.message}", f"it begins {text[:80]!r}"
        ) from None
    return schema


def referred(root: Any, reference: str) -> Any:
    """Return the part of a schema that `$ref` names, "#/$defs/tree" say. Raises LookupError; nothing is ever fetched."""
    if not reference.startswith("#"):
        raise LookupError(f"$ref {reference!r} points elsewhere")
    found = root
    for step in filter(None, reference[1:].split("/")):
        step = step.replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(step)] if isinstance(found, list) else found[step]
        except (KeyError, IndexError, ValueError, TypeError):
            raise LookupError(f"$ref {reference!r} points at nothing") from None
    return found


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for name, value in schema.items():
            if name in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            elif name not in ("const", "enum", "default", "examples"):
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def violation(text: str, schema: str) -> str:
    """Say where a reply departs from its schema, or return an empty string. NaN and Infinity are no JSON."""
    from jsonschema.exceptions import best_match

    try:
        value = json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        return f"the reply is not JSON ({error}): {text[:80]!r}"
    wrong = best_match(_validator(schema).iter_errors(value))
    return f"the reply violates its schema at {wrong.json_path}: {wrong.message[:200]}" if wrong else ""


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> Validator:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(parse_schema(schema))


def _no_json(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
