"""What a text says that its snippets print is held against what they printed."""

from __future__ import annotations

import pytest

from generators.python_code import python_blocks
from generators.said_output import wrong_output
from hornbook.sandbox import SandboxLimits
from hornbook.trial import try_pieces

LIMITS = SandboxLimits(seconds=30, cpu_seconds=1, memory_mib=256, processes=4)


def wrong(text: str) -> str:
    snippets = python_blocks(text)
    trial = try_pieces(snippets, LIMITS)
    assert trial.done == len(snippets), trial
    return wrong_output(text, snippets, trial.printed)


def fenced(code: str, language: str = "python") -> str:
    return f"Here it is:\n\n```{language}\n{code}\n```\n\n"


TRUE = {
    "beside": "x = 2\nprint(x)  # Output: 2\nprint(x + 1) # outputs: 3",
    "behind": "print([1, 2])\n# Output: [1, 2]",
    "behind a blank line": "print(1)\n\n# This will print 1.\nx = 1",
    "before the next": "print(1)\n# This will print \"b\"\nprint('b')",
    "in quotes": "print('hello')  # Output: 'hello'",
    "quoted by Python": "print(repr('hello'))  # Output: hello",
    "white space": "print(' a ')  # prints:  a  ",
    "in lines": "for n in range(2):\n    print(n)\n# Output:\n# 0\n# 1\n# They are two.",
    "in lines from the first": "for n in range(2):\n    print(n)\n# Output: 0\n# 1",
    "of several statements": "print(1)\nx = 3\nprint(2)\n# Output:\n# 1\n# 2",
    "a set in another order": "print({'a', 'b', 'c', 'd'})  # Output: {'d', 'c', 'b', 'a'}",
    "twice": "print(1)  # output: 1\n# Output: 1",
    "cut short": "print(list(range(50)))  # Output: [0, 1, 2, ...",
    "cut short within": "print(list(range(50)))  # Output: [0, 1, ..., 48, 49]",
    "no constant": "print('a', 'b', sep='\\n')  # print each word in a line",
    "nothing printed": "x = 3  # Output: 4\n# Output: 5",
    "within a loop": "for n in range(2):\n    print(n)  # Output: 0\n    # Output: 1",
    "within a function": "def f():\n    print(1)  # Output: 7\n    return 2\nf()",
    "in a string": "print('# Output: 3')",
    "no output": "print(1)\n# Outputting is easy\n# The printer is 5",
}


@pytest.mark.parametrize("name", TRUE)
def test_true_or_no_claims_in_comments_pass(name: str) -> None:
    assert wrong(fenced(TRUE[name])) == ""


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("print(1)  # Output: 2", "said '2', printed '1"),
        ("print(1) # Outputs: [1]", "said '[1]'"),
        ("print('a')\nprint('b')  # This will print \"a\"", "printed 'b"),
        ("print('a')\n\n# This will print \"c\"\nprint('b')", "printed 'a"),
        ("print(1)\n# prints 3", "said '3'"),
        ("print(1)\n# It prints `3`.", "said '`3`'"),
        ("for n in [1, 3]:\n    print(n)\n# Output: [1, 3]", "printed '1\\n3"),
        ("for n in [1, 3]: print(n)  # The output is: 1, 3", "printed '1\\n3"),
        ("def f(): print(2)\nf()  # Output: 1", "printed '2"),
        ("print({1, 2})  # Output: {1, 3}", "said '{1, 3}'"),
        ("print(1)\n# Output:\n# 2\n# 3", "said '\\n2'"),
    ],
)
def test_wrong_claims_in_comments_are_found(code: str, found: str) -> None:
    assert found in wrong(fenced("x = 1") + fenced(code))
    assert "snippet 2" in wrong(fenced("x = 1") + fenced(code))


@pytest.mark.parametrize(
    "words",
    [
        "Output:",
        "**Output:**",
        "It is short. The output is:",
        "The output of this script will be:",
        "This will print:",
        "When you run it, this will output:",
        "The code prints the following:",
    ],
)
@pytest.mark.parametrize("language", ["", "text", "python"])
def test_a_block_behind_a_snippet_is_its_whole_output(words: str, language: str) -> None:
    text = fenced("print([1])\nprint([2])") + words + "\n\n```" + language + "\n"
    assert wrong(text + "[1]\n[2]\n```\n") == ""
    assert "said '[2]" in wrong(text + "[2]\n```\n")
    assert wrong(text + "[1]\n...\n```\n") == ""


@pytest.mark.parametrize(
    "text",
    [
        fenced("print(1)") + fenced("2", ""),  # other words before it
        "Output:\n\n```\n1\n```\n" + fenced("print(2)"),  # no snippet before it
        fenced("print(1)") + "This prints:\n\n```python\nprint(2)\n```",  # code
        fenced("print(1)") + "This will print:\n\n```python\nx = 2\n```",
        fenced("print(1)") + "The output is:\n\n```json\n2\n```",
        fenced("print(1)") + "Output:\n\n```\n1\n```\nOutput:\n\n```\n2\n```",  # whose it is, nobody says
        fenced(">>> 1\n1") + "Output:\n\n```\n2\n```",
        fenced("print(1)") + "Now change the output:\n\n```\n2\n```",
    ],
)
def test_other_blocks_are_no_output(text: str) -> None:
    assert wrong(text) == ""


def test_a_snippet_that_prints_nothing_has_no_output() -> None:
    assert "printed ''" in wrong(fenced("x = 1") + "Output:\n\n```\n1\n```")
