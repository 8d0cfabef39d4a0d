"""Rubrics: what is asked of a judge, and that only an answer exactly in the form is read; none is ever repaired."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generators.judge import grades_of, load_asking
from generators.rubric import Asking, NotGraded, Rubric
from hornbook.engines.interface import Reply
from hornbook.errors import RecipeError
from hornbook.settings import validate

SHIPPED = ("answers", "educational", "stories")


def asking(rubric: Any = "stories", reason: Any = "first") -> Asking:
    return load_asking(validate(Rubric, rubric, "rubric") if isinstance(rubric, dict) else rubric, "here", reason, 300)


OWN: dict[str, Any] = {
    "name": "own",
    "instruction": "You taste soups.",
    "criteria": [
        {"name": "salt", "question": "How salty?", "minimum": -1, "maximum": 1, "integer": False},
        {"name": "herbs", "question": "How many herbs?", "minimum": 0, "maximum": 3},
        {"name": "colour", "question": "Which colour?", "choices": ["red", "green"]},
    ],
}
GOOD = {"reason": "Too salty.", "salt": 0.5, "herbs": 2, "colour": "red"}

# --- what is asked ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("reason", ["first", "last", "none"])
def test_a_shipped_rubric_shows_its_own_form_and_keeps_to_it(name: str, reason: Any) -> None:
    found = asking(name, reason)
    messages = found.messages("A {{ text }} to grade.")
    assert [message["role"] for message in messages] == ["user", "assistant"] * 3 + ["user"]
    assert "A {{ text }} to grade." in messages[-1]["content"]
    for criterion in found.rubric.criteria:
        assert f"{criterion.name}: {criterion.question} ({criterion.allowed})" in messages[0]["content"]
    keys = [criterion.name for criterion in found.rubric.criteria]
    keys = {"first": ["reason", *keys], "last": [*keys, "reason"], "none": keys}[reason]
    assert list(json.loads(found.schema)["properties"]) == keys
    for example in (message["content"] for message in messages if message["role"] == "assistant"):
        assert list(json.loads(example)) == keys
        jsonschema.validate(json.loads(example), json.loads(found.schema))
        found.read(example)
    assert pickle.loads(pickle.dumps(found)).messages("x") == found.messages("x")


def test_all_but_the_last_turn_is_the_same_for_every_text() -> None:
    found = asking()
    assert found.messages("one")[:-1] == found.messages("two")[:-1]
    bare = asking(OWN)
    (only,) = bare.messages("A soup.")
    assert "You taste soups." in only["content"] and "A soup." in only["content"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"criteria": []}, "criteria"),
        ({"criteria": [OWN["criteria"][2]]}, "at least one criterion must be a number"),
        ({"criteria": [OWN["criteria"][0]] * 2}, "same name"),
        ({"criteria": [{**OWN["criteria"][1], "minimum": 3}]}, "needs a minimum below a maximum"),
        ({"criteria": [{**OWN["criteria"][1], "minimum": 0.5}]}, "whole bounds"),
        ({"criteria": [{**OWN["criteria"][1], "choices": ["a"]}]}, "either choices, or"),
        ({"criteria": [{**OWN["criteria"][1], "name": "score"}]}, "name is taken"),
        ({"criteria": [{**OWN["criteria"][1], "name": "No Name"}]}, "criteria.0.name"),
        ({"criteria": [{**OWN["criteria"][1], "maximum": float("inf")}]}, "finite"),
        ({"examples": [{"document": "d", "reason": "r", "grades": {"salt": 0}}]}, "example 0: grades must be for"),
        (
            {"examples": [{"document": "d", "reason": "r", "grades": {"salt": 0, "herbs": 9, "colour": "red"}}]},
            "example 0: herbs is 9",
        ),
        ({"instructions": "x"}, "did you mean 'instruction'"),
    ],
)
def test_a_wrong_rubric_says_what_is_wrong(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        asking({**OWN, **changed})


def test_a_rubric_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "soup.yaml"
    path.write_text(yaml.safe_dump(OWN))
    assert asking(str(path)).rubric == asking(OWN).rubric
    path.write_text("[]")
    with pytest.raises(RecipeError, match="is not a rubric"):
        asking(str(path))
    path.write_text("{")
    with pytest.raises(RecipeError, match="is not YAML"):
        asking(str(path))
    with pytest.raises(RecipeError, match=r"no rubric 'storys' \(did you mean 'stories'"):
        asking("storys")


# --- what is answered ---------------------------------------------------------------------------------------------------


def reason_of(found: Asking, answer: str) -> str:
    """Why an answer is refused; empty if it is not."""
    try:
        found.read(answer)
    except NotGraded as error:
        assert error.detail
        return error.reason
    return ""


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, ""),
        ({"herbs": 2.0}, ""),  # JSON Schema's integers include it
        ({"salt": -1, "herbs": 0}, ""),
        ({"herbs": 4}, "out-of-range"),
        ({"herbs": -1}, "out-of-range"),
        ({"herbs": 1.5}, "out-of-range"),
        ({"herbs": 10**300}, "out-of-range"),
        ({"salt": 1.0001}, "out-of-range"),
        ({"colour": "blue"}, "out-of-range"),
        ({"herbs": "2"}, "invalid-json"),
        ({"herbs": True}, "invalid-json"),
        ({"herbs": None}, "invalid-json"),
        ({"herbs": [2]}, "invalid-json"),
        ({"colour": 1}, "invalid-json"),
        ({"reason": ""}, "invalid-json"),
        ({"reason": 3}, "invalid-json"),
        ({"reason": "r" * 301}, "invalid-json"),
        ({"more": 1}, "invalid-json"),
        ({"salt": float("nan")}, "invalid-json"),
        ({"salt": float("inf")}, "invalid-json"),
    ],
)
def test_an_answer_is_read_or_refused_with_its_reason(changed: dict[str, Any], reason: str) -> None:
    assert reason_of(asking(OWN), json.dumps({**GOOD, **changed})) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("I would give it 7 out of 10.", "invalid-json"),
        ('```json\n{"reason": "r", "salt": 0, "herbs": 1, "colour": "red"}\n```', "invalid-json"),
        ('{"reason": "r", "salt": 0, "herbs": 1, "colour": "red"', "invalid-json"),
        ('{"reason": "r", "salt": 0, "herbs": 1, "herbs": 3, "colour": "red"}', "invalid-json"),
        ('{"reason": "r", "salt": 1e999, "herbs": 1, "colour": "red"}', "out-of-range"),
        ('{"reason": "\\ud800", "salt": 0, "herbs": 1, "colour": "red"}', "invalid-json"),
        ('[{"reason": "r", "salt": 0, "herbs": 1, "colour": "red"}]', "invalid-json"),
        ("[" * 100_000, "invalid-json"),
        ("9" * 10_000, "invalid-json"),
    ],
)
def test_what_is_not_exactly_in_the_form_is_never_repaired(text: str, reason: str) -> None:
    assert reason_of(asking(OWN), text) == reason


VALUE = st.one_of(
    st.integers(-3, 6), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["red", "blue", "2", ""]),
    st.none(), st.booleans(), st.lists(st.integers(), max_size=1),
)  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(["reason", "salt", "herbs", "colour", "more"]), VALUE),
    st.fixed_dictionaries({"salt": st.floats(-1.2, 1.2), "herbs": st.integers(-1, 4)}),
)
def test_it_is_read_exactly_where_the_schema_allows_it(odd: dict[str, Any], even: dict[str, Any]) -> None:
    found = asking(OWN)
    for answer in (odd, {**GOOD, **even}, {**GOOD, **odd}):
        valid = jsonschema.Draft202012Validator(json.loads(found.schema)).is_valid(answer)
        assert (reason_of(found, json.dumps(answer)) == "") == valid
        if valid:
            grades = found.read(json.dumps(answer))
            assert grades.values == {name: answer[name] for name in ("salt", "herbs", "colour")}
            assert grades.score("mean") == pytest.approx((answer["salt"] + answer["herbs"]) / 2)
            assert grades.score("herbs") == answer["herbs"]


@given(st.text())
def test_any_answer_is_read_or_refused(text: str) -> None:
    assert reason_of(asking(OWN), text) in ("empty", "invalid-json", "out-of-range")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(json.dumps(GOOD), "stop"), ""),
        (Reply(json.dumps(GOOD), "length"), "truncated"),
        (Reply("", "error", error="it broke"), "engine-error"),
        (Reply("no JSON", "error", error="violation"), "invalid-json"),
        (Reply(json.dumps({**GOOD, "herbs": 7}), "error", error="violation"), "out-of-range"),
        (Reply(json.dumps(GOOD), "error", error="violation"), "invalid-json"),
        (Reply("", "stop"), "empty"),
    ],
)
def test_what_becomes_of_a_reply(reply: Reply, reason: str) -> None:
    if not reason:
        assert grades_of(reply, asking(OWN)).reason == "Too salty."
        return
    with pytest.raises(NotGraded) as caught:
        grades_of(reply, asking(OWN))
    assert caught.value.reason == reason
