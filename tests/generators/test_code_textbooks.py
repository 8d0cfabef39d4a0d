"""Sections on Python: every snippet is run, in order and in one namespace; sessions are checked as doctests."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from generators.code_textbooks import CodeTextbooks, CodeTextbookSettings
from generators.prompted import Parsed, Prompt, Refused
from hornbook.errors import RecipeError

PROSE = (
    "A list keeps values in order, and you can ask for the value at any place in it. Places are counted from zero, as in most "
    "languages. A new value goes to the end with append, while insert puts it wherever you like. What you take out with pop is "
    "given back to you, so that it can be used once more. Slices give several values at once, and they are lists again. "
)


def textbooks(seed: int = 0, **values: Any) -> CodeTextbooks:
    limits = {"seconds": 30, "cpu_seconds": 1, "memory_mib": 256}
    values = {"rows": 100, "engine": {"kind": "echo"}, "limits": limits, **values}
    return CodeTextbooks("code-textbooks", CodeTextbookSettings(**values), seed)


def section(*snippets: str) -> str:
    return PROSE + "".join(f"\n\n```python\n{snippet}\n```\n\nThat is all." for snippet in snippets)


def parse(text: str, **values: Any) -> Parsed:
    return textbooks(**values).parse(Prompt((), {}), text)


def test_the_topics_are_as_many_as_promised() -> None:
    leaves = textbooks().taxonomy
    assert len(set(leaves)) == len(leaves) == 392 >= 250
    assert len({leaf.field for leaf in leaves}) == 11
    assert len({(leaf.field, leaf.topic) for leaf in leaves}) == 70
    assert len(textbooks().combinations) == 7840


def test_a_plan_is_balanced_and_never_repeats() -> None:
    stage = textbooks(5, difficulties=["introduction", "challenge"], fields=["text", "objects"])
    seeds = [stage.prompt(row).seeds for row in range(len(stage.combinations))]
    assert len({json.dumps(row, sort_keys=True) for row in seeds}) == len(seeds)
    for name, choices in (("audience", 4), ("format", 5), ("difficulty", 2)):
        taken = Counter(row[name] for row in seeds[:41])
        assert len(taken) == choices and max(taken.values()) - min(taken.values()) <= 1
    assert {row["field"] for row in seeds} == {"text", "objects"}


def test_a_request_follows_worked_sections() -> None:
    prompt = textbooks(examples=2, difficulties=["challenge"], words=[90]).prompt(7)
    assert [message["role"] for message in prompt.messages] == ["user", "assistant"] * 2 + ["user"]
    last = prompt.messages[-1]["content"]
    for said in (prompt.seeds["subtopic"], prompt.seeds["topic"], "a difficult case", "about 90 words", "```python"):
        assert said in last
    assert "  " not in last


def test_the_worked_sections_pass_every_check() -> None:
    snippets = [parse(example.text).meta["snippets"] for example in textbooks().examples]
    assert snippets == [2, 2]


def test_a_field_that_the_taxonomy_lacks_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"no field 'texts' \(did you mean 'text'"):
        textbooks(fields=["texts"]).check()


def test_snippets_share_a_namespace_and_run_in_order() -> None:
    text = section("letters = ['a', 'b']\nprint(letters[0])", ">>> letters[1]\n'b'\n>>> n = 3\n", "assert n == 3")
    parsed = parse(text)
    assert parsed.text == text
    assert parsed.meta == {"snippets": 3, "sessions": 1, "ran": True}


def test_a_main_block_runs_and_files_may_be_written() -> None:
    code = (
        "if __name__ == '__main__':\n    open('a.txt', 'w').write('x')\n    print(open('a.txt').read())\n    done = 1"
    )
    assert parse(section(code, "print(done)"))


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        (PROSE, "no-snippet", ""),
        (PROSE + "\n```\nx = 1\n```", "no-snippet", ""),
        (section("# only a comment"), "no-snippet", "only comments"),
        (section("x = 1") + "\n```python\nx = 2", "unclosed-block", ""),
        ("```python\nx = 1\n```\nThat is one.", "no-prose", "3 words"),
        (section("x = 1") + " It holds `one.", "unclosed-code", "`one."),
        (section("def f(): pass", "x = 1", "def f(): pass  # better"), "repeated-code", "snippet 3 is snippet 1"),
        (section("def f(): return g()", "def g():\n    g()"), "never-called", "f, g"),
        (section("x = 1\nprint(x)  # Output: 2"), "wrong-output", "snippet 1: said '2', printed '1"),
        (section("print(1)") + "\nOutput:\n\n```\n2\n```", "wrong-output", "snippet 1: said '2"),
        (section("x = (1"), "snippet-fails", "snippet 1: SyntaxError: line 1: '(' was never closed"),
        (section("x = 1", "return x"), "snippet-fails", "snippet 2: SyntaxError: 'return' outside function"),
        (section("x = 1", "print(y)"), "snippet-fails", "snippet 2: NameError: name 'y' is not defined"),
        (section("print(x)", "x = 1"), "snippet-fails", "snippet 1: NameError"),
        (section("name = input()"), "snippet-fails", "snippet 1: EOFError"),
        (section("def f(x: Nothing): pass\nf(1)"), "snippet-fails", "name 'Nothing' is not defined"),
        (section("import pandas"), "snippet-fails", "ModuleNotFoundError"),
        (section(">>> 1 + 1\n3"), "wrong-output", "snippet 1: DocTestFailure: 1 + 1 Expected: 3 Got: 2"),
        (section(">>> 1 / 0\n0"), "wrong-output", "ZeroDivisionError"),
        (section(">>> 1 +\n0"), "wrong-output", "SyntaxError"),
        (section("while True: pass"), "timeout", "snippet 1"),
        (section("x = 1", "while True: print('x' * 9999)"), "output-flood", "snippet 2"),
        (section("import os; os._exit(0)", "x = 1"), "exits", "snippet 1"),
    ],
)
def test_each_fault_has_its_reason(text: str, reason: str, detail: str) -> None:
    with pytest.raises(Refused) as caught:
        parse(text)
    assert caught.value.reason == reason, caught.value
    assert detail in caught.value.detail


@pytest.mark.parametrize(
    "snippets",
    [
        ["words = iter('ab')", "next(words)", "next(words)"],  # the same words, with another result
        ["def f(): return 1", "f()", ">>> f()\n1"],
        [">>> def f():\n...     return 1\n>>> f()\n1"],
        ["class A:\n    def f(self): return 1", "values = [A() for _ in range(2)]"],
        ["def loud(f): return f", "@loud\ndef g(): pass"],
        ["def f(): return 1", "def g(x=f()): pass"],
        ["def f(): return 1", "class A:\n    x = f()"],
        ["def main(): pass", "if __name__ == '__main__':\n    main()"],
        ["def twice(x): return 2 * x", "print(list(map(lambda x: twice(x), [1])))"],
        ["import unittest", "class T(unittest.TestCase):\n    def test(self): pass", "unittest.main(exit=False)"],
    ],
)
def test_code_that_is_used_and_new_passes(snippets: list[str]) -> None:
    assert parse(section(*snippets)).meta["snippets"] == len(snippets)


@pytest.mark.parametrize(
    "snippets",
    [
        ["class A:\n    def f(self): return A()", "class B(A): pass"],  # inherited from, and never made
        ["def f(n): return f(n - 1)", "def f(n): return f(n - 2)", "f = 3"],
        [">>> def f():\n...     return 1"],
    ],
)
def test_definitions_that_nothing_uses_are_refused_without_a_run(snippets: list[str]) -> None:
    with pytest.raises(Refused, match="never-called"):
        parse(section(*snippets), run="none")


@pytest.mark.parametrize(("end", "passes"), [("`a` and ``a`b``.", True), ("`a` and `b", False), ("a \\` alone", True)])
def test_a_code_span_has_an_end(end: str, passes: bool) -> None:
    text = f"{section('x = 1')} {end}"
    if passes:
        assert parse(text)
    else:
        with pytest.raises(Refused, match="unclosed-code"):
            parse(text)


def test_what_is_said_is_compared_only_with_a_run() -> None:
    assert parse(section("print(1)  # Output: 2"), run="none")


def test_snippets_need_not_run_but_must_be_python() -> None:
    assert parse(section("print(undefined)"), run="none").meta["ran"] is False
    with pytest.raises(Refused, match="snippet-fails"):
        parse(section("print(undefined"), run="none")


def test_sessions_that_show_an_error_hold() -> None:
    shown = ">>> int('x')\nTraceback (most recent call last):\n  ...\nValueError: invalid literal for int() with base 10: 'x'"
    assert parse(section(shown)).meta["sessions"] == 1
