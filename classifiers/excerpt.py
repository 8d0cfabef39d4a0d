"""The part of a document that a judge or an embedding model gets to see, so that both look at the same thing."""

from __future__ import annotations

import re

_COMMENT = re.compile(r"\s*(#.*)?$")
_LEGAL = re.compile(r"copyright|licen[cs]e|all rights reserved|spdx-", re.IGNORECASE)


def excerpt(text: str, characters: int) -> str:
    """Return the first `characters` characters, without the legal notice that many source files begin with.

    A notice is a block of `#` lines at the very top that speaks of copyright or licence. It says nothing about the rest and
    would otherwise fill most of the window of a small embedding model.
    """
    head = text[: 4 * characters + 4000]
    lines = head.split("\n")
    end = next((number for number, line in enumerate(lines) if not _COMMENT.match(line)), 0)
    if _LEGAL.search("\n".join(lines[:end])):
        head = "\n".join(lines[end:])
    return head.strip()[:characters].rstrip()
