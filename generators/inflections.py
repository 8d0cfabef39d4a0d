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
    if len(word) < 3:
        return [word + "s", word + "ing"]
    shape = word.replace("qu", "qw")
    before_vowel = [word]  # what -ing follows
    before_e = None  # what -ed, -er, -est follow, where that is something else
    plural = word + "s"
    if word.endswith(("ee", "oe", "ye")):
        before_e = [word[:-1]]  # agree: agreed, agreeing
    elif word.endswith("ie"):
        before_vowel, before_e = [word[:-2] + "y"], [word[:-1]]  # tie: tied, tying
    elif word.endswith("e"):
        before_vowel, before_e = [word[:-1], word], [word[:-1]]  # bake: baked, baking; singe: singeing
    elif word.endswith("y") and shape[-2:-1] not in VOWELS:
        before_e, plural = [word[:-1] + "i"], word[:-1] + "ies"  # cry: cries, cried, crying
    elif word.endswith("c"):
        before_vowel = [word + "k"]  # picnic: picnicked
    elif word.endswith(("s", "x", "z", "ch", "sh", "o")):
        plural = word + "es"
    elif word[-1] not in VOWELS + "hwxy" and shape[-2] in VOWELS and shape[-3] not in VOWELS:
        doubled = word + word[-1]
        # beg: begged; of longer words the stress decides: open, opened; forbid, forbidding; travel, either.
        before_vowel = [doubled] if sum(letter in VOWELS for letter in shape) == 1 else [doubled, word]
    endings = ("ed", "er", "est") if word in _tables()[1] else ("ed",)
    return [
        plural,
        *(stem + "ing" for stem in before_vowel),
        *(stem + end for stem in before_e or before_vowel for end in endings),
    ]


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
