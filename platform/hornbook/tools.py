"""Tools that a model may call: a catalogue as JSON Schema, checked when it is read, and how tools are described in a prompt.

A catalogue is a JSON file, a list of tools:

    {"name": "set_alarm", "description": "Set an alarm.",
     "arguments": {"properties": {"time": {"type": "string", "description": "When it rings."},
                                  "label": {"type": "string", "default": ""}},
                   "required": ["time"]},
     "returns": {"type": "string", "description": "..."} or null,
     "examples": [{"query": "Wake me at 7.", "arguments": {"time": "7"}}]}

`arguments` is a JSON Schema (draft 2020-12) of an object, `returns` one of what a later call may use. `format` names what a
string or a number means ("phone-number"): a result of one format fits only arguments of that format, or of none.
"""

from __future__ import annotations

import hashlib
import json
import keyword
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hornbook.documents import canonical_json
from hornbook.errors import RecipeError
from hornbook.settings import nearest

Description = Literal["long", "short"]

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
RESULT = re.compile(r"result[0-9]+")
RESERVED = {*keyword.kwlist, "true", "false", "null"}
FIELDS = ("name", "description", "arguments", "returns", "examples")
ARGUMENT_FIELDS = ("type", "properties", "required", "additionalProperties", "description")
PYTHON_TYPES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}


@dataclass(frozen=True)
class Tool:
    """One tool of a catalogue.

    Attributes:
        arguments: the JSON Schema of each argument, by name, in the order of the file.
        required: the arguments that a call must have.
        returns: the JSON Schema of the result; None for a tool without one.
        examples: `{"query", "arguments"}` each.
    """

    name: str
    description: str
    arguments: Mapping[str, Mapping[str, Any]]
    required: tuple[str, ...] = ()
    returns: Mapping[str, Any] | None = None
    examples: tuple[Mapping[str, Any], ...] = ()

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the arguments of a call; others than the known ones are not allowed."""
        return {
            "type": "object",
            "properties": dict(self.arguments),
            "required": list(self.required),
            "additionalProperties": False,
        }

    def defaults(self) -> dict[str, Any]:
        """Return the arguments that have a default, and what it is."""
        return {name: schema["default"] for name, schema in self.arguments.items() if "default" in schema}

    def record(self) -> dict[str, Any]:
        """Return the tool as a catalogue file writes it."""
        return {
            "name": self.name,
            "description": self.description,
            "arguments": {"properties": dict(self.arguments), "required": list(self.required)},
            "returns": None if self.returns is None else dict(self.returns),
            "examples": [dict(example) for example in self.examples],
        }


@dataclass(frozen=True)
class Catalogue:
    """Tools by name, in the order of their file."""

    tools: Mapping[str, Tool]

    @property
    def digest(self) -> str:
        """A hash of what the catalogue says, whatever its layout."""
        return hashlib.sha256(canonical_json([tool.record() for tool in self.tools.values()]).encode()).hexdigest()

    def __getitem__(self, name: str) -> Tool:
        return self.tools[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tools

    def __iter__(self) -> Iterator[Tool]:
        return iter(self.tools.values())

    def __len__(self) -> int:
        return len(self.tools)


def load_catalogue(path: Path) -> Catalogue:
    """Read and check a catalogue file.

    Raises:
        RecipeError: it cannot be read, is not JSON, or a tool is wrong; names the file, the tool and the place in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the catalogue {path} cannot be read: {error}") from None
    return parse_catalogue(text, str(path))


def parse_catalogue(text: str, where: str) -> Catalogue:
    """Check the text of a catalogue file; `where` names it in messages. Raises RecipeError as `load_catalogue` does."""
    try:
        records = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"the catalogue {where} is not JSON: {error}") from None
    if not isinstance(records, list) or not records:
        raise RecipeError(f"the catalogue {where} is no list of tools", 'write [{"name": ..., "arguments": ...}, ...]')
    tools: dict[str, Tool] = {}
    for number, record in enumerate(records):
        name = record.get("name") if isinstance(record, dict) else None
        place = f"{where}: tool {number}" + (f" ({name})" if isinstance(name, str) else "")
        tool = _tool(record, place)
        if tool.name in tools:
            raise RecipeError(f"{place}: a second tool of this name", "give each tool a name of its own")
        tools[tool.name] = tool
    catalogue = Catalogue(tools)
    for tool in catalogue:
        _check_examples(tool, catalogue, f"{where}: tool {tool.name}")
    return catalogue


def _tool(record: Any, place: str) -> Tool:
    if not isinstance(record, dict):
        raise RecipeError(f"{place}: no JSON object, but {record!r:.80}")
    for field in record:
        if field not in FIELDS:
            raise RecipeError(f"{place}: no field {field!r}{nearest(field, list(FIELDS))}")
    name = _name(record.get("name"), f"{place}.name")
    if RESULT.fullmatch(name):
        raise RecipeError(f"{place}.name: {name} is reserved for results of calls", "choose another name")
    description = record.get("description")
    if not isinstance(description, str) or not description.strip():
        raise RecipeError(f"{place}.description: one sentence on what the tool does is required")
    arguments, required = _arguments(record.get("arguments", {}), f"{place}.arguments")
    returns = record.get("returns")
    if returns is not None:
        _check_schema(returns, f"{place}.returns")
    examples = record.get("examples", [])
    if not isinstance(examples, list):
        raise RecipeError(f"{place}.examples: no list, but {examples!r:.80}")
    return Tool(name, description.strip(), arguments, required, returns, tuple(examples))


def _arguments(schema: Any, place: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Check the schema of a tool's arguments; return each argument's schema, and the names of the required ones."""
    _check_schema(schema, place)
    for field in schema:
        if field not in ARGUMENT_FIELDS:
            raise RecipeError(f"{place}: {field!r} has no meaning here{nearest(field, list(ARGUMENT_FIELDS))}")
    if schema.get("type", "object") != "object":
        raise RecipeError(f"{place}.type: arguments are an object, not {schema['type']!r}")
    if schema.get("additionalProperties", False) is not False:
        raise RecipeError(f"{place}.additionalProperties: every argument must be named", "list them under properties")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    for name, argument in properties.items():
        here = f"{place}.properties.{name}"
        _name(name, here)
        if not isinstance(argument, dict) or not {"type", "enum", "const", "anyOf"} & set(argument):
            raise RecipeError(f"{here}: an argument needs a type", 'for example {"type": "string"}')
        if "default" in argument and (problem := _problem(argument, argument["default"])):
            raise RecipeError(f"{here}.default: {problem}")
        if "default" in argument and name in required:
            raise RecipeError(f"{here}.default: a required argument has no default", "drop one of the two")
    for name in required:
        if name not in properties:
            raise RecipeError(f"{place}.required: no argument {name!r}{nearest(name, list(properties))}")
    return properties, tuple(required)


def _name(name: Any, place: str) -> str:
    if not isinstance(name, str) or not IDENTIFIER.fullmatch(name):
        raise RecipeError(f"{place}: {name!r:.80} is no name", "letters, digits and _, at most 64, no digit first")
    if name in RESERVED:
        raise RecipeError(f"{place}: {name} is reserved: calls are written as Python, too", f"say {name}_")
    return name


def _check_schema(schema: Any, place: str) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    if not isinstance(schema, dict):
        raise RecipeError(f"{place}: no JSON Schema, but {schema!r:.80}")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        path = "".join(f".{part}" for part in error.absolute_path)
        raise RecipeError(f"{place}{path}: {error.message}", "https://json-schema.org, draft 2020-12") from None
    for path, part in _parts(schema, place):
        for word in ("$ref", "$dynamicRef"):
            if word in part:
                raise RecipeError(f"{path}.{word}: references to other schemas are not followed", "write it out here")


def _parts(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield all objects of a schema with their places."""
    if isinstance(schema, dict):
        yield place, schema
    items = schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    for name, part in items:
        yield from _parts(part, f"{place}.{name}")


def _problem(schema: Mapping[str, Any], value: Any) -> str:
    from jsonschema import Draft202012Validator

    error = next(iter(Draft202012Validator(schema).iter_errors(value)), None)
    return "" if error is None else error.message


def _check_examples(tool: Tool, catalogue: Catalogue, place: str) -> None:
    from hornbook.tool_calls import validate_calls

    for number, example in enumerate(tool.examples):
        here = f"{place}.examples.{number}"
        if not isinstance(example, dict) or set(example) != {"query", "arguments"}:
            raise RecipeError(f"{here}: an example has a query and arguments, got {example!r:.80}")
        if not isinstance(example["query"], str) or not example["query"].strip():
            raise RecipeError(f"{here}.query: what a user says is required")
        call = {"id": 0, "name": tool.name, "arguments": example["arguments"]}
        for problem in validate_calls([call], catalogue):
            raise RecipeError(f"{here}: {problem.reason}: {problem.detail}")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


# --- what fits what -----------------------------------------------------------------------------------------------------


def accepts(argument: Mapping[str, Any], returns: Mapping[str, Any] | None) -> bool:
    """Tell whether an argument may take what a tool returns: one JSON type at least in common, and the argument's format.

    An argument without a format takes any result of its type; one with a list of allowed values takes none.
    """
    if returns is None or "enum" in argument or "const" in argument:
        return False
    wanted, given = _types(argument), _types(returns)
    if "number" in wanted:
        wanted = wanted | {"integer"}
    if wanted and given and not wanted & given:
        return False
    if "format" in argument and argument["format"] != returns.get("format"):
        return False
    if given == {"array"} and isinstance(argument.get("items"), dict) and isinstance(returns.get("items"), dict):
        return accepts(argument["items"], returns["items"])
    return True


def fits(argument: Mapping[str, Any], returns: Mapping[str, Any] | None) -> bool:
    """Tell whether a result is meant for an argument: it is accepted, and both have the same format, or neither has one."""
    if returns is None or not accepts(argument, returns):
        return False
    return _format(argument) == _format(returns)


def _types(schema: Mapping[str, Any]) -> set[str]:
    """Return the JSON types that a schema allows; empty where it does not say."""
    types = schema.get("type", [])
    return {types} if isinstance(types, str) else set(types)


def _format(schema: Mapping[str, Any]) -> Any:
    items = schema.get("items")
    return schema.get("format") or (items.get("format") if isinstance(items, dict) else None)


# --- tools as text ------------------------------------------------------------------------------------------------------


def describe_tool(tool: Tool, form: Description = "long") -> str:
    """Return a tool as a prompt shows it, on one line.

    long: JSON with name, description, the arguments' whole schemas, and what is returned. short: a signature with types and
    defaults and the tool's description; the descriptions of arguments and results are left out.
    """
    if form == "long":
        record = tool.record()
        return json.dumps({field: record[field] for field in FIELDS[:4]}, ensure_ascii=False)
    arguments = ", ".join(_signature(name, tool) for name in tool.arguments)
    result = f" -> {type_name(tool.returns)}" if tool.returns is not None else ""
    return f"{tool.name}({arguments}){result}: {tool.description}"


def _signature(name: str, tool: Tool) -> str:
    schema = tool.arguments[name]
    text = f"{name}: {type_name(schema)}"
    if "default" in schema:
        return f"{text} = {json.dumps(schema['default'], ensure_ascii=False)}"
    return text if name in tool.required else f"{text} = null"


def type_name(schema: Mapping[str, Any]) -> str:
    """Return a short name of a schema's type: `string`, `list of string`, `"on" | "off"`."""
    if "enum" in schema:
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        return f"list of {type_name(schema['items'])}"
    return " | ".join(sorted(_types(schema))) or "any"


def to_droidcall(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record {query, tools, answers}, tools as a catalogue writes them, as DroidCall's files have it.

    There an argument is {description, type, required, default} with a Python type, and the examples are lines of code; what
    a schema says beyond that (allowed values, formats, bounds) stands in the description.
    """
    return {
        "query": record["query"],
        "tools": [_droidcall_tool(tool) for tool in record["tools"]],
        "answers": [{field: answer[field] for field in ("id", "name", "arguments")} for answer in record["answers"]],
    }


def _droidcall_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    required = tool["arguments"].get("required", ())
    arguments: dict[str, Any] = {}
    for name, schema in tool["arguments"].get("properties", {}).items():
        described = schema.get("description", "")
        if "enum" in schema:
            described = f"{described} One of {type_name(schema)}.".strip()
        arguments[name] = {"description": described, "type": _python_type(schema), "required": name in required}
        if name not in required:
            arguments[name]["default"] = schema.get("default")
    found: dict[str, Any] = {"name": tool["name"], "description": tool["description"], "arguments": arguments}
    if tool.get("returns") is not None:
        returns = tool["returns"]
        found["returns"] = {"description": returns.get("description", ""), "type": _python_type(returns)}
    if tool.get("examples"):
        found["examples"] = [
            f"# {example['query']}\n{tool['name']}({_keywords(example['arguments'])})" for example in tool["examples"]
        ]
    return found


def _keywords(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _python_type(schema: Mapping[str, Any]) -> str:
    types: Sequence[str] = sorted(_types(schema)) or sorted({_json_type(value) for value in schema.get("enum", [])})
    names = []
    for name in types:
        if name == "array":
            items = schema.get("items")
            names.append(f"List[{_python_type(items) if isinstance(items, dict) else 'Any'}]")
        else:
            names.append(PYTHON_TYPES.get(name, "Dict[str, Any]"))
    return names[0] if len(names) == 1 else f"Union[{', '.join(names)}]" if names else "Any"


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return {str: "string", int: "integer", float: "number", type(None): "null", list: "array"}.get(
        type(value), "object"
    )
