"""Runs a stage's parts in this process, one after the other, as a worker does: for tests of what comes out, without Ray."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from finished_artifact import finish

from hornbook.artifact import Artifact
from hornbook.documents import Document, content_key, documents_table
from hornbook.events import Events
from hornbook.parts import PartContent, PartRange, commit_part, missing_ranges
from hornbook.partwork import PartMaker, Totals, _totals
from hornbook.recipe import Recipe, check_recipe
from hornbook.stage import Stage, StageContext
from hornbook.store import Store


class InProcess(StageContext):
    """A context whose workers are copies of the maker in this process."""

    def make_parts(self, maker: PartMaker, ranges: Iterable[PartRange], **options: Any) -> Totals:
        store, folder = self.artifact.store, self.artifact.folder
        worker = pickle.loads(pickle.dumps(maker))
        worker.setup()
        for part in missing_ranges(store, folder, ranges):
            made = worker.make(part)
            commit_part(store, folder, part, asyncio.run(made) if inspect.iscoroutine(made) else made)
        return _totals(store, folder)


def context_of(stage: Stage, store: Store, **inputs: Sequence[Artifact]) -> InProcess:
    return InProcess(
        artifact=Artifact(store, f"artifacts/{stage.name}"),
        inputs=inputs,
        input_stages={role: [Path(found.folder).name for found in artifacts] for role, artifacts in inputs.items()},
        stage=stage.name,
        seed=stage.seed,
        run="test",
        events=Events(store, "runs/test"),
        stop_requested=lambda: False,
        open_engine=lambda settings, wait=True: None,  # type: ignore[arg-type,return-value]
    )


def finished(stage: Stage, store: Store, **inputs: Sequence[Artifact]) -> Artifact:
    """Run a stage and return its finished artifact."""
    context = context_of(stage, store, **inputs)
    result = stage.run(context)
    return finish(
        context.artifact, stage.produces, kind=stage.kind, stage=stage.kind, metrics=result.metrics, files=result.files
    )


def corpus(
    store: Store, name: str, texts: Sequence[str], part_rows: int = 10, sources: Sequence[str] | None = None
) -> Artifact:
    """Return a finished corpus of texts, in parts of `part_rows`."""
    artifact = Artifact(store, f"artifacts/{name}")
    for start in range(0, len(texts), part_rows):
        part = PartRange(start, min(start + part_rows, len(texts)))
        documents = [
            Document(
                id=row << 16,
                key=content_key(f"{name} {row}".encode()),
                text=texts[row],
                source=sources[row] if sources else name,
                kind="web",
            )
            for row in range(part.start, part.stop)
        ]
        commit_part(store, artifact.folder, part, PartContent(table=documents_table(documents)))
    return finish(artifact, "documents", kind="files", stage="files")


def run_recipe_here(given: Recipe | Mapping[str, Any], store: Store, last: str = "") -> dict[str, Artifact]:
    """Run a recipe's stages, or those that `last` needs, in this process, part after part, without Ray."""
    recipe = given if isinstance(given, Recipe) else check_recipe(given, "test recipe")
    wanted = recipe.ancestors([last] if last else list(recipe.stages))
    made: dict[str, Artifact] = {}
    for name, entry in recipe.stages.items():
        if name not in wanted:
            continue
        inputs = {role: [made[parent] for parent in parents] for role, parents in entry.inputs.items()}
        context = context_of(entry.stage, store, **inputs)
        context.input_stages = entry.inputs
        with patch("hornbook.cluster.expected_gpus", lambda: 0.0):  # asks Ray
            result = entry.stage.run(context)
        made[name] = finish(
            context.artifact, entry.stage.produces, kind=entry.stage.kind, stage=name, fingerprint=name,
            seed=recipe.seed, inputs=inputs, input_stages=entry.inputs, metrics=result.metrics, files=result.files,
        )  # fmt: skip
    return made
