"""Tar and zip archives as records: those of each file in them, in order; a file that holds no known format is one reject.

Nothing is unpacked to a disk, so names such as `../../etc/passwd` lead nowhere. A tar is read from front to back, compressed or
not, and entered at the header of any member; a zip at any member. `max_member_bytes` bounds what one member may expand to, and
`max_file_bytes` what all of them may.
"""

from __future__ import annotations

import itertools
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from classifiers.byte_streams import Stream, limited_stream, member_stream
from classifiers.records import Broken, Record, bad_record
from hornbook.errors import DataError

if TYPE_CHECKING:
    from classifiers.files import FilesSettings

TAR_BLOCK = 512  # bytes
ZIP_HEADER = 30  # bytes before a member's name and content
LONGEST_NAME = 1 << 20  # bytes of a member's extended header; more is no name

MemberReader = Callable[[Stream, str], Iterator[Record]]
"""Gives the records of a member by its stream and name."""


def tar_records(stream: Stream, settings: FilesSettings, read_member: MemberReader) -> Iterator[Record]:
    """Yield the records of a tar's members, from where the stream is: the start, or a member's header."""
    while (member := _next_member(stream)) is not None:
        header, name, size = member
        end = stream.offset + size
        padded = _padded(size) + stream.offset
        if size > settings.max_member_bytes:
            detail = f"{size} bytes, max_member_bytes is {settings.max_member_bytes}"
            yield bad_record(header, 0, "too-large", detail, {"member": name})
        else:
            content = member_stream(stream, size, name, settings.max_member_bytes)
            yield from _member_records(content, name, header, read_member)
        stream.skip(padded - stream.offset)
        if stream.offset < end:
            raise Broken("unreadable-rest", f"the archive ends inside its member {name!r}")


def zip_records(file: Any, settings: FilesSettings, read_member: MemberReader, first: int = 0) -> Iterator[Record]:
    """Yield the records of a zip's members, from member number `first` on; a record's `offset` is that number."""
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:  # also what later versions may do
        raise Broken("not-zip", str(error)) from error
    entries = archive.infolist()
    _require_apart(entries)
    expanded = 0
    for number, entry in enumerate(entries):
        expanded += entry.file_size  # zipfile gives no more than a member's entry says
        if expanded > settings.max_file_bytes:
            detail = f"with its member {entry.filename!r} it expands to more than {settings.max_file_bytes} bytes"
            raise Broken("too-large", f"{detail}, max_file_bytes")
        if number < first or entry.is_dir():
            continue
        try:
            opened = archive.open(entry)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError) as error:  # encrypted, unknown method
            yield bad_record(number, 0, "unreadable-member", str(error), {"member": entry.filename})
            continue
        with opened:
            content = limited_stream(opened, entry.filename, settings.max_member_bytes)
            yield from _member_records(content, entry.filename, number, read_member)


def _require_apart(entries: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse members that share their bytes: a small zip in which each of many members is the same huge one."""
    placed = sorted(entries, key=lambda entry: entry.header_offset)
    for entry, following in itertools.pairwise(placed):
        if entry.header_offset + ZIP_HEADER + entry.compress_size > following.header_offset:
            raise Broken("not-zip", f"its members {entry.filename!r} and {following.filename!r} overlap")


def _member_records(content: Stream, name: str, start: int, read_member: MemberReader) -> Iterator[Record]:
    """Yield a member's records, placed where its archive can be entered. A member that breaks off is one reject more."""
    count = 0
    try:
        for record in read_member(content, name):
            yield replace(record, offset=start, skip=count, meta={"member": name, **record.meta})
            count += 1
    except Broken as broken:
        yield bad_record(start, count, broken.reason, broken.detail, {"member": name})
    except DataError as error:
        yield bad_record(start, count, "no-column", error.message, {"member": name})


def _next_member(stream: Stream) -> tuple[int, str, int] | None:
    """Return (byte of the first of its headers, name, bytes) of the next regular file; None at the end of the archive."""
    start = stream.offset
    name: str | None = None
    size_said: str | None = None
    while True:
        offset = stream.offset
        block = stream.exactly(TAR_BLOCK)
        if not block.strip(b"\0"):
            return None
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise Broken("unreadable-rest", f"no tar header at byte {offset}: {error}") from error
        size, kind = member.size, member.type
        if size < 0:
            raise Broken("unreadable-rest", f"no tar header at byte {offset}: a size of {size}")
        if kind in (b"L", b"x"):
            if size > LONGEST_NAME:
                raise Broken("unreadable-rest", f"a member's extended header of {size} bytes at byte {offset}")
            data = stream.exactly(_padded(size))[:size]
            said = {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")} if kind == b"L" else _extended(data)
            name, size_said = said.get("path", name), said.get("size", size_said)
        elif member.isreg():
            shown = (name or member.name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            return start, shown, int(size_said) if size_said and size_said.isdigit() else size
        elif kind in (b"g", b"K"):  # before the member as well, and nothing that is wanted
            stream.skip(_padded(size))
        else:
            stream.skip(0 if kind in tarfile.SUPPORTED_TYPES else _padded(size))  # links and folders have no content
            start, name, size_said = stream.offset, None, None


def _padded(size: int) -> int:
    return -(-size // TAR_BLOCK) * TAR_BLOCK


def _extended(data: bytes) -> dict[str, str]:
    """Return the entries of a POSIX extended header: lines of `LENGTH KEY=VALUE`."""
    entries: dict[str, str] = {}
    while data:
        length, _, rest = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            break
        entry = rest[: int(length) - len(length) - 2]
        key, _, value = entry.partition(b"=")
        entries[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return entries
