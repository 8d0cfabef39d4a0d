"""Rules of a selection: a column of attributes and one condition each. Data, never expressions.

A document passes through the rules in order and is dropped by the first that it fails; that rule is the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from hornbook.errors import RecipeError
from hornbook.settings import Settings

Value = bool | int | float | str
Mask = npt.NDArray[np.bool_]
SHOWN = 60  # characters of a rule's own title


class Rule(Settings):
    """What documents must be to stay: one condition on one column. Without a condition: the scores' own threshold."""

    column: str = Field(..., min_length=1, description="The column of the attributes that is looked at.")
    input: str = Field("", description="The stage whose attributes have it; default: the only input that does.")
    name: str = Field("", description="What the funnel calls the rule; default: its condition.")
    min: float | None = Field(
        None, allow_inf_nan=False, description="Stay from this number on; of a list, with so many entries."
    )
    max: float | None = Field(
        None, allow_inf_nan=False, description="Stay up to this number; of a list, with so many entries."
    )
    equals: Value | None = Field(None, description="Stay with this value.")
    one_of: tuple[Value, ...] = Field(
        (), alias="in", description="Stay with one of these values; of a list, if any entry is one."
    )
    not_in: tuple[Value, ...] = Field((), description="Stay with any value but these; of a list, if no entry is one.")
    is_true: bool = Field(False, description="true: stay where the column is true.")
    is_false: bool = Field(False, description="true: stay where the column is false.")
    sources: tuple[str, ...] = Field((), description="The sources that the rule is for; default: all.")

    @model_validator(mode="after")
    def _one_condition(self) -> Rule:
        if len(self._conditions()) > 1:
            raise ValueError(
                f"the rule on {self.column!r} has several conditions ({', '.join(self._conditions())}): write a rule for each"
            )
        return self

    def _conditions(self) -> list[str]:
        given = {
            "min": self.min is not None,
            "max": self.max is not None,
            "equals": self.equals is not None,
            "in": bool(self.one_of),
            "not_in": bool(self.not_in),
            "is_true": self.is_true,
            "is_false": self.is_false,
        }
        return [name for name, holds in given.items() if holds]

    @property
    def condition(self) -> str:
        """The setting that states the condition, or `threshold` where none does."""
        return next(iter(self._conditions()), "threshold")

    @property
    def title(self) -> str:
        """What the funnel calls the rule."""
        if self.name:
            return self.name
        values = {
            "threshold": "at the scores' threshold",
            "min": f">= {self.min}",
            "max": f"<= {self.max}",
            "equals": f"= {self.equals}",
            "in": f"in {', '.join(map(str, self.one_of))}",
            "not_in": f"not in {', '.join(map(str, self.not_in))}",
            "is_true": "is true",
            "is_false": "is false",
        }
        said = f"{self.column} {values[self.condition]}"
        return said if len(said) <= SHOWN else f"{said[: SHOWN - 1]}…"

    @property
    def missing(self) -> str:
        """The reason of a document that is dropped because it has no value to look at."""
        return f"{self.title}: no value"

    def check_type(self, kind: pa.DataType, where: str) -> None:
        """Refuse a column that the condition cannot be asked of. Raises RecipeError naming both."""
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        listed = pa.types.is_list(kind)
        fits = {"min": number or listed, "max": number or listed, "threshold": number, "equals": not listed}
        fits |= dict.fromkeys(("is_true", "is_false"), pa.types.is_boolean(kind))
        if not fits.get(self.condition, True):
            raise RecipeError(
                f"{where}: {self.condition} cannot be asked of the column {self.column!r}, which holds {kind}"
            )
        for value in self._values():
            try:
                if isinstance(value, bool) and number:  # `yes` in YAML; arrow would take it for 1
                    raise TypeError
                pa.array([value], type=kind.value_type if listed else kind)
            except (pa.ArrowException, TypeError, ValueError):
                raise RecipeError(
                    f"{where}: the column {self.column!r} holds {kind}, so it is never {value!r}",
                    "name values of that type",
                ) from None

    def _values(self) -> list[Value]:
        return [*([] if self.equals is None else [self.equals]), *self.one_of, *self.not_in]

    def holds(self, column: pa.ChunkedArray, threshold: float | None) -> Mask:
        """Return where the condition holds, bool (rows,); false where there is no value.

        Args:
            column: of a type that `check_type` lets through.
            threshold: what a rule without a condition takes as `min`.
        """
        valid = has_value(column)
        if not valid.any():  # a part without any value may not even have the column's type
            return valid
        if pa.types.is_list(column.type):
            if self.condition in ("in", "not_in"):
                return valid & (self._any_entry(column) == (self.condition == "in"))
            column = pc.list_value_length(column)
        match self.condition:
            case "min" | "max" | "threshold":
                numbers = column.fill_null(0).to_numpy()
                # A Python number takes the column's precision, as where scores are packed: 0.7 as float32 reaches 0.7.
                low = self.min if self.condition == "min" else threshold
                found = numbers <= self.max if self.condition == "max" else numbers >= low
            case "is_true" | "is_false":
                found = column.fill_null(False).to_numpy() == (self.condition == "is_true")
            case _:
                named = pc.is_in(column, value_set=pa.array(self._values(), type=column.type)).to_numpy()
                found = ~named.astype(bool) if self.condition == "not_in" else named
        return valid & found.astype(bool)

    def _any_entry(self, column: pa.ChunkedArray) -> Mask:
        """Return which lists hold one of the rule's values."""
        found = np.zeros(len(column), dtype=bool)
        lists = column.combine_chunks()
        named = pc.is_in(pc.list_flatten(lists), value_set=pa.array(self._values(), type=column.type.value_type))
        found[pc.list_parent_indices(lists).filter(named).to_numpy()] = True
        return found


def has_value(column: pa.ChunkedArray) -> Mask:
    """Return where a column says something, bool (rows,): neither null nor NaN."""
    valid = pc.is_valid(column).to_numpy().astype(bool)
    if pa.types.is_floating(column.type):
        valid &= ~np.isnan(column.fill_null(0).to_numpy())
    return valid


def first_reasons(
    rules: Sequence[Rule],
    columns: Sequence[pa.ChunkedArray],
    thresholds: Sequence[float | None],
    sources: npt.NDArray[Any],
    keep_missing: bool,
) -> npt.NDArray[Any]:
    """Return why each document is dropped, str (rows,): the first rule that it fails; empty where it stays.

    Args:
        rules: in order.
        columns: each rule's column, (rows,) each.
        thresholds: each rule's threshold, where it has no condition of its own.
        sources: the documents' sources, (rows,).
        keep_missing: whether a document without a value passes the rule that asks for it.
    """
    reasons = np.full(len(sources), "", dtype=object)
    for rule, column, threshold in zip(rules, columns, thresholds, strict=True):
        asked = reasons == ""
        if rule.sources:
            asked &= np.isin(sources, rule.sources)
        valid = has_value(column)
        if not keep_missing:
            reasons[asked & ~valid] = rule.missing
        reasons[asked & valid & ~rule.holds(column, threshold)] = rule.title
    return reasons
