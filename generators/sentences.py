"""Where sentences end, and what may be cut from a reply: half sentences, and quotation marks around the whole."""

from __future__ import annotations

import re

SENTENCE_END = re.compile(r"[.!?…。！？]+[\"'”’)»]*\s+|\n+|[。！？]")
_LAST_MARK = re.compile(r"[.!?](?:[\"'”’)\]»*_]*(?=\s|\Z)|[\"'”’)\]»]+)")
_NO_END = re.compile(r"(?:^\W*\d+|(?<![\w.])(?:Dr|Mr|Mrs|Ms|Prof|St|vs|[Ee]\.g|[Ii]\.e))\.$")
"""A mark of a list alone on its line as yet, and abbreviations: what a line ends in where no sentence does."""
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“"}


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text, without the marks that end them; `Dr. No` counts as two."""
    return [sentence for part in SENTENCE_END.split(text) if (sentence := part.strip().rstrip(".!?"))]


def to_last_sentence(text: str) -> str:
    """Cut a text after its last sentence end; a text without one is empty."""
    for found in reversed(list(_LAST_MARK.finditer(text))):
        line = text[text.rfind("\n", 0, found.start()) + 1 : found.start() + 1]
        if not _NO_END.search(line):
            return text[: found.end()]
    return ""


def unquoted(text: str) -> str:
    """Take away the quotation marks around a whole text; those of a quotation in it stay, at its beginning or end, too."""
    opening, closing = text[:1], text[-1:]
    if len(text) < 2 or _QUOTES.get(opening) != closing or opening in text[1:-1] or closing in text[1:-1]:
        return text
    return text[1:-1].strip()
