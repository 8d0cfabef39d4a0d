"""The self-test of decontamination: items are planted into documents of our own, and must be found.

A finder that finds nothing, for whatever reason, looks exactly like a clean corpus (dolma #174). So the same finder that
looks at the documents is shown, before them, some items of every evaluation set: whole, within other text, and with case,
white space and punctuation changed; programs with their names changed and reformatted.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from classifiers.item_finder import ItemFinder
from hornbook.errors import DataError
from hornbook.shingles import words_of
from hornbook.syntax import NotPython, parse_python, without_docstring

PLANTED = 20
"""Items of a set that are planted, evenly spread over it: of texts, and of programs."""

BEFORE = "This page is about boats on the Loiré, and why some of them are painted green. Then it says:\n\n"
AFTER = "\n\nAnd so the harbour fell asleep: no bell rang, nobody counted the gulls, 17 ropes hung still."
BESIDE = "def greet(name):\n    # says hello\n    return 'hello ' + name\n\n\n"
_BETWEEN_WORDS = re.compile(r"[^a-zA-Z0-9_+\-/=<>%^\x80-\U0010ffff]+")


def self_test(finder: ItemFinder, stage: str) -> dict[str, int]:
    """Plant items of every evaluation set and find them. Returns how many texts of each set were planted, all found.

    Raises:
        DataError: one was not found, naming it and what was done to it.
    """
    planted: dict[str, int] = {}
    for number, what, text in _texts(finder):
        row = finder.rows[number]
        hits = finder.find(text, finder.vector(number)).hits
        if all((hit.benchmark, hit.item) != (row["benchmark"], row["item"]) for hit in hits):
            raise DataError(
                f"{stage}: the self-test planted item {row['item']!r} of {row['benchmark']!r} ({row['field']}, {what}) into a "
                "document and did not find it: documents that hold it would pass as clean",
                "this is a bug of hornbook: please report the item, the settings and the version",
            )
        planted[row["benchmark"]] = planted.get(row["benchmark"], 0) + 1
    return planted


def _texts(finder: ItemFinder) -> Iterator[tuple[int, str, str]]:
    """Yield (number of the item's text, what was done to it, the document)."""
    by_set: dict[str, list[int]] = {}
    for number, row in enumerate(finder.rows):
        by_set.setdefault(row["benchmark"], []).append(number)
    for numbers in by_set.values():
        for number in _spread([number for number in numbers if finder.findable_by_words(number)]):
            for what, text in changed_texts(finder.rows[number]["text"], finder.settings.ngram):
                if what != "a run" or not finder.settings.more_than:
                    yield number, what, text
        for number in _spread([number for number in numbers if finder.findable_by_tree(number)]):
            for what, text in changed_programs(finder.rows[number]["text"]):
                yield number, what, text


def changed_texts(text: str, ngram: int) -> Iterator[tuple[str, str]]:
    """Yield (what was done, the text), none of which may hide an item.

    Letters beyond ASCII keep their case: not all of them have one that returns.
    """
    yield "whole", text
    yield "within other text", BEFORE + text + AFTER
    swapped = "".join(character.swapcase() if character.isascii() else character for character in text)
    yield "case, white space and punctuation changed", BEFORE + _BETWEEN_WORDS.sub(" ;\n\t", swapped) + AFTER
    words = words_of(text)
    if text.isascii() and len(words) > ngram:
        middle = (len(words) - ngram) // 2
        yield "a run", BEFORE + b" ".join(words[middle : middle + ngram]).decode() + AFTER


def changed_programs(program: str) -> Iterator[tuple[str, str]]:
    """Yield (what was done, the program), none of which may hide an item."""
    yield "whole", program
    try:
        tree = parse_python(program)
    except NotPython:
        return
    bound = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    renamed = _Renamed(bound).visit(tree)
    yield "names changed, reformatted", BESIDE + ast.unparse(ast.fix_missing_locations(renamed)) + "\n"


class _Renamed(ast.NodeTransformer):
    """Gives the names that a program binds others, and its functions another docstring."""

    def __init__(self, bound: set[str]) -> None:
        self.bound = bound

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self._name(node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.arg = self._name(node.arg)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> Any:
        return self._function(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.name = self._name(node.name)
        node.body = [ast.Expr(ast.Constant("Another docstring.")), *without_docstring(node.body)]
        return node

    def _name(self, name: str) -> str:
        return f"planted_{name}" if name in self.bound else name


def _spread(numbers: list[int]) -> list[int]:
    """Return at most PLANTED of the numbers, evenly spread."""
    wanted = min(PLANTED, len(numbers))
    return [numbers[place * len(numbers) // wanted] for place in range(wanted)]
