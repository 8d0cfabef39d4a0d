"""ROUGE-L is what its paper says, and the window of texts finds the same as comparing with each."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.rouge import SimilarTexts, longest_common_subsequence, rouge_l, words_of

FEW_WORDS = st.lists(st.sampled_from(["set", "an", "alarm", "for", "six", "Call", "ann", "the"]), max_size=9)
TEXTS = FEW_WORDS.map(" ".join)


def plain_lcs(left: list[str], right: list[str]) -> int:
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, ours in enumerate(left):
        for j, theirs in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if ours == theirs else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def plain_rouge(left: str, right: str) -> float:
    ours, theirs = words_of(left), words_of(right)
    common = plain_lcs(ours, theirs)
    if not common:
        return 0.0
    recall, precision = common / len(ours), common / len(theirs)
    return 2 * recall * precision / (recall + precision)


@given(FEW_WORDS, FEW_WORDS)
def test_the_bits_count_what_the_table_counts(left: list[str], right: list[str]) -> None:
    assert longest_common_subsequence(left, right) == plain_lcs(left, right)
    assert rouge_l(" ".join(left), " ".join(right)) == pytest.approx(plain_rouge(" ".join(left), " ".join(right)))


def test_known_values() -> None:
    assert rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)  # the paper's S1 and S2
    assert rouge_l("police killed the gunman", "the gunman kill police") == pytest.approx(0.5)  # and S3
    assert rouge_l("Wake me at 7!", "wake me, at 7") == 1
    assert rouge_l("", "") == rouge_l("?", "!") == 0
    assert words_of("Où est l'hôtel_7?") == ["où", "est", "l", "hôtel", "7"]


@settings(max_examples=300)
@given(st.lists(TEXTS, max_size=25), TEXTS, st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.75, 0.8, 0.9, 0.999, 1.0]))
def test_the_window_finds_what_comparing_with_each_finds(texts: list[str], text: str, most: float) -> None:
    similar = SimilarTexts(most, window=20)
    for other in texts:
        similar.add(other)
    remembered = texts[-20:]
    assert len(similar) == len(remembered)
    scores = [rouge_l(text, other) for other in remembered]
    highest = max(scores, default=0.0)
    score, found = similar.closest(text)
    if highest > most:
        assert score == highest
        assert found == remembered[scores.index(highest)]
    else:
        assert (score, found) == (0.0, "")


def test_a_full_window_is_quick() -> None:
    """Comparing with each of 10,000 requests takes some 50 ms a text."""
    import time

    dice = random.Random(5)
    verbs = ["set an alarm for", "call", "send a text to", "remind me to", "navigate to", "turn up the volume to"]
    names = [f"{first}{last}" for first in "abcdefghijklmnop" for last in "qrstuvwxyz"]
    requests = [
        f"please {dice.choice(verbs)} {' '.join(dice.choices(names, k=dice.randint(2, 8)))} at {dice.randint(1, 60)}"
        for _ in range(11_000)
    ]
    similar = SimilarTexts(0.75, window=10_000)
    for request in requests[:10_000]:
        similar.add(request)
    start = time.perf_counter()
    for request in requests[10_000:]:
        similar.closest(request)
        similar.add(request)
    assert (time.perf_counter() - start) / 1000 < 0.005
    assert len(similar) == 10_000
