"""A schema is a promise about the reply: a value of it, a cut one, or a failure that says where it departs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from endpoint import Endpoint, send, well
from engine_calls import ask, echo
from jsonschema import Draft202012Validator

from hornbook.engines.interface import Request, Sampling
from hornbook.engines.replica import pack_requests, unpack_requests
from hornbook.engines.schema import violation
from hornbook.errors import EngineError

GRADE = {
    "type": "object",
    "properties": {
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
        "reason": {"type": "string", "minLength": 20, "maxLength": 30},
    },
    "required": ["score", "reason"],
    "additionalProperties": False,
}
SCHEMAS: list[Any] = [
    GRADE,
    {"enum": ["yes", "no", None, 3]},
    {"const": {"a": [1]}},
    {"type": ["integer", "null"], "exclusiveMinimum": 3, "exclusiveMaximum": 5},
    {"type": "number", "minimum": 0.25, "maximum": 0.5},
    {"type": "number", "maximum": -7},
    {"type": "integer", "multipleOf": 7, "minimum": 50},
    {"type": "boolean"},
    {"type": "array", "items": {"enum": [1, 2, 3, 4]}, "minItems": 4, "maxItems": 4, "uniqueItems": True},
    {"prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "minItems": 2},
    {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "object", "required": ["a"]}]},
    {
        "allOf": [
            {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "null"}}, "required": ["b"]},
        ]
    },
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "arguments": {"type": "object", "minProperties": 2}},
        "required": ["arguments"],
    },
    {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
                },
                "required": ["value", "children"],
            }
        },
        "$ref": "#/$defs/tree",
    },
    True,
]


def request(text: str, schema: Any, seed: int = 0) -> Request:
    return Request(({"role": "user", "content": text},), seed, tag="grades/7", schema=json.dumps(schema))


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_echo_writes_values_of_the_schema(schema: Any) -> None:
    requests = [request("judge this", schema, seed) for seed in range(50)]
    replies = ask(echo(max_model_len=100_000), requests, Sampling(max_tokens=50_000))
    assert {reply.finish_reason for reply in replies} == {"stop"}
    for reply in replies:
        Draft202012Validator(schema).validate(json.loads(reply.text))
    assert replies == ask(echo(max_model_len=100_000), requests, Sampling(max_tokens=50_000))


def test_echo_varies_with_prompt_and_seed() -> None:
    replies = ask(echo(), [request(text, GRADE, seed) for text in ("a", "b") for seed in range(20)])
    assert {json.loads(reply.text)["score"] for reply in replies} == {1, 2, 3, 4, 5}
    assert len({reply.text for reply in replies}) > 30


def test_a_cut_reply_is_cut_and_not_wrong() -> None:
    (reply,) = ask(echo(), [request("a", GRADE)], Sampling(max_tokens=2))
    assert (reply.finish_reason, reply.completion_tokens, reply.error) == ("length", 2, "")
    assert violation(reply.text, json.dumps(GRADE)).startswith("the reply is not JSON")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ('{"type": "strin"}', r"is none: at \$\.type: 'strin'"),
        ('{"type": ', "is not JSON"),
        ('{"$ref": "#/nowhere"}', "points at nothing"),
        ('{"$ref": "https://example.com/schema"}', "points elsewhere"),
        ('{"type": "string", "pattern": "^[0-9]{40}$"}', "does not match"),
        ('{"type": "integer", "minimum": 3, "maximum": 2}', "no number of it"),
        ("false", "nothing satisfies it"),
        ('{"$ref": "#"}', "circle"),
    ],
)
def test_a_schema_that_cannot_be_met_is_an_error_of_the_stage(schema: str, said: str) -> None:
    asked = Request(({"role": "user", "content": "a"},), 0, schema=schema)
    with pytest.raises(EngineError, match=said):
        ask(echo(), [asked])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"score": 6, "reason": "because it is so very good"}', r"at \$\.score: 6 is greater than the maximum of 5"),
        ('{"score": 3}', "'reason' is a required property"),
        ('{"score": 3, "reason"', "is not JSON"),
        ("NaN", "NaN is no JSON number"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_violation_is_named(text: str, said: str) -> None:
    import re

    assert re.search(said, violation(text, json.dumps(GRADE)))


def test_requests_keep_all_fields_on_their_way_to_a_replica() -> None:
    asked = Request(({"role": "user", "content": "a"},), 3, (), "t/1", '{"type": "null"}', (("Once", -3.0),))
    assert unpack_requests(pack_requests([asked])) == [asked]


# --- an endpoint -----------------------------------------------------------------------------------------------------


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


GOOD = '{"score": 3, "reason": "because it is good enough"}'


def test_an_endpoint_is_asked_for_the_schema(endpoint: Endpoint) -> None:
    endpoint.behaviour = lambda number, handler: well(handler, GOOD)
    (reply,) = ask(endpoint.engine(), [request("a", GRADE)])
    assert (reply.text, reply.finish_reason) == (GOOD, "stop")
    form = endpoint.seen[0][1]["response_format"]
    assert (form["type"], form["json_schema"]["schema"], form["json_schema"]["strict"]) == ("json_schema", GRADE, True)


def test_replies_that_violate_the_schema_fail_alone_and_are_not_repaired(endpoint: Endpoint) -> None:
    answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {
        "good": lambda handler: well(handler, GOOD),
        "fenced": lambda handler: well(handler, f"```json\n{GOOD}\n```"),
        "six": lambda handler: well(handler, GOOD.replace("3", "6")),
        "cut": lambda handler: well(handler, GOOD[:20], finish_reason="length"),
    }
    endpoint.behaviour = lambda number, handler: answers[endpoint.asked(number)](handler)
    replies = ask(endpoint.engine(), [request(text, GRADE) for text in answers])
    assert [reply.finish_reason for reply in replies] == ["stop", "error", "error", "length"]
    assert "is not JSON" in replies[1].error and "at $.score: 6" in replies[2].error
    assert replies[3].text == GOOD[:20]
    assert replies[2].text == GOOD.replace("3", "6"), "what it said is for people to see"
    assert len(endpoint.seen) == 4


def test_an_endpoint_that_refuses_the_schema_stops_the_stage(endpoint: Endpoint) -> None:
    refusal = b'{"error": {"message": "Invalid schema for response_format: \'minLength\' is not permitted"}}'
    endpoint.behaviour = lambda number, handler: send(handler, 400, refusal)
    with pytest.raises(EngineError, match=r"refuses the JSON Schema of grades/7 .*minLength"):
        ask(endpoint.engine(), [request("a", GRADE)])
