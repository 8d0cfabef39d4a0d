"""What the tests of the ground floor share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Answer

from hornbook.cli import app, guarded


@pytest.fixture
def hornbook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """Run a command as the console script does, on a store in a temporary folder."""
    monkeypatch.setenv("HORNBOOK_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["hornbook", *arguments])
        capfd.readouterr()
        try:
            guarded(app)
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        printed = capfd.readouterr()
        return Answer(code, printed.out, printed.err)

    return run
