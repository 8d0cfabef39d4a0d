"""Checkpoints on an object store: what makes them outlive the machine that trained.

Where the store is a disk that all ranks see, checkpoints are written there and this file is not used. Else each rank writes
its shards into a folder of its node's cache and puts them on the store; the checkpoint's manifest follows last. The store
alone says which checkpoints there are: the cache saves downloads and is never asked. So an artifact that was deleted, to be
made anew, finds nothing of the attempt before.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hornbook.errors import StoreError
from hornbook.machine import cache_folder
from hornbook.store import Store
from training.checkpoint_shard import file_digest

BLOCK = 1 << 24
RECORDED = ("tensorboard", "mlflow", "wandb", "profile")
"""Folders beside the metrics that are worth keeping."""


@dataclass(frozen=True)
class Archive:
    """A training run's folder on an object store.

    Attributes:
        store: remote.
        folder: the artifact's folder in it; checkpoints go below `checkpoints/`, metrics beside that.
    """

    store: Store
    folder: str

    @property
    def cache(self) -> Path:
        """The run's folder in this node's cache; other nodes may have theirs elsewhere."""
        where = hashlib.sha256(self.store.url.encode()).hexdigest()[:8]
        return cache_folder() / "training" / f"{Path(self.folder).name}-{where}"

    def checkpoints(self, manifest: str) -> tuple[list[str], list[str]]:
        """Return the names of the checkpoints that have a manifest and of those that have none, each sorted."""
        files = [name.split("/") for name, _ in self.store.files(f"{self.folder}/checkpoints")]
        whole = {parts[0] for parts in files if parts[1:] == [manifest]}
        return sorted(whole), sorted({parts[0] for parts in files} - whole)

    def read(self, name: str) -> bytes:
        """Return a file below `checkpoints/`. Raises StoreError."""
        return self.store.read(f"{self.folder}/checkpoints/{name}")

    def publish(self, name: str, manifest: bytes) -> None:
        """Write a checkpoint's manifest, which makes it one. Raises StoreError."""
        self.store.write(f"{self.folder}/checkpoints/{name}", manifest)

    def put_shards(self, files: Sequence[Path], checkpoint: str) -> None:
        """Copy a rank's shards to the store. Raises StoreError."""
        for file in files:
            self._put(file, f"checkpoints/{checkpoint}/{file.name}")

    def put_metrics(self, path: Path, size: int) -> None:
        """Copy the first bytes of the metrics file to the store, where the report finds it, too. Raises StoreError."""
        self._put(path, path.name, size)

    def get_metrics(self, path: Path) -> None:
        """Replace the local metrics file by the store's, if there is one: it holds every step of the last checkpoint."""
        name = f"{self.folder}/{path.name}"
        if self.store.exists(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.store.read(name))

    def put_record(self, folder: Path) -> None:
        """Copy what was recorded beside the metrics to the store: samples, profile, what recorders keep as files.

        A figure that is lost here is not worth a run: nothing is raised, the next checkpoint tries again.
        """
        found = [folder / "samples.jsonl", *(file for name in RECORDED for file in (folder / name).rglob("*"))]
        with contextlib.suppress(StoreError):
            for file in found:
                if file.is_file():
                    self._put(file, file.relative_to(folder).as_posix())

    def get_shards(self, checkpoint: str, files: Mapping[str, tuple[int, str]], folder: Path) -> None:
        """Bring a checkpoint's shards into a local folder; a copy that lies there and is whole stays.

        Args:
            files: size in bytes and digest by name.

        Raises:
            ValueError: a shard on the store is missing or not what was written.
            StoreError: the store cannot be read.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for file, (size, digest) in files.items():
            target, name = folder / file, f"{self.folder}/checkpoints/{checkpoint}/{file}"
            if target.exists() and target.stat().st_size == size and file_digest(target) == digest:
                continue
            if self.store.size(name) != size:
                raise ValueError(f"{file} is missing on the store or not what was written")
            temporary = target.with_name(f".{file}")
            try:
                with self.store.open_input(name) as source, temporary.open("wb") as sink:
                    while block := source.read(BLOCK):
                        sink.write(block)
            except OSError as error:
                raise StoreError(f"{self.store.describe(name)} cannot be read: {error}", "run again") from error
            if file_digest(temporary) != digest:
                raise ValueError(f"{file} on the store is not what was written")
            temporary.replace(target)

    def keep(self, checkpoints: Sequence[str], manifest: str) -> None:
        """Delete all other checkpoints; what cannot be deleted now is tried again after the next one."""
        whole, torn = self.checkpoints(manifest)
        for name in [*whole, *torn]:
            if name in checkpoints:
                continue
            with contextlib.suppress(OSError, StoreError):  # a leftover costs space, a failed run costs more
                self.store.delete(f"{self.folder}/checkpoints/{name}/{manifest}")  # first: no manifest of deleted files
                self.store.delete(f"{self.folder}/checkpoints/{name}")

    def _put(self, file: Path, name: str, size: int | None = None) -> None:
        target = f"{self.folder}/{name}"
        left = file.stat().st_size if size is None else size
        try:
            with file.open("rb") as source, self.store.filesystem.open_output_stream(self.store.path(target)) as sink:
                while block := source.read(min(left, BLOCK)):
                    sink.write(block)
                    left -= len(block)
        except OSError as error:
            raise StoreError(f"{self.store.describe(target)} cannot be written: {error}", "run again") from error
