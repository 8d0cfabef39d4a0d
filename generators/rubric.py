"""Rubrics: what a judge is asked of a text, and how its answer is read.

The answer is a JSON object: a grade for each criterion, and a reason. Its form is a JSON Schema that the engine enforces while
it writes. An endpoint may ignore the schema, so every answer is checked against it again, and none is ever repaired: what is
not exactly in the form is refused with what the judge said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from hornbook.errors import RecipeError
from hornbook.settings import Settings, nearest

Reason = Literal["first", "last", "none"]

REASON = "reason"
MEAN = "mean"
COLUMNS = ("id", "key", "source", "score", REASON, MEAN, "characters", "judge", "revision")
"""Names that the columns beside the grades have; a criterion cannot have them."""
SHOWN = 300
"""Characters of a refused answer that its message repeats."""


class Criterion(Settings):
    """One thing that is graded: a number between two bounds, or one of a few choices."""

    name: str = Field(
        ..., pattern=r"^[a-z][a-z0-9_]*$", description="Name of its key in the answer, and of its column."
    )
    question: str = Field(..., min_length=1, description="What the judge is asked.")
    minimum: float | None = Field(None, allow_inf_nan=False, description="Lowest grade.")
    maximum: float | None = Field(None, allow_inf_nan=False, description="Highest grade.")
    integer: bool = Field(True, description="Whole grades only.")
    choices: tuple[str, ...] = Field((), description="Instead of numbers: the answers that may be given.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.name in COLUMNS:
            raise ValueError(f"{self.name}: this name is taken, by a column beside the grades")
        if self.choices:
            if (self.minimum, self.maximum) != (None, None):
                raise ValueError(f"{self.name}: either choices, or minimum and maximum")
            if len(set(self.choices)) != len(self.choices) or not all(self.choices):
                raise ValueError(f"{self.name}: the choices must be different texts")
            return self
        if self.minimum is None or self.maximum is None or self.minimum >= self.maximum:
            raise ValueError(f"{self.name}: needs a minimum below a maximum, or choices")
        if self.integer and not (self.minimum.is_integer() and self.maximum.is_integer()):
            raise ValueError(f"{self.name}: whole grades need whole bounds")
        return self

    @property
    def allowed(self) -> str:
        """What may be answered, for people and judges."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return f"{'a whole number' if self.integer else 'a number'} from {self.minimum:g} to {self.maximum:g}"

    @property
    def form(self) -> dict[str, Any]:
        """The JSON Schema of its value."""
        if self.choices:
            return {"type": "string", "enum": list(self.choices)}
        assert self.minimum is not None and self.maximum is not None
        if self.integer:
            return {"type": "integer", "minimum": int(self.minimum), "maximum": int(self.maximum)}
        return {"type": "number", "minimum": self.minimum, "maximum": self.maximum}

    def read(self, value: Any) -> float | str:
        """Return a value of an answer as a grade. Raises NotGraded."""
        if self.choices:
            if not isinstance(value, str):
                raise NotGraded("invalid-json", f"{self.name} is no text")
            if value not in self.choices:
                raise NotGraded("out-of-range", f"{self.name} is {value[:40]!r}, not {self.allowed}")
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise NotGraded("invalid-json", f"{self.name} is no number")
        assert self.minimum is not None and self.maximum is not None
        if not self.minimum <= value <= self.maximum or (self.integer and value != int(value)):
            raise NotGraded("out-of-range", f"{self.name} is {str(value)[:40]}, not {self.allowed}")
        return float(value)


class Example(Settings):
    """A text and its grades, shown to the judge before the text in question."""

    document: str = Field(..., min_length=1, description="The text.")
    reason: str = Field(..., min_length=1, description="Why it is graded so.")
    grades: dict[str, float | str] = Field(..., description="A grade for each criterion.")


class Rubric(Settings):
    """How texts are graded."""

    name: str = Field(..., pattern=r"^[a-z0-9][a-z0-9-]*$", description="What people call it.")
    instruction: str = Field(..., min_length=1, description="Who the judge is, and what it looks at.")
    criteria: tuple[Criterion, ...] = Field(
        ..., min_length=1, description="What is graded, in the order of the answer."
    )
    examples: tuple[Example, ...] = Field((), description="Graded texts; a small judge needs a good and a bad one.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [criterion.name for criterion in self.criteria]
        if len(set(names)) != len(names):
            raise ValueError(f"rubric {self.name}: two criteria have the same name")
        if not self.numeric:
            raise ValueError(f"rubric {self.name}: at least one criterion must be a number")
        for number, example in enumerate(self.examples):
            if set(example.grades) != set(names):
                raise ValueError(f"rubric {self.name}, example {number}: grades must be for {', '.join(names)}")
            for criterion in self.criteria:
                try:
                    criterion.read(example.grades[criterion.name])
                except NotGraded as error:
                    raise ValueError(f"rubric {self.name}, example {number}: {error.detail}") from None
        return self

    @property
    def numeric(self) -> tuple[Criterion, ...]:
        """The criteria whose grades are numbers."""
        return tuple(criterion for criterion in self.criteria if not criterion.choices)

    def require_score(self, score: str, where: str) -> None:
        """Refuse a `score` that is neither a numeric criterion nor a mean of equal scales. Raises RecipeError."""
        names = [criterion.name for criterion in self.numeric]
        if score == MEAN:
            if len({(criterion.minimum, criterion.maximum) for criterion in self.numeric}) > 1:
                raise RecipeError(
                    f"{where}: the criteria of rubric {self.name} have different scales, their mean would mean nothing",
                    f"name one of them: {', '.join(names)}",
                )
        elif score not in names:
            raise RecipeError(
                f"{where}: rubric {self.name} grades no number {score!r}{nearest(score, [MEAN, *names])}",
                f"{MEAN}, or one of {', '.join(names)}",
            )

    def bounds(self, score: str) -> tuple[float, float]:
        """Return the lowest and the highest value of a score."""
        criterion = next((found for found in self.numeric if found.name == score), self.numeric[0])
        assert criterion.minimum is not None and criterion.maximum is not None
        return criterion.minimum, criterion.maximum


class NotGraded(Exception):
    """An answer that is no grading: a short reason (`invalid-json`, `out-of-range`, ...) and a detail for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Grades:
    """What a judge said of a text: a number or a choice for each criterion, and why."""

    values: Mapping[str, float | str]
    reason: str = ""

    def score(self, name: str) -> float:
        """Return one criterion's number, or the mean of all numbers."""
        if name != MEAN:
            return float(self.values[name])
        numbers = [value for value in self.values.values() if not isinstance(value, str)]
        return sum(numbers) / len(numbers)


@dataclass(frozen=True)
class Asking:
    """A rubric in the form of chat messages and a schema.

    Attributes:
        rubric: what is graded.
        template: Jinja text of a user's turn; rendered with `rubric`, `reason`, `first` (whether it is the conversation's
            first turn, which explains the task) and `document`.
        reason: whether the judge gives its reason before the grades, after them or not at all. Before is better: a grade
            that follows from words is a thought, words that follow from a grade are an excuse.
        reason_characters: longest reason.
    """

    rubric: Rubric
    template: str
    reason: Reason = "first"
    reason_characters: int = 300

    def __reduce__(self) -> tuple[Any, ...]:
        return Asking, (self.rubric, self.template, self.reason, self.reason_characters)

    @cached_property
    def schema(self) -> str:
        """The JSON Schema of an answer, as JSON text; engines write the properties in its order."""
        properties = {criterion.name: criterion.form for criterion in self.rubric.criteria}
        said = {REASON: {"type": "string", "minLength": 1, "maxLength": self.reason_characters}}
        if self.reason == "first":
            properties = {**said, **properties}
        elif self.reason == "last":
            properties = {**properties, **said}
        schema = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        return json.dumps(schema, ensure_ascii=False)

    def messages(self, document: str) -> tuple[dict[str, str], ...]:
        """Return the messages that ask for the grades of a text; all but the last are the same for every text."""
        return (*self._examples, self._turn(document, first=not self._examples))

    def read(self, text: str) -> Grades:
        """Read a judge's answer. Raises NotGraded (`empty`, `invalid-json`, `out-of-range`)."""
        if not text.strip():
            raise NotGraded("empty", "the judge said nothing")
        value = _object(text)
        wanted = [*(criterion.name for criterion in self.rubric.criteria), *([REASON] if self.reason != "none" else [])]
        if set(value) != set(wanted):
            odd = sorted(set(value) ^ set(wanted))
            raise NotGraded("invalid-json", f"keys missing, or too many: {', '.join(map(repr, odd))[:SHOWN]}")
        reason = value.get(REASON, "")
        if not isinstance(reason, str) or (self.reason != "none" and not reason.strip()):
            raise NotGraded("invalid-json", "the reason is empty, or no text")
        if len(reason) > self.reason_characters:
            raise NotGraded("invalid-json", f"the reason has {len(reason)} characters, not {self.reason_characters}")
        values = {criterion.name: criterion.read(value[criterion.name]) for criterion in self.rubric.criteria}
        return Grades(values, reason.strip())

    @cached_property
    def _examples(self) -> tuple[dict[str, str], ...]:
        turns = []
        for number, example in enumerate(self.rubric.examples):
            turns.append(self._turn(example.document, first=number == 0))
            turns.append({"role": "assistant", "content": self._answer(example)})
        return tuple(turns)

    def _turn(self, document: str, first: bool) -> dict[str, str]:
        asked = self._compiled.render(rubric=self.rubric, reason=self.reason, first=first, document=document)
        return {"role": "user", "content": asked.strip()}

    @cached_property
    def _compiled(self) -> Any:
        import jinja2

        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(self.template)

    def _answer(self, example: Example) -> str:
        """Return an example's answer in the form that is asked for."""
        answer: dict[str, Any] = {}
        for name in json.loads(self.schema)["properties"]:
            value = example.reason if name == REASON else example.grades[name]
            answer[name] = int(value) if isinstance(value, float) and value.is_integer() else value
        return json.dumps(answer, ensure_ascii=False)


def _object(text: str) -> dict[str, Any]:
    """Return the JSON object that a text is. Raises NotGraded for anything else, a key that stands twice included."""
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
    except (ValueError, RecursionError) as error:
        raise NotGraded("invalid-json", f"{error}, in {text[:SHOWN]!r}") from None
    if not isinstance(value, dict):
        raise NotGraded("invalid-json", f"no object: {text[:SHOWN]!r}")
    return value


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
