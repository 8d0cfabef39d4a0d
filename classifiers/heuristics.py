"""What rules say of each document, as columns: Gopher's, C4's and FineWeb's for prose, StarCoder's for code.

Nothing is dropped: a rule gives a value, and limits are applied when a corpus is selected. The column `broken` names the rules
whose published limits the document breaks, for the funnel and the report.

Each rule is one function in `prose_rules`, `repetition_rules` or `code_rules`, and is called as it is; RULES is the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from classifiers import code_rules as code
from classifiers import prose_rules as prose
from classifiers import repetition_rules as repetition
from classifiers.attributes import TextAttributes
from classifiers.text_view import TextView
from hornbook.artifact import Artifact
from hornbook.errors import RecipeError
from hornbook.partwork import Totals
from hornbook.settings import Settings, nearest, runtime

Value = float | int | bool | None
Unit = Literal["share", "count", "ratio", "characters", "yes or no"]
Limits = Mapping[str, tuple[float | None, float | None]]
"""By rule: the lowest and the highest value that keeps a document, None for no limit. A yes counts as 1."""

BROKEN = "broken"


@dataclass(frozen=True)
class Rule:
    """A rule, and the limits that its paper gives.

    Attributes:
        function: what computes the value; its name is the rule's. None as a value: the rule does not apply to the text.
        lowest: documents with less break it, by default.
        highest: documents with more break it, by default.
        unit: what the value is.
        paper: where the rule, or its limit, comes from.
    """

    function: Callable[[TextView], Value]
    lowest: float | None
    highest: float | None
    unit: Unit
    paper: str

    @property
    def name(self) -> str:
        """The rule's name, and its column's."""
        return self.function.__name__

    @property
    def type(self) -> pa.DataType:
        """The column's type."""
        return {"count": pa.int64(), "yes or no": pa.bool_()}.get(self.unit, pa.float64())


GOPHER, C4, FINEWEB = "Rae et al. 2021 (Gopher)", "Raffel et al. 2020 (C4)", "Penedo et al. 2024 (FineWeb)"
STARCODER, STARCODER2 = "Li et al. 2023 (StarCoder)", "Lozhkov et al. 2024 (StarCoder 2)"
SANTACODER, CODEPARROT = "Ben Allal et al. 2023 (SantaCoder)", "Tunstall et al. 2022 (CodeParrot)"

PROSE: tuple[Rule, ...] = (
    Rule(prose.word_count, 50, 100_000, "count", GOPHER),
    Rule(prose.mean_word_length, 3, 10, "characters", GOPHER),
    Rule(prose.hash_ratio, None, 0.1, "ratio", GOPHER),
    Rule(prose.ellipsis_ratio, None, 0.1, "ratio", GOPHER),
    Rule(prose.bullet_lines, None, 0.9, "share", GOPHER),
    Rule(prose.ellipsis_lines, None, 0.3, "share", GOPHER),
    Rule(prose.alphabetic_words, 0.8, None, "share", GOPHER),
    Rule(prose.stop_words, 2, None, "count", GOPHER),
    Rule(repetition.duplicate_lines, None, 0.30, "share", GOPHER),
    Rule(repetition.duplicate_paragraphs, None, 0.30, "share", GOPHER),
    Rule(repetition.duplicate_line_characters, None, 0.20, "share", GOPHER),
    Rule(repetition.duplicate_paragraph_characters, None, 0.20, "share", GOPHER),
    Rule(repetition.top_2_gram, None, 0.20, "share", GOPHER),
    Rule(repetition.top_3_gram, None, 0.18, "share", GOPHER),
    Rule(repetition.top_4_gram, None, 0.16, "share", GOPHER),
    Rule(repetition.duplicate_5_grams, None, 0.15, "share", GOPHER),
    Rule(repetition.duplicate_6_grams, None, 0.14, "share", GOPHER),
    Rule(repetition.duplicate_7_grams, None, 0.13, "share", GOPHER),
    Rule(repetition.duplicate_8_grams, None, 0.12, "share", GOPHER),
    Rule(repetition.duplicate_9_grams, None, 0.11, "share", GOPHER),
    Rule(repetition.duplicate_10_grams, None, 0.10, "share", GOPHER),
    Rule(prose.c4_sentences, 5, None, "count", C4),
    Rule(prose.c4_lorem_ipsum, None, 0, "yes or no", C4),
    Rule(prose.c4_curly_bracket, None, 0, "yes or no", C4),
    Rule(prose.c4_unpunctuated_lines, None, None, "share", C4),
    Rule(prose.c4_short_lines, None, None, "share", C4),
    Rule(prose.c4_script_lines, None, None, "share", C4),
    Rule(prose.c4_policy_lines, None, None, "share", C4),
    Rule(prose.punctuated_lines, 0.12, None, "share", FINEWEB),
    Rule(prose.short_lines, None, 0.67, "share", FINEWEB),
    # 0.1 in the paper; the program that made FineWeb has 0.01. The ratio of line ends stands in the program only.
    Rule(prose.repeated_line_characters, None, 0.1, "share", FINEWEB),
    Rule(prose.line_ends_per_word, None, 0.3, "ratio", FINEWEB),
)

CODE: tuple[Rule, ...] = (
    Rule(code.line_count, None, 100_000, "count", STARCODER2),
    Rule(code.average_line_length, None, 100, "characters", STARCODER),
    Rule(code.longest_line, None, 1000, "count", STARCODER),
    Rule(code.alphanumeric_share, 0.25, None, "share", STARCODER),
    Rule(code.comment_share, 0.01, 0.8, "share", SANTACODER),
    Rule(code.auto_generated, None, 0, "yes or no", CODEPARROT),
    Rule(code.config_or_test, None, 0, "yes or no", CODEPARROT),
    Rule(code.xml_header, None, 0, "yes or no", STARCODER),
    Rule(code.html_text_share, 0.2, None, "share", STARCODER),
    Rule(code.html_text_length, 100, None, "count", STARCODER),
    Rule(code.base64_share, None, 0.5, "share", STARCODER2),
    Rule(code.hex_share, None, 0.5, "share", STARCODER2),
    Rule(code.unicode_escape_share, None, 0.5, "share", STARCODER2),
    Rule(code.longest_encoded_run, None, 1024, "count", STARCODER2),
    Rule(code.long_string_share, None, None, "share", "none: a hint of ours"),
)

RULES: dict[str, Rule] = {rule.name: rule for rule in (*PROSE, *CODE)}
SETS: dict[str, tuple[Rule, ...]] = {"prose": PROSE, "code": CODE}


def chosen_rules(names: Iterable[str], where: str = "rules") -> tuple[Rule, ...]:
    """Return the rules of sets and of single names, in the table's order, each once.

    Raises:
        RecipeError: a name is neither a set's nor a rule's; `where` names the setting.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in SETS and name not in RULES:
            raise RecipeError(f"{where}: there is no rule {name!r}{nearest(name, [*SETS, *RULES])}")
        wanted |= {rule.name for rule in SETS[name]} if name in SETS else {name}
    return tuple(rule for rule in RULES.values() if rule.name in wanted)


def rule_values(text: str, rules: Sequence[Rule]) -> dict[str, Value]:
    """Return each rule's value of a text; what rules share is computed once."""
    view = TextView(text)
    return {rule.name: rule.function(view) for rule in rules}


def default_limits(rules: Iterable[Rule]) -> dict[str, tuple[float | None, float | None]]:
    """Return the limits of the rules' papers, for `broken_rules`."""
    return {rule.name: (rule.lowest, rule.highest) for rule in rules}


def broken_rules(values: Mapping[str, Value], limits: Limits) -> list[str]:
    """Return which rules a document breaks, in the order of `limits`. A value of None breaks none.

    Args:
        values: a document's values by rule, a row of the stage's columns.
        limits: the lowest and the highest value that keep a document.

    Raises:
        KeyError: a rule of `limits` has no value.
    """
    found = []
    for name, (lowest, highest) in limits.items():
        value = values[name]
        if value is not None and ((lowest is not None and value < lowest) or (highest is not None and value > highest)):
            found.append(name)
    return found


class HeuristicsSettings(Settings):
    """Which rules are computed."""

    rules: tuple[str, ...] = Field(
        ("prose",),
        min_length=1,
        description="Sets of rules (prose, code) and single rules: docs/classifiers/heuristics.md.",
    )
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor.")


class Heuristics(TextAttributes):
    """Gives every document the values of the chosen rules, and the names of those that it breaks by default."""

    kind = "heuristics"
    Settings = HeuristicsSettings
    settings: HeuristicsSettings

    def check(self) -> None:
        """Refuse unknown rules. Raises RecipeError."""
        chosen_rules(self.settings.rules, f"{self.name}.rules")

    def setup(self) -> None:
        """Look the rules up."""
        self.rules = chosen_rules(self.settings.rules, f"{self.name}.rules")
        self.limits = default_limits(self.rules)

    def schema(self) -> pa.Schema:
        """Return a column per rule, null where it does not apply, and the list of rules broken."""
        rules = chosen_rules(self.settings.rules)
        return pa.schema([*((rule.name, rule.type) for rule in rules), (BROKEN, pa.list_(pa.string()))])

    def attributes(self, text: str) -> Mapping[str, Any]:
        """Return a document's values and the rules it breaks."""
        values = rule_values(text, self.rules)
        return {**values, BROKEN: broken_rules(values, self.limits)}

    def counts(self, table: pa.Table) -> Mapping[str, float]:
        """Return how many documents of each source there are, break any rule, and break each rule."""
        counted: Counter[str] = Counter()
        for source, broken in zip(table.column("source").to_pylist(), table.column(BROKEN).to_pylist(), strict=True):
            counted.update(f"{source}/{what}" for what in ("documents", *(["any rule"] if broken else []), *broken))
        return counted

    def figures(self, artifact: Artifact, totals: Totals) -> Mapping[str, Any]:
        """Return by source how many documents would fall at the default limits: by any rule, and by each, most first."""
        table: dict[str, dict[str, int]] = {}
        for name, count in sorted(totals.counts.items(), key=lambda entry: (-entry[1], entry[0])):
            source, _, what = name.rpartition("/")
            table.setdefault(source, {})[what] = int(count)
        return {"would_fall": table}
