"""A declared proxy for a judge of teaching value: what can be read off a Python file, in points that anyone can check.

phi-1 (2306.11644) asked GPT-4. Where no judge is good enough (docs/lab-log.md: SmolLM2-135M is near chance), these points
stand in for its grades: a file teaches if it is documented, explains itself, needs little beside itself, shows how it is
used and comes in small pieces; generated, vendored and test files hardly do. It is a stand-in and no measure of teaching: what
it misses is listed in docs/classifiers/filter-helps.md.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from classifiers.annotate import ANNOTATION_SCHEMA
from hornbook.artifact import Artifact
from hornbook.errors import DataError
from hornbook.parts import PartContent, PartRange, same_ids
from hornbook.partwork import PartMaker
from hornbook.plan import derive_seed
from hornbook.settings import Settings, runtime
from hornbook.stage import Expected, Input, Stage, StageContext, StageResult

JUDGE, REVISION = "teaching-proxy", "1"
POINTS = {"documented": 1.5, "explained": 1.5, "self_contained": 1.0, "shows_use": 0.5, "small_pieces": 0.5}
"""What each trait, 0 to 1, counts at most; they add up to 5."""
MARKED_SHARE = 0.2
"""What is left of the points of a generated, vendored or test file."""
EXPLAINED_WORDS = 3.0
"""Words of docstrings and comments per line of code from which a file is fully explained."""
SMALL_LINES = 30
HEAD = 2_000
"""Characters in which a file says that it is generated."""

TEST_PATH = re.compile(r"(^|/)(tests?|testing)/|(^|/)(test_[^/]*|[^/]*_tests?|conftest)\.py$", re.IGNORECASE)
VENDORED_PATH = re.compile(r"(^|/)_?(vendor(ed|s)?|third_?party(_files)?|extern(als?)?)/", re.IGNORECASE)
GENERATED_PATH = re.compile(r"_pb2(_grpc)?\.py$")
GENERATED_TEXT = re.compile(
    r"do not edit|auto-?\s?generated|automatically generated|generated (by|from) ", re.IGNORECASE
)
USE = re.compile(r">>> |\bexamples?\b|\busage\b", re.IGNORECASE)

SCHEMA = pa.schema(
    [
        *ANNOTATION_SCHEMA,
        *(pa.field(name, pa.float32(), nullable=False) for name in POINTS),
        pa.field("mark", pa.string(), nullable=False),  # generated, vendored, test, not-python, or empty
    ]
)


@dataclass(frozen=True)
class Traits:
    """What is read off a file: shares from 0 to 1, and its mark (`generated`, `vendored`, `test`, `not-python`, or none)."""

    documented: float = 0.0
    """Share of the module and its public classes and functions that have a docstring."""
    explained: float = 0.0
    """Words of docstrings and of comments within the code, per line of code, of EXPLAINED_WORDS."""
    self_contained: float = 0.0
    """Share of the imported top-level modules that are the standard library's; 1 without imports."""
    shows_use: float = 0.0
    """1 if a docstring holds a session, an example or its usage."""
    small_pieces: float = 0.0
    """Share of the functions with at most SMALL_LINES lines."""
    mark: str = ""

    @property
    def score(self) -> float:
        """The proxy's grade, 0 to 5."""
        if self.mark == "not-python":
            return 0.0
        points = sum(most * getattr(self, name) for name, most in POINTS.items())
        return points * (MARKED_SHARE if self.mark else 1.0)


def teaching_traits(text: str, path: str = "") -> Traits:
    """Return the traits of a Python file; `path` is where it lies in its package, if known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in other people's strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Traits(mark="not-python")
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    public = [tree, *(node for node in [*functions, *classes] if not node.name.startswith("_"))]
    docstrings = [found for node in [tree, *functions, *classes] if (found := ast.get_docstring(node, clean=False))]
    imported = list(_imported(tree))
    short = [node for node in functions if (node.end_lineno or node.lineno) - node.lineno < SMALL_LINES]
    prose, code = _words_and_lines(text, tree, docstrings)
    return Traits(
        documented=sum(ast.get_docstring(node, clean=False) is not None for node in public) / len(public),
        explained=min(1.0, prose / max(code, 1) / EXPLAINED_WORDS),
        self_contained=sum(name in sys.stdlib_module_names for name in imported) / len(imported) if imported else 1.0,
        shows_use=float(any(USE.search(docstring) for docstring in docstrings)),
        small_pieces=len(short) / len(functions) if functions else 0.0,
        mark=_mark(text, path),
    )


def _mark(text: str, path: str) -> str:
    if GENERATED_PATH.search(path) or GENERATED_TEXT.search(text[:HEAD]):
        return "generated"
    if VENDORED_PATH.search(path):
        return "vendored"
    return "test" if TEST_PATH.search(path) else ""


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield the top-level modules that are imported, each once; a relative import is of the package itself, called `.`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else (node.module or "").split(".")[0])
    yield from names - {"__future__"}


def _words_and_lines(text: str, tree: ast.Module, docstrings: Sequence[str]) -> tuple[int, int]:
    """Return words of docstrings and comments, and lines of code. Comments before the first statement are a licence mostly."""
    lines = text.splitlines()
    first = tree.body[0].lineno - 1 if tree.body else len(lines)
    comments = [line.strip() for line in lines[first:] if line.lstrip().startswith("#")]
    blank = sum(not line.strip() for line in lines[first:])
    in_docstrings = sum(docstring.count("\n") + 1 for docstring in docstrings)
    words = sum(len(docstring.split()) for docstring in docstrings) + sum(len(line.split()) - 1 for line in comments)
    return words, len(lines) - first - len(comments) - blank - in_docstrings


# --- the stage -------------------------------------------------------------------------------------------------------


class TeachingProxySettings(Settings):
    """How many documents are graded."""

    share: float = Field(
        1.0, gt=0, le=1, description="Share of the documents to grade, chosen by a seeded hash of keys."
    )
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor.")


class TeachingProxy(Stage):
    """Grades Python files by the points of this module, as an annotator does: a stand-in for a judge."""

    kind = "teaching-proxy"
    produces = "attributes"
    Settings = TeachingProxySettings
    inputs: ClassVar[Mapping[str, Input]] = {"documents": Input("documents")}
    settings: TeachingProxySettings

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return about as many rows as are drawn."""
        planned = inputs["documents"][0].rows
        rows = None if planned is None else round(planned * self.settings.share)
        return Expected(planned=planned, unit="documents", rows=rows)

    def run(self, context: StageContext) -> StageResult:
        """Grade each part of the documents into a part of the same range."""
        documents = context.input("documents")
        maker = TraitPart(self.settings, documents, derive_seed(context.seed, "teaching-proxy"))
        context.make_parts(maker, [part.range for part in documents.parts], unit="documents")
        return StageResult(metrics=_figures(context.artifact.tables(columns=["score", "mark", *POINTS])))


class TraitPart(PartMaker):
    """Grades the documents of one part."""

    kind = TeachingProxy.kind

    def __init__(self, settings: TeachingProxySettings, documents: Artifact, seed: int) -> None:
        self.settings, self.documents, self.seed = settings, documents, seed
        self.max_workers = settings.workers

    def setup(self) -> None:
        """Index the documents' parts."""
        self.parts = self.documents.parts_by_start

    def make(self, part: PartRange) -> PartContent:
        """Return rows of SCHEMA in the documents' order; the others of the part are empty."""
        table = self.documents.read(self.parts[part.start], columns=["id", "key", "source", "text", "meta"])
        rows = [row for row in table.to_pylist() if self._drawn(row["key"])]
        found = []
        for row in rows:
            traits = teaching_traits(row["text"], str(json.loads(row["meta"]).get("path") or ""))
            found.append(
                {
                    **{name: row[name] for name in ("id", "key", "source")},
                    **dict.fromkeys(("score_a", "score_b", "score"), traits.score),
                    **dict.fromkeys(("grade_a", "grade_b"), str(round(traits.score))),
                    **{"judge": JUDGE, "revision": REVISION, "weight": 1 / self.settings.share},
                    **asdict(traits),
                }
            )
        return PartContent(
            table=pa.Table.from_pylist(found, schema=SCHEMA),
            planned=table.column("id").to_numpy(),
            unit_of=same_ids,
            empty=table.num_rows - len(found),
        )

    def _drawn(self, key: bytes) -> bool:
        return derive_seed(self.seed, key.hex()) < self.settings.share * (1 << 63)


def _figures(tables: Iterable[pa.Table]) -> dict[str, Any]:
    """Return how the grades lie: quantiles, the mean of each trait, documents by mark."""
    table = pa.concat_tables([SCHEMA.empty_table().select(["score", "mark", *POINTS]), *tables])
    if table.num_rows == 0:
        raise DataError("the teaching proxy drew no document", "raise `share`, or look at the rejects of its input")
    scores = table.column("score").to_numpy()
    names = ("lowest", "quarter", "median", "three_quarters", "highest")
    marks = Counter(mark or "none" for mark in table.column("mark").to_pylist())
    return {
        "documents": len(scores),
        "scores": {
            name: round(float(value), 3)
            for name, value in zip(names, np.quantile(scores, [0, 0.25, 0.5, 0.75, 1]), strict=True)
        },
        "traits": {name: round(float(table.column(name).to_numpy().mean()), 3) for name in POINTS},
        "marks": dict(sorted(marks.items())),
    }
