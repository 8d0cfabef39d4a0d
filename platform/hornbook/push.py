"""`hornbook push`: a corpus as a data set that others can load, in a folder, on an object store or on the Hugging Face hub.

Parts become shards of a bounded size, one shard in memory and on disk at a time. What is there with the right digest is left
alone, so a push that was killed goes on; until all shards are there the README says that the data set is incomplete.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hornbook.artifact import Artifact
from hornbook.card import MARK, PLACEHOLDER, README, dataset_card
from hornbook.errors import DataError, HornbookError, StoreError
from hornbook.inspection import find_artifact
from hornbook.parts import PartCommit
from hornbook.store import Store

HUB = "hf://datasets/"
SHARD_BYTES = 256 << 20
"""Most bytes of parts that become one shard; a single larger part is a shard of its own."""
ROW_GROUP_BYTES = 32 << 20
COMMIT_BYTES = 1 << 30
"""Shards that go to the hub in one commit: the hub limits commits, the local disk what waits for one."""
FOLDERS = {"data": "data", "rejects": "rejects"}
"""Role of a part's file -> folder of the data set."""
OUR_SHARD = re.compile(r"(data|rejects)/train-\d{5}-of-\d{5}\.parquet")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Shard:
    """A file of the data set and the parts that it holds."""

    name: str
    role: str
    parts: Sequence[PartCommit]

    @property
    def rows(self) -> int:
        """Rows in it."""
        return sum(part.rows if self.role == "data" else part.rejected for part in self.parts)


def push(
    store: Store,
    name: str,
    target: str,
    *,
    licence: str = "",
    private: bool = False,
    dry_run: bool = False,
    rejects: bool = False,
    shard_bytes: int = SHARD_BYTES,
    say: Say = print,
    warn: Say = print,
) -> None:
    """Write an artifact of documents as a data set in the Hugging Face layout.

    Args:
        name: the artifact, as `find_artifact` takes it.
        target: a local folder, a URL that `Store` understands, or `hf://datasets/OWNER/NAME`.
        licence: the data set's licence, a Hugging Face licence id; empty: unknown.
        private: make the hub's repository private; refused where it is there and public.
        dry_run: say what the card would be, and touch nothing.
        rejects: write the rejects as a second configuration.

    Raises:
        DataError: the artifact holds no documents.
        StoreError: no such artifact, or the target cannot be written or holds something else.
    """
    artifact = find_artifact(store, name)
    if artifact.manifest.produces != "documents":
        raise DataError(
            f"{artifact.folder} holds {artifact.manifest.produces}, not documents", "push the stage that wrote the text"
        )
    destination = open_target(target)
    card = dataset_card(artifact, name, target, licence=licence, rejects=rejects)
    for warning in card.warnings:
        warn(f"warning: {warning}")
    if dry_run:
        say(card.text)
        return
    destination.open(private)
    held = destination.readme()
    if (held is not None and MARK not in held) or (held is None and destination.files()):
        raise StoreError(
            f"{target} holds a data set or files that `hornbook push` did not write", "name a new or an empty target"
        )
    roles = ["data", "rejects"] if rejects else ["data"]
    shards = [shard for role in roles for shard in plan_shards(artifact, role, shard_bytes)]
    _upload(artifact, shards, destination, card.text, held, say)
    say(f"{artifact.folder} is at {target}: {artifact.manifest.counts.get('rows', 0):,.0f} rows, {len(shards)} shards")


def plan_shards(artifact: Artifact, role: str, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Return which consecutive parts make up each shard: the same for the same artifact. Always one, if only an empty one."""
    groups: list[list[PartCommit]] = [[]]
    size = 0
    for part in artifact.parts:
        found = [entry for entry in part.files if entry.role == role]
        if not found:
            continue
        if groups[-1] and size + found[0].size > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += found[0].size
    return [
        Shard(f"{FOLDERS[role]}/train-{number:05d}-of-{len(groups):05d}.parquet", role, group)
        for number, group in enumerate(groups)
    ]


def readable(table: pa.Table) -> pa.Table:
    """Return a table whose keys and parents are hexadecimal text: other tools know no bytes of a fixed size."""
    for index, field in enumerate(table.schema):
        column = table.column(index)
        if pa.types.is_fixed_size_binary(field.type):
            values: Any = [None if key is None else key.hex() for key in column.to_pylist()]
            kind: pa.DataType = pa.string()
        elif pa.types.is_list(field.type) and pa.types.is_fixed_size_binary(field.type.value_type):
            values = [None if keys is None else [key.hex() for key in keys] for keys in column.to_pylist()]
            kind = pa.list_(pa.string())
        else:
            continue
        table = table.set_column(index, field.with_type(kind), pa.array(values, kind))
    return table


def write_shard(artifact: Artifact, shard: Shard, schema: pa.Schema, path: Path) -> None:
    """Write a shard's rows as one Parquet file, in plan order; ROW_GROUP_BYTES of rows and one part in memory at most.

    Raises:
        StoreError: a part does not hold the rows that its commit record says.
    """
    waiting: list[pa.Table] = []
    written = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in shard.parts:
            waiting.append(readable(artifact.read(part, shard.role)).cast(schema))
            if sum(table.nbytes for table in waiting) >= ROW_GROUP_BYTES:
                written += _write_group(writer, waiting)
                waiting = []
        written += _write_group(writer, waiting)
    if written != shard.rows:
        raise StoreError(
            f"{artifact.folder}: {shard.name} should hold {shard.rows:,} rows, its parts hold {written:,}",
            f"delete {artifact.store.describe(artifact.folder)} and run its recipe again",
        )


def _write_group(writer: pq.ParquetWriter, tables: Sequence[pa.Table]) -> int:
    if not tables:
        return 0
    table = pa.concat_tables(tables)
    writer.write_table(table, row_group_size=max(1, table.num_rows))
    return int(table.num_rows)


def _upload(
    artifact: Artifact, shards: Sequence[Shard], destination: Target, card: str, held: str | None, say: Say
) -> None:
    """Bring the target to hold these shards and this card: first a README that says `incomplete`, the card last."""
    from hornbook.documents import DOCUMENT_SCHEMA, REJECT_SCHEMA

    present = destination.files()
    told = held == PLACEHOLDER

    def tell_incomplete() -> None:
        nonlocal told
        if not told:
            destination.change({README: PLACEHOLDER.encode()}, [], "Say that an upload is under way")
            told = True

    schemas = {"data": readable(DOCUMENT_SCHEMA.empty_table()).schema, "rejects": REJECT_SCHEMA}
    with tempfile.TemporaryDirectory(prefix="hornbook-push-") as temporary:
        waiting: dict[str, bytes | Path] = {}
        size = 0
        for shard in shards:
            path = Path(temporary, shard.name.replace("/", "-"))
            write_shard(artifact, shard, schemas[shard.role], path)
            if shard.name in present and destination.holds(shard.name, path):
                say(f"{shard.name}: already there")
                path.unlink()
                continue
            tell_incomplete()
            waiting[shard.name] = path
            size += path.stat().st_size
            say(f"{shard.name}: {shard.rows:,} rows, {path.stat().st_size / (1 << 20):,.1f} MiB")
            if size >= destination.together:
                _send(destination, waiting)
                waiting, size = {}, 0
        _send(destination, waiting)
    wanted = {shard.name for shard in shards}
    stale = sorted(name for name in present if OUR_SHARD.fullmatch(name) and name not in wanted)
    if stale:
        tell_incomplete()
    if told or held != card:
        destination.change({README: card.encode()}, stale, "Write the data set's card")


def _send(destination: Target, files: Mapping[str, bytes | Path]) -> None:
    if files:
        destination.change(files, [], f"Upload {', '.join(files)}" if len(files) < 4 else f"Upload {len(files)} shards")
        for path in files.values():
            assert isinstance(path, Path)
            path.unlink()


# --- targets ---------------------------------------------------------------------------------------------------------


class Target(ABC):
    """Where a data set goes. File names are relative to its root."""

    together: int = 1
    """Bytes of files that are handed over in one change."""

    def open(self, private: bool) -> None:  # noqa: B027 - a folder needs no opening
        """Make the target where it is not there yet."""

    @abstractmethod
    def files(self) -> list[str]:
        """Return the names of the files there but hidden ones (.git, .gitattributes)."""

    @abstractmethod
    def readme(self) -> str | None:
        """Return the README's text, None if there is none."""

    @abstractmethod
    def holds(self, name: str, path: Path) -> bool:
        """Tell whether the file there is, byte for byte, the local one."""

    @abstractmethod
    def change(self, files: Mapping[str, bytes | Path], delete: Sequence[str], message: str) -> None:
        """Write files and delete others."""


def open_target(target: str) -> Target:
    """Return the target that a text names. Raises StoreError where it names none."""
    if target.startswith("hf://"):
        repository = target.removeprefix(HUB).rstrip("/")
        if not target.startswith(HUB) or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise StoreError(f"{target} is no data set on the hub", f"write {HUB}OWNER/NAME")
        return HubTarget(repository)
    return StoreTarget(Store(target if "://" in target else os.path.abspath(os.path.expanduser(target))))


class StoreTarget(Target):
    """A folder, or a URL that `Store` understands."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def files(self) -> list[str]:
        """See Target."""
        return [name for name, _ in self.store.files("") if not name.startswith(".")]

    def readme(self) -> str | None:
        """See Target."""
        return self.store.read(README).decode("utf-8", "replace") if self.store.exists(README) else None

    def holds(self, name: str, path: Path) -> bool:
        """See Target; sizes first, so that only what may be the same is read back."""
        if self.store.size(name) != path.stat().st_size:
            return False
        digest = hashlib.sha256()
        with self.store.open_input(name) as file:
            while block := file.read(1 << 24):
                digest.update(block)
        with path.open("rb") as stream:
            return digest.digest() == hashlib.file_digest(stream, "sha256").digest()

    def change(self, files: Mapping[str, bytes | Path], delete: Sequence[str], message: str) -> None:
        """See Target."""
        for name in delete:
            self.store.delete(name)
        for name, data in files.items():
            self.store.write(name, data.read_bytes() if isinstance(data, Path) else data)


class HubTarget(Target):
    """A data set repository on the Hugging Face hub, through huggingface_hub; each change is one commit."""

    together = COMMIT_BYTES

    def __init__(self, repository: str, api: Any = None) -> None:
        import huggingface_hub

        self.repository = repository
        self.api: Any = api or huggingface_hub.HfApi()
        self._held: dict[str, Any] = {}

    @property
    def _where(self) -> dict[str, str]:
        return {"repo_id": self.repository, "repo_type": "dataset"}

    def open(self, private: bool) -> None:
        """Create the repository unless it is there. Raises StoreError without a token, or where `private` cannot hold."""
        import huggingface_hub

        if not (getattr(self.api, "token", None) or huggingface_hub.get_token()):
            raise StoreError(
                f"there is no Hugging Face token, so nothing can be written to {HUB}{self.repository}",
                "make one that may write at https://huggingface.co/settings/tokens, then `hf auth login` or HF_TOKEN=...",
            )
        with self._asking():
            self.api.create_repo(**self._where, private=private, exist_ok=True)
            public = not self.api.repo_info(**self._where).private
        if private and public:
            raise StoreError(
                f"--private: {HUB}{self.repository} is there already, and public",
                "make it private in its settings on the hub, or name another one",
            )

    def files(self) -> list[str]:
        """See Target."""
        from huggingface_hub.hf_api import RepoFile

        with self._asking():
            entries = list(self.api.list_repo_tree(**self._where, recursive=True))
        self._held = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
        return [name for name in self._held if not name.startswith(".")]

    def readme(self) -> str | None:
        """See Target."""
        if README not in self.files():
            return None
        with self._asking(), tempfile.TemporaryDirectory(prefix="hornbook-push-") as folder:
            path = self.api.hf_hub_download(**self._where, filename=README, local_dir=folder, force_download=True)
            return Path(path).read_text(encoding="utf-8", errors="replace")

    def holds(self, name: str, path: Path) -> bool:
        """See Target; by the digest that the hub keeps: SHA-256 of a large file, git's own of a small one."""
        entry = self._held[name]
        if entry.size != path.stat().st_size:
            return False
        with path.open("rb") as stream:
            if entry.lfs is not None:
                return bool(hashlib.file_digest(stream, "sha256").hexdigest() == entry.lfs.sha256)
            digest = hashlib.sha1(f"blob {entry.size}\0".encode(), usedforsecurity=False)
            while block := stream.read(1 << 24):
                digest.update(block)
            return bool(digest.hexdigest() == entry.blob_id)

    def change(self, files: Mapping[str, bytes | Path], delete: Sequence[str], message: str) -> None:
        """See Target."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations = [
            *(CommitOperationDelete(path_in_repo=name) for name in delete),
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()),
        ]
        with self._asking():
            self.api.create_commit(**self._where, operations=operations, commit_message=message)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn what the hub or the network refuses into an error with the cure."""
        try:
            yield
        except HornbookError:
            raise
        except Exception as error:  # the hub's own kinds, its HTTP client's, the network's
            status = getattr(getattr(error, "response", None), "status_code", None)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            cure = "check the network; the same command goes on where it stood"
            if status in (401, 403):
                owner = self.repository.split("/")[0]
                cure = (
                    f"the token may not write to {owner}: make one that may at https://huggingface.co/settings/tokens"
                )
            elif status == 400 or isinstance(error, ValueError):
                cure = "the hub refuses the name or the content; the message says which"
            raise StoreError(f"{HUB}{self.repository} cannot be written: {reason}", cure) from error
