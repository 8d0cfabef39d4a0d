"""Pieces of generated code run in order; what a trial says of them is what happened."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hornbook.sandbox import SandboxLimits
from hornbook.trial import Trial, try_function, try_pieces

LIMITS = SandboxLimits(seconds=30, cpu_seconds=1, memory_mib=256, processes=4)


def test_pieces_share_one_namespace_and_stop_at_the_first_that_fails() -> None:
    assert try_pieces(["x = 1", "y = x + 1", ">>> x + y\n3", "assert y == 2"], LIMITS) == Trial(4)
    assert try_pieces(["x = 1", "1 / 0", "x = 2"], LIMITS) == Trial(1, "ZeroDivisionError: division by zero")
    assert try_pieces(["x = 1", "while True: pass"], LIMITS) == Trial(1, stopped="timeout")
    assert try_pieces(["import os", "os._exit(0)"], LIMITS) == Trial(1, stopped="exited")
    assert try_pieces([], LIMITS) == Trial(0)


def test_what_the_code_prints_or_redirects_does_not_confuse_it() -> None:
    noisy = "import sys\nprint('{\"step\": 9}', end='')\nsys.stdout = None"
    assert try_pieces([noisy, "x = 1"], LIMITS) == Trial(2)
    assert try_pieces(["class Odd(Exception):\n    def __str__(self):\n        raise self\nraise Odd"], LIMITS).error


def test_what_each_statement_printed_is_kept_apart() -> None:
    first = "from __future__ import annotations\ndef f(x: Nothing): return x\nprint(f(1))\nfor n in 'ab': print(n)"
    trial = try_pieces([first, ">>> print(2)\n2", "print('no', end='')\nx = f(3)\nprint(x, end='\\n\\n')"], LIMITS)
    assert trial.printed == (("", "", "1\n", "a\nb\n"), (), ("no", "", "3\n\n"))
    assert try_pieces(["print(1)", "print(2)\n1 / 0", "print(3)"], LIMITS).printed == (("1\n",),)
    assert "SyntaxError" in try_pieces(["print(1)\nreturn 1"], LIMITS).error


def test_annotations_are_evaluated_as_in_any_program() -> None:
    assert "Nothing" in try_pieces(["def f(x: Nothing): pass"], LIMITS).error


def test_a_stub_that_the_asserts_do_not_notice_is_named() -> None:
    code = "def f(x):\n    return [x]"
    asserts = ["assert f(1)", "assert f(2) != 2"]
    assert try_function(code, "f", asserts, ["None", "3", "its first argument"], LIMITS) == Trial(3, stub="3")
    assert try_function(code, "f", ["assert f(1) == [1]"], ["None", "[2]", "undefined"], LIMITS) == Trial(2)


def test_several_run_at_once() -> None:
    with ThreadPoolExecutor(8) as pool:
        trials = list(pool.map(lambda n: try_pieces([f"x = {n}", f"assert x == {n}"], LIMITS), range(24)))
    assert trials == [Trial(2)] * 24
