"""What a text quotes: where its quotations stand, and whether somebody speaks in them."""

from __future__ import annotations

import re
from typing import NamedTuple

from generators.inflections import inflections
from generators.overlap import words

QUOTATION = re.compile(r'"([^"\n]*)"|“([^”\n]*)”|„([^“”\n]*)[“”]|«([^»\n]*)»')
SENTENCE_BREAK = re.compile(r"[.!?…](?:\s|$)")
SPOKEN_WORDS = 3
SPOKEN_ENDS = (".", ",", "!", "?", "…")
BEFORE_CHARACTERS = 40
AFTER_WORDS = 4
_SPEAK = """
add admit agree announce answer ask beg boast cheer chuckle complain cry declare exclaim explain giggle greet growl insist
joke laugh mumble murmur mutter offer plead promise remark repeat reply respond roar say scream shout sigh sing sob stammer
suggest tell warn whine whisper wonder yell
"""
SPEECH = frozenset(form for verb in _SPEAK.split() for form in inflections(verb))


class Quotation(NamedTuple):
    """A quotation in a text: what it quotes, and where it begins and ends, its marks included."""

    inner: str
    start: int
    end: int


def quotations(text: str) -> list[Quotation]:
    """Return what a text quotes, in order. Marks are paired within a line, so that one left open spoils no more than that."""
    return [
        Quotation(next(inner for inner in found.groups() if inner is not None), found.start(), found.end())
        for found in QUOTATION.finditer(text)
    ]


def somebody_speaks(text: str) -> bool:
    """Tell whether a quotation of a text is speech, and not a name or a title ("a way called "markers,"").

    It is where it has three words or more and ends as a sentence or before a comma, or where the sentence around it has a
    verb of speech shortly before or after.
    """
    for quotation in quotations(text):
        inner = quotation.inner.strip()
        if len(words(inner)) >= SPOKEN_WORDS and inner.endswith(SPOKEN_ENDS):
            return True
        before = SENTENCE_BREAK.split(text[max(0, quotation.start - BEFORE_CHARACTERS) : quotation.start])[-1]
        after = SENTENCE_BREAK.split(text[quotation.end :].partition("\n")[0])[0]
        if not SPEECH.isdisjoint((*words(before), *words(after)[:AFTER_WORDS])):
            return True
    return False
