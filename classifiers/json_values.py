"""JSON files as records: each object of an array, or each object that follows another, found without reading the file whole.

Only brackets and quotes are looked at to find where a value ends, so a value that is no JSON inside is one reject and the next
one is found all the same. A line end inside a string closes it (JSON allows none there), so a forgotten quote costs a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from classifiers.byte_streams import Stream
from classifiers.lines import LOOKED_AT, binary, json_text
from classifiers.records import Bad, Record, Told, bad_record, decoded, too_long

if TYPE_CHECKING:
    from classifiers.files import FilesSettings

WHITE = re.compile(rb"\s*")
BETWEEN = re.compile(rb"[\s,\]]*")
OUTSIDE = re.compile(rb'["{}\[\]]')
INSIDE = re.compile(rb'["\\\n]')
PLAIN_END = re.compile(rb"[\s,\]{}\[\"]")
BOM = b"\xef\xbb\xbf"


def json_records(stream: Stream, settings: FilesSettings) -> Iterator[Record]:
    """Yield a record per value, from where the stream is: the start of the file, or of a value."""
    if stream.offset == 0 and (found := binary(stream.peek()[:LOOKED_AT])):
        yield bad_record(0, 0, "binary", found)
        return
    scan = _Scan(stream, settings.max_bytes)
    if scan.base == 0:
        scan.enter_array()
    while scan.next_value():
        offset, data, size = scan.value()
        if data is None:
            bad = too_long(size, settings.max_bytes, f" at byte {offset}")
            yield bad_record(offset, 0, bad.reason, bad.detail)
        else:
            yield Record(offset, 0, size, _Value(data, offset, settings))


class _Value:
    __slots__ = ("data", "offset", "settings")

    def __init__(self, data: bytes, offset: int, settings: FilesSettings) -> None:
        self.data, self.offset, self.settings = data, offset, settings

    def __call__(self) -> str | Bad | Told:
        text = decoded(self.data, self.offset, self.settings.encoding)
        return text if isinstance(text, Bad) else json_text(text, self.offset, self.settings)


class _Scan:
    """Where values begin and end; holds one block, and one value of at most `max_bytes`."""

    def __init__(self, stream: Stream, max_bytes: int) -> None:
        self.stream, self.max_bytes = stream, max_bytes
        self.base, self.block, self.at = stream.offset, b"", 0

    def more(self) -> bool:
        """Go on to the next block; False at the end."""
        self.base = self.stream.offset
        self.block, self.at = self.stream.read(), 0
        return bool(self.block)

    def enter_array(self) -> None:
        """Pass the bracket of an array that is the whole file."""
        self.more()
        self.at = len(BOM) if self.block.startswith(BOM) else 0
        self.at = WHITE.match(self.block, self.at).end()  # type: ignore[union-attr]
        while self.at == len(self.block) and self.more():
            self.at = WHITE.match(self.block).end()  # type: ignore[union-attr]
        self.at += self.block[self.at : self.at + 1] == b"["

    def next_value(self) -> bool:
        """Go to where a value begins; False at the end."""
        while True:
            found = BETWEEN.match(self.block, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.block):
                return True
            if not self.more():
                return False

    def value(self) -> tuple[int, bytes | None, int]:
        """Return (byte at which the value begins, its bytes or None beyond the limit, how many they are)."""
        offset = self.base + self.at
        first = self.block[self.at : self.at + 1]
        pieces: list[bytes] | None = []
        size, depth, text, escaped = 0, 0, False, False
        begin = self.at
        if first not in b'{["':
            self.at += 1
        while True:
            done, depth, text, escaped = self._to_end(first, depth, text, escaped)
            size += self.at - begin
            if pieces is not None:
                pieces.append(self.block[begin : self.at])
                if size > self.max_bytes:
                    pieces = None
            if done or not self.more():
                return offset, None if pieces is None else b"".join(pieces), size
            begin = 0

    def _to_end(self, first: bytes, depth: int, text: bool, escaped: bool) -> tuple[bool, int, bool, bool]:
        """Go on to the end of the value or of the block; return whether that is the value's, and the state there."""
        block, at = self.block, self.at
        if first not in b'{["':
            found = PLAIN_END.search(block, at)
            self.at = found.start() if found else len(block)
            return found is not None, 0, False, False
        while at < len(block):
            if escaped:
                at, escaped = at + 1, False
                continue
            found = (INSIDE if text else OUTSIDE).search(block, at)
            if found is None:
                at = len(block)
                break
            at, mark = found.end(), found.group()
            if text:
                escaped = mark == b"\\"
                text = escaped
            elif mark == b'"':
                text = True
            else:
                depth += 1 if mark in b"{[" else -1
            if not text and not escaped and depth <= 0:
                self.at = at
                return True, 0, False, False
        self.at = at
        return False, depth, text, escaped
