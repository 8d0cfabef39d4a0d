"""The JSON Schema that a reply with planned calls must follow, in the keywords that engines enforce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from generators.call_plan import Combination
from hornbook.tools import Catalogue

LONGEST_LIST = 4
ENFORCED = ("type", "enum", "const", "anyOf", "minimum", "maximum", "minItems", "maxItems")
"""Not the lengths of texts: a bound of 240 characters makes xgrammar compile for seconds a schema, and each row has its own."""


def reply_schema(catalogue: Catalogue, plan: Combination, arguments: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the schema of {query, calls}: the planned tools in their order, each with the planned arguments.

    An argument that is the result of an earlier call is fixed: `"#0"`.
    """
    linked = {(place, argument): f"#{source}" for place, argument, source in plan.links}
    calls = []
    for place, name in enumerate(plan.tools):
        values = {
            argument: {"const": linked[place, argument]}
            if (place, argument) in linked
            else enforceable(catalogue[name].arguments[argument])
            for argument in arguments[place]
        }
        calls.append(_object({"name": {"const": name}, "arguments": _object(values)}))
    count = len(calls)
    return _object(
        {
            "query": {"type": "string"},
            "calls": {"type": "array", "prefixItems": calls, "items": False, "minItems": count, "maxItems": count},
        }
    )


def enforceable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the engine enforces of an argument's schema: shape, types, allowed values, bounds; the rest is checked after.

    A list without an end gets one, since small models may not find it.
    """
    kept: dict[str, Any] = {name: schema[name] for name in ENFORCED if name in schema}
    if "anyOf" in kept:
        kept["anyOf"] = [enforceable(branch) for branch in kept["anyOf"]]
    if kept.get("type") == "array":
        kept["minItems"] = max(1, kept.get("minItems", 1))
        kept["maxItems"] = max(kept["minItems"], min(LONGEST_LIST, kept.get("maxItems", LONGEST_LIST)))
        if isinstance(schema.get("items"), dict):
            kept["items"] = enforceable(schema["items"])
    if kept.get("type") == "object":
        values = {name: enforceable(part) for name, part in schema.get("properties", {}).items()}
        kept |= {"properties": values, "required": list(schema.get("required", [])), "additionalProperties": False}
    return kept


def _object(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(values), "required": list(values), "additionalProperties": False}
