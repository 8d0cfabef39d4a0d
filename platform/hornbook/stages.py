"""The one table of stage kinds: kind -> import string, so that the ground floor imports no floor above it."""

from __future__ import annotations

import importlib

from hornbook.errors import RecipeError
from hornbook.settings import nearest
from hornbook.stage import Stage

STAGES: dict[str, str] = {
    "stories": "generators.stories:Stories",
    "textbooks": "generators.textbooks:Textbooks",
    "questions": "generators.questions:Questions",
    "files": "classifiers.files:Files",
    "installed-python": "classifiers.installed_python:InstalledPython",
    "annotate": "classifiers.annotate:Annotate",
    "embed": "classifiers.embed:Embed",
    "quality": "classifiers.quality:Quality",
    "tokenizer": "training.tokenizer:TokenizerStage",
    "pack": "training.pack:Pack",
    "pretrain": "training.pretrain:Pretrain",
    "sft": "training.sft:Sft",
    "export": "training.export:Export",
}


def stage_class(kind: str, where: str) -> type[Stage]:
    """Return the stage class of a kind.

    Raises:
        RecipeError: unknown kind, or its module cannot be imported; `where` names the place in the recipe.
    """
    if kind not in STAGES:
        raise RecipeError(f"{where}.kind: no stage kind {kind!r}{nearest(kind, list(STAGES))}")
    module, _, name = STAGES[kind].partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise RecipeError(
            f"{where}.kind: {module} cannot be imported: {error}", "`hornbook doctor` names what is missing"
        ) from error
    return found
