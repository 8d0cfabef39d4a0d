"""English inflections of a word: what counts as "uses the word" when a text was asked to.

Plural, third person, past, participles and comparison, by the rules of spelling, with tables for what is irregular.
Derived words (quick, quickly) are other words and do not count. For words of other languages the rules add
forms that do no harm.
"""

from __future__ import annotations

import importlib.resources
from functools import cache

VOWELS = "aeiou"


def inflections(word: str) -> frozenset[str]:
    """Return a word and its inflected forms, case folded."""
    word = word.casefold()
    return frozenset((word, *_regular(word), *_tables()[0].get(word, ())))


def _regular(word: str) -> list[str]:
    """Return the forms with `-s`, `-ed`, `-ing` and, of adjectives, `-er`, `-est`, with the changes of spelling they bring."""
    endings = ["ed", "ing", "er", "est"] if word in _tables()[1] else ["ed", "ing"]
    shape = word.replace("qu", "qw")
    stems = [word]
    if word.endswith(("ee", "oe", "ye")):
        endings += [ending.removeprefix("e") for ending in endings if ending != "ing"]  # agree, agreed, agreeing
    elif word.endswith("ie"):
        stems = [word[:-1], word[:-2] + "y"]  # tie, tied, tying
    elif word.endswith("e"):
        stems = [word[:-1], word]  # bake, baked, baking; singe, singeing
    elif word.endswith("y") and shape[-2:-1] not in VOWELS:
        stems.append(word[:-1] + "i")  # cry, cried, crying
    elif word.endswith("c"):
        stems.append(word + "k")  # picnic, picnicked
    elif len(word) > 2 and word[-1] not in VOWELS + "hwxy" and shape[-2] in VOWELS and shape[-3] not in VOWELS:
        stems.append(word + word[-1])  # beg, begged
    plural = [word + "s", word + "es", *([word[:-1] + "ies"] if word.endswith("y") else [])]
    return [*plural, *(stem + ending for stem in stems for ending in endings)]


@cache
def _tables() -> tuple[dict[str, tuple[str, ...]], frozenset[str]]:
    """Return the irregular forms by the word they belong to, and the adjectives that are compared with -er and -est."""
    text = importlib.resources.files("generators").joinpath("inflections.irregular.txt").read_text(encoding="utf-8")
    irregular: dict[str, tuple[str, ...]] = {}
    compared: list[str] = []
    for line in text.splitlines():
        word, *forms = line.split() or ["#"]
        if word == "compared:":
            compared += forms
        elif not word.startswith("#"):
            irregular[word] = (*irregular.get(word, ()), *forms)
    return irregular, frozenset(compared)
