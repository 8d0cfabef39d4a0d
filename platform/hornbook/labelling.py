"""Grading by people: the documents that a judge graded, one at a time, and where a person stands with them.

An annotation artifact keeps what its judges read (the parts' role EXCERPTS), so that people judge the very same and it can be
shown wherever the artifact is, even after the documents are gone. What a judge said of a document is only told once the person
has graded it: who knows another's grade gives the same.
"""

from __future__ import annotations

import getpass
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from hornbook.artifact import Artifact
from hornbook.documents import KEY_BYTES
from hornbook.errors import DataError, RecipeError, StoreError
from hornbook.grade_file import (
    HIGHEST,
    LONGEST_NAME,
    BadLine,
    GradeLine,
    append_grade_line,
    is_name,
    read_grade_lines,
    require_writable,
)
from hornbook.plan import derive_seed

ASKED = "asked.json"
"""File of an annotation artifact: who was asked what."""
EXCERPTS = "excerpts"
"""Role of the files of its parts that hold what the judges read."""
EXCERPT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("input", pa.int32(), nullable=False),  # which of the stage's inputs
        pa.field("start", pa.int64(), nullable=False),  # the document's part in it
        pa.field("kind", pa.string(), nullable=False),
        pa.field("characters", pa.int64(), nullable=False),  # of the whole text
        pa.field("text", pa.string(), nullable=False),  # what the judges read
    ]
)
MOST_SHOWN = 1_000_000
"""Characters of a whole text that are shown."""
MOST_BAD = 100
PAGE = "label.html"
FILES = ("report.css", "label.css", "label.js")
"""What the page is made of, in this package."""


class Place(NamedTuple):
    """A document in the order of grading: which part of the artifact, which row of its excerpts, and its identity."""

    part: int
    row: int
    id: int
    key: bytes


class Labelling:
    """One person's way through the documents of an annotation. Places count from 0 in an order that is the same for every grader.

    Raises:
        DataError: the artifact is no annotation, or the file holds something else.
        RecipeError: the file cannot be written, or the grader's name is none.
    """

    def __init__(self, artifact: Artifact, file: Path, grader: str, show_judge: bool = False) -> None:
        self.artifact, self.file, self.grader, self.show_judge = artifact, file, grader, show_judge
        if not is_name(grader):
            raise RecipeError(
                f"--grader {grader!r} is no name", f"1 to {LONGEST_NAME} printable characters, and not only spaces"
            )
        self.places = places(artifact)
        self.numbers = {(place.id, place.key): number for number, place in enumerate(self.places)}
        self.remarks: list[str] = []
        self.standing: dict[int, float | None] = {}
        """Places that are done with, the latest last: the grade, or None where the document was skipped."""
        self._read_file()
        self._excerpts = lru_cache(maxsize=16)(self._read_excerpts)

    # --- what the page asks for ------------------------------------------------------------------------------------------

    @property
    def reads(self) -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
        """The functions that change nothing, by name."""
        return {
            "about": lambda query: self.about(),
            "state": lambda query: self.state(),
            "document": lambda query: self.document(_number(query)),
            "whole": lambda query: self.whole(_number(query)),
        }

    @property
    def writes(self) -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
        """The functions that write to the file, by name."""
        return {
            "grade": lambda body: self.grade(_number(body), body.get("grade")),
            "undo": lambda body: self.undo(),
        }

    def state(self, after: int = -1) -> dict[str, Any]:
        """Return how far the grader is, and the next place to grade: the first open one after `after`, else the first open one,
        None where all are done."""
        done = self.standing
        open_places = [number for number in range(len(self.places)) if number not in done]
        following = next((number for number in open_places if number > after), None)
        return {
            "total": len(self.places),
            "graded": sum(grade is not None for grade in done.values()),
            "skipped": [number for number, grade in done.items() if grade is None],
            "next": following if following is not None else next(iter(open_places), None),
            "last": next(reversed(done), None),
        }

    def about(self) -> dict[str, Any]:
        """Return what does not change: who grades what, into which file, and what the judges were asked."""
        manifest = self.artifact.manifest
        asked = self.artifact.store.read_json(f"{self.artifact.folder}/{ASKED}")
        return {
            "grader": self.grader,
            "file": str(self.file),
            "stage": manifest.stage,
            "inputs": [reference.stage for reference in manifest.inputs["documents"]],
            "artifact": self.artifact.folder.rsplit("/", 1)[-1],
            "asked": asked,
            "show_judge": self.show_judge,
            "remarks": self.remarks,
        }

    def document(self, number: int) -> dict[str, Any]:
        """Return what a grader sees of the document at a place."""
        place = self._place(number)
        row = self._excerpts(place.part).slice(place.row, 1).to_pylist()[0]
        grade = self.standing.get(number)
        return {
            "place": number,
            "kind": row["kind"],
            "text": row["text"],
            "characters": row["characters"],
            "grade": grade,
            "skipped": number in self.standing and grade is None,
            **self._known(number),
        }

    def whole(self, number: int) -> dict[str, Any]:
        """Return the whole text of the document at a place, up to MOST_SHOWN characters.

        Raises:
            StoreError: the documents are no longer in the store, or others than were judged.
        """
        place = self._place(number)
        row = self._excerpts(place.part).slice(place.row, 1).to_pylist()[0]
        reference = self.artifact.manifest.inputs["documents"][row["input"]]
        documents = Artifact(self.artifact.store, reference.folder)
        gone = StoreError(
            f"the documents of {reference.stage} are no longer in the store as they were judged",
            "grade what is shown: it is what the judge read",
        )
        if not documents.complete or documents.manifest.digest != reference.digest:
            raise gone
        commit = next((part for part in documents.parts if part.start == row["start"]), None)
        if commit is None:
            raise gone
        table = documents.read(commit, columns=["id", "text"])
        table = table.filter(pc.equal(table.column("id"), place.id))
        text = table.column("text")[0].as_py()
        return {"text": text[:MOST_SHOWN], "characters": len(text)}

    def grade(self, number: int, grade: float | None) -> dict[str, Any]:
        """Write a grade, or with None that the document is skipped; return, once it is on the disk, the state as of after this
        place and what may now be known of the document.

        Raises:
            DataError: it cannot be written: nothing has changed then.
        """
        if grade is not None and not (isinstance(grade, int) and not isinstance(grade, bool) and 0 <= grade <= HIGHEST):
            raise DataError(f"{grade!r} is no grade", f"a whole number from 0 to {HIGHEST}")
        self._append(self._place(number), grade, skipped=grade is None)
        self.standing.pop(number, None)
        self.standing[number] = grade
        return {**self.state(number), **self._known(number)}

    def undo(self) -> dict[str, Any]:
        """Take the latest grade or skip back; return the state, whose `next` is that document's place."""
        number = next(reversed(self.standing), None)
        if number is None:
            raise DataError("there is nothing to take back", "grade a document first")
        self._append(self._place(number), None, skipped=False)
        del self.standing[number]
        return {**self.state(), "next": number}

    # --- files -----------------------------------------------------------------------------------------------------------

    def _read_file(self) -> None:
        """Take over what the file says already, and make sure that it can be written."""
        where = f"--file {self.file}"
        try:
            good, bad = _lines(self.file) if self.file.exists() else ([], [])
            require_writable(self.file)
        except OSError as error:
            raise RecipeError(
                f"{where} cannot be written: {error.strerror or error}", "name a file in a folder that you may write to"
            ) from None
        torn = len(bad) == 1 and bad[0].text.startswith('{"id": ')
        if bad and not good and not torn:
            raise DataError(
                f"{where} is no file of grades: {bad[0].detail}: {bad[0].text[:80]!r}",
                "name a new file, or one of `hornbook label`",
            )
        known = [line for line in good if (line.id, bytes.fromhex(line.key)) in self.numbers]
        if good and not known:
            raise DataError(
                f"{where} holds {len(good)} grades of other documents than those of {self.artifact.folder}",
                "name another file: one for each corpus",
            )
        for line in known:
            if line.grader == self.grader:
                number = self.numbers[line.id, bytes.fromhex(line.key)]
                self.standing.pop(number, None)
                if line.grade is not None or line.skipped:
                    self.standing[number] = line.grade
        if bad:
            self.remarks.append(f"{len(bad)} lines of {self.file.name} are no grades; they are left as they are")
        if others := len(good) - len(known):
            self.remarks.append(f"{others} lines of {self.file.name} are about documents that are not in this sample")

    def _append(self, place: Place, grade: float | None, skipped: bool) -> None:
        row = self._excerpts(place.part).slice(place.row, 1).to_pylist()[0]
        line = GradeLine(
            id=place.id,
            key=place.key.hex(),
            grade=grade,
            grader=self.grader,
            source=row["source"],
            input=self.artifact.manifest.inputs["documents"][row["input"]].stage,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            skipped=skipped,
        )
        try:
            append_grade_line(self.file, line)
        except OSError as error:
            raise DataError(
                f"not saved: {self.file} cannot be written: {error.strerror or error}",
                "make room or give the right to write, then grade again; what was saved before is kept",
            ) from error

    def _read_excerpts(self, part: int) -> pa.Table:
        return self.artifact.read(self.artifact.parts[part], EXCERPTS)

    def _known(self, number: int) -> dict[str, Any]:
        """Return what a grader may know of a document once it is graded: its source and, where asked for, the judge's grade."""
        if self.standing.get(number) is None:
            return {}
        place = self._place(number)
        source = self._excerpts(place.part).column("source")[place.row].as_py()
        return {"source": source, "judge": self._judged(place) if self.show_judge else None}

    def _judged(self, place: Place) -> dict[str, Any] | None:
        """Return the judge's score; None where it gave none."""
        commit = self.artifact.parts[place.part]
        table = self.artifact.read(commit, columns=["id", "score", "judge"])
        table = table.filter(pc.equal(table.column("id"), place.id))
        return {"score": table["score"][0].as_py(), "judge": table["judge"][0].as_py()} if table.num_rows else None

    def _place(self, number: int) -> Place:
        if not (isinstance(number, int) and 0 <= number < len(self.places)):
            raise DataError(f"there is no document {number!r}", f"0 to {len(self.places) - 1}")
        return self.places[number]


def places(artifact: Artifact) -> list[Place]:
    """Return the documents of an annotation in the order of grading: shuffled, so that no source comes in a row and those who
    stop early have graded a fair part; the same for everybody, so that they graded the same ones.

    Raises:
        DataError: the artifact is no annotation.
    """
    manifest = artifact.manifest
    if not any(part.has(EXCERPTS) for part in artifact.parts):
        made = "was made by an older hornbook" if manifest.kind == "annotate" else f"is of the kind {manifest.kind}"
        raise DataError(
            f"{artifact.folder} {made}: it does not hold what a judge read",
            "name the artifact of an `annotate` stage, for example latest/labels; run its recipe again where it is old",
        )
    found = [
        Place(number, row, identifier, key)
        for number, part in enumerate(artifact.parts)
        for row, (identifier, key) in enumerate(_identities(artifact.read(part, EXCERPTS, columns=["id", "key"])))
    ]
    unique = list({(place.id, place.key): place for place in found}.values())
    random.Random(derive_seed("label", manifest.digest)).shuffle(unique)
    return unique


def _lines(file: Path) -> tuple[list[GradeLine], list[BadLine]]:
    """Return a file's grades and its other lines; of a file that begins with MOST_BAD of those, no more than that."""
    good: list[GradeLine] = []
    bad: list[BadLine] = []
    for _, said in read_grade_lines(file):
        if isinstance(said, GradeLine):
            good.append(said)
        else:
            bad.append(said)
        if len(bad) > MOST_BAD and not good:
            break
    return good, bad


def _identities(table: pa.Table) -> list[tuple[int, bytes]]:
    return list(zip(table.column("id").to_pylist(), table.column("key").to_pylist(), strict=True))


def user_name() -> str:
    """Return this user's name on this machine; `somebody` where it has none (a container's number without an entry)."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "somebody"


def _number(value: Mapping[str, Any]) -> int:
    try:
        return int(value["place"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{value.get('place')!r} is no place", "reload the page") from None
