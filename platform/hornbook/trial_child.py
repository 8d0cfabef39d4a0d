"""Runs inside the sandbox, never outside: executes pieces of generated code one after another and says how each ended.

`trial.py` sends this file's source into the sandbox with a call of `main` behind it. All pieces share one namespace and one
process, so that a second question about the same code costs no second start.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

MAX_DETAIL = 300


def main(job: dict[str, Any]) -> None:
    """Run a job's steps, then its stubs; one line `MARK JSON` on standard output after each. Stop at the first failure.

    With `apart`, such a line also follows each top-level statement of a step, so that what it printed lies between two.
    A step is executed as it stands, or as a doctest if a line has a prompt. With `function`, the last `asserts` steps are then
    tried again with that function replaced by stubs; a stub that passes them all is named.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    steps = job["steps"]
    for number, step in enumerate(steps):
        error = attempt(step, namespace, job["mark"] if job["apart"] else "")
        say(job["mark"], {"step": number, "error": error})
        if error:
            return
    if job["function"]:
        asserts = steps[len(steps) - job["asserts"] :]
        say(job["mark"], {"stub": passing_stub(job["function"], asserts, job["stubs"], namespace)})


def attempt(step: str, namespace: dict[str, Any], mark: str = "") -> str:
    """Execute one piece of code; return the last line of its traceback, or an empty text.

    With a mark, its top-level statements are executed one by one, and a line with the mark follows each.
    """
    try:
        if any(line.lstrip().startswith(">>>") for line in step.splitlines()):
            return doctest(step, namespace)
        whole = compile(step, "generated", "exec", dont_inherit=True)
        if not mark:
            exec(whole, namespace)
            return ""
        for number, statement in enumerate(apart(step)):
            exec(compile(statement, "generated", "exec", dont_inherit=True), namespace)
            say(mark, {"statement": number})
    except BaseException as error:
        lines = traceback.format_exception_only(error)[-1].strip().splitlines()
        return (lines[0] if lines else type(error).__name__)[:MAX_DETAIL]
    return ""


def apart(step: str) -> list[ast.Module]:
    """Return each top-level statement as a program of its own, which the piece's imports from `__future__` precede."""
    body = ast.parse(step).body
    future = [node for node in body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    return [ast.Module([*future, node], []) for node in body]


def doctest(step: str, namespace: dict[str, Any]) -> str:
    """Run a piece of code in doctest form; return what the first wrong example gave, or an empty text."""
    import doctest

    said: list[str] = []
    test = doctest.DocTestParser().get_doctest(step, namespace, "generated", None, None)
    runner = doctest.DocTestRunner(
        verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.FAIL_FAST
    )
    runner.run(test, out=said.append, clear_globs=False)
    namespace.update(test.globs)
    if not runner.failures:
        return ""
    lines = [line.strip() for line in "".join(said).splitlines() if line.strip()]
    wrong = lines[lines.index("Failed example:") + 1 :]
    if "Exception raised:" in wrong:
        wrong = [wrong[0], wrong[-1]]
    return f"DocTestFailure: {' '.join(wrong)}"[:MAX_DETAIL]


def passing_stub(function: str, asserts: Sequence[str], stubs: Sequence[str], namespace: dict[str, Any]) -> str:
    """Return the first of `stubs` that passes all asserts in the function's place, or an empty text."""
    for stub in stubs:
        trial = {**namespace, function: _stub(stub, namespace)}
        if not any(attempt(step, trial) for step in asserts):
            return stub
    return ""


def _stub(stub: str, namespace: dict[str, Any]) -> Callable[..., Any]:
    if stub == "its first argument":
        return lambda *values, **named: [*values, *named.values(), None][0]
    try:
        constant = eval(stub, dict(namespace))
    except Exception:
        constant = None
    return lambda *values, **named: constant


def say(mark: str, what: dict[str, Any]) -> None:
    """Write a line that the code would not write by chance."""
    assert sys.__stdout__ is not None
    sys.__stdout__.flush()
    os.write(1, f"\n{mark} {json.dumps(what)}\n".encode())
