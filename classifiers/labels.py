"""Grades that people gave become annotations of a corpus, beside or instead of a judge's.

`hornbook label` writes the file. Several people's grades of one document make one row: their mean. How far people agree with each
other, and with a judge that graded the same documents, is what the grades are worth; both are in the report.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from classifiers.agreement import agreement, spread
from classifiers.annotate import ANNOTATION_SCHEMA
from classifiers.annotation_sample import Stratum, strata_of, weights
from classifiers.beside import TWICE
from hornbook.artifact import Artifact
from hornbook.documents import Reject, rejects_table
from hornbook.errors import DataError, RecipeError
from hornbook.grade_file import BadLine, read_grade_lines
from hornbook.parts import PartContent, PartRange, commit_part, same_ids
from hornbook.settings import Settings, nearest
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult
from hornbook.stages import own_file

PART_ROWS = 1000
MOST_BAD = 10_000
"""Lines that are no grades; a file with more of them, and fewer good ones, is another file."""

Identity = tuple[int, bytes]
"""A document's id and key."""


class LabelsSettings(Settings):
    """Where the grades lie, and whose count."""

    file: str = Field(..., min_length=1, description="The grades, JSON lines as `hornbook label` writes them.")
    graders: tuple[str, ...] = Field((), description="Count only these people's grades; default: everybody's.")


@dataclass
class GradeFile:
    """What a file of grades says.

    Attributes:
        digest: SHA-256 of what was read of it.
        grades: of each document, each grader's last grade and the number of its line.
        bad: the lines that are no grades, by number.
        lines: lines in all, empty ones not counted.
        without_grade: documents that graders skipped or took back, each time counted, and gave no grade later.
    """

    digest: str
    grades: dict[Identity, dict[str, tuple[float, int]]] = field(default_factory=dict)
    bad: dict[int, BadLine] = field(default_factory=dict)
    lines: int = 0
    without_grade: int = 0


@dataclass(frozen=True)
class Graded:
    """A document of the corpus that people graded."""

    input: int
    start: int
    id: int
    key: bytes
    stratum: Stratum
    grades: Mapping[str, float]


class Labels(Stage):
    """Makes annotations of a file of people's grades."""

    kind = "labels"
    produces = "attributes"
    Settings = LabelsSettings
    inputs: ClassVar[Mapping[str, Input]] = {
        "documents": Input("documents", many=True),
        "judge": Input("attributes", optional=True),
    }
    file_settings: ClassVar[tuple[str, ...]] = ("file",)
    settings: LabelsSettings

    _read: GradeFile | None = None

    def grades(self) -> GradeFile | None:
        """Return what the file says, read once; None where there is none yet: grading comes after a first run."""
        if self._read is None:
            path = own_file(self.settings.file, self.folder) or Path(self.settings.file).expanduser()
            if path.exists():
                self._read = read_grades(path, self.settings.graders, f"stages.{self.name}")
        return self._read

    def extra_identity(self) -> dict[str, str]:
        """Return what the file says: other grades are another artifact."""
        found = self.grades()
        return {"file": found.digest if found else "none"}

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return the number of graded documents."""
        found = self.grades()
        rows = len(found.grades) if found else None
        return Expected(planned=rows, unit="documents", rows=rows)

    def run(self, context: StageContext) -> StageResult:
        """Find the graded documents, then write them, and the lines that are no grades of any, part by part."""
        file, documents = self.grades(), context.inputs["documents"]
        if file is None:
            annotated = next(iter(context.input_stages.get("judge", ())), "STAGE")
            raise DataError(
                f"{self.name}: there is no file {self.settings.file}: nobody has graded yet",
                f"`hornbook label {context.run}/{annotated} --file {self.settings.file}` shows the documents of an annotate "
                "stage one by one; grade some, then run again",
            )
        sizes, found = find_graded(documents, file)
        rejects = _bad_lines(file, found, sizes, Path(self.settings.file).name)
        if not found:
            raise DataError(
                f"{self.name}: {self.settings.file} has no grade of any of these documents: {_why(file, rejects)}",
                "let `documents` name the stage that was annotated when they were graded, and `file` that file",
            )
        judge = context.optional_input("judge")
        judged = _judged(judge) if judge else {}
        rows = _rows(found, sizes, judged, file.digest)
        parts = [*_graded_parts(found, rows), *_reject_parts(rejects, len(found))]
        for part, content in parts:
            commit_part(context.artifact.store, context.artifact.folder, part, content)
        judge_name = context.input_stages["judge"][0] if judge else ""
        return StageResult(metrics=figures(found, file, len(rejects), judged, judge_name))


# --- the file --------------------------------------------------------------------------------------------------------


def read_grades(path: Path, graders: Sequence[str], where: str) -> GradeFile:
    """Read a file of grades; the last line of a grader on a document counts.

    Args:
        path: the file.
        graders: those whose grades count; all, where none is named.
        where: names the stage, for messages.

    Raises:
        RecipeError: it cannot be read, or one of the graders is not in it.
        DataError: it is another kind of file.
    """
    digest, found = hashlib.sha256(), GradeFile("")
    last: dict[tuple[Identity, str], tuple[float | None, int]] = {}
    names: Counter[str] = Counter()
    try:
        for number, line in read_grade_lines(path):
            digest.update(repr((number, line)).encode("utf-8", "replace"))
            found.lines += 1
            if isinstance(line, BadLine):
                found.bad[number] = line
                if len(found.bad) > max(MOST_BAD, found.lines / 2):
                    break
                continue
            names[line.grader] += 1
            if not graders or line.grader in graders:
                last[(line.id, bytes.fromhex(line.key)), line.grader] = (line.grade, number)
    except OSError as error:
        raise RecipeError(
            f"{where}.file: {path} cannot be read: {error.strerror or error}", "name a file that `hornbook label` wrote"
        ) from None
    if len(found.bad) > found.lines / 2 and len(found.bad) > 1:
        number, bad = next(iter(found.bad.items()))
        raise DataError(
            f"{where}.file: {path} is no file of grades: line {number} ({bad.reason}): {bad.detail}: {bad.text[:80]!r}",
            "name a file that `hornbook label` wrote: a JSON object with id, key, grade and grader in each line",
        )
    for name in graders:
        if name not in names:
            raise RecipeError(f"{where}.graders: {name!r} graded nothing in {path}{nearest(name, list(names))}")
    for (identity, grader), (grade, number) in last.items():
        if grade is None:
            found.without_grade += 1
        else:
            found.grades.setdefault(identity, {})[grader] = (grade, number)
    found.digest = digest.hexdigest()
    return found


def find_graded(inputs: Sequence[Artifact], file: GradeFile) -> tuple[Counter[Stratum], list[Graded]]:
    """Return how many documents each stratum has, and the graded ones in the order of inputs and parts.

    Memory: one part, and the graded documents.

    Raises:
        DataError: an id occurs twice in an input.
    """
    sizes: Counter[Stratum] = Counter()
    found: list[Graded] = []
    for number, artifact in enumerate(inputs):
        seen: set[int] = set()
        for commit in artifact.parts:
            for row, key, stratum in strata_of(artifact, commit):
                sizes[stratum] += 1
                if grades := file.grades.get((row, key)):
                    if row in seen:
                        raise DataError(f"{artifact.folder}: the id {row} occurs twice", TWICE)
                    seen.add(row)
                    values = {grader: grade for grader, (grade, _) in sorted(grades.items())}
                    found.append(Graded(number, commit.start, row, key, stratum, values))
    return sizes, found


def _bad_lines(file: GradeFile, found: Sequence[Graded], sizes: Counter[Stratum], name: str) -> list[Reject]:
    """Return a reject for every line that is no grade, and for every grade of a document that is not there."""
    here = {(graded.id, graded.key) for graded in found}
    rejects = [
        Reject(number, f"{name}, line {number}", bad.reason, bad.detail, bad.text) for number, bad in file.bad.items()
    ]
    for (row, key), grades in file.grades.items():
        if (row, key) in here:
            continue
        detail = f"none of the {sizes.total()} documents has the id {row} and the key {key.hex()}"
        rejects += [
            Reject(number, f"{name}, line {number}", "unknown-document", detail) for _, number in grades.values()
        ]
    return sorted(rejects, key=lambda reject: reject.id)


def _why(file: GradeFile, rejects: Sequence[Reject]) -> str:
    if not file.lines:
        return "it is empty"
    if not rejects:
        return "all were taken back or skipped" if file.without_grade else "those of other graders do not count"
    return f"{rejects[0].unit}: {rejects[0].detail or rejects[0].reason}"


# --- rows and parts --------------------------------------------------------------------------------------------------


def _judged(judge: Artifact) -> dict[Identity, tuple[float, float | None]]:
    """Return a judge's scores and weights. Raises RecipeError if it has none."""
    columns = {column.partition(":")[0] for column in judge.manifest.columns}
    if not {"id", "key", "score"} <= columns:
        raise RecipeError(f"{judge.manifest.stage} has no scores", "let `judge` name an annotate stage")
    wanted = ["id", "key", "score", *(["weight"] if "weight" in columns else [])]
    return {
        (row["id"], row["key"]): (row["score"], row.get("weight"))
        for table in judge.tables(columns=wanted)
        for row in table.to_pylist()
    }


def _rows(
    found: Sequence[Graded],
    sizes: Mapping[Stratum, int],
    judged: Mapping[Identity, tuple[float, float | None]],
    revision: str,
) -> list[dict[str, Any]]:
    """Return rows of ANNOTATION_SCHEMA. A document that the judge graded, too, keeps the weight that it has there: people grade
    a part of its sample, drawn by chance, and both may be learned from together."""
    rows = []
    own = weights(sizes, [graded.stratum for graded in found])
    for graded, weight in zip(found, own, strict=True):
        first, *others = graded.grades.values()
        second = others[0] if others else None
        rows.append(
            {
                "id": graded.id,
                "key": graded.key,
                "source": graded.stratum[0],
                "score_a": first,
                "score_b": second,
                "score": float(np.mean(list(graded.grades.values()))),
                "grade_a": f"{first:g}",
                "grade_b": None if second is None else f"{second:g}",
                "judge": " + ".join(graded.grades),
                "revision": revision,
                "weight": judged.get((graded.id, graded.key), (0.0, None))[1] or weight,
            }
        )
    return rows


def _graded_parts(found: Sequence[Graded], rows: Sequence[Mapping[str, Any]]) -> list[tuple[PartRange, PartContent]]:
    """Return parts that stay within one input, where alone ids are unique."""
    parts = []
    start = 0
    for _, of_input in itertools.groupby(found, key=lambda graded: graded.input):
        stop = start + len(list(of_input))
        for low in range(start, stop, PART_ROWS):
            part = PartRange(low, min(low + PART_ROWS, stop))
            table = pa.Table.from_pylist(rows[part.start : part.stop], schema=ANNOTATION_SCHEMA)
            parts.append((part, PartContent(table, planned=table.column("id").to_numpy(), unit_of=same_ids)))
        start = stop
    return parts


def _reject_parts(rejects: Sequence[Reject], start: int) -> list[tuple[PartRange, PartContent]]:
    """Return parts of lines, whose units are their numbers: those of documents would not tell them apart."""
    parts = []
    for low in range(0, len(rejects), PART_ROWS):
        some = rejects[low : low + PART_ROWS]
        content = PartContent(
            ANNOTATION_SCHEMA.empty_table(), rejects_table(some), [reject.id for reject in some], same_ids
        )
        parts.append((PartRange(start + low, start + low + len(some)), content))
    return parts


# --- figures for the report ------------------------------------------------------------------------------------------


def figures(
    found: Sequence[Graded],
    file: GradeFile,
    rejected: int,
    judged: Mapping[Identity, tuple[float, float | None]],
    judge: str,
) -> dict[str, Any]:
    """Return the metrics: `agreement` of the two people with most documents in common, `agreement_of_graders` of every two,
    `agreement_with_judge` of the people's mean and the judge's score; `bias` is the first's mean less the second's."""
    scores = np.array([np.mean(list(graded.grades.values())) for graded in found])
    sources = np.array([graded.stratum[0] for graded in found], dtype=object)
    graders = Counter(name for graded in found for name in graded.grades)
    pairs = []
    for first, second in itertools.combinations(sorted(graders), 2):
        both = [graded.grades for graded in found if first in graded.grades and second in graded.grades]
        if both:
            pairs.append(_between("two people", first, second, [(one[first], one[second]) for one in both]))
    pairs.sort(key=lambda pair: -pair["documents"])
    common = [
        (float(score), judged[graded.id, graded.key][0])
        for graded, score in zip(found, scores, strict=True)
        if (graded.id, graded.key) in judged
    ]
    with_judge = _between("people and judge", " + ".join(sorted(graders)), judge, common) if common else {}
    warnings = []
    if judge and not common:
        warnings.append(f"none of the documents that people graded was graded by {judge}: they cannot be compared")
    if rejected:
        warnings.append(f"{rejected} of {file.lines} lines count for nothing: hornbook show says why")
    return {
        "documents": len(found),
        "graders": dict(sorted(graders.items())),
        "without_grade": file.without_grade,
        "agreement": pairs[0] if pairs else {},
        "agreement_of_graders": pairs,
        "agreement_with_judge": with_judge,
        "scores": spread(scores),
        "scores_by_source": {str(name): spread(scores[sources == name]) for name in sorted(set(sources))},
        "warnings": warnings,
    }


def _between(of: str, first: str, second: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    a, b = (np.array(column) for column in zip(*pairs, strict=True))
    bias = round(float(a.mean() - b.mean()), 4)
    return {"of": of, "first": first, "second": second, "documents": len(pairs), **agreement(a, b), "bias": bias}
