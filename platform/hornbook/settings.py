"""The base of every settings model: unknown keys are refused with the nearest known one in the message.

Settings that only affect speed are declared with `runtime(...)`. They are left out of an artifact's fingerprint, so
that a laptop and a cluster agree on what an artifact is.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hornbook.errors import RecipeError

SettingsT = TypeVar("SettingsT", bound="Settings")


class Settings(BaseModel):
    """Immutable settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, values: Any) -> Any:
        """Take `lengths: any` for `lengths: [any]`: people write one value where a list may stand."""
        if not isinstance(values, dict):
            return values
        lists = {
            field.alias or name for name, field in cls.model_fields.items() if get_origin(field.annotation) is tuple
        }
        return {
            name: [value] if name in lists and isinstance(value, str | int | float) else value
            for name, value in values.items()
        }

    def identity(self) -> dict[str, Any]:
        """Return the settings that affect results, JSON-ready: everything but the fields marked `runtime`."""
        kept: dict[str, Any] = {}
        dumped = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            if is_runtime(field.json_schema_extra):
                continue
            value = getattr(self, name)
            if isinstance(value, Settings):
                kept[name] = value.identity()
            elif isinstance(value, tuple) and value and all(isinstance(entry, Settings) for entry in value):
                kept[name] = [entry.identity() for entry in value]
            else:
                kept[name] = dumped[name]
        return kept


def runtime(default: Any, **field: Any) -> Any:
    """Declare a settings field that affects only speed or convenience, never the rows that come out."""
    return Field(default, json_schema_extra={"runtime": True}, **field)


def is_runtime(json_schema_extra: Any) -> bool:
    """Tell whether a field's extra schema carries the `runtime` mark."""
    return isinstance(json_schema_extra, dict) and bool(json_schema_extra.get("runtime"))


def validate(model: type[SettingsT], values: Any, where: str) -> SettingsT:
    """Build `model` from plain values, or raise RecipeError that names each wrong key under the path `where`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        told = [problem for problem in problems if not (problem["type"] == "too_short" and _inside(problem, problems))]
        raise RecipeError("\n".join(_explain(model, problem, where) for problem in told)) from None


def nearest(name: str, known: list[str]) -> str:
    """Return ` (did you mean 'x'?)` for the known name nearest to `name`, or the list of known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(sorted(known))})"


def _inside(problem: Any, problems: Sequence[Any]) -> bool:
    """Tell whether an entry of a list is wrong: pydantic then counts it as missing, too."""
    depth = len(problem["loc"])
    return any(len(other["loc"]) > depth and other["loc"][:depth] == problem["loc"] for other in problems)


def _explain(model: type[BaseModel], problem: Any, where: str) -> str:
    location = [part for part in problem["loc"] if not (isinstance(part, str) and "[" in part)]
    path = ".".join([where, *map(str, location)])
    if problem["type"] == "extra_forbidden":
        return f"{path}: no such setting{nearest(str(location[-1]), _fields_at(model, location[:-1]))}"
    if problem["type"] == "missing":
        return f"{path}: this setting is required"
    if problem["type"] == "too_short":
        return f"{path}: needs at least {problem['ctx']['min_length']}, got {problem['ctx']['actual_length']}"
    if problem["type"] == "model_type":
        known = ", ".join(_fields_at(model, list(location)))
        return f"{path}: takes settings of its own ({known}), got {problem.get('input')!r}"
    said = (
        problem["ctx"]["error"] if problem["type"] == "value_error" else problem["msg"]
    )  # a check of ours, or pydantic's
    got = problem.get("input")
    return f"{path}: {said}" if isinstance(got, dict) else f"{path}: {said}, got {got!r}"


def _fields_at(model: type[BaseModel], location: list[Any]) -> list[str]:
    """Follow `location` through nested models and name the fields that live there."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = _innermost_model(current.model_fields[part].annotation)
    if not (isinstance(current, type) and issubclass(current, BaseModel)):
        return []
    return [field.alias or name for name, field in current.model_fields.items()]


def _innermost_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _innermost_model(argument)
        if found is not None:
            return found
    return None
