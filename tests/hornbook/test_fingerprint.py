"""Fingerprints: meaning counts, comments do not; data files, own imports, settings, models and inputs all do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hornbook.fingerprint import code_digest, fingerprint

MODULE = '''"""Docstring."""
from kinds_pkg.helper import double

RATE = 2  # a comment

def prompt(row: int) -> int:
    """Say something."""
    return double(row) * RATE
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kinds_pkg"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    (folder / "kind.py").write_text(MODULE)
    (folder / "kind.jinja").write_text("Hello {{ row }}")
    (folder / "other.jinja").write_text("not mine")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("kinds_pkg")]:
        del sys.modules[name]
    return folder


def digest() -> str:
    code_digest.cache_clear()
    return code_digest("kinds_pkg.kind")


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    before = digest()
    (package / "kind.py").write_text(
        MODULE.replace("# a comment", "").replace("Say something", "Other words").replace("\n\n", "\n\n\n")
    )
    (package / "other.jinja").write_text("changed")
    assert digest() == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("kind.py", "RATE = 2", "RATE = 3"), ("helper.py", "2 * x", "3 * x"), ("kind.jinja", "Hello", "Goodbye")],
)
def test_meaning_counts(package: Path, file: str, old: str, new: str) -> None:
    before = digest()
    path = package / file
    path.write_text(path.read_text().replace(old, new))
    assert digest() != before


def test_everything_else_counts(package: Path) -> None:
    code_digest.cache_clear()
    base = ("kind", "kinds_pkg.kind", {"rows": 3}, 1, {"model": "a"}, {"documents": ["x", "y"]})
    variants = [
        base,
        ("kind2", *base[1:]),
        (*base[:2], {"rows": 4}, *base[3:]),
        (*base[:3], 2, *base[4:]),
        (*base[:4], {"model": "b"}, base[5]),
        (*base[:5], {"documents": ["y", "x"]}),
        (*base[:5], {"web": ["x", "y"]}),
    ]
    assert len({fingerprint(*variant) for variant in variants}) == len(variants)
    assert fingerprint(*base) == fingerprint(*base)


@pytest.mark.parametrize(("name", "counts"), [("kind.words.txt", True), ("kind.yaml", False), ("kind.log", False)])
def test_a_recipe_beside_a_kind_is_none_of_its_data_files(package: Path, name: str, counts: bool) -> None:
    before = digest()
    (package / name).write_text("name: kind")
    assert (digest() != before) == counts
