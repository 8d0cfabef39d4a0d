"""Python in a model's answers: where the code is, what of it belongs into a corpus, and whether it was written before."""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hornbook.near_duplicates import NearDuplicates
from hornbook.syntax import NotPython, parse_python, shape

SHINGLE = 5
FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
"""A fenced block: its language and its code; the last one may lack its end."""

PYTHON = ("python", "python3", "py", "pycon")
"""How blocks of Python are called."""

_SPAN = re.compile(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
_START = re.compile(r"^(?:def |async def |import |from |class |@)", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of an answer."""

    language: str
    code: str


def fenced_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a Markdown text, in order; the last one may lack its end."""
    return [Block(match[1].lower(), match[2].rstrip() + "\n") for match in FENCE.finditer(text) if match[2].strip()]


def without_blocks(text: str) -> str:
    """Return a Markdown text's prose: without its fenced blocks."""
    return FENCE.sub("", text)


def python_blocks(text: str) -> list[str]:
    """Return the code of the blocks that are fenced as Python."""
    return [block.code for block in fenced_blocks(text) if block.language in PYTHON]


def has_open_span(text: str) -> bool:
    """Tell whether a Markdown text's prose has a backtick without a partner, as where it was cut within a code span."""
    return "`" in _SPAN.sub("", without_blocks(text).replace("\\`", ""))


def is_session(snippet: str) -> bool:
    """Tell whether a snippet shows a session: a line with a `>>>` prompt."""
    return any(line.lstrip().startswith(">>>") for line in snippet.splitlines())


def statements(snippet: str) -> list[ast.stmt]:
    """Return a snippet's top-level statements; of a session those behind its prompts, as far as they are Python.

    Raises:
        NotPython: a snippet that is no session cannot be parsed.
    """
    if not is_session(snippet):
        return parse_python(snippet).body
    found: list[ast.stmt] = []
    try:
        sources = [example.source for example in doctest.DocTestParser().get_examples(snippet)]
    except ValueError:  # a prompt without a blank behind it, lines that lack their indent
        return found
    for source in sources:
        try:
            found += parse_python(source).body
        except NotPython:
            continue  # a session may show an error
    return found


def repeated(bodies: Sequence[Sequence[ast.stmt]]) -> tuple[int, int] | None:
    """Return which piece of code is the same as which earlier one, counted from 0, or None.

    Comments and layout do not count. A piece that is nothing but expressions may come again: `print(stack)`, `next(words)`.
    """
    seen: dict[str, int] = {}
    for number, body in enumerate(bodies):
        if all(isinstance(statement, ast.Expr) for statement in body):
            continue
        earlier = seen.setdefault(ast.dump(ast.Module([*body], [])), number)
        if earlier != number:
            return number, earlier
    return None


_RUNNERS = frozenset(("unittest", "doctest"))
"""Modules that find and call what a program defines without its naming it."""


def only_defined(bodies: Sequence[Sequence[ast.stmt]]) -> list[str]:
    """Return the functions and classes that pieces of code define at top level, or nothing where at least one is used.

    It is used where a statement outside of functions names it; a decorator and a default are such places, a base class is not,
    for nothing of a class runs because it is inherited from.
    """
    body = [statement for piece in bodies for statement in piece]
    defined = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    waiting: list[ast.AST] = [*body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in {*defined, *_RUNNERS}:
            return []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
        elif isinstance(node, ast.ClassDef):
            waiting += [*node.decorator_list, *node.body]
        else:
            waiting += ast.iter_child_nodes(node)
    return list(dict.fromkeys(defined))


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
