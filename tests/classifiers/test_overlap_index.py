"""Shared runs of words: a planted run is always found, texts without one never are, and shares are what they say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifiers.overlap_index import OverlapIndex
from hornbook.shingles import words_of

# Few words, so that shorter runs are shared all the time; letters of several scripts, one written without spaces.
WORDS = st.sampled_from(["the", "cat", "sat", "Straße", "éléments", "x=1", "水", "ὁδός", "b-c", "7"])
TEXT = st.lists(WORDS, min_size=13, max_size=40).map(" ".join)
SURROUNDING = st.text(max_size=60)


@settings(max_examples=150)
@given(TEXT, SURROUNDING, SURROUNDING, st.data())
def test_a_planted_run_is_found_whatever_surrounds_it(item, before, after, data):
    words = item.split()
    begin = data.draw(st.integers(0, len(words) - 13))
    run = data.draw(st.sampled_from([" ", "\n\t", ", ", " ... "])).join(words[begin : begin + 13])
    run = data.draw(st.sampled_from([str, str.upper, str.title]))(run) if run.isascii() else run
    others = ["something else entirely that nobody ever wrote down in any text", "and one more"]
    index = OverlapIndex([*others, item], ngram=13)
    (found, share), *_ = index.find(f"{before} {run} {after}")
    assert found == 2 and share >= 13 / len(words) - 1e-9


@settings(max_examples=150)
@given(st.lists(TEXT, min_size=1, max_size=3), TEXT)
def test_a_text_is_hit_exactly_where_a_run_is_shared(items, document):
    def runs(text: str) -> set[tuple[bytes, ...]]:
        words = words_of(text)
        return {tuple(words[place : place + 13]) for place in range(len(words) - 12)}

    index = OverlapIndex(items, ngram=13)
    shared = {number for number, item in enumerate(items) if runs(item) & runs(document)}
    assert {number for number, _ in index.find(document)} == shared


def test_short_texts_are_matched_whole_and_very_short_ones_not_at_all():
    index = OverlapIndex(["One two three, four five six seven eight!", "one two three"], ngram=13, least_words=8)
    assert index.usable.tolist() == [True, False] and index.whole(0)
    assert index.find("zero ONE two three four\nfive six seven; eight nine") == [(0, 1.0)]
    assert index.find("one two three four five six seven nine eight") == []


def test_characters_count_as_words_where_no_spaces_are_written():
    item = "春天来了花园里的花都开了孩子们在草地上跑来跑去"
    index = OverlapIndex([item])
    assert index.find(f"他说：{item[5:18]}。")[0][0] == 0
    assert index.find(f"他说：{item[5:17]}。") == []
    for rare in ("𠀋𡈽𡌛𡑮𡢽𠮟𡚴𡸴𣇄𣗄𣜿𣝣𣳾", "ｺﾄﾊﾞｦｶｽﾞｴﾙﾄｷﾆﾂｶｳ"):  # beyond the basic plane, and of half a width
        assert OverlapIndex([rare]).find(f"甲{rare}乙")


def test_the_share_is_that_of_words_in_shared_runs_and_orders_the_hits():
    words = [f"word{number}" for number in range(40)]
    index = OverlapIndex([" ".join(words), " ".join(words[:20])], ngram=10)
    [(first, share), (second, less)] = index.find(" ".join([*words[:12], "else", *words[13:18], "else", *words[20:24]]))
    assert (first, second) == (1, 0)
    assert share == pytest.approx(17 / 20) and less == pytest.approx(17 / 40)  # the run of four is too short to count


def test_memory_per_item_is_what_the_page_says():
    texts = [" ".join(f"w{(number * 31 + place * 7) % 5000}" for place in range(100)) for number in range(500)]
    memory = OverlapIndex(texts).memory
    assert memory / 500 < 24 * 100 + 150 * 5000 / 500 + 100
