"""Writes a threshold into a recipe: finds the places where it applies, changes them and nothing else.

The file is a person's: its comments, its order and its layout stay. So the text is not parsed and written anew; the parser says at
which characters a value stands, these are replaced, and the result is read again: it must be the old recipe with just these values
changed, and it must pass every check of a recipe before it takes the file's place.
"""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hornbook.errors import RecipeError
from hornbook.recipe import Recipe, RecipeStage, check_recipe, find_recipe, read_source, shipped_recipes
from hornbook.settings import nearest

SCORE = "score"
"""The column of scores that thresholds are about."""
OTHER_CONDITIONS = ("max", "equals", "in", "not_in", "is_true", "is_false")
Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """A setting that takes the threshold.

    Attributes:
        path: its keys and list positions from the recipe's root.
        after: the sibling setting that it is written behind where the recipe does not have it yet.
        now: its value; None where the stage takes the threshold that the scores name.
        sources: the sources that it is for; none: all.
    """

    path: Keys
    after: str
    now: float | None
    sources: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The path as people write it: stages.chosen.rules[2].min."""
        return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.path).removeprefix(".")


class RecipeOnDisk:
    """A recipe's file as it was when it was opened. Raises RecipeError if it is no recipe, or hornbook's own copy."""

    def __init__(self, name: str) -> None:
        self.path = find_recipe(name).resolve()
        if self.path.parent == shipped_recipes().resolve() == (Path(__file__).parent / "recipes").resolve():
            raise RecipeError(
                f"{self.path} belongs to the installed hornbook",
                f"copy it here and name the copy: --recipe ./{self.path.name}",
            )
        self.data = _read(self.path)
        try:
            self.text = self.data.decode()
        except UnicodeDecodeError as error:
            raise RecipeError(f"{self.path} is not UTF-8: {error}") from None
        self.recipe = self._checked(self.text)

    def places(self, stage: str) -> list[Place]:
        """Return where a threshold on the scores of `stage` applies.

        Raises:
            RecipeError: the recipe has no such stage.
        """
        if stage not in self.recipe.stages:
            raise RecipeError(
                f"{self.path}: there is no stage {stage!r}{nearest(stage, list(self.recipe.stages))}",
                "name the recipe that the scores were made with",
            )
        source = self.recipe.source["stages"]
        return [
            place
            for name in source
            for place in (
                *_minimum_score(self.recipe.stages[name], source[name], stage),
                *_rules(self.recipe.stages[name], source[name], stage),
            )
        ]

    def require_same(self, stage: str, kind: str, made_from: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        """Refuse a recipe in which `stage` makes other scores, though it has the same name.

        An input may have another name or another kind than when the scores were made (a stage renamed, a crawl put in its place
        by `--set`), but not both.

        Args:
            stage: the scores' stage.
            kind: the kind of stage that made the scores.
            made_from: role -> name and kind of each stage that the scores were made from.

        Raises:
            RecipeError: the stage is of another kind, or has another input.
        """
        entry = self.recipe.stages[stage]
        found = {
            role: [(name, self.recipe.stages[name].stage.kind) for name in entry.inputs.get(role, ())]
            for role in made_from
        }
        alike = all(
            len(found[role]) == len(inputs)
            and all(name == other or of == like for (name, of), (other, like) in zip(found[role], inputs, strict=True))
            for role, inputs in made_from.items()
        )
        if entry.stage.kind != kind or not alike:
            raise RecipeError(
                f"{self.path}: its {stage} is another stage than the one of these scores: {entry.stage.kind} of "
                f"{_inputs(found)}, not {kind} of {_inputs(made_from)}",
                "name the recipe that the scores were made with",
            )

    def changed(self, places: Sequence[Place], value: float) -> str:
        """Return the text with `value` in these places.

        Raises:
            RecipeError: a place cannot be changed without changing others, or the recipe would not be right any more.
        """
        text = self.text
        for place in places:
            text = _edited(text, place, value, str(self.path))
        expected = _plain(self.recipe.source)
        for place in places:
            _set(expected, place.path, value)
        found = self._checked(text).source
        if _plain(found) != expected:
            raise RecipeError(
                f"{self.path}: {', '.join(place.name for place in places)} cannot be changed without changing more",
                f"write {number_text(value)} there by hand: YAML anchors or merge keys share the value with other places",
            )
        return text

    def diff(self, text: str) -> list[str]:
        """Return what would change, as the lines of a unified diff."""
        name = self.path.name
        lines = difflib.unified_diff(self.text.splitlines(), text.splitlines(), name, name, lineterm="", n=2)
        return list(lines)

    def write(self, text: str) -> None:
        """Put `text` in the file's place, at once or not at all.

        Raises:
            RecipeError: the file has changed since it was opened, or cannot be written.
        """
        if _read(self.path) != self.data:
            raise RecipeError(
                f"{self.path} has changed since the dial was opened", "open the dial again: nothing was written"
            )
        data = text.encode()
        try:
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                shutil.copymode(self.path, temporary)
                os.replace(temporary, self.path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise RecipeError(
                f"{self.path} cannot be written: {error.strerror}", "check the folder's permissions"
            ) from None
        self.data, self.text = data, text
        self.recipe = self._checked(text)

    def _checked(self, text: str) -> Recipe:
        return check_recipe(read_source(text, str(self.path)), str(self.path), self.path.parent)


def what_to_add(stage: str, value: float) -> str:
    """Return what a recipe needs in order to have a place for the threshold."""
    number = number_text(value)
    return (
        f"give a `pack` stage the input `scores: {stage}` and `minimum_score: {number}`, or a `select` stage the attributes of "
        f"{stage} and the rule {{column: {SCORE}, input: {stage}, min: {number}}}"
    )


def number_text(value: float) -> str:
    """Return a number as YAML reads it back exactly: never with an exponent, which YAML 1.1 takes for text."""
    return np.format_float_positional(value, trim="0")


def _inputs(stages: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    named = [f"{role} {name} ({kind})" for role, inputs in stages.items() for name, kind in inputs]
    return ", ".join(named) or "nothing"


def _minimum_score(entry: RecipeStage, settings: Mapping[str, Any], stage: str) -> list[Place]:
    if list(entry.inputs.get("scores", ())) != [stage] or "minimum_score" not in entry.stage.Settings.model_fields:
        return []
    return [Place(("stages", entry.name, "minimum_score"), "inputs", settings.get("minimum_score"))]


def _rules(entry: RecipeStage, settings: Mapping[str, Any], stage: str) -> list[Place]:
    """Return the rules of a selection that keep documents from a score on."""
    if entry.stage.kind != "select" or stage not in entry.inputs.get("attributes", ()):
        return []
    return [
        Place(
            ("stages", entry.name, "rules", number, "min"), "column", rule.get("min"), tuple(rule.get("sources") or ())
        )
        for number, rule in enumerate(settings["rules"])
        if rule["column"] == SCORE
        and rule.get("input", stage) in (stage, "")
        and not any(name in rule for name in OTHER_CONDITIONS)
    ]


def _edited(text: str, place: Place, value: float, where: str) -> str:
    """Return the text with the value in one place; where the setting is missing, behind its sibling."""
    import yaml

    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in place.path[:-1]:
        node = _child(node, key, where)[1]
    name, written = str(place.path[-1]), number_text(value)
    if (found := _entry(node, name)) is not None:
        start, end = found[1].start_mark.index, found[1].end_mark.index
        return f"{text[:start]}{'' if end > start else ' '}{written}{text[end:]}"
    # Only where it is written in one line is the end of a value the end of its line.
    known = [_entry(node, sibling) for sibling in (place.after, "kind", "column")]
    one_line = [pair for pair in known if pair and pair[0].start_mark.line == pair[1].end_mark.line]
    if not one_line:
        raise RecipeError(f"{where}: {place.name} cannot be added", f"write `{name}: {written}` there by hand")
    key_node, value_node = one_line[0]
    at = value_node.end_mark.index
    if node.flow_style:
        return f"{text[:at]}, {name}: {written}{text[at:]}"
    end = text.find("\n", at)
    newline = "\r\n" if "\r\n" in text else "\n"
    line = f"{' ' * key_node.start_mark.column}{name}: {written}"
    return f"{text}{newline}{line}{newline}" if end < 0 else f"{text[: end + 1]}{line}{newline}{text[end + 1 :]}"


def _child(node: Any, key: str | int, where: str) -> Any:
    if isinstance(key, int):
        return None, node.value[key]
    found = _entry(node, key)
    if found is None:
        raise RecipeError(f"{where}: {key} comes from a YAML merge key", "write the threshold there by hand")
    return found


def _entry(node: Any, key: str) -> Any:
    """Return the nodes of a mapping's own key and of its value, or None."""
    return next((pair for pair in node.value if pair[0].value == key), None)


def _set(value: Any, path: Keys, to: float) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = to


def _plain(value: Any) -> Any:
    """Return a copy in which nothing is shared, as aliases share it."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from None
