"""`hornbook stages`: what kinds there are and what each can be told, read from the code itself."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from hornbook.settings import Settings, is_runtime
from hornbook.stages import STAGES, stage_class


def describe_kinds() -> list[list[str]]:
    """Return a table row for each kind: name, what it makes, from what, what it is."""
    rows = []
    for kind in STAGES:
        found = stage_class(kind, "hornbook stages")
        inputs = ", ".join(f"{role}{'*' if declared.optional else ''}" for role, declared in found.inputs.items())
        rows.append([kind, found.produces, inputs or "-", _first_line(found)])
    return rows


def describe_kind(kind: str) -> str:
    """Return a kind's inputs and settings as text."""
    found = stage_class(kind, "hornbook stages")
    lines = [f"{kind}: {_first_line(found)}", f"  makes {found.produces}", "inputs"]
    for role, declared in found.inputs.items():
        notes = [note for note, holds in (("several stages", declared.many), ("optional", declared.optional)) if holds]
        lines.append(f"  {role}: {declared.produces}{f' ({chr(44).join(notes)})' if notes else ''}")
    if not found.inputs:
        lines.append("  none")
    lines.append("settings (those marked ~ affect speed only and are no part of the fingerprint)")
    lines += _settings(found.Settings, "  ")
    return "\n".join(lines)


def _settings(model: type[BaseModel], indent: str) -> list[str]:
    lines = []
    for name, field in model.model_fields.items():
        mark = "~" if is_runtime(field.json_schema_extra) else " "
        nested = (
            field.annotation if isinstance(field.annotation, type) and issubclass(field.annotation, Settings) else None
        )
        default = (
            "required"
            if field.is_required()
            else ""
            if nested
            else f"default {_plain(field.get_default(call_default_factory=True))}"
        )
        lines.append(
            f"{indent}{mark}{name}: {default}{'. ' if default and field.description else ''}{field.description or ''}"
        )
        if nested is not None:
            lines += _settings(nested, indent + "    ")
    return lines


def _first_line(kind: type) -> str:
    return next(iter((kind.__doc__ or "").strip().splitlines()), "no description: give the class a docstring")


def _plain(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def settings_page() -> str:
    """Return docs/settings.md: every kind's settings, from the code."""
    lines = [
        "# Settings",
        "",
        "Written by `python -m hornbook.describe > docs/settings.md`; a test compares. Settings marked `~` affect speed only",
        "and are no part of an artifact's fingerprint.",
    ]
    for kind in STAGES:
        lines += ["", f"## {kind}", "", "```text", describe_kind(kind), "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(settings_page(), end="")
