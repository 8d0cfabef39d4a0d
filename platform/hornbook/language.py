"""The language of a text, offline: the one identification that checks of generated text and columns beside documents use.

The identifier is CLD2 (`pycld2`): quick, and it says when it does not know. It leaves out tags and what else is no word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

UNKNOWN = "und"  # ISO 639-2: undetermined

# What the identifier mistakes for one another in short texts, and codes of its own.
_SAME = {"iw": "he", "jw": "jv", "mo": "ro", "nb": "no", "nn": "no", "sh": "sr"}
_NEAR = (frozenset(("no", "da")), frozenset(("hr", "sr", "bs")), frozenset(("id", "ms")), frozenset(("cs", "sk")))
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Identified:
    """What the identifier says of a text.

    Attributes:
        code: ISO 639 code of the language of most of its words, `und` where the identifier knows none; for scripts whose
            languages it cannot tell apart, and for jokes, codes of its own (`known_codes` has neither).
        percent: of the words' bytes, how many are of that language: 0 to 100.
        size: bytes of words that were read; markup, digits and signs are not among them.
        reliable: whether the identifier calls its own answer so.
    """

    code: str
    percent: int
    size: int
    reliable: bool


def identify(text: str) -> Identified:
    """Return the language of a text; code `und`, nothing read, for characters that Unicode does not assign."""
    import pycld2

    try:
        reliable, size, found = pycld2.detect(_CONTROLS.sub(" ", text))
    except pycld2.error:
        return Identified(UNKNOWN, 0, 0, False)
    code = language_code(found[0][1])
    return Identified(UNKNOWN if code == "un" else code, found[0][2], size, reliable)


def language_code(code: str) -> str:
    """Return the one code for a language that has several, without script or region: `zh` for `zh-Hant`, `he` for `iw`."""
    code = code.partition("-")[0].lower()
    return _SAME.get(code, code)


def same_or_near(code: str, other: str) -> bool:
    """Tell whether two codes name one language, or two that the identifier mistakes for one another in short texts."""
    return code == other or any(code in near and other in near for near in _NEAR)


@cache
def known_codes() -> frozenset[str]:
    """Return the ISO 639 codes that `identify` may give, but `und`."""
    import pycld2

    return frozenset(
        language_code(code) for name, code in pycld2.LANGUAGES if code != "un" and not name.startswith("X_")
    )
