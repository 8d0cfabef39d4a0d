"""Tries generated code in the sandbox: pieces of it in order, and whether its asserts would notice a wrong function."""

from __future__ import annotations

import json
import re
import secrets
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hornbook.sandbox import SandboxLimits, SandboxResult, run_python

CHILD = Path(__file__).with_name("trial_child.py")
_KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True)
class Trial:
    """How generated code ended.

    Attributes:
        done: pieces that ended well.
        error: the last line of the first failed piece's traceback; empty where none failed.
        stopped: `timeout`, `output` or `killed` where the sandbox ended the code, `exited` where it ended itself; else empty.
        stub: what a function could return instead of working and pass the same asserts; empty where nothing of that sort.
        printed: of `try_pieces`: of each piece that ended well, what each of its top-level statements printed; a doctest has
            none of them. It does not count when trials are compared, for they are equal that end alike.
    """

    done: int
    error: str = ""
    stopped: str = ""
    stub: str = ""
    printed: tuple[tuple[str, ...], ...] = field(default=(), compare=False)


def try_pieces(pieces: Sequence[str], limits: SandboxLimits) -> Trial:
    """Run pieces of code in order, in one process and one namespace; those with a `>>>` prompt as doctests.

    Raises:
        SandboxError: nothing can be confined on this machine.
    """
    return _try({"steps": list(pieces), "function": "", "apart": True}, limits)


def try_function(
    code: str, function: str, asserts: Sequence[str], stubs: Sequence[str], limits: SandboxLimits
) -> Trial:
    """Run code that defines a function, its asserts, and the asserts again with each stub in the function's place.

    Args:
        code: defines `function`.
        asserts: statements, run one by one after the code.
        stubs: Python expressions to return instead, or `its first argument`.

    Raises:
        SandboxError: nothing can be confined on this machine.
    """
    job = {"steps": [code, *asserts], "function": function, "asserts": len(asserts), "stubs": list(stubs)}
    return _try(job | {"apart": False}, limits)


def _try(job: dict[str, Any], limits: SandboxLimits) -> Trial:
    mark = secrets.token_hex(8)
    result = run_python(f"{_child_source()}\n\nmain({(job | {'mark': mark})!r})\n", limits)
    said: list[dict[str, Any]] = []
    printed: list[tuple[str, ...]] = []
    piece: list[str] = []
    for text, line in _said(result, mark):
        if "statement" in line:
            piece.append(text)
            continue
        said.append(line)
        if line.get("error") == "":
            printed.append(tuple(piece))
            piece = []
    error = next((str(line["error"]) for line in said if line.get("error")), "")
    stub = next((str(line["stub"]) for line in said if "stub" in line), "")
    expected = len(job["steps"]) + bool(job["function"])
    stopped = "" if error or len(said) == expected else _stopped(result)
    return Trial(len(printed), error, stopped, stub, tuple(printed))


def _stopped(result: SandboxResult) -> str:
    if result.exit_code == _KILLED and result.outcome == "killed":
        return "timeout"  # at the end of its processor time, which the kernel says in no other way
    return result.outcome if result.outcome in ("timeout", "output", "killed") else "exited"


def _said(result: SandboxResult, mark: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the marked lines, each with what was printed before it and after the one before."""
    parts = re.split(rf"\n{mark} (.*)\n", result.stdout)
    return [(text, json.loads(line)) for text, line in zip(parts[::2], parts[1::2], strict=False)]


@cache
def _child_source() -> str:
    return CHILD.read_text(encoding="utf-8")
