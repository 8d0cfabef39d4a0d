"""`hornbook preflight`: what the training stages of a recipe will take, tried for a moment on the workers they will have."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from hornbook.artifact import Artifact
from hornbook.cluster import require_shared_store
from hornbook.errors import RecipeError
from hornbook.events import Events
from hornbook.pipeline import plan_recipe
from hornbook.recipe import Recipe
from hornbook.settings import nearest
from hornbook.stage import Stage, StageContext
from hornbook.store import Store

SCRATCH = "preflight"


def preflight(recipe: Recipe, store: Store, wanted: Sequence[str]) -> Iterator[tuple[str, Sequence[Sequence[str]]]]:
    """Yield, by stage, the lines of a table: of the stages named, or of all that have something to say and can be tried.

    Nothing but a scratch folder is written, and that one goes again.

    Raises:
        RecipeError: a stage named is not there, cannot be tried, or its inputs are still to be made.
        HornbookError: a run cannot fit.
    """
    if unknown := [name for name in wanted if name not in recipe.stages]:
        raise RecipeError(f"no stage {unknown[0]}{nearest(unknown[0], list(recipe.stages))}")
    planned = plan_recipe(recipe, store)
    names = list(wanted) or [name for name, entry in recipe.stages.items() if _can(entry.stage)]
    tried = 0
    for name in names:
        entry = recipe.stages[name]
        if not _can(entry.stage):
            raise RecipeError(f"{name} ({entry.stage.kind}) has no preflight", "name a stage that trains")
        parents = [parent for role in entry.inputs.values() for parent in role]
        missing = [parent for parent in parents if not planned[parent].complete]
        if missing and not wanted:
            continue
        if missing:
            raise RecipeError(
                f"{name} is made from {', '.join(missing)}, still to be made",
                "run the recipe: the preflight of a stage comes by itself when it begins; "
                "python -m training.preflight --preset NAME tries a model on made-up tokens",
            )
        tried += 1
        inputs = {role: [_made(planned[parent].artifact) for parent in found] for role, found in entry.inputs.items()}
        artifact = Artifact(store, f"{SCRATCH}/{uuid.uuid4().hex[:12]}")
        require_shared_store(store)
        context = StageContext(
            artifact=artifact, inputs=inputs, input_stages=entry.inputs, stage=name, seed=recipe.seed, run=SCRATCH,
            events=Events(store, artifact.folder), stop_requested=lambda: False, open_engine=_no_engine,
        )  # fmt: skip
        try:
            yield name, entry.stage.preflight(context) or []
        finally:
            store.delete(artifact.folder)
    if not tried:
        raise RecipeError(
            "no training stage has its inputs yet",
            "run the recipe: the preflight of a stage comes by itself when it begins; "
            "python -m training.preflight --preset NAME tries a model on made-up tokens",
        )


def _can(stage: Stage) -> bool:
    return type(stage).preflight is not Stage.preflight


def _made(artifact: Artifact | None) -> Artifact:
    assert artifact is not None
    return artifact


def _no_engine(settings: object, wait: bool = True) -> Any:
    raise AssertionError("a preflight asks no engine")
