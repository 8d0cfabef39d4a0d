"""A look at a corpus that costs the same whatever its size: some rows, and lengths, models and licences of a sample."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from hornbook.artifact import Artifact
from hornbook.documents import written_tokens
from hornbook.parts import PartCommit

SAMPLED_DOCUMENTS = 50_000
"""Documents whose lengths and licences are looked at, from parts spread evenly over the corpus."""
SHOWN_ROWS = 3
SHOWN_CHARACTERS = 1500
UNKNOWN = "unknown"


class CorpusSample:
    """Rows of parts spread evenly over a corpus: its first rows whole, of the others lengths, models and licences."""

    def __init__(self, artifact: Artifact, most: int = SAMPLED_DOCUMENTS) -> None:
        self.rows: list[dict[str, Any]] = []
        self.characters: list[int] = []
        self.tokens: list[int] = []
        self.models: dict[str, str] = {}
        self.licences: Counter[str] = Counter()
        self.generated = False
        parts = [part for part in artifact.parts if part.rows]
        step = max(1, sum(part.rows for part in parts) // most)
        for part in parts[::step]:
            if len(self.characters) >= most:
                break
            self._take(artifact.read(part, columns=["id", "key", "text", "made_by", "meta"]))

    def lengths(self) -> list[tuple[str, list[int]]]:
        """Return lengths by what they count."""
        return [("characters", self.characters), ("tokens", self.tokens)]

    def _take(self, table: pa.Table) -> None:
        self.rows += [_shown(row) for row in table.slice(0, max(0, SHOWN_ROWS - len(self.rows))).to_pylist()]
        self.characters += [len(text) for text in table["text"].to_pylist()]
        for made_by, meta in zip(table["made_by"].to_pylist(), table["meta"].to_pylist(), strict=True):
            if made_by is None:
                self.licences[str(json.loads(meta).get("license") or UNKNOWN)] += 1
            else:
                self.generated = True
                self.tokens.append(written_tokens(made_by["completion_tokens"], meta))
                if made_by["model"]:  # else it is made of its parents alone
                    self.models.setdefault(made_by["model"], made_by["revision"])


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    made_by = row["made_by"] or {}
    prompt = ""
    if made_by:
        messages = json.loads(made_by["prompt"])
        prompt = messages[-1]["content"] if messages else ""
    return {"key": row["key"].hex(), "text": _cut(row["text"]), "prompt": _cut(prompt), "meta": _cut(row["meta"])}


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} [...]"


def stored_bytes(part: PartCommit) -> int:
    """Return what a part takes in the store: its files, and its commit record twice, since the manifest holds it, too."""
    return sum(file.size for file in part.files) + record_bytes(part)


def record_bytes(part: PartCommit) -> int:
    """Return what a part takes beside its files."""
    return 2 * len(json.dumps(asdict(part)))


def quantiles(values: Sequence[int]) -> list[int]:
    """Return the smallest value, the 5th, 25th, 50th, 75th and 95th percentile and the largest."""
    ordered = sorted(values)
    return [ordered[round(share * (len(ordered) - 1))] for share in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)]


def plain_number(value: Any) -> str:
    """Return a number as people write it: whole ones with their thousands apart."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def figures_of(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield a stage's own figures as (name, text): numbers, short texts, and short lists of pairs (the openers)."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from figures_of(entry, f"{name}, {key}" if name else str(key))
    elif isinstance(value, bool | str) or value is None:
        yield name, str(value)[:200]
    elif isinstance(value, int | float):
        yield name, plain_number(value)
    elif isinstance(value, list | tuple):
        pairs = [entry for entry in value if isinstance(entry, list | tuple) and len(entry) == 2]
        if pairs:
            yield name, "; ".join(f"{what} ({count})" for what, count in pairs[:10])
