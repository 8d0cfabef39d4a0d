"""Web archives (WARC, WET; plain or compressed) as records: the pages that were fetched, as raw HTML or text.

Planned are all records that hold something fetched (`response`, `resource`) or made of it (`conversion`), whatever came of
them: what is no text, or was an error of the server, is a reject. Compressed record by record, as archives of the web are, the
file can be entered at any record; where one is damaged, reading goes on at the next that begins like one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa

from classifiers.records import Bad, Broken, Record, bad_record, checked, page_text, too_long

if TYPE_CHECKING:
    from classifiers.files import FilesSettings

HEADERS = 1 << 16  # bytes that an HTTP header may take beside the page
BLOCK = 1 << 20  # bytes
TEXT_TYPES = ("text/", "application/xhtml", "application/xml", "application/json")
PAGE_TYPES = ("text/html", "application/xhtml")
GZIP_MAGIC = b"\x1f\x8b\x08"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

HTTP_RECORD = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: %d\r\n\r\n"


def warc_records(file: BinaryIO, codec: str | None, settings: FilesSettings, first: int = 0) -> Iterator[Record]:
    """Yield a record per fetched page, from byte `first` of the (compressed) file on. Raises Broken where no more follow."""
    magic = {"gzip": GZIP_MAGIC, "zstd": ZSTD_MAGIC}.get(codec or "", b"WARC/1.")
    start, entry, skip, end, torn = first, first, 0, file.seek(0, 2), False
    while start < end:
        position = start - 1
        for found in _archive(file, start):
            if isinstance(found, str):
                problem = found
                break
            if found.stream_pos > position and _begins(file, found.stream_pos, magic):
                entry, skip = found.stream_pos, 0
            position = found.stream_pos
            record = _record(found, entry, skip, settings)
            if record is not None:
                yield record
                skip += 1
                torn = record.size == 0
        else:
            if codec and not torn:
                _require_whole(file, entry, codec)
            return
        following = _next_start(file, max(position, start) + 1, magic)
        while following is not None and isinstance(next(_archive(file, following), ""), str):
            following = _next_start(file, following + 1, magic)
        if following is None:
            raise Broken("unreadable-rest", f"after the record at byte {max(position, first)}: {problem}")
        yield bad_record(entry, skip, "unreadable-record", f"before byte {following}: {problem}")
        skip += 1
        start = following


def _archive(file: BinaryIO, start: int) -> Iterator[Any]:
    """Yield fastwarc's records from a byte on, at last a text where it cannot go on."""
    from fastwarc.warc import ArchiveIterator

    file.seek(start)
    found = iter(ArchiveIterator(_At(file, start), parse_http=False, fsspec_args=False))
    while True:
        try:
            record = next(found)
        except StopIteration:
            return
        except OSError as error:
            yield str(error)
            return
        yield record


class _At:
    """A file that one reader reads on in while another looks elsewhere in it."""

    def __init__(self, file: BinaryIO, at: int) -> None:
        self.file, self.at = file, at

    def read(self, size: int = -1) -> bytes:
        self.file.seek(self.at)
        data = self.file.read(size if 0 <= size < BLOCK else BLOCK)
        self.at += len(data)
        return data

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence:
            raise OSError("only from the start")
        self.at = offset
        return offset

    def readable(self) -> bool:
        return True

    closed = False

    def close(self) -> None:
        pass


def _begins(file: BinaryIO, at: int, magic: bytes) -> bool:
    file.seek(at)
    return file.read(len(magic)) == magic


def _next_start(file: BinaryIO, at: int, magic: bytes) -> int | None:
    """Return the first byte from `at` on where a record may begin, None if there is none."""
    tail = b""
    file.seek(at)
    while block := file.read(BLOCK):
        found = (tail + block).find(magic)
        if found >= 0:
            return at - len(tail) + found
        at += len(block)
        tail = (tail + block)[-len(magic) + 1 :]
    return None


def _require_whole(file: BinaryIO, entry: int, codec: str) -> None:
    """Raise Broken where a compressed file does not end as it should, which fastwarc takes for an end.

    From the last place at which it could be entered on: a record, where each was compressed for itself.
    """
    stream = pa.CompressedInputStream(_At(file, entry), codec)
    try:
        while stream.read(BLOCK):
            pass
    except (OSError, pa.ArrowException) as error:
        raise Broken("unreadable-rest", f"after the record at byte {entry}: {error}") from error


def _record(found: Any, entry: int, skip: int, settings: FilesSettings) -> Record | None:
    """Return what a WARC record is to a corpus, None if it holds no page. Its content is read at once, within the limit."""
    from fastwarc.warc import WarcRecordType

    said = found.headers.get("Content-Length")
    meta = {"url": found.headers.get("WARC-Target-URI") or "", "date": found.headers.get("WARC-Date") or ""}
    if said is None:
        return bad_record(entry, skip, "truncated", "a WARC record that ends inside its header", meta)
    pages = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
    if not found.record_type & pages:
        return None
    if found.content_length > settings.max_bytes + HEADERS:
        bad = too_long(found.content_length, settings.max_bytes, f" at byte {entry}")
        return bad_record(entry, skip, bad.reason, bad.detail, meta)
    try:
        content = found.reader.read()
    except OSError as error:
        return bad_record(entry, skip, "truncated", f"{entry}: {error}", meta)
    if len(content) < found.content_length:
        detail = f"{len(content)} of {found.content_length} bytes at byte {entry}"
        return bad_record(entry, skip, "truncated", detail, meta)
    page = _Page(found, content, settings)
    return Record(entry, skip, len(content), page, page.meta(meta), "html" if page.is_html else "text")


def _http_record(content: bytes) -> Any:
    """Return a record of its own with its HTTP header parsed: one that fails to parse leaves fastwarc's reading undisturbed."""
    from fastwarc.warc import WarcRecord

    record = WarcRecord.from_bytes(HTTP_RECORD % len(content) + content + b"\r\n\r\n")
    record.parse_http(auto_decode="all")
    return record


class _Page:
    """A page whose HTTP header was read; its content is decoded when the text is asked for."""

    def __init__(self, found: Any, content: bytes, settings: FilesSettings) -> None:
        self.settings, self.problem = settings, ""
        self.status: int | None = None
        self.type, self.charset = found.headers.get("Content-Type") or "", None
        self.reader: Any = None
        if not found.is_http:
            self.reader = io.BytesIO(content)
            return
        try:
            answer = _http_record(content)
            self.reader = answer.reader
        except (OSError, ValueError) as error:
            self.problem = str(error)
            return
        self.type, self.charset = answer.http_content_type or "", answer.http_charset
        self.status = answer.http_headers.status_code if answer.http_headers else None

    @property
    def is_html(self) -> bool:
        return self.type.startswith(PAGE_TYPES)

    def meta(self, known: dict[str, Any]) -> dict[str, Any]:
        return {**known, "content_type": self.type, **({"status": self.status} if self.status else {})}

    def __call__(self) -> str | Bad:
        if self.problem:
            return Bad("not-http", self.problem)
        if self.status is not None and not 200 <= self.status < 300:
            return Bad("http-status", f"the server answered {self.status}")
        if not self.type.startswith(TEXT_TYPES):
            return Bad("no-text", f"content of type {self.type!r}")
        try:
            data = self.reader.read(self.settings.max_bytes + 1)
        except OSError as error:
            return Bad("unreadable-content", str(error))
        if len(data) > self.settings.max_bytes:
            return Bad("too-long", f"more than {self.settings.max_bytes} bytes, max_bytes")
        text, _ = page_text(data, self.charset)
        return text if isinstance(text, Bad) else checked(text, "page", self.settings.max_bytes)
