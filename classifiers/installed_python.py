"""The embedded "web": Python files and package READMEs of the running environment, real text without a download.

Every installed wheel lists its files with their SHA-256 in RECORD. The plan is made from these lists alone, so it costs
no reading, is the same wherever the same packages are installed, and tells each worker what it must find on its own disk.
The plan is written into the artifact once; workers read their range from it and verify every file.
"""

from __future__ import annotations

import base64
import csv
import fnmatch
import hashlib
import importlib.metadata
import itertools
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from classifiers.strata import fair_shares
from hornbook.artifact import Artifact
from hornbook.documents import Document, Reject, content_key, document_id, documents_table, rejects_table
from hornbook.errors import DataError, RecipeError
from hornbook.parts import PartContent, PartRange, parquet_bytes, planned_ranges
from hornbook.partwork import PartMaker
from hornbook.plan import derive_seed, permute
from hornbook.settings import Settings, nearest, runtime
from hornbook.stage import Expected, Stage, StageContext, StageResult

PLAN = "plan.parquet"
OURSELVES = "hornbook"
LICENCE_CHARACTERS = 100  # some packages put the whole text of their licence into the field

PLAN_SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # as in RECORD: relative to site-packages
        ("sha256", pa.string()),  # 64 hexadecimal digits
        ("size", pa.int64()),  # bytes
        ("distribution", pa.string()),
        ("version", pa.string()),
        ("license", pa.string()),
    ]
)


class InstalledPythonSettings(Settings):
    """Which files of the environment become documents."""

    files: int = Field(3200, ge=1, description="Files to read, shared fairly among the installed packages.")
    min_bytes: int = Field(256, ge=0, description="Leave out smaller files (empty `__init__.py` and the like).")
    max_bytes: int = Field(200_000, ge=1, description="Leave out larger files; one that has grown past it is rejected.")
    max_line_bytes: int = Field(10_000, ge=1, description="A file with a longer line is rejected: data, not code.")
    readmes: bool = Field(True, description="Also read each package's README (the long description in its metadata).")
    exclude: tuple[str, ...] = Field((), description="Shell patterns of paths to leave out, such as `*/tests/*`.")
    distributions: tuple[str, ...] = Field((), description="Read these packages only; empty reads all.")
    packages_between: tuple[float, float] = Field(
        (0.0, 1.0),
        description="Read packages whose seeded hash lies from the first to below the second, within [0, 1]: stages of a "
        "recipe with ranges that do not overlap share no package.",
    )
    min_dependents: int = Field(
        0, ge=0, description="Read packages that at least so many other installed ones require."
    )
    max_dependents: int | None = Field(None, ge=0, description="Read packages that at most so many others require.")
    part_rows: int = Field(200, ge=1, description="Files per part.")
    workers: int | None = runtime(None, ge=1, description="Most workers; default: one per processor.")


class InstalledPython(Stage):
    """Plans from every RECORD, then reads and verifies the files."""

    kind = "installed-python"
    produces = "documents"
    Settings = InstalledPythonSettings
    settings: InstalledPythonSettings

    def extra_identity(self) -> dict[str, str]:
        """Return the plan's digest: another set of installed files is another artifact."""
        return {"installed files": hashlib.sha256(repr(self.plan.to_pylist()).encode()).hexdigest()}

    def check(self) -> None:
        """Refuse packages that are not installed, and a range that holds none. Raises RecipeError."""
        low, high = self.settings.packages_between
        if not 0 <= low < high <= 1:
            raise RecipeError(
                f"{self.name}.packages_between: [{low:g}, {high:g}] is no range", "two shares, as [0.0, 0.7]"
            )
        if not self.settings.distributions:
            return
        installed = [_normal(found.name) for found in _distributions(())]
        for name in self.settings.distributions:
            if _normal(name) not in installed:
                raise RecipeError(
                    f"{self.name}.distributions: {name!r} is not installed{nearest(_normal(name), installed)}",
                    f"pip install {name}, or leave it out",
                )

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return the plan's length."""
        return Expected(planned=self.plan.num_rows, unit="files", rows=self.plan.num_rows)

    @cached_property
    def plan(self) -> pa.Table:
        """The files to read, rows of PLAN_SCHEMA; a function of the settings, the seed and the installed packages."""
        return make_plan(self.settings, self.seed)

    def run(self, context: StageContext) -> StageResult:
        """Write the plan unless an earlier attempt did, then read every planned file."""
        folder, store = context.artifact.folder, context.artifact.store
        if self.plan.num_rows == 0:
            raise DataError(
                f"{self.name}: no installed file matches the settings",
                "widen min_bytes, max_bytes, exclude or distributions",
            )
        store.create(f"{folder}/{PLAN}", parquet_bytes(self.plan))
        maker = ReadFiles(self.settings, context.artifact)
        totals = context.make_parts(maker, planned_ranges(self.plan.num_rows, self.settings.part_rows), unit="files")
        distributions = len(set(self.plan.column("distribution").to_pylist()))
        metrics = {"distributions": distributions, "bytes": int(totals.counts.get("bytes", 0))}
        return StageResult(metrics=metrics, files=[PLAN])


class ReadFiles(PartMaker):
    """Reads the files of a planned range from this worker's own environment."""

    def __init__(self, settings: InstalledPythonSettings, artifact: Artifact) -> None:
        self.settings = settings
        self.artifact = artifact
        self.max_workers = settings.workers

    def setup(self) -> None:
        """Read the plan that the driver wrote."""
        with self.artifact.store.open_input(f"{self.artifact.folder}/{PLAN}") as file:
            self.plan = pq.read_table(file)

    def make(self, part: PartRange) -> PartContent:
        """Return the range's documents and rejects."""
        documents: list[Document] = []
        rejects: list[Reject] = []
        for row, planned in enumerate(self.plan.slice(part.start, len(part)).to_pylist(), part.start):
            document = _read(row, planned, self.settings)
            (documents if isinstance(document, Document) else rejects).append(document)  # type: ignore[arg-type]
        counts = {"bytes": sum(len(document.text.encode()) for document in documents)}
        return PartContent(documents_table(documents), rejects_table(rejects), counts=counts)


# --- the plan --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Planned:
    path: str
    sha256: str
    size: int


def make_plan(settings: InstalledPythonSettings, seed: int) -> pa.Table:
    """Return rows of PLAN_SCHEMA in reading order: a fair share of each package's files, then all shuffled.

    A package that has fewer files than its share gives all it has; the others share the rest. Files with equal contents
    are planned once.
    """
    rows: list[dict[str, Any]] = []
    choices: list[list[dict[str, Any]]] = []
    seen: set[str] = set()
    for distribution in _chosen(settings, seed):
        about = {
            "distribution": distribution.name,
            "version": distribution.version,
            "license": _licence(distribution),
        }
        files = [{**vars(file), **about} for file in _candidates(distribution, settings) if file.sha256 not in seen]
        files = list({file["sha256"]: file for file in reversed(files)}.values())[::-1]
        seen.update(file["sha256"] for file in files)
        choices.append(files)
    for files, share in zip(choices, fair_shares([len(files) for files in choices], settings.files), strict=True):
        readmes = [file for file in files if _is_metadata(file["path"])]
        modules = [file for file in files if not _is_metadata(file["path"])]
        name = files[0]["distribution"] if files else ""
        order = permute(np.arange(len(modules)), len(modules), derive_seed(seed, "installed-python", name))
        rows += [*readmes, *(modules[place] for place in order)][:share]
    order = permute(np.arange(len(rows)), len(rows), derive_seed(seed, "installed-python"))
    return pa.Table.from_pylist([rows[place] for place in order], schema=PLAN_SCHEMA)


def _chosen(settings: InstalledPythonSettings, seed: int) -> list[importlib.metadata.Distribution]:
    """Return the packages that the settings admit, by name."""
    found = _distributions(settings.distributions)
    low, high = settings.packages_between
    if (low, high) != (0.0, 1.0):
        found = [one for one in found if low <= derive_seed(seed, "package", _normal(one.name)) / (1 << 63) < high]
    if settings.min_dependents or settings.max_dependents is not None:
        counts = dependents()
        most = math.inf if settings.max_dependents is None else settings.max_dependents
        found = [one for one in found if settings.min_dependents <= counts[_normal(one.name)] <= most]
    return found


def dependents() -> Counter[str]:
    """Return by normalized name how many other installed packages require a package, extras left out.

    hornbook's own requirements do not count: whoever installs it would vote for what it happens to use.
    """
    counts: Counter[str] = Counter()
    for distribution in _distributions(()):
        required = {
            _normal(name[0])
            for line in distribution.requires or ()
            if (name := re.match(r"[A-Za-z0-9._-]+", line)) and "extra" not in line.partition(";")[2]
        }
        counts.update(required - {_normal(distribution.name)})
    return counts


def _distributions(wanted: Sequence[str]) -> list[importlib.metadata.Distribution]:
    """Return the installed packages that have a RECORD, by name; never hornbook itself, never an editable one."""
    names = {_normal(name) for name in wanted}
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions(path=_site_packages()):
        name = _normal(distribution.name or "")
        if not name or name == OURSELVES or name in found or (names and name not in names):
            continue
        found[name] = distribution
    return [found[name] for name in sorted(found) if not _editable(found[name])]


def _site_packages() -> list[str]:
    """Return the environment's own package folders.

    Not all of sys.path: importing Ray adds a folder of its vendored packages, and the plan must not depend on what has
    been imported.
    """
    return [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]


def _candidates(distribution: importlib.metadata.Distribution, settings: InstalledPythonSettings) -> Iterator[_Planned]:
    """Yield the files of a package that the settings admit, by path."""
    record = distribution.read_text("RECORD") or ""
    for line in sorted(csv.reader(record.splitlines())):
        if len(line) != 3 or not line[1].startswith("sha256=") or not line[2].isdigit():
            continue
        path, size = line[0], int(line[2])
        wanted = path.endswith(".py") or (settings.readmes and _is_metadata(path))
        inside = not path.startswith("/") and ".." not in path.split("/")
        inside = inside and not any(fnmatch.fnmatch(path, rule) for rule in settings.exclude)
        if wanted and inside and settings.min_bytes <= size <= settings.max_bytes:
            yield _Planned(path, _hexadecimal(line[1].removeprefix("sha256=")), size)


def _is_metadata(path: str) -> bool:
    return path.count("/") == 1 and path.endswith(".dist-info/METADATA")


def _editable(distribution: importlib.metadata.Distribution) -> bool:
    return '"editable": true' in (distribution.read_text("direct_url.json") or "")


def _licence(distribution: importlib.metadata.Distribution) -> str:
    metadata = distribution.metadata
    classifiers = [value for value in metadata.get_all("Classifier") or [] if value.startswith("License ::")]
    named = metadata["License-Expression"] or "; ".join(value.split(" :: ")[-1] for value in classifiers)
    text = " ".join((named or metadata["License"] or "unknown").split())
    return text[:LICENCE_CHARACTERS]


def _normal(name: str) -> str:
    """Return a package's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _hexadecimal(urlsafe: str) -> str:
    return base64.urlsafe_b64decode(urlsafe + "=" * (-len(urlsafe) % 4)).hex()


# --- one file --------------------------------------------------------------------------------------------------------


def _read(row: int, planned: Mapping[str, Any], settings: InstalledPythonSettings) -> Document | Reject:
    """Read and verify one planned file."""
    path = planned["path"]

    def reject(reason: str, detail: str) -> Reject:
        return Reject(row, path, reason, detail)

    try:
        with _located(planned).open("rb") as file:
            data = file.read(settings.max_bytes + 1)  # a file that has grown to gigabytes is not read whole
    except OSError as error:
        return reject("missing", f"{planned['distribution']} {planned['version']} is not as planned here: {error}")
    if len(data) > settings.max_bytes:
        return reject("too-long", f"over {settings.max_bytes} bytes, RECORD says {planned['size']}")
    if hashlib.sha256(data).hexdigest() != planned["sha256"]:
        return reject("changed", f"the file is not what the RECORD of {planned['distribution']} lists")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return reject("encoding", f"not UTF-8 at byte {error.start}: {error.reason}")
    readme = _is_metadata(path)
    if readme:
        text = _long_description(text)
    number, longest = max(enumerate(map(len, text.encode().split(b"\n")), 1), key=lambda line: line[1])
    if longest > settings.max_line_bytes:
        return reject("too-long", f"line {number} has {longest} bytes, max_line_bytes is {settings.max_line_bytes}")
    if not text.strip():
        return reject("empty", "no long description" if readme else "only white space")
    return Document(
        id=document_id(row),
        key=content_key(text.encode()),
        text=text,
        source="python-docs" if readme else "python-code",
        kind="markdown" if readme else "python",
        meta={name: planned[name] for name in ("path", "distribution", "version", "license")},
    )


def _located(planned: Mapping[str, Any]) -> Path:
    """Return where a planned file lies on this machine. Raises FileNotFoundError if its package is not here."""
    found = importlib.metadata.Distribution.discover(name=planned["distribution"], path=_site_packages())
    for distribution in found:
        return Path(str(distribution.locate_file(planned["path"])))
    raise FileNotFoundError(f"{planned['distribution']} is not installed")


def _long_description(metadata: str) -> str:
    """Return the body of a METADATA file, or the Description header of an old one, whose lines are indented by a bar."""
    head, _, body = metadata.replace("\r\n", "\n").partition("\n\n")
    if body.strip():
        return body
    lines = iter(head.split("\n"))
    first = next((line for line in lines if line.startswith("Description:")), "")
    rest = itertools.takewhile(lambda line: line.startswith((" ", "\t")), lines)
    return "\n".join([first.removeprefix("Description:").strip(), *(re.sub(r"^\s+\|?", "", line) for line in rest)])
