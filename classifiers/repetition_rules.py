"""Gopher's rules against repetition (Rae et al. 2021, table A1): repeated lines, paragraphs and word n-grams.

Shares are of the text's characters, and are counted as in datatrove, which made FineWeb: a repetition counts from its second
occurrence on, and repeated n-grams that overlap count once, from the left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from classifiers.text_view import Integers, TextView, duplicates, share

LONGEST = 10  # words of the longest n-grams that are counted
TOP = 4  # words of the longest n-grams whose commonest is looked for


def duplicate_lines(view: TextView) -> float:
    """Return the share of lines that repeat an earlier line."""
    return share(view.once(_lines)[0], len(view.lines))


def duplicate_line_characters(view: TextView) -> float:
    """Return the share of characters that are in lines that repeat an earlier line."""
    return share(view.once(_lines)[1], len(view.text))


def duplicate_paragraphs(view: TextView) -> float:
    """Return the share of paragraphs that repeat an earlier paragraph."""
    return share(view.once(_paragraphs)[0], len(view.paragraphs))


def duplicate_paragraph_characters(view: TextView) -> float:
    """Return the share of characters that are in paragraphs that repeat an earlier paragraph."""
    return share(view.once(_paragraphs)[1], len(view.text))


def top_2_gram(view: TextView) -> float:
    """Return the share of characters that the commonest 2 successive words take; of several, the first in the text."""
    return share(view.once(_n_grams).top[2], len(view.text))


def top_3_gram(view: TextView) -> float:
    """Return the share of characters that the commonest 3 successive words take; of several, the first in the text."""
    return share(view.once(_n_grams).top[3], len(view.text))


def top_4_gram(view: TextView) -> float:
    """Return the share of characters that the commonest 4 successive words take; of several, the first in the text."""
    return share(view.once(_n_grams).top[4], len(view.text))


def duplicate_5_grams(view: TextView) -> float:
    """Return the share of characters in 5 successive words that came before."""
    return share(view.once(_n_grams).repeated[5], len(view.text))


def duplicate_6_grams(view: TextView) -> float:
    """Return the share of characters in 6 successive words that came before."""
    return share(view.once(_n_grams).repeated[6], len(view.text))


def duplicate_7_grams(view: TextView) -> float:
    """Return the share of characters in 7 successive words that came before."""
    return share(view.once(_n_grams).repeated[7], len(view.text))


def duplicate_8_grams(view: TextView) -> float:
    """Return the share of characters in 8 successive words that came before."""
    return share(view.once(_n_grams).repeated[8], len(view.text))


def duplicate_9_grams(view: TextView) -> float:
    """Return the share of characters in 9 successive words that came before."""
    return share(view.once(_n_grams).repeated[9], len(view.text))


def duplicate_10_grams(view: TextView) -> float:
    """Return the share of characters in 10 successive words that came before."""
    return share(view.once(_n_grams).repeated[10], len(view.text))


# --- what they share -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NGrams:
    """Characters by n: `top`, all occurrences of the commonest n-gram; `repeated`, n-grams that came before."""

    top: dict[int, int]
    repeated: dict[int, int]


def _lines(view: TextView) -> tuple[int, int]:
    return duplicates(view.lines)


def _paragraphs(view: TextView) -> tuple[int, int]:
    return duplicates(view.paragraphs)


def _n_grams(view: TextView) -> NGrams:
    """Count n-grams of 2 to LONGEST words. Where no n-gram occurs twice, no longer one does: most texts end soon."""
    numbers, words = view.numbers, len(view.numbers)
    ends: Integers = np.concatenate(([0], np.cumsum(view.word_lengths[numbers])))  # characters before each word
    spaces = 0 if view.unspaced else 1
    # Where all n-grams are different, the first of them is the commonest.
    top = {n: int(ends[n]) + (n - 1) * spaces if words >= n else 0 for n in range(2, TOP + 1)}
    repeated = dict.fromkeys(range(TOP + 1, LONGEST + 1), 0)
    found = NGrams(top, repeated)
    # At each place, which of the n-grams that occur more than once begins there; -1 for none.
    which = np.where(view.occurrences[numbers] > 1, numbers, -1) if words else numbers
    for n in range(2, LONGEST + 1):
        starts = np.flatnonzero((which[:-1] >= 0) & (which[1:] >= 0))
        keys = which[starts] * len(view.vocabulary) + numbers[starts + n - 1]
        _, kinds, counts = np.unique(keys, return_inverse=True, return_counts=True)
        again = counts[kinds] > 1
        starts, kinds = starts[again], kinds[again]
        if not len(starts):
            break
        if n <= TOP:
            most = counts[kinds].max()
            first = starts[np.argmax(counts[kinds] == most)]
            top[n] = int(most) * (int(ends[first + n] - ends[first]) + (n - 1) * spaces)
        else:
            repeated[n] = _repeated_characters(starts.tolist(), kinds.tolist(), ends, n)
        which = np.full(words - n + 1, -1, np.int64)
        which[starts] = kinds
    return found


def _repeated_characters(starts: list[int], kinds: list[int], ends: Integers, n: int) -> int:
    """Return the characters of n-grams that came before, none counted twice; `starts` ascend."""
    seen: set[int] = set()
    characters = free_from = 0
    for start, kind in zip(starts, kinds, strict=True):
        if start < free_from:
            continue
        if kind in seen:
            characters += int(ends[start + n] - ends[start])
            free_from = start + n
        else:
            seen.add(kind)
    return characters
