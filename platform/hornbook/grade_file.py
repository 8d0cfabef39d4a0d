"""Files of grades that people gave: JSON lines, only ever appended to, a line for every grade as it was given.

The last line of a grader on a document counts, so that a grade is changed by giving another one; a line without a grade takes
it back, or says that the document was skipped. Such a file comes from a person's disk, perhaps from another program: each line
is checked, and a bad one (torn by a kill, say) is told apart from the good ones, never repaired.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hornbook.documents import KEY_BYTES

LONGEST_LINE = 1 << 14
LONGEST_NAME = 100
HIGHEST = 5
SHOWN = 200
"""Characters of a bad line that are repeated."""


@dataclass(frozen=True)
class GradeLine:
    """What a person said of a document: a grade from 0 to 5, or none (taken back, or skipped)."""

    id: int
    key: str
    """The document's key in hexadecimal digits."""
    grade: float | None
    grader: str
    source: str = ""
    input: str = ""
    """The stage that the document came from."""
    time: str = ""
    skipped: bool = False


@dataclass(frozen=True)
class BadLine:
    """A line that is no grade: a short reason, a detail for people, how it begins."""

    reason: str
    detail: str
    text: str


def read_grade_lines(path: Path) -> Iterator[tuple[int, GradeLine | BadLine]]:
    """Yield a file's lines with their numbers, from 1; empty ones are left out. Memory: a line, and of that 16 KiB.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield number, _bad("too-long", f"it has more than {LONGEST_LINE} bytes", line)
            elif line.strip():
                yield number, parse_grade_line(line)


def parse_grade_line(line: bytes) -> GradeLine | BadLine:
    """Return what a line says. It must have `id`, `key`, `grade` and `grader`; other keys than those of GradeLine are ignored."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _bad("not-utf8", str(error), line)
    except (ValueError, RecursionError) as error:
        return _bad("not-json", f"{error}; a line that a kill tore?", line)
    if not isinstance(value, dict):
        return _bad("wrong-type", "it is no JSON object", line)
    wrong = _wrong(value)
    if wrong:
        return _bad(*wrong, line)
    texts = {name: value.get(name, "") for name in ("source", "input", "time")}
    grade = None if value["grade"] is None else float(value["grade"])
    return GradeLine(
        value["id"], value["key"].lower(), grade, value["grader"], skipped=value.get("skipped", False), **texts
    )


def append_grade_line(path: Path, line: GradeLine) -> None:
    """Append a line and return once it is on the disk. A torn line at the end of the file is ended first.

    Raises:
        OSError: the file cannot be written.
    """
    data = json.dumps(asdict(line), ensure_ascii=True).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # another grader may write to the same file
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if not size:  # the file's name must be on the disk, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def require_writable(path: Path) -> None:
    """Create the file if there is none. Raises OSError if it cannot be appended to."""
    os.close(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644))


def _wrong(value: dict[str, Any]) -> tuple[str, str] | None:
    """Return reason and detail of the first thing that is wrong with a line's object."""
    missing = [name for name in ("id", "key", "grade", "grader") if name not in value]
    if missing:
        return "wrong-type", f"it has no {', '.join(missing)}"
    identifier, key, grade, grader = (value[name] for name in ("id", "key", "grade", "grader"))
    if not isinstance(identifier, int) or isinstance(identifier, bool) or not -(1 << 63) <= identifier < 1 << 63:
        return "wrong-type", "id is no whole number of 64 bits"
    if not isinstance(key, str) or len(key) != 2 * KEY_BYTES or not set(key) <= set("0123456789abcdefABCDEF"):
        return "wrong-type", f"key is not {2 * KEY_BYTES} hexadecimal digits"
    if not is_name(grader):
        return "wrong-type", f"grader is no name of 1 to {LONGEST_NAME} printable characters"
    if not isinstance(value.get("skipped", False), bool):
        return "wrong-type", "skipped is neither true nor false"
    if any(not isinstance(value.get(name, ""), str) for name in ("source", "input", "time")):
        return "wrong-type", "source, input or time is no text"
    if grade is None:
        return None
    if isinstance(grade, bool) or not isinstance(grade, int | float):
        return "wrong-type", "grade is neither a number nor null"
    if not 0 <= grade <= HIGHEST:  # nor is NaN
        return "out-of-range", f"grade is {str(grade)[:40]}, not a number from 0 to {HIGHEST}"
    return None


def is_name(value: Any) -> bool:
    """Tell whether something can name a grader."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable() and bool(value.strip())


def _bad(reason: str, detail: str, line: bytes) -> BadLine:
    return BadLine(reason, detail, line[:SHOWN].decode("utf-8", "replace").strip())
