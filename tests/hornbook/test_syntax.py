"""Python that nobody vouches for is parsed, never run, and reduced to what it does."""

from __future__ import annotations

import sysconfig
import time
from pathlib import Path

import pytest

from hornbook.syntax import MAX_CHARACTERS, NotPython, parse_python, shape


def test_the_shape_leaves_out_names_docstrings_and_annotations() -> None:
    one = 'def f(a, b: int) -> int:\n    """Say."""\n    total: int = a.size - b\n    return len(total)\n'
    other = "def g(x, y):\n    t = x.size - y\n    return len(t)\n"
    assert shape(parse_python(one)) == shape(parse_python(other))


@pytest.mark.parametrize(
    "other",
    [
        "def g(x, y):\n    t = y.size - x\n    return len(t)\n",
        "def g(x, y):\n    t = x.shape - y\n    return len(t)\n",
        "def g(x, y):\n    t = x.size - y\n    return sum(t)\n",
        "def g(x, y):\n    t = x.size + y\n    return len(t)\n",
        "def g(x, y):\n    return len(x.size - y)\n",
        "async def g(x, y):\n    t = x.size - y\n    return len(t)\n",
    ],
)
def test_the_shape_keeps_what_is_done(other: str) -> None:
    one = "def f(a, b):\n    total = a.size - b\n    return len(total)\n"
    assert shape(parse_python(one)) != shape(parse_python(other))


def test_constants_are_kept_if_wanted() -> None:
    one, other = parse_python("x = 'a', 1, None"), parse_python("x = 'b', 2, None")
    assert shape(one) != shape(other)
    assert shape(one, constants=False) == shape(other, constants=False)


def test_nothing_runs(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    shape(parse_python(f"open({str(proof)!r}, 'w')\nraise SystemExit"))
    assert not proof.exists()


def test_real_modules_have_shapes_and_it_takes_little_time() -> None:
    sources = [path.read_text(encoding="utf-8") for path in Path(sysconfig.get_path("stdlib")).glob("*.py")]
    began = time.monotonic()
    nodes = [len(shape(parse_python(source))) for source in sources[:60] if len(source) <= MAX_CHARACTERS]
    assert len(nodes) > 30 and min(nodes) > 0
    assert sum(nodes) / (time.monotonic() - began) > 50_000, "an exercise has about 60 nodes, a sieve sees thousands/s"


def test_what_is_too_long_or_too_deep_is_refused() -> None:
    with pytest.raises(NotPython, match="characters"):
        parse_python("x = 1\n" * MAX_CHARACTERS)
    with pytest.raises(NotPython, match="deeper"):
        parse_python("x = " + "[" * 120 + "]" * 120)
