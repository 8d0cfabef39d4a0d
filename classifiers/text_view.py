"""A text as rules look at it: its words, lines and paragraphs, each found once and shared by all rules.

Words are runs without white space, and in scripts that are written without spaces (Chinese, Japanese, Thai, ...) each
character is one, as it is for near-duplicates: so counts of words are counts of characters there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from hornbook.shingles import spaced

Found = TypeVar("Found")
Integers = npt.NDArray[np.int64]

_BLANK_LINES = re.compile("\n{2,}")


class TextView:
    """A text whose parts are computed when a rule first asks for them. Any string will do.

    Attributes:
        text: the text, its line ends made "\\n".
    """

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
        self._found: dict[Callable[[TextView], Any], Any] = {}

    def once(self, compute: Callable[[TextView], Found]) -> Found:
        """Return `compute(self)`, computed at the first call only: for what the rules of one file share."""
        if compute not in self._found:
            self._found[compute] = compute(self)
        found: Found = self._found[compute]
        return found

    @cached_property
    def words(self) -> list[str]:
        """The words, in order, with the punctuation that touches them."""
        return spaced(self.text).split()

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Each distinct word's number, by first occurrence."""
        return {word: number for number, word in enumerate(dict.fromkeys(self.words))}

    @cached_property
    def numbers(self) -> Integers:
        """The words as their numbers in the vocabulary, shape (words,)."""
        return np.fromiter(map(self.vocabulary.__getitem__, self.words), np.int64, len(self.words))

    @cached_property
    def occurrences(self) -> Integers:
        """How often each distinct word occurs, shape (vocabulary,)."""
        return np.bincount(self.numbers, minlength=len(self.vocabulary))

    @cached_property
    def word_lengths(self) -> Integers:
        """The characters of each distinct word, shape (vocabulary,)."""
        return np.fromiter(map(len, self.vocabulary), np.int64, len(self.vocabulary))

    @cached_property
    def unspaced(self) -> bool:
        """Whether most of the text is in scripts that are written without spaces."""
        return not self.text.isascii() and 2 * len(self.words) > 3 * len(self.text.split())

    @cached_property
    def lines(self) -> list[str]:
        """The lines that are not blank, white space at their ends kept."""
        return [line for line in self.text.split("\n") if line and not line.isspace()]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What blank lines separate."""
        stripped = self.text.strip()
        return _BLANK_LINES.split(stripped) if stripped else []


def duplicates(pieces: Sequence[str]) -> tuple[int, int]:
    """Return how many pieces repeat an earlier one, and the characters of those."""
    if len(set(pieces)) == len(pieces):
        return 0, 0
    seen: set[str] = set()
    count = characters = 0
    for piece in pieces:
        if piece in seen:
            count += 1
            characters += len(piece)
        else:
            seen.add(piece)
    return count, characters


def share(part: float, whole: float) -> float:
    """Return part / whole, at most 1; 0 of an empty whole."""
    return min(1.0, float(part) / float(whole)) if whole else 0.0


def share_of(conditions: Iterable[bool], whole: int) -> float:
    """Return the share of `whole` cases that are true."""
    return share(sum(conditions), whole)
