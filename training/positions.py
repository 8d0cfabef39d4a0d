"""How long a row a model can take, known from the recipe: said before the stages that the tuning of it waits for."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from hornbook.errors import RecipeError
from hornbook.stage import Stage


@runtime_checkable
class HasPositions(Protocol):
    """A stage that knows the context of the model that it will leave."""

    def positions(self) -> int | None:
        """Return it in tokens, None if it cannot be told."""
        ...


def positions_of(stage: Stage) -> int | None:
    """Return the positions that the model of a stage will have, None if that cannot be told from the recipe."""
    return stage.positions() if isinstance(stage, HasPositions) else None


def require_room(stage: str, sequence_length: int, positions: int | None) -> None:
    """Raise RecipeError if rows are longer than a model's context."""
    if positions is not None and sequence_length > positions:
        raise RecipeError(
            f"stages.{stage}.loop.sequence_length: rows of {sequence_length} tokens do not fit the model's context of {positions}",
            "lower it, or set max_position_embeddings under `model` of the stage that pretrains",
        )
