"""How alike two texts are, by the runs of characters that they share: the Dice coefficient of their character n-grams."""

from __future__ import annotations

from collections import Counter

CHARACTERS = 3


def ngram_dice(first: str, second: str, characters: int = CHARACTERS) -> float:
    """Return the similarity of two texts, 0 (no n-gram in common) to 1 (the same n-grams); it is symmetric.

    2 |A ∩ B| / (|A| + |B|), where A and B are the texts' runs of `characters` characters, each counted as often as it occurs
    (Dice, "Measures of the Amount of Ecologic Association Between Species", 1945, on bags rather than sets). Case and white
    space count. A text shorter than a run is one run; two empty texts are alike. Equal texts give exactly 1; so may, rarely,
    texts that order the same runs differently. Time and memory grow with the texts' lengths, not with their product.
    """
    if first == second:
        return 1.0
    a, b = _runs(first, characters), _runs(second, characters)
    return 2 * (a & b).total() / max(a.total() + b.total(), 1)


def _runs(text: str, characters: int) -> Counter[str]:
    if not text:
        return Counter()
    return Counter(text[start : start + characters] for start in range(max(1, len(text) - characters + 1)))
