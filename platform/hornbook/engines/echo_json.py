"""A deterministic JSON value that satisfies a JSON Schema, for the echo engine: no model, no meaning, the right shape."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hornbook.engines.schema import parse_schema, referred, violation
from hornbook.errors import EngineError

_WORDS = (
    "lamp",
    "boat",
    "stone",
    "box",
    "apple",
    "letter",
    "loaf",
    "clock",
    "kite",
    "key",
    "leaf",
    "rope",
    "door",
    "map",
)
_DEEPEST = 24
_ATTEMPTS_AT_A_UNIQUE_ITEM = 32
_KEYWORDS_THAT_MERGE = ("properties", "$defs", "definitions")


class _Unable(Exception):
    """The schema asks for something that this file cannot make."""


def example(schema: str, key: bytes) -> str:
    """Return a JSON text that satisfies `schema`, a function of the schema and `key` alone.

    Raises EngineError where this cannot make one (`pattern` and `not` are among what it does not read).
    """
    try:
        text = json.dumps(_Maker(parse_schema(schema), key).value())
    except _Unable as unable:
        raise _unable(str(unable)) from None
    if wrong := violation(text, schema):
        raise _unable(wrong)
    return text


def _unable(why: str) -> EngineError:
    return EngineError(
        f"the echo engine cannot make a value for a request's JSON Schema: {why}",
        "it reads types, enum, const, anyOf, oneOf, allOf, $ref within the schema, required, items, and bounds; use another "
        "engine for the rest",
    )


class _Maker:
    """Walks one schema with one stream of random numbers."""

    def __init__(self, root: Any, key: bytes) -> None:
        self._root, self._key, self._drawn = root, key, 0

    def value(self) -> Any:
        """Return a value of the whole schema."""
        return self._make(self._root, 0)

    def _below(self, count: int) -> int:
        """Draw a number below `count`."""
        self._drawn += 1
        dice = hashlib.blake2b(self._key + self._drawn.to_bytes(8, "big"), digest_size=8).digest()
        return int.from_bytes(dice, "big") % count

    def _make(self, schema: Any, depth: int) -> Any:
        if schema is False or depth > _DEEPEST:
            raise _Unable("nothing satisfies it" if schema is False else f"it is nested deeper than {_DEEPEST} levels")
        if schema is True:
            return self._string({})
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][self._below(len(schema["enum"]))]
        kind = schema.get("type") or _implied_type(schema)
        if isinstance(kind, list):
            kind = kind[self._below(len(kind))]
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind == "string":
            return self._string(schema)
        if kind in ("integer", "number"):
            return self._number(schema, whole=kind == "integer")
        return None if kind == "null" else bool(self._below(2))

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """Follow references and choose among alternatives until the schema is flat."""
        for _ in range(_DEEPEST):
            if "$ref" in schema:
                rest = {name: value for name, value in schema.items() if name != "$ref"}
                schema = _merged([referred(self._root, schema["$ref"]), rest])
            elif "allOf" in schema:
                rest = {name: value for name, value in schema.items() if name != "allOf"}
                schema = _merged([*schema["allOf"], rest])
            elif branches := schema.get("anyOf") or schema.get("oneOf"):
                rest = {name: value for name, value in schema.items() if name not in ("anyOf", "oneOf")}
                schema = _merged([branches[self._below(len(branches))], rest])
            else:
                return schema
        raise _Unable("its references go round in a circle")

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        names = [name for name in properties if name in required or (depth < 4 and self._below(2))]
        names += [name for name in required if name not in properties]
        others = schema.get("additionalProperties", True)
        made = {name: self._make(properties.get(name, others), depth + 1) for name in names}
        spare = [name for name in properties if name not in made] + [f"{word}_{n}" for n, word in enumerate(_WORDS)]
        for name in spare[: max(0, schema.get("minProperties", 0) - len(made))]:
            made[name] = self._make(properties.get(name, others), depth + 1)
        return made

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        first = schema.get("prefixItems", [])
        least = max(schema.get("minItems", 0), 0)
        most = max(least, min(schema.get("maxItems", least + 3), least + 3))
        count = least + self._below(most - least + 1) if depth < 6 else least
        if schema.get("items", True) is False:
            count = min(count, len(first))
        made: list[Any] = []
        for position in range(count):
            kind = first[position] if position < len(first) else schema.get("items", True)
            made.append(self._item(kind, depth, made if schema.get("uniqueItems") else ()))
        return made

    def _item(self, schema: Any, depth: int, taken: Sequence[Any]) -> Any:
        for _ in range(_ATTEMPTS_AT_A_UNIQUE_ITEM):
            value = self._make(schema, depth + 1)
            if value not in taken:
                return value
        raise _Unable("its uniqueItems has too few values")

    def _string(self, schema: Mapping[str, Any]) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        words = [_WORDS[self._below(len(_WORDS))] for _ in range(1 + self._below(4))]
        while len(" ".join(words)) < least:
            words.append(_WORDS[self._below(len(_WORDS))])
        text = " ".join(words)
        return text if len(text) <= most else text[: int(most)]

    def _number(self, schema: Mapping[str, Any], whole: bool) -> int | float:
        step = schema.get("multipleOf", 1)
        lowest = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
        highest = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
        if math.isinf(lowest):
            lowest = 0 if math.isinf(highest) or highest >= 0 else highest - 100 * step
        if math.isinf(highest):
            highest = lowest + 100 * step
        first = math.ceil(lowest / step)
        last = math.floor(highest / step)
        first += first * step == schema.get("exclusiveMinimum")
        last -= last * step == schema.get("exclusiveMaximum")
        if last >= first:
            return (first + self._below(last - first + 1)) * step
        if whole or "multipleOf" in schema:
            raise _Unable(f"no number of it lies between {lowest} and {highest}")
        return lowest + (highest - lowest) * (1 + self._below(999)) / 1000


def _merged(schemas: Sequence[Any]) -> dict[str, Any]:
    """Return one schema that asks for what all of them ask; of two bounds of one name the later one."""
    merged: dict[str, Any] = {}
    for schema in schemas:
        if schema is False:
            raise _Unable("nothing satisfies it")
        for name, value in ({} if schema is True else schema).items():
            if name in _KEYWORDS_THAT_MERGE:
                merged[name] = {**merged.get(name, {}), **value}
            elif name == "required":
                merged[name] = [*merged.get(name, []), *value]
            else:
                merged[name] = value
    return merged


def _implied_type(schema: Mapping[str, Any]) -> str:
    """Return the type that a schema without one is about, by its keywords."""
    for kind, names in {
        "object": ("properties", "required", "additionalProperties", "minProperties"),
        "array": ("items", "prefixItems", "minItems", "maxItems"),
        "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    }.items():
        if any(name in schema for name in names):
            return kind
    return "string"
