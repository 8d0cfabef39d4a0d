"""The one table of stage kinds: kind -> import string, so that the ground floor imports no floor above it.

A user's own kind is named by its file: `kind: my_kinds.py:Riddles`, a path from the recipe's folder or the current one.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from hornbook.errors import RecipeError
from hornbook.fingerprint import data_files
from hornbook.settings import Settings, nearest
from hornbook.stage import OWN_SOURCE, Stage

STAGES: dict[str, str] = {
    "stories": "generators.stories:Stories",
    "textbooks": "generators.textbooks:Textbooks",
    "questions": "generators.questions:Questions",
    "story-instructions": "generators.story_instructions:StoryInstructions",
    "web-textbooks": "generators.web_textbooks:WebTextbooks",
    "rewrites": "generators.rewrites:Rewrites",
    "chats": "generators.chats:Chats",
    "exercises": "generators.exercises:Exercises",
    "code-textbooks": "generators.code_textbooks:CodeTextbooks",
    "function-calls": "generators.function_calls:FunctionCalls",
    "judge": "generators.judge:Judge",
    "preferences": "generators.preferences:Preferences",
    "files": "classifiers.files:Files",
    "installed-python": "classifiers.installed_python:InstalledPython",
    "extract": "classifiers.extract:Extract",
    "language": "classifiers.language:Language",
    "heuristics": "classifiers.heuristics:Heuristics",
    "pii": "classifiers.pii:Pii",
    "annotate": "classifiers.annotate:Annotate",
    "labels": "classifiers.labels:Labels",
    "teaching-proxy": "classifiers.teaching_proxy:TeachingProxy",
    "embed": "classifiers.embed:Embed",
    "dedup": "classifiers.dedup:Dedup",
    "quality": "classifiers.quality:Quality",
    "score": "classifiers.score:Score",
    "decontaminate": "classifiers.decontaminate:Decontaminate",
    "select": "classifiers.selection:Select",
    "chat-records": "training.chat_records:ChatRecords",
    "tokenizer": "training.tokenizer:TokenizerStage",
    "pack": "training.pack:Pack",
    "import-tokens": "training.import_tokens:ImportTokens",
    "export-tokens": "training.export_tokens:ExportTokens",
    "pretrain": "training.pretrain:Pretrain",
    "sft": "training.sft:Sft",
    "dpo": "training.dpo:Dpo",
    "export": "training.export:Export",
    "evaluate-loss": "training.evaluate_loss:EvaluateLoss",
    "evaluate-calls": "training.evaluate_calls:EvaluateCalls",
    "compare": "training.compare:Compare",
}

KIND_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
"""What a kind may be called: folders of artifacts bear the name, and `hornbook gc` knows them by it."""


def stage_class(kind: str, where: str, folder: Path | None = None) -> type[Stage]:
    """Return the stage class of a kind.

    Args:
        kind: a name of the table, or `FILE.py:CLASS`.
        where: names the place in the recipe, for messages.
        folder: where a relative FILE.py is looked for before the current folder: the recipe's.

    Raises:
        RecipeError: unknown kind, or its module cannot be imported.
    """
    if ".py:" in kind:
        return _own_class(kind, where, folder)
    if kind not in STAGES:
        raise RecipeError(
            f"{where}.kind: no stage kind {kind!r}{nearest(kind, list(STAGES))}",
            "a kind of your own is named FILE.py:CLASS",
        )
    module, _, name = STAGES[kind].partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise RecipeError(
            f"{where}.kind: {module} cannot be imported: {error}", "`hornbook doctor` names what is missing"
        ) from error
    return found


def _own_class(kind: str, where: str, folder: Path | None) -> type[Stage]:
    file, _, name = kind.rpartition(":")
    path = own_file(file, folder)
    if path is None:
        raise RecipeError(
            f"{where}.kind: there is no file {file}", "a path from the recipe's folder or the current one"
        )
    try:
        module = _load(path.resolve())
    except (Exception, SystemExit) as error:  # whatever a user's file does when it is imported
        raise RecipeError(f"{where}.kind: {file} cannot be imported: {type(error).__name__}: {error}") from error
    own = getattr(module, name, None)
    if own is None:
        classes = [
            known for known, value in vars(module).items() if _is_stage(value) and value.__module__ == module.__name__
        ]
        raise RecipeError(f"{where}.kind: {file} has no class {name}{nearest(name, classes) if classes else ''}")
    if not _is_stage(own):
        raise RecipeError(
            f"{where}.kind: {kind} is no stage",
            "a kind of generated text is a subclass of generators.prompted.PromptedStage",
        )
    for attribute in ("kind", "produces", "Settings"):
        if not hasattr(own, attribute):
            raise RecipeError(f"{where}.kind: the class {name} of {file} has no {attribute!r}")
    if not (isinstance(own.kind, str) and KIND_NAME.fullmatch(own.kind)):  # artifacts are named by it
        raise RecipeError(
            f"{where}.kind: the class {name} of {file} has kind = {own.kind!r}",
            "a kind's name has small letters, digits and hyphens only and begins with no hyphen: kind = 'my-riddles'",
        )
    if not (isinstance(own.Settings, type) and issubclass(own.Settings, Settings)):
        raise RecipeError(
            f"{where}.kind: the class {name} of {file} has Settings = {own.Settings!r}, not a model of settings",
            "a subclass of generators.prompted.PromptSettings, for a kind of generated text",
        )
    return own


def _is_stage(value: Any) -> TypeGuard[type[Stage]]:
    return isinstance(value, type) and issubclass(value, Stage)


def own_file(file: str, folder: Path | None) -> Path | None:
    """Return where a kind's file lies: below the recipe's folder, else the current one; None if nowhere."""
    places = [folder / file] if folder else []
    return next((path for path in [*places, Path(file)] if path.is_file()), None)


def _load(path: Path) -> ModuleType:
    """Import a user's file under a name that its content and its templates give it: the same on every machine."""
    source = path.read_text(encoding="utf-8")
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in [path, *data_files(path)]))
    name = f"hornbook_kind_{path.stem}_{digest.hexdigest()[:8]}"
    if name in sys.modules and sys.modules[name].__file__ == str(path):
        return sys.modules[name]
    return own_module(name, str(path), source)


def own_module(name: str, path: str, source: str) -> ModuleType:
    """Execute the source of a user's file as module `name`; a worker, which need not have the file, does it likewise."""
    module = ModuleType(name)
    module.__file__ = path
    module.__spec__ = importlib.util.spec_from_file_location(name, path)
    setattr(module, OWN_SOURCE, source)
    sys.modules[name] = module
    try:
        exec(compile(source, path, "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module
