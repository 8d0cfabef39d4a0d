"""Calls of tools: records, their check against a catalogue, and the four forms in which a model writes them.

A call is `{"id": 0, "name": "set_alarm", "arguments": {"time": "7 am"}}`. The string "#0", anywhere in the arguments, stands
for the result of the call with id 0, which must come earlier. A text of just "#0" cannot be said: it is always a reference.

The forms, for `call_number(number=find_number(name="Ann"), speaker=false)`, where false is the default:

    code        $result0 = find_number(name="Ann")$
                $result1 = call_number(number=result0, speaker=False)$
    json        [{"id": 0, "name": "find_number", "arguments": {"name": "Ann"}}, {"id": 1, ...{"number": "#0", "speaker": false}}]
    code_short  find_number(name="Ann")
                call_number(number=result0)
    json_short  [{"find_number":{"name":"Ann"}},{"call_number":{"number":"#0"}}]

The short forms leave out ids (a call's id is its place), arguments that equal their defaults, and the marks around a line of
code. One call stands on one line of code, whatever its strings hold: line ends in them are written \\n. Code is read as a
syntax tree of literals and never run.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from hornbook.tools import Catalogue, Description, Tool, accepts, describe_tool

Form = Literal["code", "json", "code_short", "json_short"]
FORMS: tuple[Form, ...] = ("code", "json", "code_short", "json_short")
Call = Mapping[str, Any]

REFERENCE = re.compile(r"#(0|[1-9][0-9]{0,8})")
RESULT_NAME = re.compile(r"result(0|[1-9][0-9]{0,8})")

HOW_TO_WRITE: dict[Form, str] = {
    "code": (
        'Write one call a line, as $result0 = tool(argument="value")$, the next as $result1 = ...$. '
        "A later call may use result0, the result of the first, as an argument."
    ),
    "json": (
        'Write a JSON list of calls, each {"id": 0, "name": "tool", "arguments": {"argument": "value"}}. '
        'A later call may use "#0", the result of call 0, as an argument.'
    ),
    "code_short": (
        'Write one call a line, as tool(argument="value"), and leave out arguments that keep their defaults. '
        "A later call may use result0, the result of the first line, as an argument."
    ),
    "json_short": (
        'Write a JSON list of calls, each {"tool":{"argument":"value"}}, and leave out arguments that keep their defaults. '
        'A later call may use "#0", the result of the first call, as an argument.'
    ),
}
"""What a model is told of each form."""
TOOLS_FOLLOW = "You answer a request by calling tools. These are the tools:\n"
WRITE_NOTHING_ELSE = "Write nothing else."


@dataclass(frozen=True)
class Problem:
    """What is wrong with a call: a short reason, and a detail for people.

    Reasons: malformed, unknown-tool, unknown-argument, missing-argument, wrong-type, not-in-enum, invalid-value,
    bad-reference (no such call, or its result does not fit), forward-reference (to the call itself or a later one).
    """

    reason: str
    detail: str


# --- references ---------------------------------------------------------------------------------------------------------


def referred(value: Any) -> int | None:
    """Return the id that a value refers to; None if it is no reference."""
    match = REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) if match else None


def references(value: Any) -> Iterator[int]:
    """Yield the ids that a value and what it holds refer to."""
    number = referred(value)
    if number is not None:
        yield number
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def canonical_calls(calls: Sequence[Call], catalogue: Catalogue) -> list[dict[str, Any]]:
    """Return calls as the short forms mean them: the id is the place, and arguments that equal their defaults are gone.

    A reference follows the call that it names; one that names no earlier call stays as it is. Tools that the catalogue does
    not know keep all their arguments.
    """
    found: list[dict[str, Any]] = []
    places: dict[Any, int] = {}
    for place, call in enumerate(calls):
        defaults = catalogue[call["name"]].defaults() if call["name"] in catalogue else {}
        kept = {
            name: _renumber(value, places)
            for name, value in call["arguments"].items()
            if not (name in defaults and _equal(value, defaults[name]))
        }
        found.append({"id": place, "name": call["name"], "arguments": kept})
        places[call["id"]] = place
    return found


def _renumber(value: Any, places: Mapping[Any, int]) -> Any:
    number = referred(value)
    if number is not None:
        return f"#{places.get(number, number)}"
    if isinstance(value, Mapping):
        return {name: _renumber(part, places) for name, part in value.items()}
    return [_renumber(part, places) for part in value] if isinstance(value, list) else value


def _equal(left: Any, right: Any) -> bool:
    """Tell whether two JSON values are the same; unlike in Python, true is not 1."""
    return bool(json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True))


# --- the check ----------------------------------------------------------------------------------------------------------


def validate_calls(calls: Any, catalogue: Catalogue) -> list[Problem]:
    """Return all that is wrong with calls; empty where each can be made as it stands."""
    if not isinstance(calls, list) or not calls:
        return [Problem("malformed", f"no list of calls, but {calls!r:.80}")]
    try:
        return _problems(calls, catalogue)
    except RecursionError:
        return [Problem("malformed", "nested too deeply")]


def _problems(calls: Sequence[Any], catalogue: Catalogue) -> list[Problem]:
    problems: list[Problem] = []
    ids = [call.get("id") for call in calls if isinstance(call, Mapping)]
    earlier: dict[int, Call] = {}
    for place, call in enumerate(calls):
        problem = _malformed(call, earlier)
        if problem:
            problems.append(Problem("malformed", f"call {place}: {problem}"))
            continue
        problems += _check_call(call, earlier, ids, catalogue)
        earlier[call["id"]] = call
    return problems


def _malformed(call: Any, earlier: Mapping[int, Call]) -> str:
    if not isinstance(call, Mapping) or set(call) != {"id", "name", "arguments"}:
        return f"a call has id, name and arguments, got {call!r:.80}"
    if type(call["id"]) is not int or not 0 <= call["id"] < 10**9:
        return f"the id {call['id']!r:.80} is no number from 0"
    if call["id"] in earlier:
        return f"the id {call['id']} is taken"
    if not isinstance(call["name"], str) or not isinstance(call["arguments"], Mapping):
        return "the name is a text and the arguments are an object"
    for value in _leaves(call["arguments"]):
        if isinstance(value, float) and not math.isfinite(value):
            return f"{value} is no JSON number"
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            return "half a character (a lone surrogate)"
    return ""


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else None
    if parts is None:
        yield value
    else:
        for part in parts:
            yield from _leaves(part)


def _check_call(call: Call, earlier: Mapping[int, Call], ids: Sequence[Any], catalogue: Catalogue) -> Iterator[Problem]:
    name, arguments = call["name"], call["arguments"]
    for number in references(arguments):
        if number not in earlier:
            later = number == call["id"] or number in ids
            yield Problem(
                "forward-reference" if later else "bad-reference",
                f"{name}: #{number} is {'no earlier call' if later else 'no call'}",
            )
    if name not in catalogue:
        yield Problem("unknown-tool", f"no tool {name!r:.80}")
        return
    tool = catalogue[name]
    for argument in arguments:
        if argument not in tool.arguments:
            yield Problem("unknown-argument", f"{name} has no argument {argument!r:.80}")
    for argument in tool.required:
        if argument not in arguments:
            yield Problem("missing-argument", f"{name} needs {argument}")
    for argument, value in arguments.items():
        if argument in tool.arguments:
            for error in _validator()(tool.arguments[argument]).iter_errors(value):
                problem = _explain(error, f"{name}.{argument}", earlier, catalogue)
                if problem:
                    yield problem


def _explain(error: Any, place: str, earlier: Mapping[int, Call], catalogue: Catalogue) -> Problem | None:
    """Turn an error of the schema into a problem; None where it is about a reference whose result is fine there."""
    place += "".join(f".{part}" for part in error.absolute_path)
    number = referred(error.instance)
    if number is not None:
        source = earlier.get(number)
        if source is None or source["name"] not in catalogue:
            return None  # reported as what it is
        returns = catalogue[source["name"]].returns
        if accepts(error.schema, returns):
            return None
        return Problem("bad-reference", f"{place} cannot take what {source['name']} returns")
    reason = {"type": "wrong-type", "enum": "not-in-enum", "const": "not-in-enum", "required": "missing-argument"}.get(
        error.validator, "invalid-value"
    )
    return Problem(reason, f"{place}: {error.message:.200}")


@cache
def _validator() -> Any:
    """Return a JSON Schema validator that judges no reference by its text: it reports each, once, for `_explain`."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend

    reporting = ("type", "enum", "const")

    def aside(keyword: str, check: Any) -> Any:
        def judge(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
            if referred(instance) is None:
                yield from check(validator, value, instance, schema) or ()
            elif keyword == next((word for word in reporting if word in schema), ""):
                yield ValidationError("a reference", validator=keyword)

        return judge

    checks = {keyword: aside(keyword, check) for keyword, check in Draft202012Validator.VALIDATORS.items()}
    return extend(Draft202012Validator, checks)


# --- the forms ----------------------------------------------------------------------------------------------------------


def render_calls(calls: Sequence[Call], form: Form, catalogue: Catalogue) -> str:
    """Return calls in a form: the long ones as they are, the short ones as `canonical_calls` has them."""
    if form == "json":
        return json.dumps([dict(call) for call in calls], ensure_ascii=False)
    if form == "code":
        return "\n".join(f"$result{call['id']} = {_code(call)}$" for call in calls)
    short = canonical_calls(calls, catalogue)
    if form == "code_short":
        return "\n".join(map(_code, short))
    return json.dumps([{call["name"]: call["arguments"]} for call in short], ensure_ascii=False, separators=(",", ":"))


def tool_prompt(tools: Sequence[Tool], form: Form, descriptions: Description = "long") -> str:
    """Return the system message under which a model answers with calls: the tools, a line each, and the form."""
    lines = "\n".join(describe_tool(tool, descriptions) for tool in tools)
    return f"{TOOLS_FOLLOW}{lines}\n\n{HOW_TO_WRITE[form]} {WRITE_NOTHING_ELSE}"


def parse_calls(text: str, form: Form) -> list[dict[str, Any]]:
    """Read calls in a form; the inverse of `render_calls`. They are not checked against a catalogue.

    Raises:
        ValueError: the text is not of that form; the message says where.
    """
    try:
        if form in ("code", "code_short"):
            calls = _parse_code(text, short=form == "code_short")
        else:
            calls = _parse_json(text, short=form == "json_short")
        earlier: dict[int, Call] = {}
        for place, call in enumerate(calls):
            problem = _malformed(call, earlier)
            if problem:
                raise ValueError(f"call {place}: {problem}")
            earlier[call["id"]] = call
    except (RecursionError, MemoryError):
        raise ValueError("nested too deeply") from None
    return calls


def _code(call: Call) -> str:
    arguments = ", ".join(f"{name}={_literal(value)}" for name, value in call["arguments"].items())
    return f"{call['name']}({arguments})"


def _literal(value: Any) -> str:
    """Return a JSON value as a Python literal on one line; a reference as the name of the result."""
    number = referred(value)
    if number is not None:
        return f"result{number}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # JSON's escapes mean the same in Python
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {_literal(part)}" for name, part in value.items())
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value)


def _parse_code(text: str, short: bool) -> list[dict[str, Any]]:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    calls: list[dict[str, Any]] = []
    for place, line in enumerate(lines):
        if not short:
            if len(line) < 2 or line[0] != "$" or line[-1] != "$":
                raise ValueError(f"line {place + 1} does not stand between two $: {line:.80}")
            line = line[1:-1].strip()
        try:
            body = ast.parse(line).body
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"line {place + 1}: {error}") from None
        if len(body) != 1:
            raise ValueError(f"line {place + 1} holds {len(body)} statements, not one call")
        identifier, call = (place, body[0]) if short else _assigned(body[0], place)
        if short:
            call = call.value if isinstance(call, ast.Expr) else call
        calls.append({"id": identifier, **_parsed_call(call, place)})
    if not calls:
        raise ValueError("no call")
    return calls


def _assigned(statement: ast.stmt, place: int) -> tuple[int, ast.AST]:
    """Return the number and the right-hand side of `result0 = ...`."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        match = RESULT_NAME.fullmatch(statement.targets[0].id)
        if match:
            return int(match[1]), statement.value
    raise ValueError(f"line {place + 1} does not begin with result0 = or the like")


def _parsed_call(node: ast.AST, place: int) -> dict[str, Any]:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(f"line {place + 1} is no call of a tool")
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError(f"line {place + 1}: arguments are written name=value")
    arguments = _no_name_twice([(str(keyword.arg), _value(keyword.value, place)) for keyword in node.keywords])
    return {"name": node.func.id, "arguments": arguments}


def _value(node: ast.AST, place: int) -> Any:
    """Return the JSON value that a syntax tree of literals stands for; the name of a result becomes a reference."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if not isinstance(
            value, bool
        ):
            return -value
        case ast.Name(id=name) if found := RESULT_NAME.fullmatch(name):
            return f"#{found[1]}"
        case ast.List(elts=parts):
            return [_value(part, place) for part in parts]
        case ast.Dict(keys=names, values=parts) if all(_text(name) is not None for name in names):
            return _no_name_twice([(str(_text(n)), _value(part, place)) for n, part in zip(names, parts, strict=True)])
    raise ValueError(f"line {place + 1}: {ast.unparse(node):.80} is no plain value")


def _text(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _parse_json(text: str, short: bool) -> list[dict[str, Any]]:
    calls = json.loads(text, object_pairs_hook=_no_name_twice, parse_constant=_no_constant)
    if not isinstance(calls, list) or not calls or not all(isinstance(call, dict) for call in calls):
        raise ValueError("no JSON list of calls")
    if short:
        if not all(len(call) == 1 for call in calls):
            raise ValueError("a call is an object with the tool's name as its one key")
        calls = [
            {"id": place, "name": name, "arguments": arguments}
            for place, call in enumerate(calls)
            for name, arguments in call.items()
        ]
    return calls


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
