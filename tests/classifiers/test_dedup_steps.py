"""The steps of deduplication by themselves: candidates of large buckets, sets in little memory."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from classifiers.candidates import ALL_PAIRS, NEIGHBOURS, PAIR, candidate_pairs
from classifiers.sketches import BAND, slice_of, text_batches, text_hash
from classifiers.verification import SetReader, jaccard, verified


def bucket(hashes: list[int], contents: list[int]) -> np.ndarray:
    records = np.zeros(len(hashes), BAND)
    records["hash"], records["content"] = hashes, contents
    return records


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40)), max_size=60))
def test_documents_of_different_text_in_one_bucket_are_candidates(entries: list[tuple[int, int]]) -> None:
    """Records of several bands: the same document may be in several buckets, with one text."""
    text_of: dict[int, int] = {}
    seen: set[tuple[int, int]] = set()
    rows = []
    for hashed, ordinal in entries:
        if (hashed, ordinal) not in seen:
            seen.add((hashed, ordinal))
            rows.append((hashed, text_of.setdefault(ordinal, ordinal % 13), ordinal))
    records = bucket([row[0] for row in rows], [row[1] for row in rows])
    pairs, skipped = candidate_pairs(records, np.array([row[2] for row in rows], np.int64))
    expected = set()
    for hashed in {row[0] for row in rows}:
        firsts: dict[int, int] = {}
        for _, text, ordinal in sorted(row for row in rows if row[0] == hashed):
            firsts[text] = min(ordinal, firsts.get(text, ordinal))
        ordinals = sorted(firsts.values())
        assert len(ordinals) <= ALL_PAIRS
        expected |= {(low, high) for low in ordinals for high in ordinals if low < high}
    assert [tuple(pair) for pair in pairs.tolist()] == sorted(expected, key=lambda pair: (pair[1], pair[0]))
    assert skipped == 0


def test_a_large_bucket_gives_work_that_grows_with_it() -> None:
    size = 10_000
    pairs, skipped = candidate_pairs(bucket([1] * size, list(range(size))), np.arange(size))
    assert len(pairs) + skipped == size * (size - 1) // 2
    assert len(pairs) < (NEIGHBOURS + 1) * size
    assert {0} == set(pairs["low"][pairs["high"] - pairs["low"] > NEIGHBOURS].tolist())
    copies, skipped = candidate_pairs(bucket([1] * size, [7] * size), np.arange(size))
    assert len(copies) == 0 and skipped == 0


class Sets(SetReader):
    """Sets by ordinal, and how many bytes were asked for at once."""

    def __init__(self, sets: list[np.ndarray]) -> None:
        self.arrays, self.most = sets, 0

    def places(self, ordinals):
        return np.zeros(len(ordinals), np.int64), np.array([len(self.arrays[entry]) for entry in ordinals], np.int64)

    def read(self, ordinals, starts, stops):
        found = [self.arrays[entry] for entry in ordinals]
        self.most = max(self.most, sum(entry.nbytes for entry in found))
        return found


def test_pairs_are_compared_in_little_memory() -> None:
    rng = np.random.default_rng(1)
    sets = [np.unique(rng.integers(0, 300, rng.integers(1, 400), dtype=np.uint64)) for _ in range(60)]
    every = [(low, high) for high in range(60) for low in range(high)]
    pairs = np.array(every, PAIR)
    expected = [pair for pair in every if jaccard(sets[pair[0]], sets[pair[1]]) >= 0.5]
    for memory in (1, 10_000, 10**9):
        reader = Sets(sets)
        edges = np.concatenate(list(verified(pairs, reader, 0.5, memory)))
        assert sorted((int(low), int(high)) for low, high in zip(edges["low"], edges["high"], strict=True)) == sorted(
            expected
        )
        for low, high, similarity in edges.tolist():
            one, other = set(sets[low].tolist()), set(sets[high].tolist())
            assert similarity == len(one & other) / len(one | other)
        assert reader.most <= max(memory, max(entry.nbytes for entry in sets))


def test_slices_ascend_with_the_hash_and_are_all_used() -> None:
    rng = random.Random(1)
    hashes = np.sort(np.array([rng.getrandbits(64) for _ in range(1000)], np.uint64))
    for slices in (1, 3, 64):
        found = slice_of(hashes, slices)
        assert (np.diff(found) >= 0).all() and set(found.tolist()) == set(range(slices))


@given(st.lists(st.text(max_size=30), max_size=20), st.integers(1, 50))
def test_batches_of_texts_are_bounded(texts: list[str], characters: int) -> None:
    batches = list(text_batches(texts, characters))
    assert [text for start, stop in batches for text in texts[start:stop]] == texts
    assert all(stop - start == 1 or sum(map(len, texts[start:stop])) <= characters for start, stop in batches)


@given(st.text(alphabet="ab \n\t\u2003\u0301\x1ce", max_size=40), st.integers(1, 40))
def test_a_long_text_has_the_hash_that_it_had_in_one_go(text: str, at_once: int) -> None:
    assert text_hash(text, at_once) == text_hash(text)
    assert text_hash(f"\n {text}  ") == text_hash(" ".join(text.split())) != text_hash(text + " c")
