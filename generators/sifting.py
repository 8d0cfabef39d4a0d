"""Sifts drafts into the corpus, row by row in plan order: what is too like an earlier row goes to the rejects.

Workers write drafts in any order; one process, the sifter, walks them in plan order, so that "earlier" means the plan's order
and "the first N accepted" are always the same ones. It remembers what its sieves need, in bounded memory, and is brought
back to the same state after a crash by reading what is committed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from generators.diversity import Ends, Wave, cell_of
from generators.kind_faults import kind_error
from generators.prompted import PromptedStage, Sieve
from generators.replies import DRAFTS, ROLE
from generators.steering import steer_next
from hornbook.artifact import Artifact
from hornbook.documents import REJECT_SCHEMA, canonical_json, planned_row, written_tokens
from hornbook.parts import PartCommit, PartContent, PartRange, commit_part, cut_range, read_commit, read_part
from hornbook.store import Store


@dataclass
class Sifted:
    """What came of a wave: rows accepted so far in all, figures by cell, and what the next wave shall know."""

    accepted: int
    figures: dict[str, Any] = field(default_factory=dict)
    decisions: dict[str, Any] = field(default_factory=dict)


class Sifter:
    """Holds the sieves of a stage while it runs; an actor."""

    def __init__(self, stage: PromptedStage, artifact: Artifact) -> None:
        self.stage, self.artifact = stage, artifact
        self.accepted = 0
        self.wave, self.ends = Wave(), Ends()

    @cached_property
    def sieves(self) -> list[Sieve]:
        """The checks against earlier rows, with what they remember."""
        with kind_error(self.stage, "sieves()"):
            return list(self.stage.sieves())

    def sift(self, units: PartRange) -> int:
        """Commit the next units of a wave, whose drafts are all there; return how many rows are accepted so far in all.

        Parts that are committed already are only remembered.
        """
        reasons = [getattr(sieve, "reason", "") for sieve in self.sieves]  # one without fails where it refuses
        for part in cut_range(units, self.stage.settings.part_rows):
            record = read_commit(self._store, self.artifact.folder, part)
            if record is None:
                record, table = self._commit(part)
            else:
                table = self._remember(self.artifact.read(record))
            self.accepted += table.num_rows
            self.wave.whole.planned += record.planned
            self.wave.whole.near_duplicates += sum(record.reasons.get(reason, 0) for reason in set(reasons))
            for text, seeds in zip(table["text"].to_pylist(), _seeds(table), strict=True):
                self.wave.add(text, cell_of(self.stage.cells, json.loads(seeds)))
        return self.accepted

    def conclude(self, units: PartRange, decisions: Mapping[str, Any]) -> Sifted:
        """Return what came of a wave that was sifted whole, and what the next one shall know."""
        wave, self.wave = self.wave, Wave()
        self.ends.add(wave.whole)
        settings = self.stage.diversity
        figures = wave.figures(settings)
        learned: dict[str, Any] = {}
        if self.stage.learns:
            with kind_error(self.stage, "learn()"):
                learned = json.loads(canonical_json(dict(self.stage.learn(self._documents(units)))))
        if settings.steer:
            heat = self.stage.settings.sampling.temperature
            learned["steer"] = steer_next(decisions.get("steer", {}), wave, figures, settings, heat)
        return Sifted(self.accepted, figures, learned)

    def diversity(self) -> dict[str, Any]:
        """Return the figures of the corpus that the report shows: of the first and the last wave, or of the only one."""
        return self.ends.figures(self.stage.diversity)

    @property
    def _store(self) -> Store:
        return self.artifact.store

    def _documents(self, units: PartRange) -> Iterator[dict[str, Any]]:
        """Yield the accepted documents of a wave, as `PromptedStage.learn` gets them."""
        for part in cut_range(units, self.stage.settings.part_rows):
            record = read_commit(self._store, self.artifact.folder, part)
            assert record is not None
            table = self.artifact.read(record)
            for row, seeds in zip(table.select(["id", "text", "meta"]).to_pylist(), _seeds(table), strict=True):
                yield {**row, "meta": json.loads(row["meta"]), "seeds": json.loads(seeds)}

    def _remember(self, table: pa.Table) -> pa.Table:
        """Give documents of an earlier attempt to the sieves."""
        if self.sieves:
            for text, meta in zip(table["text"].to_pylist(), table["meta"].to_pylist(), strict=True):
                self._add(text, json.loads(meta))
        return table

    def _commit(self, part: PartRange) -> tuple[PartCommit, pa.Table]:
        """Sift one part and commit it. Returns its record and documents."""
        drafts = f"{self.artifact.folder}/{DRAFTS}"
        draft = read_commit(self._store, drafts, part)
        assert draft is not None, f"no draft for {part}"
        table = read_part(self._store, drafts, draft)
        rejects = (
            read_part(self._store, drafts, draft, "rejects") if draft.has("rejects") else REJECT_SCHEMA.empty_table()
        )
        refused = self._refused(table)
        if refused:
            rejects = pa.concat_tables([rejects, _rejects(table, refused)])
            table = table.filter(pa.array([number not in refused for number in range(table.num_rows)], pa.bool_()))
        replies = [replace(entry, name=f"{DRAFTS}/{entry.name}") for entry in draft.files if entry.role == ROLE]
        counts = {**draft.counts, **_kept_counts(table)}
        content = PartContent(table, rejects, existing=replies, counts=counts)
        return commit_part(self._store, self.artifact.folder, part, content), table

    def _refused(self, table: pa.Table) -> dict[int, tuple[str, str]]:
        """Return the rows of a draft that may not stay, with (reason, detail). Those that may are remembered."""
        refused: dict[int, tuple[str, str]] = {}
        limit = self.stage.settings.accepted
        kept = 0
        for number, (text, raw) in enumerate(zip(table["text"].to_pylist(), table["meta"].to_pylist(), strict=True)):
            if limit is not None and self.accepted + kept >= limit:
                refused[number] = ("surplus", f"{limit:,} rows were accepted before it")
                continue
            meta = json.loads(raw) if self.sieves else {}
            if found := self._refusal(text, meta):
                refused[number] = found
            else:
                self._add(text, meta)
                kept += 1
        return refused

    def _refusal(self, text: str, meta: Mapping[str, Any]) -> tuple[str, str] | None:
        """Return the reason and the detail of the first sieve that does not let a document pass."""
        for sieve in self.sieves:
            with kind_error(self.stage, f"the sieve {type(sieve).__name__}"):
                if detail := sieve.refuses(text, meta):
                    return sieve.reason, str(detail)
        return None

    def _add(self, text: str, meta: Mapping[str, Any]) -> None:
        for sieve in self.sieves:
            with kind_error(self.stage, f"the sieve {type(sieve).__name__}"):
                sieve.add(text, meta)


def _seeds(table: pa.Table) -> list[str]:
    return pc.struct_field(table["made_by"], "seeds").to_pylist()


def _rejects(table: pa.Table, refused: Mapping[int, tuple[str, str]]) -> pa.Table:
    """Return rejects for the rows of a table that were refused; what they say is kept."""
    prompts = pc.struct_field(table["made_by"], "prompt").to_pylist()
    rows = [
        {
            "id": planned_row(table["id"][number].as_py()),
            "unit": _asked(prompts[number]),
            "reason": reason,
            "detail": detail,
            "text": table["text"][number].as_py(),
        }
        for number, (reason, detail) in refused.items()
    ]
    return pa.Table.from_pylist(rows, schema=REJECT_SCHEMA)


def _asked(prompt: str) -> str:
    messages = json.loads(prompt)
    return messages[-1]["content"] if messages else ""


def _kept_counts(table: pa.Table) -> dict[str, float]:
    """Return the sums over the documents that were kept: their tokens, and how many each model wrote."""
    counts: Counter[str] = Counter(tokens=0)
    for made, meta in zip(table["made_by"].to_pylist(), table["meta"].to_pylist(), strict=True):
        if made["model"]:
            counts["tokens"] += written_tokens(made["completion_tokens"], meta)
            counts[f"accepted:{made['model']}"] += 1
    return dict(counts)
