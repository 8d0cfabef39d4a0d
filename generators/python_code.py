"""Python in a model's answers: where the code is, what of it belongs into a corpus, and whether it was written before."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from hornbook.near_duplicates import NearDuplicates
from hornbook.syntax import NotPython, parse_python, shape

SHINGLE = 5
_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("python", "python3", "py", "pycon")
_START = re.compile(r"^(?:def |async def |import |from |class |@)", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of an answer."""

    language: str
    code: str


def fenced_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a Markdown text, in order; the last one may lack its end."""
    return [Block(match[1].lower(), match[2].rstrip() + "\n") for match in _FENCE.finditer(text) if match[2].strip()]


def without_blocks(text: str) -> str:
    """Return a Markdown text's prose: without its fenced blocks."""
    return _FENCE.sub("", text)


def python_blocks(text: str) -> list[str]:
    """Return the code of the blocks that are fenced as Python."""
    return [block.code for block in fenced_blocks(text) if block.language in _PYTHON]


def answered_code(text: str) -> str:
    """Return the program that an answer consists of: its blocks of Python, else its unnamed blocks, else all from the first
    line that begins a definition or an import; an empty text where there is none."""
    blocks = python_blocks(text) or [block.code for block in fenced_blocks(text) if not block.language]
    if blocks:
        return "\n\n".join(blocks)
    start = _START.search(text)
    return "" if start is None or "```" in text else text[start.start() :].rstrip() + "\n"


def cut_out(source: str, nodes: list[ast.stmt]) -> str:
    """Return a source without the lines of some of its top-level statements, and without more than two blank lines a gap."""
    lines: list[str | None] = list(source.splitlines())
    for node in nodes:
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = None
    kept = "\n".join(line for line in lines if line is not None)
    return re.sub(r"\n{4,}", "\n\n\n", kept).strip() + "\n"


class SyntaxSieve:
    """Refuses programs whose syntax tree is that of an earlier accepted one: names, docstrings and annotations do not count.

    The measure is the Jaccard index of the sets of SHINGLE successive nodes of the trees (`hornbook.syntax.shape`), estimated
    by `NearDuplicates`, whose memory is bounded: the last `window` programs, about 700 bytes each.

    Args:
        similarity: from which Jaccard index two programs are one; 1.0 refuses only equal trees.
        constants: whether programs that differ in the values of constants differ.
        window: programs remembered.
    """

    reason = "ast-duplicate"

    def __init__(self, similarity: float, constants: bool, window: int) -> None:
        self.constants = constants
        self.earlier = NearDuplicates(similarity, window, SHINGLE)
        self._last = ("", "")

    def refuses(self, text: str, meta: Mapping[str, Any]) -> str:
        """Return which accepted program, counted from 0, this one is similar to and how much, or an empty text."""
        found = self.earlier.similar(self._shape(text))
        return "" if found is None else f"similarity {found[1]:.2f} to accepted program {found[0]}"

    def add(self, text: str, meta: Mapping[str, Any]) -> None:
        """Remember an accepted program."""
        self.earlier.add(self._shape(text))

    def _shape(self, text: str) -> str:
        """Return a program's shape as text; `refuses` and `add` of the same program compute it once."""
        if self._last[0] != text:
            self._last = (text, _shape_of(text, self.constants))
        return self._last[1]


def _shape_of(text: str, constants: bool) -> str:
    try:
        tree = parse_python(text)
    except NotPython:
        return text
    tree.body = [statement for statement in tree.body if not isinstance(statement, ast.Assert)]
    return " ".join(shape(tree, constants))
