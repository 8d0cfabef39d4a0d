"""Syntax trees: the edit distance is the textbook's, renamed programs match, small changes count, and time is bounded."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifiers.code_similarity import MAX_FUNCTIONS, ProgramIndex, edit_distance, function_shapes, match_rate

PROGRAM = '''
def running_total(numbers):
    """Return the sums of all beginnings of a list."""
    total = 0
    found = []
    for number in numbers:
        total += number
        found.append(total)
    return found
'''
RENAMED = """
class Ledger:
    def book(self): return self

    # Nothing like the original, to the eye.
    def balances(entries: list[int]) -> list[int]:
        so_far = 0; result = []
        for entry in entries:
            so_far += entry
            result.append(so_far)
        return result
"""
OTHER = """
def longest(words):
    best = ""
    while words:
        word = words.pop()
        if len(word) > len(best) and not word.startswith("x"):
            best = word
    return best.upper()
"""
SEQUENCES = st.lists(st.sampled_from("abcd"), max_size=20)


@given(SEQUENCES, SEQUENCES)
def test_the_distance_is_that_of_the_table(first, second):
    row = list(range(len(second) + 1))
    for number, entry in enumerate(first, 1):
        following = [number]
        for place, other in enumerate(second, 1):
            following.append(min(row[place] + 1, following[-1] + 1, row[place - 1] + (entry != other)))
        row = following
    assert edit_distance(first, second) == row[-1]


LINES = st.lists(
    st.sampled_from(["a += b", "print(a)", "a = [b, 1]", "b = f(a, b)", "del a", "return a.b"]), min_size=3, max_size=12
)


@given(LINES, LINES, st.sampled_from([0.8, 0.9, 0.95]))
def test_no_pair_that_matches_is_ruled_out_early(first, second, rate):
    programs = ["def one(a, b):\n    " + "\n    ".join(lines) for lines in (first, second)]
    [[own], [other]] = [list(function_shapes(program)) for program in programs]
    expected = match_rate(own, other)
    found = ProgramIndex(programs[:1], rate, 1).find(programs[1]).hits
    assert found == ([(0, expected)] if expected >= rate else [])


def test_a_renamed_program_matches_and_another_does_not():
    index = ProgramIndex([OTHER, PROGRAM], match_rate=0.95, least_nodes=20)
    assert index.usable.tolist() == [True, True]
    assert index.find(RENAMED).hits == [(1, 1.0)]
    assert index.find(RENAMED, among=[0]).hits == [] and index.find(RENAMED, among=[]).hits == []
    assert index.find("Prose about lists. It has no code.").hits == []
    changed = PROGRAM.replace("total += number", "total -= number * 2").replace("total = 0", "total = 1")
    [(program, rate)] = ProgramIndex([PROGRAM], 0.8, 20).find(changed).hits
    assert program == 0 and 0.8 <= rate < 0.95
    assert index.find(changed).hits == []


def test_code_within_prose_and_beside_broken_code_is_found():
    index = ProgramIndex([PROGRAM], match_rate=0.95, least_nodes=20)
    page = f"# Lists\n\nAdd as you go:\n\n```python\n{PROGRAM.strip()}\n```\n\nThat is all. def is a word.\n"
    broken = f"print 'an old Python'\n{PROGRAM}\nx = = 3\n"
    assert index.find(page).hits and index.find(broken).hits
    long = "\n".join(f"row_{number} = {list(range(40))}" for number in range(600)) + PROGRAM
    assert len(long) > 50_000 and index.find(long).hits  # more than the parser is given at once


def test_one_liners_are_not_compared():
    index = ProgramIndex(["def size(text):\n    return len(text)\n"], 0.8, least_nodes=20)
    assert index.usable.tolist() == [False]
    assert index.find("def other(x):\n    return len(x)\n").hits == []


def test_programs_without_functions_are_compared_whole():
    script = "\n".join(f"value = compute({number}) + value * {number}" for number in range(5))
    assert len(list(function_shapes(script))) == 1
    assert ProgramIndex([script], 0.95, 20).find("# a script\n" + script.replace("value", "other")).hits == [(0, 1.0)]


def test_a_document_of_very_many_functions_is_cut_short_and_says_so():
    functions = [PROGRAM.replace("total", f"total{number}") for number in range(30)]
    index = ProgramIndex([PROGRAM.replace("0", str(number)) for number in range(100)], 0.95, 20)
    began = time.monotonic()
    found = index.find("\n".join(functions))
    assert found.cut_short and len(found.hits) == 100
    assert time.monotonic() - began < 20
    tiny = "\n".join(f"def f{number}(): pass" for number in range(MAX_FUNCTIONS + 1))
    assert index.find(tiny).cut_short


def test_rates_are_of_the_longer_sequence():
    assert match_rate("abcd", "abc") == pytest.approx(0.75) and match_rate("", "") == 1.0
