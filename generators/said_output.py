"""What a text says that its Python prints, in comments and in blocks behind its snippets, and whether that is so."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import tokenize
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from generators.python_code import FENCE, PYTHON, is_session
from hornbook.syntax import parse_python

_COMMENT = re.compile(
    r"#+\s*(?:the\s+|(?:(?:this|it)\s+)?(?:will\s+)?)?(?:outputs?|prints?)(?:\s+is|\s+will\s+be)?\b\s*(:?)\s*(.*)",
    re.IGNORECASE,
)
_PROGRAM = r"(?:code|program|script|snippet|example)"
_ANNOUNCED = re.compile(
    rf"(?:(?:^|[\n.,!?])\W*(?:the\s+)?output(?:\s+of\s+(?:this|the)(?:\s+above)?\s+{_PROGRAM})?(?:\s+is|\s+will\s+be)?"
    rf"|\b(?:this|it|{_PROGRAM})\s+(?:will\s+(?:print|output)|prints|outputs)(?:\s+the\s+following)?)\W*:\W*$",
    re.IGNORECASE,
)
_UNNAMED = ("", "text", "txt", "plaintext", "output", "console")
_CUT_SHORT = ("...", "\u2026")


class Claim(NamedTuple):
    """What a text says that a snippet prints.

    Attributes:
        snippet: which of the blocks of Python, counted from 0.
        statement: which of its top-level statements; None for all of them.
        texts: what is said; of several readings one suffices.
        before_next: the words stand between two statements, and may be about the later one.
        block: which of the blocks of Python says it, where it is one.
    """

    snippet: int
    statement: int | None
    texts: tuple[str, ...]
    before_next: bool = False
    block: int | None = None


def wrong_output(text: str, snippets: Sequence[str], printed: Sequence[Sequence[str]]) -> str:
    """Return what a text says wrongly of its snippets' output and what they printed, or an empty text.

    White space at the ends of lines and quotes around the whole do not count, nor the order of a set. What is cut short with
    `...` is not looked at.

    Args:
        text: the Markdown text.
        snippets: its blocks of Python.
        printed: of each snippet what each of its top-level statements printed, `Trial.printed`.
    """
    claims = [*(claim for number, code in enumerate(snippets) for claim in _commented(number, code)), *_blocks(text)]
    for claim in claims:
        if claim.block is not None and "".join(printed[claim.block]):
            continue  # a block that prints itself is code
        if any(mark in claim.texts[-1] for mark in _CUT_SHORT):
            continue
        outputs = list(_outputs(claim, printed[claim.snippet]))
        if outputs and not any(_same(said, output) for said in claim.texts for output in outputs):
            return f"snippet {claim.snippet + 1}: said {claim.texts[0][:100]!r}, printed {outputs[0][:100]!r}"
    return ""


def _outputs(claim: Claim, printed: Sequence[str]) -> Iterable[str]:
    """Yield what a claim may be about: its statement's output, also with that of the ones before it; nothing where there is
    none."""
    if claim.statement is None:
        yield "".join(printed)
        return
    if not printed[claim.statement].strip():
        return
    for first in range(claim.statement, -1, -1):
        yield "".join(printed[first : claim.statement + 1])
    if claim.before_next:
        yield "".join(printed[claim.statement + 1 : claim.statement + 2])


def _commented(number: int, snippet: str) -> Iterable[Claim]:
    """Yield the claims in comments beside or behind a snippet's top-level statements."""
    if is_session(snippet):
        return  # run as a doctest, which compares all that it shows
    body = parse_python(snippet).body
    comments = _comments(snippet)
    for line, comment in comments.items():
        match = _COMMENT.match(comment.text)
        place = _statement(body, line, comment)
        if match is None or place is None:
            continue
        said = (match[2], *_following(comments, line)) if match[1] else (_constant(match[2]),)
        texts = ("\n".join(said[:count]) for count in range(1, len(said) + 1))
        found = tuple(text for text in texts if text.strip())
        if found:
            yield Claim(number, place, found, before_next=comment.alone)


class _Comment(NamedTuple):
    column: int
    text: str
    alone: bool


def _comments(snippet: str) -> dict[int, _Comment]:
    """Return a snippet's comments by their lines, counted from 1."""
    found: dict[int, _Comment] = {}
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(io.StringIO(snippet).readline):
            if token.type == tokenize.COMMENT:
                line, column = token.start
                found[line] = _Comment(column, token.string, not token.line[:column].strip())
    return found


def _statement(body: Sequence[ast.stmt], line: int, comment: _Comment) -> int | None:
    """Return which statement a comment belongs to: the one that ends in its line or before it; None within one of several
    lines, which may print something else in each round."""
    ends = [(node.lineno, node.end_lineno or node.lineno) for node in body]
    if comment.alone and (comment.column or any(first <= line <= last for first, last in ends)):
        return None
    for number in range(len(body) - 1, -1, -1):
        first, last = ends[number]
        if comment.alone and last < line:
            return number
        if not comment.alone and last == line and (first == last or not hasattr(body[number], "body")):
            return number
    return None


def _following(comments: dict[int, _Comment], line: int) -> list[str]:
    """Return the comments in the lines right behind one, as long as nothing else stands there and none begins a claim."""
    found = []
    while (after := comments.get(line + 1)) and after.alone and not _COMMENT.match(after.text):
        found.append(after.text.lstrip("#").strip())
        line += 1
    return found


def _constant(said: str) -> str:
    """Return the words behind `prints` without a colon if they are a constant; `prints each word` is no claim."""
    value = said.strip()
    if not value.endswith("..."):
        value = value.removesuffix(".")
    if len(value) > 1 and value[0] == value[-1] == "`":
        return value
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return ""
    return value


def _blocks(text: str) -> Iterable[Claim]:
    """Yield the claims of blocks: right behind a snippet, after prose that ends in `Output:` or such words."""
    snippet: int | None = None
    count = end = 0
    for match in FENCE.finditer(text):
        language, code = match[1].lower(), match[2]
        announced = _ANNOUNCED.search(text[end : match.start()].strip()[-200:])
        end = match.end()
        if not code.strip():
            continue
        own = count if language in PYTHON else None
        count += own is not None
        output = language in _UNNAMED if own is None else not is_session(code) and _is_value(code)
        if snippet is not None and announced and output:
            yield Claim(snippet, None, (code,), block=own)
        snippet = None if is_session(code) else own


def _is_value(code: str) -> bool:
    """Tell whether a block of Python may be an output: nothing but expressions."""
    return all(isinstance(statement, ast.Expr) for statement in parse_python(code).body)


def _same(said: str, printed: str) -> bool:
    left, right = _plain(said), _plain(printed)
    if left == right:
        return True
    values = _set(left), _set(right)
    return values[0] is not None and values[0] == values[1]


def _plain(text: str) -> str:
    plain = "\n".join(line.strip() for line in text.strip().splitlines())
    if len(plain) > 1 and plain[0] == plain[-1] and plain[0] in "\"'`":
        plain = plain[1:-1].strip()
    return plain


def _set(text: str) -> set[object] | None:
    """Return the set that a text shows: their order is another in each run."""
    if not text.startswith("{"):
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    return value if isinstance(value, set) else None
