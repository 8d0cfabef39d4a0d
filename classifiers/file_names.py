"""Which files the paths of a recipe name, which format a name says, and how a file or URL is opened."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from classifiers.byte_streams import codec_of
from hornbook.errors import DataError

FORMATS = {
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather"),
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "xml": (".xml",),
    "warc": (".warc", ".wet"),
    "html": (".html", ".htm", ".xhtml"),
    "tar": (".tar", ".tgz"),
    "zip": (".zip",),
    "markdown": (".md", ".markdown", ".rst"),
    "code": (
        ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".cu", ".cs", ".java", ".kt", ".scala", ".go", ".rs",
        ".js", ".mjs", ".jsx", ".ts", ".tsx", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".swift", ".m", ".hs", ".ml", ".ex",
        ".erl", ".clj", ".lisp", ".el", ".f90", ".sh", ".bash", ".ps1", ".sql", ".css", ".scss", ".tex", ".yaml", ".yml", ".toml",
        ".proto", ".dart", ".zig", ".v", ".sv", ".vhd", ".asm", ".s",
    ),
    "text": (".txt", ".text", ".log"),
}  # fmt: skip
BY_ENDING = {ending: name for name, endings in FORMATS.items() for ending in endings}
DATA_FORMATS = ("parquet", "arrow")
ROW_FORMATS = ("jsonl", "json", "csv", "tsv")
CARDS = ("README.md", "dataset_infos.json")
"""What the hub keeps beside a dataset's rows, at the top of its folder."""
SAVED_DATASET = ("state.json", "dataset_dict.json")


def format_named(name: str) -> str | None:
    """Return the format that a file's name says, its compression left aside; None where it says none."""
    path = Path(path_of(name).lower())
    found = BY_ENDING.get(path.suffix)
    if found is None and codec_of(path.name) is not None:
        found = BY_ENDING.get(Path(path.stem).suffix)
    return found


def shown(name: str) -> str:
    """Return a name for messages, documents and rejects: a URL without its options and credentials."""
    if "://" not in name:
        return name
    parts = urlsplit(name)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def named_files(path: str) -> list[str]:
    """Return the files that a path, pattern, folder or URL of one names, sorted; empty if there is none."""
    if "://" in path:
        return _remote_files(path)
    expanded = Path(path).expanduser()
    if expanded.is_file():
        return [_absolute(expanded)]
    if expanded.is_dir():
        return _folder_files(expanded.resolve())
    root = Path(expanded.anchor or ".")
    pattern = str(expanded.relative_to(root)) if expanded.anchor else str(expanded)
    found: set[str] = set()
    for match in root.glob(pattern):
        found.update(_folder_files(match.resolve()) if match.is_dir() else [_absolute(match)])
    return sorted(found)


def _absolute(path: Path) -> str:
    """Return a file's absolute path by its own name: what it links to may have another ending, or none (the hub's cache)."""
    return str(path.parent.resolve() / path.name)


def _folder_files(folder: Path) -> list[str]:
    """Return what a folder holds: a saved dataset's files in order, else its Parquet and Arrow files, else all of known
    formats; those whose names begin with a dot are left out."""
    if (folder / "state.json").is_file():
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return [str(folder / Path(entry["filename"]).name) for entry in state["_data_files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}/state.json is damaged: {error!r}", "save the dataset again") from error
    if (folder / "dataset_dict.json").is_file():
        return [file for split in sorted(folder.iterdir()) if split.is_dir() for file in _folder_files(split)]
    return _without_card(_wanted(_plain_files(folder)), folder)


def passed_over(path: str) -> list[str]:
    """Return the files of a local folder whose names say a format and that are not read, since it has tables."""
    folder = Path(path).expanduser()
    if "://" in path or not folder.is_dir() or any((folder / name).is_file() for name in SAVED_DATASET):
        return []
    known = [name for name in _plain_files(folder.resolve()) if format_named(name) is not None]
    return sorted(set(known) - set(_wanted(known)))


def _plain_files(folder: Path) -> list[str]:
    return sorted(
        str(found)
        for found in folder.rglob("*")
        if found.is_file() and not any(part.startswith(".") for part in found.relative_to(folder).parts)
    )


def _without_card(files: list[str], folder: Path) -> list[str]:
    """Leave out the card of a folder that is a dataset of the hub's: one of rows, described in a README with a YAML head."""
    cards = {str(folder / name) for name in CARDS}
    others = [name for name in files if name not in cards]
    readme = folder / CARDS[0]
    if not readme.is_file() or not any(format_named(name) in ROW_FORMATS for name in others):
        return files
    with readme.open("rb") as file:
        return others if file.read(3) == b"---" else files


def _wanted(files: list[str]) -> list[str]:
    data = [name for name in files if format_named(name) in DATA_FORMATS]
    return data or [name for name in files if format_named(name) is not None]


def _remote_files(url: str) -> list[str]:
    """Return the URLs that a URL names: itself, what its pattern (`*`, `**`) matches, or what lies in its folder."""
    from pyarrow.fs import FileSelector, FileSystem, FileType

    base, mark, query = url.partition("?")
    try:
        if "*" not in base:
            system, path = FileSystem.from_uri(url)
            if system.get_file_info(path).type != FileType.Directory:
                return [url]  # whether it can be opened is said when it is
            pattern = None
        else:
            folder = base[: base.index("*")].rpartition("/")[0]
            system, path = FileSystem.from_uri(f"{folder}{mark}{query}")
            pattern = _pattern(base[len(folder) + 1 :])
            base = folder
        infos = system.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{shown(url)} cannot be looked at: {error}", "check the URL and the credentials") from error
    inside = [info.path[len(path) :].lstrip("/") for info in infos if info.type == FileType.File]
    kept = sorted(name for name in inside if pattern is None or pattern.fullmatch(name))
    if pattern is None:
        kept = _wanted([name for name in kept if not any(part.startswith(".") for part in name.split("/"))])
        kept = [name for name in kept if name not in CARDS] if base.startswith("hf:") else kept
    return [f"{base.rstrip('/')}/{name}{mark}{query}" for name in kept]


def _pattern(glob: str) -> re.Pattern[str]:
    """Return a glob as a regular expression: `**/` any folders, `*` anything within one name."""
    pieces = re.split(r"(\*\*/|\*)", glob)
    return re.compile("".join({"**/": "(?:.*/)?", "*": "[^/]*"}.get(piece, re.escape(piece)) for piece in pieces))


def opened(name: str) -> Any:
    """Open a local path or a URL for reading, from any byte. Raises DataError with the cause."""
    try:
        if "://" not in name:
            return Path(name).open("rb")
        from pyarrow.fs import FileSystem

        system, path = FileSystem.from_uri(name)
        return io.BufferedReader(system.open_input_file(path))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{shown(name)} cannot be opened: {error}", "check the path, the permissions, the credentials"
        ) from error


def remote_mark(name: str) -> str:
    """Return a digest of a remote file's size and time of change, which stand for its content."""
    from pyarrow.fs import FileSystem

    try:
        system, path = FileSystem.from_uri(name)
        info = system.get_file_info(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{shown(name)} cannot be looked at: {error}", "check the URL and the credentials") from error
    return hashlib.sha256(f"{name} {info.size} {info.mtime_ns}".encode()).hexdigest()


def path_of(name: str) -> str:
    """Return a name without a URL's options, so that it ends as the file does."""
    return name.partition("?")[0] if "://" in name else name
