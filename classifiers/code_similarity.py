"""Whether a document holds a program much like one of a set: edit similarity of syntax trees, function by function.

After phi-1 (2306.11644), which compared the syntax trees of web code and of HumanEval's solutions and pruned files at match
rates of 0.95 down to 0.8. Trees are compared as the sequence of their nodes in order, without docstrings, annotations and
names of the program's own (`hornbook.syntax.shape`): the edit distance of two sequences takes time that grows with the
product of their lengths, that of two trees far more. The match rate is 1 - distance / length of the longer sequence.

What bounds the time: functions are compared with functions, never whole files; MAX_NODES to a function, MAX_FUNCTIONS to a
document and MAX_COMPARISONS of edit distance to a document. Length and the bag of nodes rule out most pairs first, without a
loss: both are bounds of the distance. What a document exceeds is not compared, and said so (`Compared.cut_short`).
"""

from __future__ import annotations

import ast
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hornbook.syntax import NotPython, parse_python, shape

MAX_NODES = 2000
MAX_FUNCTIONS = 500
MAX_COMPARISONS = 2000
BAG = 64
"""Slots of a bag of nodes: each kind of node has one, several may share it."""

_FUNCTION = re.compile(r"^(?:async def |def |class )", re.MULTILINE)
_LEAVES_BLOCK = re.compile(r"^[^\s)\]}#]", re.MULTILINE)
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Compared:
    """What came of a document: the programs that it is like and how much, and whether a limit left some of it out."""

    hits: list[tuple[int, float]] = field(default_factory=list)
    cut_short: bool = False


class ProgramIndex:
    """Programs to look for.

    Args:
        programs: Python sources.
        match_rate: from which match rate two functions are one.
        least_nodes: functions of fewer nodes are not compared: a one-liner is like many others.
    """

    def __init__(self, programs: Sequence[str], match_rate: float, least_nodes: int) -> None:
        self.match_rate, self.least_nodes = match_rate, least_nodes
        self._shapes: list[list[str]] = []
        owners: list[int] = []
        for number, program in enumerate(programs):
            for nodes in function_shapes(program):
                if least_nodes <= len(nodes) <= MAX_NODES:
                    self._shapes.append(nodes)
                    owners.append(number)
        self._owners = np.array(owners, dtype=np.int64)
        self._lengths = np.array([len(nodes) for nodes in self._shapes], dtype=np.int64)
        self._bags = np.array([_bag(nodes) for nodes in self._shapes], dtype=np.int16).reshape(-1, BAG)
        self.usable = np.isin(np.arange(len(programs)), self._owners)

    def find(self, document: str, among: Collection[int] | None = None) -> Compared:
        """Return the programs that a function of the document matches, best first.

        Args:
            document: a text; what of it is no Python is passed over.
            among: the programs to compare with; None: all.
        """
        if not len(self._owners) or (among is not None and not among):
            return Compared()
        allowed = np.ones(len(self._owners), bool) if among is None else np.isin(self._owners, list(among))
        best: dict[int, float] = {}
        found = Compared()
        comparisons = 0
        for number, nodes in enumerate(function_shapes(document)):
            if number >= MAX_FUNCTIONS:
                found.cut_short = True
                break
            if len(nodes) < self.least_nodes:
                continue
            if len(nodes) > MAX_NODES:
                found.cut_short = True
                continue
            for place in self._possible(nodes, allowed):
                if comparisons == MAX_COMPARISONS:
                    found.cut_short = True
                    break
                comparisons += 1
                rate = match_rate(nodes, self._shapes[place])
                if rate >= self.match_rate:
                    owner = int(self._owners[place])
                    best[owner] = max(rate, best.get(owner, 0.0))
        found.hits = sorted(best.items(), key=lambda hit: (-hit[1], hit[0]))
        return found

    def _possible(self, nodes: Sequence[str], allowed: np.ndarray) -> np.ndarray:
        """Return the places of the functions that may match: an edit distance is never below either bound."""
        longer = np.maximum(self._lengths, len(nodes))
        budget = (1 - self.match_rate) * longer + 1e-9
        near = allowed & (np.abs(self._lengths - len(nodes)) <= budget)
        places = np.flatnonzero(near)
        difference = self._bags[places].astype(np.int32) - np.array(_bag(nodes), dtype=np.int32)
        bound = np.maximum(difference.clip(min=0).sum(axis=1), (-difference).clip(min=0).sum(axis=1))
        return places[bound <= budget[places]]


def match_rate(first: Sequence[str], second: Sequence[str]) -> float:
    """Return 1 - edit distance / length of the longer sequence, in [0, 1]; 1 for two empty ones."""
    longer = max(len(first), len(second))
    return 1 - edit_distance(first, second) / longer if longer else 1.0


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the Levenshtein distance of two sequences: a column of the table at a time, a bit a row (Hyyrö 2003)."""
    if not first:
        return len(second)
    full, top = (1 << len(first)) - 1, 1 << (len(first) - 1)
    places: dict[str, int] = {}
    for place, entry in enumerate(first):
        places[entry] = places.get(entry, 0) | 1 << place
    rises, falls, distance = full, 0, len(first)  # where the column rises and falls from a row to the next
    for entry in second:
        equal = places.get(entry, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        right_rises = falls | ~(diagonal | rises) & full
        right_falls = diagonal & rises
        distance += bool(right_rises & top) - bool(right_falls & top)
        right_rises = (right_rises << 1 | 1) & full
        right_falls = right_falls << 1 & full
        rises = right_falls | ~(diagonal | right_rises) & full
        falls = right_rises & diagonal
    return distance


def function_shapes(text: str) -> Iterator[list[str]]:
    """Yield the shapes of a text's functions, methods and inner ones included; of a program without any, its own.

    A text that cannot be parsed whole (prose with code in it, an old Python, more than `hornbook.syntax` takes at once) is
    looked through for definitions at the beginning of a line, each of which is parsed by itself.
    """
    try:
        tree = parse_python(text)
    except NotPython:
        for block in _definitions(text):
            try:
                yield from _shapes(parse_python(block))
            except NotPython:
                continue
        return
    yield from _shapes(tree)


def _shapes(tree: ast.Module) -> Iterator[list[str]]:
    functions = [node for node in ast.walk(tree) if isinstance(node, _Function)]
    for function in functions:
        yield shape(function)
    if not functions and tree.body:
        yield shape(tree)


def _definitions(text: str) -> Iterator[str]:
    """Yield the definitions at the beginning of a line, up to the next line that is not indented, decorators left out."""
    for begin in _FUNCTION.finditer(text):
        line_end = text.find("\n", begin.end())
        end = _LEAVES_BLOCK.search(text, line_end + 1) if line_end >= 0 else None
        yield text[begin.start() : end.start() if end else len(text)]


def _bag(nodes: Sequence[str]) -> list[int]:
    bag = [0] * BAG
    for node in nodes:
        bag[zlib.crc32(node.encode()) % BAG] += 1
    return bag
