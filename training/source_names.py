"""What a training stage's sources are called, known from the recipe: a wrong name is said before hours of work, not behind them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from hornbook.errors import RecipeError
from hornbook.settings import nearest
from hornbook.stage import Stage
from training.best import BestOfSettings
from training.mixture import PhaseSettings
from training.settings import LoopSettings

MEAN = "mean"
"""All sources together, where one is chosen by."""


def source_names(stage: str, packed: Sequence[Stage]) -> list[str]:
    """Return what the corpora of some packing stages are called; nothing if one of them, a kind of the user's own, does not say.

    Args:
        stage: that takes them as inputs, for messages.

    Raises:
        RecipeError: two have the same name.
    """
    names = [str(getattr(found.settings, "source", "")) for found in packed]
    if not all(names):
        return []
    for number, name in enumerate(names):
        if name in names[:number]:
            first = packed[names.index(name)].name
            raise RecipeError(
                f"stages.{stage}.inputs.tokens: {first} and {packed[number].name} are both called {name!r}",
                f"give one of them a `source` of its own: stages.{packed[number].name}.source",
            )
    return names


def check_form(stage: str, form: str, packed: Sequence[Stage]) -> None:
    """Raise RecipeError if one of some packing stages packs in another form than a training stage reads."""
    for found in packed:
        if (other := getattr(found.settings, "form", form)) != form:
            raise RecipeError(
                f"stages.{stage}.inputs.tokens: {found.name} packs {other}, this stage trains on {form}",
                f"set stages.{found.name}.form to {form}",
            )


def check_names(stage: str, setting: str, used: Iterable[str], known: Sequence[str]) -> None:
    """Raise RecipeError if a setting names what is no source; `known` is empty where nobody can tell."""
    for name in used:
        if known and name not in known:
            raise RecipeError(
                f"stages.{stage}.{setting}: no source is called {name!r}{nearest(name, list(known))}",
                "a source is called as `source` in its pack stage says, else as the stage that made the documents",
            )


def check_phases(
    stage: str, phases: Sequence[PhaseSettings], epoch_caps: Mapping[str, float], known: Sequence[str]
) -> None:
    """Raise RecipeError if phases or caps name what is no source, or weights sum to nothing."""
    for number, phase in enumerate(phases):
        for setting in ("weights", "end_weights", "tokens"):
            shares = getattr(phase, setting)
            check_names(stage, f"phases[{number}].{setting}", shares, known)
            if shares and not (min(shares.values()) >= 0 and 0 < sum(shares.values()) < math.inf):
                raise RecipeError(
                    f"stages.{stage}.phases[{number}].{setting}: they sum to nothing, or one is no share: {shares}",
                    "give at least one source a number above 0, and none a negative one",
                )
    check_names(stage, "epoch_caps", epoch_caps, known)


def check_best(stage: str, loop: LoopSettings, best_of: BestOfSettings | None, known: Sequence[str]) -> None:
    """Raise RecipeError if the best checkpoint, or the best weights, are to be chosen by what is no source."""
    wanted = {"loop.best_by": loop.best_by, "best_of.by": best_of.by if best_of else None}
    for setting, name in wanted.items():
        if name is not None:
            check_names(stage, setting, [name], [*known, MEAN] if known else [])
