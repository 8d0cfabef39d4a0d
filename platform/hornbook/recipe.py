"""Recipes: YAML files that name a seed and stages with their inputs and settings, checked whole before anything runs."""

from __future__ import annotations

import importlib.resources
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import Field

from hornbook.engines.foreseen import check_engine
from hornbook.engines.interface import EngineSettings, engines_of
from hornbook.errors import RecipeError
from hornbook.settings import Settings, nearest, validate
from hornbook.stage import Stage
from hornbook.stages import STAGES, stage_class

RESERVED = ("kind", "inputs")
GROUPS = ("generators", "classifiers", "training")


class RecipeFile(Settings):
    """The top level of a recipe file."""

    name: str = Field(..., pattern=r"^[a-z0-9][a-z0-9._-]*$", description="What people call it; part of run ids.")
    description: str = Field("", description="One line for `hornbook recipes`.")
    seed: int = Field(0, ge=0, description="All randomness is derived from it.")
    engine: dict[str, Any] = Field(default_factory=dict, description="Engine settings for every stage that uses one.")
    stages: dict[str, dict[str, Any]] = Field(..., min_length=1, description="Stage name -> kind, inputs, settings.")


@dataclass(frozen=True)
class RecipeStage:
    """A stage of a recipe, checked: `inputs` maps roles to the names of the stages that play them."""

    name: str
    stage: Stage
    inputs: Mapping[str, Sequence[str]]
    group: str = field(default="")
    """The package that it comes from: generators, classifiers or training."""


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; `stages` are in an order in which they can run (recipe order where inputs leave a choice)."""

    name: str
    description: str
    seed: int
    stages: Mapping[str, RecipeStage]
    source: Mapping[str, Any]
    """The recipe as it was read, overrides applied."""

    def ancestors(self, names: Sequence[str]) -> set[str]:
        """Return `names` and everything that they need."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += [parent for role in self.stages[name].inputs.values() for parent in role]
        return found

    def descendants(self, name: str) -> set[str]:
        """Return `name` and everything that needs it."""
        return {other for other in self.stages if name in self.ancestors([other])}


def recipe_names() -> dict[str, Path]:
    """Return the recipes that can be run by name: shipped ones, and those in `recipes/` of the current folder."""
    found: dict[str, Path] = {}
    for folder in (shipped_recipes(), Path("recipes")):
        if folder.is_dir():
            found |= {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return found


def shipped_recipes() -> Path:
    """Return the folder of the recipes that came with this installation (the repository's own in a checkout)."""
    packaged = Path(str(importlib.resources.files("hornbook"))) / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "recipes"


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        name: the name of a shipped recipe, or a path to a YAML file.
        overrides: `key.path=value` strings (`stages.stories.rows=2000`), values in YAML.

    Raises:
        RecipeError: it does not exist or is wrong; the message names the file and the setting.
    """
    path = find_recipe(name)
    try:
        source = read_source(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not YAML: {error}") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error}") from None
    for override in overrides:
        override_setting(source, override)
    return check_recipe(source, str(path), path.parent)


def read_source(text: str, where: str) -> dict[str, Any]:
    """Return the plain values of a recipe's text.

    Raises:
        RecipeError: it is not YAML, no mapping, or a mapping in it has a key twice, of which YAML would drop the first
            without a word: two stages of one name, say.
    """
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        source = yaml_value(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where} is not YAML: {error}") from None
    if not isinstance(source, dict):
        raise RecipeError(f"{where} is not a recipe", "a recipe is a mapping with name, seed and stages")
    if twice := next(_doubled_keys(root, "", set()), None):
        raise RecipeError(f"{where}: {twice}", "give each a name of its own, or take one out")
    return source


def yaml_value(text: str) -> Any:
    """Return the plain value of a YAML text; `1e-5` is a number, as in YAML 1.2 and to people (YAML 1.1 wants `1.0e-5`)."""
    loader = _yaml()[0](text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def yaml_text(value: Any) -> str:
    """Return a YAML text from which `yaml_value` reads the same value: a text that looks like its numbers is quoted."""
    import yaml

    return yaml.dump(value, Dumper=_yaml()[1], sort_keys=False, allow_unicode=True, width=100)


@cache
def _yaml() -> tuple[Any, Any]:
    """Return a loader and a dumper of the same numbers."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    class Dumper(yaml.SafeDumper):
        pass

    number = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
    for side in (Loader, Dumper):
        side.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Loader, Dumper


def _doubled_keys(node: Any, path: str, seen: set[int]) -> Iterator[str]:
    """Yield the keys that a mapping has twice, with their lines; what aliases share is looked at once."""
    import yaml

    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value):
            yield from _doubled_keys(entry, f"{path}[{number}]", seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            here = f"{path}.{name}".removeprefix(".")
            if name in lines:
                yield f"{here} is there twice, in lines {lines[name]} and {key.start_mark.line + 1}"
            lines[name] = key.start_mark.line + 1
            yield from _doubled_keys(value, here, seen)


def check_recipe(source: Mapping[str, Any], where: str, folder: Path | None = None) -> Recipe:
    """Check a recipe given as plain values. Raises RecipeError with `where` in the message.

    Args:
        folder: where kinds named by a file (`FILE.py:CLASS`) are looked for, before the current folder.
    """
    top = validate(RecipeFile, source, where)
    stages = {name: _stage(name, dict(value), top, where, folder) for name, value in top.stages.items()}
    for entry in stages.values():
        _check_inputs(entry, stages, where)
    order = _order(stages, where)
    for entry in (stages[name] for name in order):
        try:
            entry.stage.check_inputs(
                {role: [stages[name].stage for name in names] for role, names in entry.inputs.items()}
            )
        except RecipeError as error:
            raise RecipeError(f"{where}: {error.message}", error.cure) from None
    return Recipe(top.name, top.description, top.seed, {name: stages[name] for name in order}, dict(source))


def find_recipe(name: str) -> Path:
    """Return the file of a recipe given by its name or its path. Raises RecipeError if there is none."""
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        if not Path(name).is_file():
            raise RecipeError(f"there is no recipe file {name}", "`hornbook recipes` lists those that ship")
        return Path(name)
    known = recipe_names()
    if name not in known:
        raise RecipeError(f"there is no recipe {name!r}{nearest(name, list(known))}", "`hornbook recipes` lists them")
    return known[name]


def override_setting(source: dict[str, Any], override: str) -> None:
    """Apply one `key.path=value` to a recipe as it was read. Raises RecipeError."""
    import yaml

    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"--set {override!r} is not key=value", "for example --set stages.stories.rows=2000")
    try:
        value = yaml_value(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: the value is not YAML: {error}") from None
    *parents, last = key.split(".")
    target: Any = source
    for depth, part in enumerate(parents):
        if part not in target and depth == 1 and parents[0] == "stages":
            raise RecipeError(f"--set {override!r}: no stage {part!r}{nearest(part, list(target))}")
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise RecipeError(f"--set {override!r}: {'.'.join(parents[: depth + 1])} holds a value, not settings")
    target[last] = value


def _stage(name: str, value: dict[str, Any], top: RecipeFile, where: str, folder: Path | None) -> RecipeStage:
    place = f"{where}: stages.{name}"
    if not name.replace("-", "").replace("_", "").isalnum():
        raise RecipeError(f"{place}: a stage's name has only letters, digits, - and _")
    kind = value.pop("kind", None)
    if not isinstance(kind, str):
        raise RecipeError(f"{place}.kind: this setting is required (known kinds: {', '.join(sorted(STAGES))})")
    implementation = stage_class(kind, place, folder)
    raw_inputs = value.pop("inputs", {}) or {}
    if not isinstance(raw_inputs, dict):
        raise RecipeError(f"{place}.inputs: a mapping from role to stage names, got {raw_inputs!r}")
    inputs = {role: _names(names, f"{place}.inputs.{role}") for role, names in raw_inputs.items()}
    _engine_defaults(implementation.Settings, value, top.engine, place)
    settings = validate(implementation.Settings, value, place)
    try:
        stage = implementation(name, settings, top.seed)
    except RecipeError as error:
        raise RecipeError(f"{place}: {error.message}", error.cure) from None
    except TypeError as error:  # a user's kind that leaves out what it must say
        raise RecipeError(f"{place}.kind: {kind}: {error}") from None
    stage.folder = folder
    try:
        for field, engine in engines_of(settings).items():
            check_engine(engine, f"stages.{name}.{field}")
        stage.check()
    except RecipeError as error:
        raise RecipeError(f"{where}: {error.message}", error.cure) from None
    return RecipeStage(name, stage, inputs, _group(implementation))


def _engine_defaults(model: type[Settings], value: dict[str, Any], defaults: dict[str, Any], place: str) -> None:
    """Fill what a stage's engines leave out with the recipe's `engine`; one that is not named at all is left alone,
    except for the main one."""
    if not defaults:
        return
    for name, known in model.model_fields.items():
        if name == "engines" and isinstance(value.get(name), list):
            for number, entry in enumerate(value[name]):
                if isinstance(entry, dict) and isinstance(entry.get("engine"), dict):
                    value[name][number] = {**entry, "engine": {**defaults, **entry["engine"]}}
        elif _is_engine(known.annotation) and (name == "engine" or value.get(name) is not None):
            own = value.get(name) or {}
            if not isinstance(own, dict):
                raise RecipeError(f"{place}.{name}: settings of an engine, got {own!r}", f"say {name}: {{kind: {own}}}")
            value[name] = {**defaults, **own}


def _is_engine(annotation: Any) -> bool:
    return annotation is EngineSettings or EngineSettings in getattr(annotation, "__args__", ())


def _names(value: Any, where: str) -> list[str]:
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(f"{where}: the name of a stage, or a list of names, got {value!r}")
    return names


def _group(implementation: type[Stage]) -> str:
    """Return the package that a stage comes from; a user's own kind belongs where its base class does."""
    packages = [base.__module__.split(".")[0] for base in implementation.__mro__]
    return next((package for package in packages if package in GROUPS), packages[0])


def _check_inputs(entry: RecipeStage, stages: Mapping[str, RecipeStage], where: str) -> None:
    place = f"{where}: stages.{entry.name}.inputs"
    roles = entry.stage.inputs
    for role, names in entry.inputs.items():
        if role not in roles:
            raise RecipeError(f"{place}.{role}: {entry.stage.kind} has no such input{nearest(role, list(roles))}")
        if len(names) > 1 and not roles[role].many:
            raise RecipeError(f"{place}.{role}: takes one stage, got {', '.join(names)}")
        for name in names:
            if name not in stages:
                raise RecipeError(f"{place}.{role}: no stage {name!r} in this recipe{nearest(name, list(stages))}")
            produces = stages[name].stage.produces
            if produces != roles[role].produces:
                raise RecipeError(f"{place}.{role}: needs {roles[role].produces}, but {name} makes {produces}")
    for role, declared in roles.items():
        if not declared.optional and not entry.inputs.get(role):
            others = [(name, other.stage) for name, other in stages.items() if name != entry.name]
            fitting = [name for name, stage in others if stage.produces == declared.produces]
            raise RecipeError(
                f"{place}.{role}: {entry.stage.kind} needs this input",
                f"name a stage that makes {declared.produces}: {', '.join(fitting) or 'there is none yet'}",
            )


def _order(stages: Mapping[str, RecipeStage], where: str) -> list[str]:
    graph = {name: [parent for role in entry.inputs.values() for parent in role] for name, entry in stages.items()}
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        raise RecipeError(f"{where}: stages need each other in a circle: {' -> '.join(error.args[1])}") from None
    position = {name: index for index, name in enumerate(stages)}
    order: list[str] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=position.__getitem__)
        order.append(ready.pop(0))
        sorter.done(order[-1])
    return order
