"""Where artifacts and runs live: a local folder, or an s3:// or gs:// URL, the same to every stage.

Everything above this file names things by relative paths (`artifacts/stories-1f2e/manifest.json`). Three promises
matter: `write` replaces a file atomically (rename on a disk, one put on an object store), `create` writes a file only
if there is none, and neither is ever seen half-written.
"""

from __future__ import annotations

import errno
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook.errors import StoreError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileSystem

DEFAULT_FOLDER = "hornbook-store"
TEMPORARY = ".writing-"
READS = 8
"""How often a JSON file is read before it counts as damaged."""
READ_PAUSE_SECONDS = 0.05
"""Before an object store is asked again; doubled each time."""


class Store:
    """A root folder or URL. Cheap to pickle: workers reopen the file system themselves.

    Args:
        url: absolute local path, or a URL that pyarrow understands (`s3://bucket/prefix?region=...`, `gs://...`).
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._filesystem: FileSystem | None = None
        if "://" not in url and not os.path.isabs(url):
            raise StoreError(f"the store {url!r} is a relative path", "give an absolute path or a URL")
        self.local: Path | None = None if "://" in url else Path(url)
        self._root = url.rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return (Store, (self.url,))

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def filesystem(self) -> FileSystem:
        """The pyarrow file system under the root, opened on first use."""
        if self._filesystem is None:
            from pyarrow.fs import FileSystem, LocalFileSystem

            if self.local is not None:
                self._filesystem = LocalFileSystem()
            else:
                try:
                    self._filesystem, self._root = FileSystem.from_uri(_single_put(self.url))
                except Exception as error:
                    raise StoreError(
                        f"the store {self.url} cannot be opened: {error}",
                        "check HORNBOOK_STORE: an absolute path, s3://bucket/prefix or gs://bucket/prefix",
                    ) from error
        return self._filesystem

    def path(self, name: str) -> str:
        """Return the path of `name` inside `filesystem` (what pyarrow's readers and writers take)."""
        _ = self.filesystem
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    def describe(self, name: str, options: bool = False) -> str:
        """Return the full path or URL of `name`, for messages; with the URL's own options, what `Store` opens again."""
        url, mark, query = self.url.partition("?")
        return f"{url.rstrip('/')}/{name}{mark + query if options else ''}"

    def exists(self, name: str) -> bool:
        """Tell whether a file or folder of this name exists."""
        from pyarrow.fs import FileType

        with self._reading(name):
            return bool(self.filesystem.get_file_info(self.path(name)).type != FileType.NotFound)

    def size(self, name: str) -> int:
        """Return a file's size in bytes, -1 if there is none."""
        from pyarrow.fs import FileType

        with self._reading(name):
            info = self.filesystem.get_file_info(self.path(name))
        return int(info.size) if info.type == FileType.File else -1

    def names(self, folder: str) -> list[str]:
        """Return the sorted base names inside `folder`, temporary files left out; empty if there is no such folder."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self.path(folder), allow_not_found=True)
        with self._reading(folder):
            names = {info.base_name for info in self.filesystem.get_file_info(selector)}
        return sorted(name for name in names if name and not name.startswith(TEMPORARY))

    def files(self, folder: str) -> list[tuple[str, int]]:
        """Return (name relative to `folder`, size in bytes) of every file below it, sorted."""
        from pyarrow.fs import FileSelector, FileType

        base = self.path(folder).rstrip("/") + "/"
        with self._reading(folder):
            infos = self.filesystem.get_file_info(FileSelector(base, recursive=True, allow_not_found=True))
        return sorted((info.path.removeprefix(base), int(info.size)) for info in infos if info.type == FileType.File)

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises StoreError when it is missing or unreadable."""
        with self._reading(name), self.filesystem.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    def read_json(self, name: str) -> Any:
        """Return a JSON file's value. Raises StoreError that names a damaged file.

        From an object store pyarrow asks for the size first and for that many bytes then: a file that was replaced in
        between comes torn or as a failed request, and whole when it is read again.
        """
        attempts = READS if self.local is None else 1
        for attempt in range(attempts):
            time.sleep(READ_PAUSE_SECONDS * 2 ** (attempt - 1) if attempt else 0)
            last = attempt == attempts - 1
            try:
                return json.loads(self.read(name))
            except ValueError as error:
                if last:
                    raise StoreError(
                        f"{self.describe(name)} is damaged: {error}",
                        "delete the folder that holds it; it will be made again",
                    ) from error
            except StoreError as error:
                if last or "INTERNAL_FAILURE" not in str(error.__cause__):
                    raise
        raise AssertionError("unreachable")

    def open_input(self, name: str) -> pa.NativeFile:
        """Open a file for random access. Raises StoreError when it is missing or unreadable."""
        with self._reading(name):
            return self.filesystem.open_input_file(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file, atomically."""
        with self._writing(name):
            if self.local is None:
                self._put(self.path(name), data)
                return
            temporary = self._temporary(name)
            try:
                self._put(temporary, data)
                os.replace(temporary, self.path(name))
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless it exists; tell whether it was written.

        Exclusive on a local disk. An object store has no such call here: the check comes first, then the put, so two
        writers in the same instant both succeed and the later one stays, whole.
        """
        with self._writing(name):
            if self.local is None:
                if self.exists(name):
                    return False
                self._put(self.path(name), data)
                return True
            temporary = self._temporary(name)
            try:
                self._put(temporary, data)
                os.link(temporary, self.path(name))
                return True
            except FileExistsError:
                return False
            finally:
                Path(temporary).unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as JSON, atomically."""
        self.write(name, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode())

    def delete(self, name: str) -> None:
        """Delete a file or a whole folder; nothing happens if there is none."""
        from pyarrow.fs import FileType

        with self._reading(name):
            kind = self.filesystem.get_file_info(self.path(name)).type
        with self._writing(name):
            if kind == FileType.Directory:
                self.filesystem.delete_dir(self.path(name))
            elif kind == FileType.File:
                self.filesystem.delete_file(self.path(name))

    def upload(self, folder: Path, name: str) -> None:
        """Copy a local folder's files to `name`, keeping relative paths. Not atomic: write a manifest afterwards."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            target = f"{name}/{file.relative_to(folder).as_posix()}"
            with self._writing(target), file.open("rb") as source:
                if self.local is not None:
                    Path(self.path(target)).parent.mkdir(parents=True, exist_ok=True)
                with self.filesystem.open_output_stream(self.path(target)) as sink:
                    while block := source.read(1 << 24):
                        sink.write(block)

    def download(self, name: str, folder: Path) -> Path:
        """Return a local folder with the files of `name`: the store's own if it is local, else a copy in `folder`.

        Processes of one node that ask at the same time wait for the first one, which copies for all.
        """
        if self.local is not None:
            return self.local / name
        from filelock import FileLock

        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            for relative, size in self.files(name):
                target = folder / relative
                if target.exists() and target.stat().st_size == size:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
                with self.open_input(f"{name}/{relative}") as source, temporary.open("wb") as sink:
                    while block := source.read(1 << 24):
                        sink.write(block)
                temporary.replace(target)
        return folder

    def state(self, folder: str) -> list[tuple[str, int, int]]:
        """Return (name relative to `folder`, size, time of change in ns) of every file below it, sorted."""
        from pyarrow.fs import FileSelector, FileType

        base = self.path(folder).rstrip("/") + "/"
        infos = self.filesystem.get_file_info(FileSelector(base, recursive=True, allow_not_found=True))
        files = [info for info in infos if info.type == FileType.File]
        return sorted((info.path.removeprefix(base), int(info.size), int(info.mtime_ns)) for info in files)

    def _temporary(self, name: str) -> str:
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        return str(target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}"))

    def _put(self, path: str, data: bytes) -> None:
        if self.local is None:
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(f"there is no {self.describe(name)}") from error
        except OSError as error:
            raise _unreadable(self.describe(name), error) from error

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage_failure(self.describe(name), error) from error


def _single_put(url: str) -> str:
    """Ask pyarrow to send small S3 objects in one put, not as a multipart upload: one request, and atomic."""
    if not url.startswith("s3://") or "allow_delayed_open" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}allow_delayed_open=true"


def _unreadable(where: str, error: OSError) -> StoreError:
    text = str(error)
    if isinstance(error, PermissionError) or "ACCESS_DENIED" in text or "Forbidden" in text:
        cure = "this user may not read there: check the file's owner, or the credentials for the bucket"
    elif "NO_SUCH_BUCKET" in text:
        cure = "there is no such bucket: check HORNBOOK_STORE"
    else:
        cure = "check HORNBOOK_STORE, the network and the disk, then run again: what was finished is kept"
    return StoreError(f"{where} cannot be read: {error.strerror or text}", cure)


def storage_failure(where: str, error: OSError) -> StoreError:
    """Turn a failed write into a StoreError with the cure for its cause."""
    cures = {
        errno.ENOSPC: "the disk is full: free space (`hornbook gc` shows what is no longer needed) and run again; "
        "what was finished is kept",
        errno.EDQUOT: "the disk quota is used up: free space and run again; what was finished is kept",
        errno.EACCES: "this user may not write there: choose another HORNBOOK_STORE",
        errno.EROFS: "the file system is read-only: choose another HORNBOOK_STORE",
    }
    cure = cures.get(error.errno or 0, "check that HORNBOOK_STORE is reachable and writable, then run again")
    return StoreError(f"{where} cannot be written: {error.strerror or error}", cure)


def store_url() -> str:
    """Return the store's URL: HORNBOOK_STORE, else `hornbook-store` in the current folder.

    Raises:
        StoreError: the path is relative inside a Ray job, whose working directory is a temporary copy.
    """
    url = os.environ.get("HORNBOOK_STORE", "")
    if "://" in url or os.path.isabs(url):
        return url
    if in_ray_job():
        raise StoreError(
            f"HORNBOOK_STORE is {url!r} inside a Ray job, whose working directory is a temporary copy",
            "set HORNBOOK_STORE to an absolute path or a URL: "
            'ray job submit --runtime-env-json \'{"env_vars": {"HORNBOOK_STORE": "/data/hornbook"}}\' ...',
        )
    return os.path.abspath(url or DEFAULT_FOLDER)


def open_store() -> Store:
    """Open the store that `store_url` names."""
    return Store(store_url())


def in_ray_job() -> bool:
    """Tell whether this process is the entry point of a submitted Ray job."""
    return bool(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))
