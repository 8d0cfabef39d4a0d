"""Catalogues of tools are checked when they are read; calls are checked against them and survive all four written forms."""

from __future__ import annotations

import json
import keyword
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.errors import RecipeError
from hornbook.tool_calls import FORMS, Form, canonical_calls, parse_calls, references, render_calls, validate_calls
from hornbook.tools import Catalogue, accepts, describe_tool, fits, load_catalogue, parse_catalogue, to_droidcall

PHONE = {"type": "string", "format": "phone-number"}
TOOLS: list[dict[str, Any]] = [
    {
        "name": "find_number",
        "description": "Look up a number.",
        "arguments": {"properties": {"name": {"type": "string", "description": "Whose."}}, "required": ["name"]},
        "returns": PHONE,
        "examples": [{"query": "What is Ann's number?", "arguments": {"name": "Ann"}}],
    },
    {
        "name": "call_number",
        "description": "Call somebody.",
        "arguments": {
            "properties": {
                "number": PHONE,
                "speaker": {"type": "boolean", "default": False},
                "mode": {"enum": ["voice", "video"], "default": "voice", "description": "How."},
                "volume": {"type": "integer", "minimum": 0, "maximum": 10, "default": 1},
            },
            "required": ["number"],
        },
        "returns": None,
    },
    {
        "name": "invite",
        "description": "Invite people.",
        "arguments": {
            "properties": {
                "numbers": {"type": "array", "items": PHONE},
                "place": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
            },
            "required": ["numbers"],
        },
    },
    {"name": "count", "description": "Count.", "arguments": {}, "returns": {"type": "integer"}},
]


def catalogue(tools: Any = TOOLS) -> Catalogue:
    return parse_catalogue(json.dumps(tools), "phone.json")


def call(identifier: int, tool: str, /, **arguments: Any) -> dict[str, Any]:
    return {"id": identifier, "name": tool, "arguments": arguments}


# --- catalogues ---------------------------------------------------------------------------------------------------------


def test_a_catalogue_comes_back_from_its_record() -> None:
    found = catalogue()
    assert [tool.name for tool in found] == ["find_number", "call_number", "invite", "count"]
    assert found["call_number"].defaults() == {"speaker": False, "mode": "voice", "volume": 1}
    assert catalogue([tool.record() for tool in found]) == found
    assert catalogue([tool.record() for tool in found]).digest == found.digest
    assert catalogue(TOOLS[:3]).digest != found.digest


def changed(number: int, path: str, value: Any) -> Any:
    tools = json.loads(json.dumps(TOOLS))
    target: Any = tools[number]
    *parents, last = path.split(".")
    for part in parents:
        target = target.setdefault(part, {})
    target[last] = value
    return tools


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        (changed(0, "arguments.properties.name.type", "strin"), "tool 0 (find_number).arguments.properties.name.type"),
        (changed(0, "returns.type", 3), "tool 0 (find_number).returns.type"),
        (changed(0, "returns", "a number"), "tool 0 (find_number).returns: no JSON Schema"),
        (changed(1, "name", "find_number"), "tool 1 (find_number): a second tool of this name"),
        (changed(1, "name", "result12"), "result12 is reserved"),
        (changed(1, "name", "import"), "import is reserved"),
        (changed(1, "name", "call number"), "'call number' is no name"),
        (changed(1, "name", None), "tool 1.name: None is no name"),
        (changed(1, "arguments.properties.from", {"type": "string"}), "properties.from: from is reserved"),
        (changed(1, "arguments.properties.to", {"description": "Whom."}), "properties.to: an argument needs a type"),
        (changed(1, "arguments.required", ["numbr"]), "no argument 'numbr' (did you mean 'number'?)"),
        (changed(1, "arguments.properties.volume.default", 11), "volume.default: 11 is greater than the maximum of 10"),
        (changed(1, "arguments.properties.number.default", "5"), "number.default: a required argument has no default"),
        (changed(1, "arguments.properties.mode.default", "tin"), "mode.default: 'tin' is not one of"),
        (changed(1, "arguments.additionalProperties", True), "every argument must be named"),
        (changed(1, "arguments.anyOf", [{}]), "'anyOf' has no meaning here"),
        (changed(1, "arguments.type", "array"), "arguments are an object"),
        (changed(1, "arguments.properties.number.$ref", "https://example.com/x"), "number.$ref: references to other"),
        (changed(1, "descripton", "x"), "no field 'descripton' (did you mean 'description'?)"),
        (changed(1, "description", " "), "description: one sentence"),
        (changed(0, "examples", [{"query": "What is it?", "arguments": {}}]), "examples.0: missing-argument"),
        (changed(0, "examples", [{"query": "", "arguments": {"name": "A"}}]), "examples.0.query"),
        (changed(0, "examples", ["Call Ann"]), "examples.0: an example has a query and arguments"),
        (changed(0, "examples", {}), "examples: no list"),
        (["a tool"], "tool 0: no JSON object"),
        ([], "no list of tools"),
        ({"tools": TOOLS}, "no list of tools"),
    ],
)
def test_a_wrong_catalogue_is_refused_with_file_tool_and_place(tools: Any, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        catalogue(tools)
    assert "phone.json" in caught.value.message
    assert said in caught.value.message


@pytest.mark.parametrize("text", ["", "[", "\ufeff[]x", '[{"name": NaN}]', "[" * 100_000])
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tools.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"tools\.json"):
        load_catalogue(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.json cannot be read"):
        load_catalogue(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(RecipeError, match=r"latin\.json cannot be read"):
        load_catalogue(tmp_path / "latin.json")


def test_tools_are_described_in_full_and_in_short() -> None:
    tool = catalogue()["call_number"]
    assert describe_tool(tool, "short") == (
        'call_number(number: string, speaker: boolean = false, mode: "voice" | "video" = "voice", volume: integer = 1): '
        "Call somebody."
    )
    full = json.loads(describe_tool(tool))
    assert full["arguments"]["properties"]["mode"]["description"] == "How."
    assert describe_tool(catalogue()["invite"], "short").startswith(
        "invite(numbers: list of string, place: object = null)"
    )
    assert describe_tool(catalogue()["count"], "short") == "count() -> integer: Count."


def test_results_fit_arguments_of_their_type_and_format() -> None:
    plain, number, phones = {"type": "string"}, {"type": "number"}, {"type": "array", "items": PHONE}
    assert accepts(PHONE, PHONE) and fits(PHONE, PHONE)
    assert accepts(plain, PHONE) and not fits(plain, PHONE), "any text may be taken, but is not meant there"
    assert not accepts(PHONE, plain)
    assert accepts(number, {"type": "integer"}) and not accepts({"type": "integer"}, number)
    assert not accepts(plain, None) and not accepts(plain, number)
    assert accepts(phones, phones) and fits(phones, phones)
    assert not accepts(phones, {"type": "array", "items": plain}) and not accepts(phones, PHONE)
    assert not accepts({"enum": ["a"], "type": "string"}, plain)


# --- checks of calls ----------------------------------------------------------------------------------------------------

ANN = call(0, "find_number", name="Ann")


@pytest.mark.parametrize(
    "calls",
    [
        [ANN],
        [ANN, call(1, "call_number", number="#0", speaker=True)],
        [call(7, "find_number", name="#hash"), call(3, "invite", numbers=["#7", "555"], place={"town": "Ulm"})],
        [call(0, "count"), call(1, "call_number", number="1", volume="#0")],
    ],
)
def test_good_calls_have_no_problem(calls: Any) -> None:
    assert validate_calls(calls, catalogue()) == []


@pytest.mark.parametrize(
    ("calls", "reasons"),
    [
        ([call(0, "fly")], ["unknown-tool"]),
        ([call(0, "find_number", name="A", age=3)], ["unknown-argument"]),
        ([call(0, "find_number")], ["missing-argument"]),
        ([call(0, "invite", numbers=[], place={})], ["missing-argument"]),
        ([call(0, "find_number", name=3)], ["wrong-type"]),
        ([call(0, "invite", numbers=["1", 2])], ["wrong-type"]),
        ([call(0, "call_number", number="1", speaker=1)], ["wrong-type"]),
        ([call(0, "call_number", number="1", mode="tin")], ["not-in-enum"]),
        ([call(0, "call_number", number="1", volume=11)], ["invalid-value"]),
        ([call(0, "find_number", name="#4")], ["bad-reference"]),
        ([call(0, "find_number", name="#0")], ["forward-reference"]),
        ([call(0, "call_number", number="#1"), call(1, "find_number", name="A")], ["forward-reference"]),
        ([call(0, "invite", numbers=["1"]), call(1, "call_number", number="#0")], ["bad-reference"]),
        ([call(0, "count"), call(1, "call_number", number="#0")], ["bad-reference"]),
        ([ANN, call(1, "call_number", number="1", mode="#0")], ["bad-reference"]),
        ([ANN, call(1, "invite", numbers="#0")], ["bad-reference"]),
        ([call(0, "fly"), call(1, "find_number", name="#0")], ["unknown-tool"]),
        ([ANN, ANN], ["malformed"]),
        ([call(-1, "count")], ["malformed"]),
        ([{"name": "count", "arguments": {}}], ["malformed"]),
        ([call(0, "find_number", name="\ud800")], ["malformed"]),
        ([call(0, "call_number", number="1", volume=float("nan"))], ["malformed"]),
        ([], ["malformed"]),
        ("count()", ["malformed"]),
        (["count()"], ["malformed"]),
    ],
)
def test_each_problem_has_its_reason(calls: Any, reasons: list[str]) -> None:
    assert [problem.reason for problem in validate_calls(calls, catalogue())] == reasons


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(JSON_VALUES)
def test_anything_is_judged(value: Any) -> None:
    known = catalogue()
    for calls in (value, [value], [call(0, "call_number", number=value, mode=value)], [call(0, "fly", x=value)]):
        for problem in validate_calls(calls, known):
            assert re.fullmatch("[a-z]+(-[a-z]+)*", problem.reason)


def test_a_value_nested_too_deeply_is_malformed() -> None:
    value: Any = []
    for _ in range(5000):
        value = [value]
    assert [problem.reason for problem in validate_calls([call(0, "count", x=value)], catalogue())] == ["malformed"]


# --- the four forms -----------------------------------------------------------------------------------------------------

NAMES = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=8).filter(
    lambda name: name.isidentifier() and not keyword.iskeyword(name) and not re.fullmatch("result[0-9]+", name)
)
AWKWARD = st.sampled_from(
    ['"', "'", "\\", "\n", ")", "$", "a)$\n$result9 = g(", "#0", "#01", "result0", "\u2028\x85", "é漢🎈"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | AWKWARD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | AWKWARD, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.builds(
        lambda identifier, name, arguments: {"id": identifier, "name": name, "arguments": arguments},
        st.integers(0, 20),
        NAMES | st.sampled_from(["find_number", "call_number", "count"]),
        st.dictionaries(NAMES | st.sampled_from(["speaker", "mode"]), VALUES | AWKWARD, max_size=3),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda made: made["id"],
)


@settings(max_examples=300)
@given(CALLS)
def test_calls_survive_every_form(calls: list[dict[str, Any]]) -> None:
    known = catalogue()
    assert parse_calls(render_calls(calls, "code", known), "code") == calls
    assert parse_calls(render_calls(calls, "json", known), "json") == calls
    canonical = canonical_calls(calls, known)
    for form in FORMS:
        assert parse_calls(render_calls(canonical, form, known), form) == canonical
        assert render_calls(calls, "code", known).count("\n") == len(calls) - 1
    assert canonical_calls(canonical, known) == canonical
    for form in ("code_short", "json_short"):
        assert render_calls(calls, form, known) == render_calls(canonical, form, known)  # type: ignore[arg-type]


def test_the_forms_look_as_described() -> None:
    calls = [call(0, "find_number", name='Ann "A" (work)'), call(1, "call_number", number="#0", speaker=False)]
    known = catalogue()
    assert render_calls(calls, "code", known) == (
        '$result0 = find_number(name="Ann \\"A\\" (work)")$\n$result1 = call_number(number=result0, speaker=False)$'
    )
    assert render_calls(calls, "code_short", known) == (
        'find_number(name="Ann \\"A\\" (work)")\ncall_number(number=result0)'
    )
    assert json.loads(render_calls(calls, "json", known)) == calls
    assert render_calls([calls[0]], "json_short", known) == '[{"find_number":{"name":"Ann \\"A\\" (work)"}}]'


def test_short_forms_keep_what_differs_from_the_default() -> None:
    calls = [call(5, "find_number", name="A"), call(2, "call_number", number="#5", speaker=False, volume=True)]
    assert canonical_calls(calls, catalogue()) == [
        call(0, "find_number", name="A"),
        call(1, "call_number", number="#0", volume=True),
    ], "true is not 1, and the reference follows its call"


def test_references_are_found_at_any_depth() -> None:
    assert list(references({"a": ["#3", {"b": "#1"}], "#9": "# 2", "c": "#01"})) == [3, 1]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("code", "result0 = count()"),
        ("code", "$count()$"),
        ("code", "$x = count()$"),
        ("code", "$result0 = result1 = count()$"),
        ("code", "$result0 = count(); count()$"),
        ("code", "$result0 = count(3)$"),
        ("code", "$result0 = count(**{'a': 1})$"),
        ("code", "$result0 = count(*[1])$"),
        ("code", "$result0 = os.system(x=1)$"),
        ("code", "$result0 = count(x=__import__('os'))$"),
        ("code", "$result0 = count(x=name)$"),
        ("code", "$result0 = count(x=1 + 1)$"),
        ("code", "$result0 = count(x=f'{1}')$"),
        ("code", "$result0 = count(x=b'1')$"),
        ("code", "$result0 = count(x=(1, 2))$"),
        ("code", "$result0 = count(x={1: 2})$"),
        ("code", "$result0 = count(x={**{}})$"),
        ("code", "$result0 = count(x=1e999)$"),
        ("code", "$result0 = count(x=-True)$"),
        ("code", "$result0 = count(x=1, x=2)$"),
        ("code", "$result0 = count(x={'a': 1, 'a': 2})$"),
        ("code", "$result0 = count(x='\\ud800')$"),
        ("code", "$result0 = count(\0)$"),
        ("code", "$result0 = count()$\n$result0 = count()$"),
        ("code", "$result0 = count(x=" + "[" * 3000 + "]" * 3000 + ")$"),
        ("code", ""),
        ("code_short", "result0 = count()"),
        ("code_short", "count"),
        ("json", "{}"),
        ("json", "[]"),
        ("json", "[3]"),
        ("json", '[{"id": 0, "name": "count"}]'),
        ("json", '[{"id": 0, "name": "count", "arguments": {"x": NaN}}]'),
        ("json", '[{"id": 0, "name": "count", "arguments": {"x": 1, "x": 2}}]'),
        ("json", "[" * 100_000),
        ("json_short", '[{"a": {}, "b": {}}]'),
        ("json_short", '[{"a": 3}]'),
    ],
)
def test_other_texts_are_no_calls(form: Form, text: str) -> None:
    with pytest.raises(ValueError):
        parse_calls(text, form)


@given(st.sampled_from(FORMS), st.text() | st.text('$result0 = f(a="b", c=[1]){}:\n\'\\'))
def test_any_text_is_read_or_refused(form: Form, text: str) -> None:
    try:
        calls = parse_calls(text, form)
    except ValueError:
        return
    assert parse_calls(render_calls(calls, form, catalogue()), form) == calls or form.endswith("short")


def test_a_record_of_droidcall_has_its_fields() -> None:
    known = catalogue()
    record = {
        "query": "Call Ann.",
        "tools": [known["find_number"].record(), known["call_number"].record()],
        "answers": [ANN, call(1, "call_number", number="#0")],
        "form": "code",
    }
    found = to_droidcall(json.loads(json.dumps(record)))
    assert set(found) == {"query", "tools", "answers"}
    assert found["answers"] == record["answers"]
    number, calling = found["tools"]
    assert number["arguments"] == {"name": {"description": "Whose.", "type": "str", "required": True}}
    assert number["returns"] == {"description": "", "type": "str"}
    assert number["examples"] == ["# What is Ann's number?\nfind_number(name='Ann')"]
    assert calling["arguments"]["speaker"] == {"description": "", "type": "bool", "required": False, "default": False}
    assert calling["arguments"]["mode"]["description"] == 'How. One of "voice" | "video".'
    assert calling["arguments"]["mode"]["type"] == "str"
    assert "returns" not in calling
    many = to_droidcall({"query": "x", "tools": [known["invite"].record()], "answers": []})["tools"][0]["arguments"]
    assert many["numbers"]["type"] == "List[str]" and many["place"]["type"] == "Dict[str, Any]"
