"""ROUGE-L between short texts, and a window of texts that answers "is one of these too like this one?" quickly.

ROUGE-L (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3) compares texts by their longest
common subsequence of words: F = 2 LCS(a, b) / (|a| + |b|), the harmonic mean of LCS/|a| and LCS/|b|. Words are runs of
letters and digits, case folded; there is no stemming.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

WORDS = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Return the words of a text: runs of letters and digits, case folded."""
    return WORDS.findall(text.casefold())


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two lists of words.

    A row of the usual table is the bits of one integer (Hyyro, "Bit-parallel LCS-length computation revisited", 2004), so
    that a word of `right` costs a few operations on integers of |left| bits.
    """
    positions: dict[str, int] = {}
    for place, word in enumerate(left):
        positions[word] = positions.get(word, 0) | 1 << place
    every = (1 << len(left)) - 1
    row = every
    for word in right:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & every
    return len(left) - row.bit_count()


def rouge_l(left: str, right: str) -> float:
    """Return ROUGE-L's F of two texts, from 0 to 1; two texts without words have 0."""
    ours, theirs = words_of(left), words_of(right)
    if not ours or not theirs:
        return 0.0
    return 2 * longest_common_subsequence(ours, theirs) / (len(ours) + len(theirs))


class SimilarTexts:
    """The latest `window` texts, and whether one of them has a ROUGE-L F above `most` with a new one.

    Exact, but few texts are compared in full: an LCS has at most as many words as the two have in common, and how many that
    is is counted for all texts at once from lists of who holds which word.

    Args:
        most: the largest F that is let pass.
        window: how many texts are remembered; the oldest is forgotten first. About 1 kB each.
    """

    def __init__(self, most: float, window: int) -> None:
        self.most = most
        self._texts: list[tuple[str, list[str]]] = []
        """A ring: text number n lies at n mod window."""
        self._lengths = np.zeros(window, dtype=np.int64)
        self._holding: dict[tuple[str, int], array[int]] = {}
        """Of a word's first, second, ... occurrence in a text: the numbers of the texts that have it, ascending."""
        self._next = 0

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """Remember a text."""
        words = words_of(text)
        place = self._next % len(self._lengths)
        if place == len(self._texts):
            self._texts.append((text, words))
        else:
            self._forget(self._texts[place][1])
            self._texts[place] = (text, words)
        self._lengths[place] = len(words)
        for occurrence in _occurrences(words):
            self._holding.setdefault(occurrence, array("q")).append(self._next)
        self._next += 1

    def closest(self, text: str) -> tuple[float, str]:
        """Return the largest F above `most` that a remembered text has with this one, and that text; else (0, "").

        Of several with the same F it is the oldest.
        """
        words = words_of(text)
        best, found = 0.0, ""
        for number in self._candidates(words):
            other, theirs = self._texts[number % len(self._lengths)]
            score = 2 * longest_common_subsequence(words, theirs) / (len(words) + len(theirs))
            if score > max(best, self.most):
                best, found = score, other
                if best == 1:
                    break
        return best, found

    def _candidates(self, words: list[str]) -> list[int]:
        """Return the numbers, ascending, of the texts with enough words in common with these for an F above `most`."""
        holding = [self._holding[found] for found in _occurrences(words) if found in self._holding]
        if not holding:
            return []
        oldest = self._next - len(self._texts)
        in_common = np.bincount(np.concatenate([np.frombuffer(numbers, np.int64) for numbers in holding]) - oldest)
        numbers = np.flatnonzero(in_common)
        totals = self._lengths[(numbers + oldest) % len(self._lengths)] + len(words)
        return (numbers[2 * in_common[numbers] / totals > self.most] + oldest).tolist()

    def _forget(self, words: list[str]) -> None:
        """Forget the oldest text: it is the first in each of its words' lists."""
        for occurrence in _occurrences(words):
            numbers = self._holding[occurrence]
            del numbers[0]
            if not numbers:
                del self._holding[occurrence]


def _occurrences(words: Iterable[str]) -> list[tuple[str, int]]:
    """Number the occurrences of each word; two texts share as many of them as they have words in common."""
    seen: dict[str, int] = {}
    found = []
    for word in words:
        seen[word] = seen.get(word, 0) + 1
        found.append((word, seen[word]))
    return found
