"""Checks of a text after generation. (The whole of it comes with the branch `sieve`, which replaces this file.)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from hornbook.settings import Settings


class Refused(Exception):
    """An answer that is not wanted: a short reason, counted in the manifest, and a detail for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class CheckSettings(Settings):
    """Checks."""

    near_duplicates: bool = Field(True, description="x")


def check_text(text: str, settings: CheckSettings, required: Sequence[str] = (), language: str = "") -> None:
    """Check."""


class NearDuplicateSieve:
    """Refuses a text that was accepted before."""

    reason = "near-duplicate"

    def __init__(self, settings: CheckSettings) -> None:
        self._seen: set[str] = set()

    def refuses(self, text: str, meta: Mapping[str, Any]) -> str:
        """See Sieve."""
        return "same" if text in self._seen else ""

    def add(self, text: str, meta: Mapping[str, Any]) -> None:
        """See Sieve."""
        self._seen.add(text)
