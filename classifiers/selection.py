"""Selects documents by rules over attributes: the filtered corpus, or only the list of what would stay, with the funnel.

Attributes (scores, languages, contamination) lie beside the documents and delete nothing; here is where they decide. Each
part of the documents becomes a part of the same range, so that a rule changes without computing an attribute again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from classifiers.beside import Beside, require_same_documents, require_unique
from classifiers.selection_rules import Rule, first_reasons
from hornbook.artifact import THRESHOLD, Artifact
from hornbook.errors import RecipeError
from hornbook.parts import PartContent, PartRange, parquet_bytes, same_ids
from hornbook.partwork import PartMaker
from hornbook.settings import Settings, nearest, runtime
from hornbook.stage import Expected, Input, Produces, Stage, StageContext, StageResult

SELECTION = "selection"
"""Role of the file beside each part of a filtered corpus that says of every document whether it stays, and why not."""


class SelectSettings(Settings):
    """The rules, and what becomes of documents that they cannot judge."""

    rules: tuple[Rule, ...] = Field(
        ..., description="Rules in order: column, and one of min, max, equals, in, not_in, is_true, is_false."
    )
    missing: Literal["drop", "keep"] = Field(
        "drop",
        description="What a rule does to a document without a value: one that was rejected where the column was made.",
    )
    output: Literal["documents", "selection"] = Field(
        "documents", description="documents: the corpus that stays. selection: attributes `selected` and `reason` only."
    )
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor.")


class Select(Stage):
    """Keeps the documents that pass all rules over their attributes."""

    kind = "select"
    produces: ClassVar[Produces] = "documents"
    Settings = SelectSettings
    inputs: ClassVar[Mapping[str, Input]] = {
        "documents": Input("documents"),
        "attributes": Input("attributes", many=True),
    }
    settings: SelectSettings

    def __init__(self, name: str, settings: SelectSettings, seed: int) -> None:
        super().__init__(name, settings, seed)
        if settings.output == "selection":
            self.produces = "attributes"  # type: ignore[misc]  # of this stage, not of the kind

    def check(self) -> None:
        """Refuse a selection without rules, and two rules of one name: the funnel could not tell them apart."""
        if not self.settings.rules:
            raise RecipeError(f"stages.{self.name}.rules: there is none", "name at least one: {column: ..., min: ...}")
        titles = [rule.title for rule in self.settings.rules]
        twice = next((title for title in titles if titles.count(title) > 1), None)
        if twice is not None:
            raise RecipeError(
                f"stages.{self.name}.rules: two rules are called {twice!r}", "give each a name of its own"
            )

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return as many rows as there are documents, at most."""
        rows = inputs["documents"][0].rows
        return Expected(planned=rows, unit="documents", rows=rows)

    def run(self, context: StageContext) -> StageResult:
        """Select in each part of the documents, then count who went where."""
        documents, attributes = context.input("documents"), context.inputs["attributes"]
        for artifact in attributes:
            require_same_documents(self.name, documents, artifact)
        stages = dict(zip(context.input_stages["attributes"], attributes, strict=True))
        columns = [self._column(rule, stages) for rule in self.settings.rules] if documents.parts else []
        maker = SelectPart(self.settings, documents, stages, columns)
        context.make_parts(maker, [part.range for part in documents.parts], unit="documents")
        role = "data" if self.settings.output == "selection" else SELECTION
        return StageResult(metrics=funnel(context.artifact, role, self.settings.rules))

    def _column(self, rule: Rule, stages: Mapping[str, Artifact]) -> RuleColumn:
        """Find a rule's column. Raises RecipeError where no input has it or several do, or its type does not fit."""
        where = f"stages.{self.name}.rules: {rule.title}"
        if rule.input and rule.input not in stages:
            raise RecipeError(f"{where}: {rule.input!r} is no input{nearest(rule.input, list(stages))}")
        places = [rule.input] if rule.input else list(stages)
        having = [name for name in places if rule.column in _columns(stages[name])]
        if not having:
            known = {column for name in places for column in _columns(stages[name])} - {"id", "key", "source"}
            raise RecipeError(f"{where}: no attribute is called {rule.column!r}{nearest(rule.column, sorted(known))}")
        if len(having) > 1:
            raise RecipeError(
                f"{where}: several inputs have the column {rule.column!r}: {', '.join(having)}",
                "name one: `input: ...`",
            )
        artifact = stages[having[0]]
        kind = artifact.read(artifact.parts[0], columns=[rule.column]).schema.field(rule.column).type
        rule.check_type(kind, where)
        return RuleColumn(having[0], rule.column, self._threshold(rule, artifact, where))

    def _threshold(self, rule: Rule, artifact: Artifact, where: str) -> float | None:
        if rule.condition != "threshold":
            return None
        if all(entry.name != THRESHOLD for entry in artifact.manifest.files):
            raise RecipeError(
                f"{where}: the rule has no condition, and {artifact.manifest.stage} names no threshold",
                "give the rule one of min, max, equals, in, not_in, is_true, is_false",
            )
        return float(artifact.store.read_json(f"{artifact.folder}/{THRESHOLD}")["threshold"])


@dataclass(frozen=True)
class RuleColumn:
    """Which input has a rule's column, and the threshold that its artifact names."""

    stage: str
    column: str
    threshold: float | None = None


class SelectPart(PartMaker):
    """Applies the rules to the documents of one part."""

    kind = "select"

    def __init__(
        self,
        settings: SelectSettings,
        documents: Artifact,
        stages: Mapping[str, Artifact],
        columns: Sequence[RuleColumn],
    ) -> None:
        self.settings, self.documents, self.columns = settings, documents, columns
        self.besides = {
            name: Beside(artifact, [found.column for found in columns if found.stage == name], documents)
            for name, artifact in stages.items()
        }
        self.max_workers = settings.workers

    def make(self, part: PartRange) -> PartContent:
        """Return the documents that stay and, in a file of their own, all with their reasons; or the latter alone."""
        only_list = self.settings.output == "selection"
        wanted = ["id", "key", "source", "text"] if only_list else None
        table = self.documents.read(self.documents.parts_by_start[part.start], columns=wanted)
        require_unique(table, f"{self.documents.folder}, part {part.start}")
        beside = {name: attributes.read(part, table)[0] for name, attributes in self.besides.items()}
        columns = [beside[found.stage].column(found.column) for found in self.columns]
        sources = np.array(table.column("source").to_pylist(), dtype=object)
        thresholds = [found.threshold for found in self.columns]
        keep_missing = self.settings.missing == "keep"
        reasons = first_reasons(self.settings.rules, columns, thresholds, sources, keep_missing)
        kept = pa.array(reasons == "", pa.bool_())
        selection = pa.table(
            {
                **{name: table.column(name) for name in ("id", "key", "source")},
                "selected": kept,
                "reason": pa.array(reasons, pa.string()),
                "characters": pc.cast(pc.utf8_length(table.column("text")), pa.int64()),
            }
        )
        ids = table.column("id").to_numpy()
        if only_list:
            return PartContent(selection, planned=ids, unit_of=same_ids)
        dropped = int((reasons != "").sum())
        files = {SELECTION: parquet_bytes(selection)}
        return PartContent(table.filter(kept), planned=ids, unit_of=same_ids, empty=dropped, files=files)


def funnel(selected: Artifact, role: str, rules: Sequence[Rule]) -> dict[str, Any]:
    """Return what each rule dropped, by source, in the rules' order: documents and characters.

    Args:
        selected: the parts that were made; one part's list at a time is in memory.
        role: the files that hold the lists.
        rules: in order.
    """
    counted: dict[tuple[str, str], np.ndarray] = {}  # (source, reason) -> documents, characters
    for table in selected.tables(role, columns=["source", "reason", "characters"]):
        sums = table.group_by(["source", "reason"]).aggregate([("characters", "count"), ("characters", "sum")])
        for row in sums.to_pylist():
            found = np.array([row["characters_count"], row["characters_sum"]])
            counted[row["source"], row["reason"]] = counted.get((row["source"], row["reason"]), 0) + found
    order: list[str] = []
    steps: list[dict[str, Any]] = []
    left = _sum(counted.values())
    for reason in (reason for rule in rules for reason in (rule.missing, rule.title)):
        gone = _sum(figures for (_, named), figures in counted.items() if named == reason)
        left = left - gone
        order.append(reason)
        steps.append({"rule": reason, "dropped": int(gone[0]), "characters": int(gone[1]), "left": int(left[0])})
    unasked = {rule.missing for rule in rules} - {reason for _, reason in counted}
    steps = [step for step in steps if step["rule"] not in unasked]
    by_source: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    for source in sorted({source for source, _ in counted}):
        own = {reason: figures for (name, reason), figures in counted.items() if name == source}
        total, stay = _sum(own.values()), own.get("", np.zeros(2, int))
        by_source[source] = {
            "documents": int(total[0]),
            "characters": int(total[1]),
            "dropped": {reason: _named(own[reason]) for reason in order if reason in own},
            "kept": _named(stay),
        }
        kept[source] = {
            "documents": int(total[0]),
            "kept": int(stay[0]),
            "share": round(int(stay[0]) / int(total[0]), 4),
        }
    return {"funnel": {"steps": steps, "sources": by_source}, "kept": kept, "warnings": _warnings(rules, kept)}


def _columns(artifact: Artifact) -> list[str]:
    return [column.partition(":")[0] for column in artifact.manifest.columns]


def _sum(figures: Any) -> np.ndarray:
    return sum(figures, np.zeros(2, dtype=np.int64))


def _named(figures: np.ndarray) -> dict[str, int]:
    return {"documents": int(figures[0]), "characters": int(figures[1])}


def _warnings(rules: Sequence[Rule], kept: Mapping[str, Mapping[str, float]]) -> list[str]:
    warnings = [
        f"the rule {rule.title!r} is for the source {source!r}, which no document has"
        for rule in rules
        for source in rule.sources
        if kept and source not in kept
    ]
    if kept and not any(figures["kept"] for figures in kept.values()):
        warnings.append("no document passes all rules: look at the funnel for the rule that drops them")
    return warnings
