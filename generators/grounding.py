"""Whether a request says what its calls need: a value that stands nowhere in the request was made up."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hornbook.tool_calls import Call, canonical_calls, referred
from hornbook.tools import Catalogue

ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def ungrounded(request: str, calls: Sequence[Call], catalogue: Catalogue, share: float) -> list[str]:
    """Return the arguments, as tool.argument, whose values the request does not say.

    A text is said when at least `share` of its words occur in the request, in any order; a number when it occurs in digits
    or, below 100, in English words. Left alone are values equal to the default, results of other calls, true and false, and
    values from a list of allowed ones, for which there are many ways to say them.
    """
    said = set(_words(request))
    said |= {f"{tens} {one}" for tens in said.intersection(TENS) for one in said.intersection(ONES[1:10])}
    found = []
    for call in canonical_calls(calls, catalogue):
        for argument, value in call["arguments"].items():
            schema = catalogue[call["name"]].arguments[argument]
            if not all(_said(leaf, said, share) for leaf in _leaves(value, schema)):
                found.append(f"{call['name']}.{argument}")
    return found


def _leaves(value: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the texts and numbers in a value that its schema leaves free."""
    if "enum" in schema or "const" in schema or referred(value) is not None:
        return
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, schema.get("properties", {}).get(name, {}))
    elif isinstance(value, list):
        items = schema.get("items")
        for part in value:
            yield from _leaves(part, items if isinstance(items, dict) else {})
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield value


def _said(value: str | int | float, said: set[str], share: float) -> bool:
    if isinstance(value, str):
        words = _words(value)
        return sum(word in said for word in words) >= share * max(1, len(words))
    if share == 0 or _in_words(value) in said:
        return True
    number = int(value) if value == int(value) else value
    return all(word in said for word in _words(str(abs(number))))


def _words(text: str) -> list[str]:
    """Return the words of a text; `call_a_cab` is one word, which nobody says."""
    return re.findall(r"\w+", text.casefold())


def _in_words(number: float) -> str:
    if number != int(number) or not 0 <= number < 100:
        return ""
    if number < 20:
        return ONES[int(number)]
    tens, ones = divmod(int(number), 10)
    return TENS[tens - 2] + (f" {ONES[ones]}" if ones else "")
