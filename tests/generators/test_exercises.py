"""Exercises: names from a grammar, answers that are run, and refusals that say exactly what is wrong with an answer."""

from __future__ import annotations

import ast
import json
import keyword
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generators.exercises import Exercises, ExerciseSettings, function_name
from generators.prompted import Parsed, Prompt, Refused
from generators.python_code import SyntaxSieve, answered_code
from hornbook.errors import RecipeError


def exercises(seed: int = 0, **values: Any) -> Exercises:
    return Exercises("exercises", ExerciseSettings(**{"rows": 100, "engine": {"kind": "echo"}, **values}), seed)


def asked(name: str = "double_evens") -> Prompt:
    seeds = {"name": name, "takes": "a list of numbers", "concept": "loops", "difficulty": "easy"}
    return Prompt(({"role": "user", "content": name},), seeds)


GOOD = '''
def double_evens(numbers: list[int], *, factor: int = 2) -> list[int]:
    """Return the numbers, the even ones doubled."""
    return [number * factor if number % 2 == 0 else number for number in numbers]


assert double_evens([1, 2]) == [1, 4]
assert double_evens([]) == []
assert double_evens([3]) == [3]
'''


def refusal(text: str, **values: Any) -> tuple[str, str]:
    with pytest.raises(Refused) as caught:
        exercises(**values).parse(asked(), text)
    return caught.value.reason, caught.value.detail


# --- names --------------------------------------------------------------------------------------------------------------


def test_the_grammar_gives_a_hundred_thousand_sensible_names() -> None:
    names = set()
    concepts = set()
    for family in exercises().grammar:
        assert (len(family.objects), len(family.concepts), len(family.verbs), len(family.qualifiers)) == (40, 16, 6, 12)
        names |= {f"{a}_{b}_{c}" for a in family.verbs for b in family.objects for c in family.qualifiers}
        concepts |= set(family.concepts)
    assert len(names) == 120_367 >= 100_000
    assert len(concepts) >= 60
    assert all(name.isidentifier() and name == name.lower() and not keyword.iskeyword(name) for name in names)
    assert max(map(len, names)) < 70


def test_names_repeat_only_after_all_of_them_and_prefixes_are_balanced() -> None:
    stage = exercises(3)
    rows = [stage.prompt(row).seeds for row in range(840)]
    assert len({row["name"] for row in rows}) == 840
    for seed, choices in (("takes", 14), ("difficulty", 3)):
        taken = Counter(row[seed] for row in rows)
        assert len(taken) == choices and len(set(taken.values())) == 1
    verbs = Counter(row["name"].split("_")[0] for row in rows[:252])
    assert max(verbs.values()) < 252 / 6
    window = range(120_000, 120_900)
    assert len({json.dumps(stage.prompt(row).seeds, sort_keys=True) for row in window}) == len(window)


def test_types_can_be_chosen() -> None:
    stage = exercises(takes=["a string", "two lists"])
    stage.check()
    assert {stage.prompt(row).seeds["takes"] for row in range(30)} == {"a string", "two lists"}
    with pytest.raises(RecipeError, match=r"no type 'a strin' \(did you mean 'a string'"):
        exercises(takes=["a strin"]).check()


def test_a_request_follows_worked_examples() -> None:
    prompt = exercises(examples=2).prompt(5)
    assert [message["role"] for message in prompt.messages] == ["user", "assistant"] * 2 + ["user"]
    last = prompt.messages[-1]["content"]
    assert f"`{prompt.seeds['name']}`, which takes {prompt.seeds['takes']}" in last
    assert str(prompt.seeds["concept"]) in last and "  " not in last and "{" not in last
    assert exercises(examples=2).prompt(6).messages[:2] == prompt.messages[:2], "a shared prefix is computed once"
    assert prompt.seeds["takes"] in prompt.messages[2]["content"], "the last one takes the same"


def test_the_worked_examples_pass_every_check() -> None:
    for example in exercises().examples:
        parsed = exercises().parse(asked(function_name(example.code)), f"```python\n{example.code}\n```")
        assert len(parsed.meta["asserts"]) == 3
    assert {example.takes for example in exercises().examples} == {family.takes for family in exercises().grammar}


# --- answers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        f"```python\n{GOOD}```",
        f"Here is one:\n\n```python\n{GOOD}```\n\nIt doubles.",
        GOOD,
        f"Sure.\n{GOOD}",
        "```python\n" + GOOD.replace("\n\n\nassert", "\n```\nNow the asserts:\n```python\nassert", 1) + "```",
        f"```\n{GOOD}```",
        f"```python\n{GOOD}",
        f"```python\nimport math\n{GOOD}\nprint(double_evens([2]))\nif __name__ == '__main__':\n    double_evens([1])\n```",
    ],
)
def test_an_exercise_that_holds_is_taken_apart(answer: str) -> None:
    parsed = exercises().parse(asked(), answer)
    assert isinstance(parsed, Parsed)
    compile(parsed.text, "exercise", "exec")
    assert "assert" not in parsed.text and "print" not in parsed.text and "__main__" not in parsed.text
    assert '"""Return the numbers, the even ones doubled."""' in parsed.text
    assert parsed.meta["signature"] == "def double_evens(numbers: list[int], *, factor: int=2) -> list[int]:"
    assert parsed.meta["asserts"] == [
        "assert double_evens([1, 2]) == [1, 4]",
        "assert double_evens([]) == []",
        "assert double_evens([3]) == [3]",
    ]
    assert json.dumps(parsed.meta)


def test_asserts_stand_in_the_text_where_that_is_wanted() -> None:
    text = exercises(include_asserts=True).parse(asked(), GOOD).text
    assert text.endswith("assert double_evens([3]) == [3]")
    assert len(ast.parse(text).body) == 4


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("answer", "reason", "detail"),
    [
        ("I would double each even number.", "no-code", "I would"),
        ("```bash\nls\n```", "no-code", ""),
        (changed("[1, 4]", "[1, 4"), "syntax-error", "'[' was never closed"),
        (changed("return [", "return await ["), "syntax-error", "'await' outside async function"),
        ("x = 1", "no-code", ""),
        ("import math\n\nprint(math.pi)", "no-function", ""),
        (GOOD.replace("double_evens", "twice"), "wrong-name", "twice"),
        (changed('    """Return the numbers, the even ones doubled."""\n', ""), "no-docstring", ""),
        (changed("numbers: list[int], *, factor: int = 2", ""), "no-parameters", ""),
        ("\n".join(GOOD.splitlines()[:4]).replace("    return [number", "    pass  # [number"), "empty-solution", ""),
        (changed("return [number", "raise NotImplementedError  # [number"), "empty-solution", ""),
        (changed("return [number", "return None  # [number"), "empty-solution", ""),
        (GOOD.split("assert")[0], "no-asserts", ""),
        (changed("assert double_evens([]) == []", "assert 1 + 1 == 2"), "idle-assert", "assert 1 + 1 == 2"),
        (changed("assert double_evens([]) == []", "assert double_evens"), "idle-assert", "assert double_evens"),
        (changed("== []", "== double_evens([])"), "idle-assert", "double_evens([]) == double_evens([])"),
        (GOOD.split("assert double_evens([])")[0] + "assert double_evens([1, 2]) == [1, 4]", "few-asserts", "1 different"),
        (changed("[1, 4]", "[1, 5]"), "asserts-fail", "AssertionError: assert double_evens([1, 2]) == [1, 5]"),
        (changed("number in numbers", "number in nmubers"), "raises", "NameError: name 'nmubers' is not defined"),
        (changed("\n\n\nassert", "\n\n\nprint(x)\ny = x\nassert"), "raises", "NameError: name 'x' is not defined"),
        (changed("return [", "import numpy\n    return ["), "not-standard-library", "No module named 'numpy'"),
        (changed("return [", "while True: pass\n    return ["), "timeout", "assert double_evens([1, 2])"),
        (changed("return [", "while True: print('x' * 9999)\n    return ["), "output-flood", ""),
        (changed("return [", "import os; os._exit(0)\n    return ["), "exits", ""),
        (changed("return [", "import sys; sys.exit(0)\n    return ["), "raises", "SystemExit: 0"),
        (changed("return [", "return bytearray(10 << 30)\n    return ["), "raises", "MemoryError"),
        (changed("return [", "open('/etc/passwd')\n    return ["), "raises", "FileNotFoundError"),
    ],
)  # fmt: skip
def test_each_fault_has_its_reason(answer: str, reason: str, detail: str) -> None:
    found, said = refusal(answer, limits={"seconds": 30, "cpu_seconds": 1, "memory_mib": 256})
    assert found == reason, said
    assert detail in said


@pytest.mark.parametrize(
    ("asserts", "stub"),
    [
        ("assert is_big(1) == None\nassert is_big(2) is None", "None"),
        ("assert is_big(5)\nassert is_big(9)", "True"),
        ("assert is_big(5) == True\nassert is_big(9) == True", "True"),
        ("assert not is_big(0) or True\nassert is_big(-1) is not 3", "None"),
        ("assert 5 == is_big(5)\nassert 7 == is_big(7)", "its first argument"),
        ("assert is_big(5) == [5]\nassert is_big(5, 6) == [5]", "[5]"),
    ],
)
def test_asserts_that_a_stub_passes_are_vacuous(asserts: str, stub: str) -> None:
    code = f'def is_big(x, y=0):\n    """Tell."""\n    {{}}\n{asserts}'
    body = {"None": "return [][0:] and 1 or None", "True": "return x > 3", "its first argument": "return x * 1"}
    code = code.format(body.get(stub, "return [x]"))
    with pytest.raises(Refused) as caught:
        exercises().parse(asked("is_big"), code)
    assert (caught.value.reason, stub in caught.value.detail) == ("vacuous-asserts", True), caught.value
    if stub != "None":
        assert exercises(stubs=["none"]).parse(asked("is_big"), code)


BOMBS = {
    "brackets": "(" * 50_000,
    "minus": "x = " + "-" * 40_000 + "1",
    "attributes": "x = a" + ".a" * 20_000,
    "sums": "x = " + "1+" * 20_000 + "1",
    "calls": "x = " + "f(" * 180 + ")" * 180,
    "lambdas": "x = " + "lambda:" * 5_000 + "1",
    "null": "x = 1\0",
    "surrogate": "x = '\ud800'",
    "digits": "x = " + "9" * 5_000,
    "length": "x = 1\n" * 50_000,
    "indents": "".join(" " * depth + "if 1:\n" for depth in range(120)) + " " * 120 + "pass",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_is_made_to_break_the_parser_is_a_syntax_error(bomb: str) -> None:
    assert refusal(f"```python\n{BOMBS[bomb]}\n```")[0] == "syntax-error"


@settings(max_examples=200)
@given(st.text() | st.lists(st.sampled_from(["```", "```python", *GOOD.split(), "\n", " "])).map(" ".join))
def test_any_answer_has_code_or_none(text: str) -> None:
    assert isinstance(answered_code(text), str)


# --- duplicates ---------------------------------------------------------------------------------------------------------


def sieve(**values: Any) -> SyntaxSieve:
    settings = ExerciseSettings(rows=1, **values)
    found = SyntaxSieve(settings.ast_similarity, settings.ast_constants, settings.remembered)
    found.add(SUM, {})
    return found


SUM = '''def sum_even_numbers(numbers: list[int]) -> int:
    """Return the sum of the even numbers."""
    total = 0
    for number in numbers:
        if number % 2 == 0:
            total += number
    return total
'''
META: Mapping[str, Any] = {}


def test_programs_that_differ_in_names_alone_are_duplicates() -> None:
    same = SUM.replace("total", "result").replace("numbers", "prices").replace("number", "price")
    same = same.replace(": list[int]", "").replace(" -> int", "").replace("Return the", "Give back the")
    same = "# a comment\n" + same.replace("total = 0", "total: int = 0") + "\n\nassert sum_even_prices([1]) == 0"
    assert "accepted program 0" in sieve().refuses(same, META)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("%", "//"),
        ("total += number", "total += abs(number)"),
        ("== 0:", "> 0 and number > 1:"),
        ("    return", "        return"),
    ],
)
def test_programs_that_do_something_else_are_none(old: str, new: str) -> None:
    assert sieve().refuses(SUM.replace(old, new), META) == ""


def test_constants_count_if_wanted() -> None:
    other = SUM.replace("% 2", "% 3")
    assert sieve(ast_constants=True).refuses(other, META) == ""
    assert sieve(ast_constants=False).refuses(other, META)
