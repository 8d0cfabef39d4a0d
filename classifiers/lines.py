"""Lines of a file as records: of text, or of JSON (JSON Lines). A line is never held beyond `max_bytes`."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from classifiers.byte_streams import Stream
from classifiers.records import WHOLE, Bad, Record, Told, bad_record, checked, chosen, decoded, too_long
from hornbook.documents import canonical_json

if TYPE_CHECKING:
    from classifiers.files import FilesSettings

LOOKED_AT = 8192  # bytes at the start of a file, to tell text from what only has the name of it


def line_records(stream: Stream, settings: FilesSettings, as_json: bool) -> Iterator[Record]:
    """Yield a record per line, from where the stream is; a binary file under a text's name is one reject."""
    if stream.offset == 0 and (found := binary(stream.peek()[:LOOKED_AT])):
        yield bad_record(0, 0, "binary", found)
        return
    while True:
        offset = stream.offset
        line = stream.readline(settings.max_bytes + 1)
        if not line:
            return
        size = len(line)
        if size > settings.max_bytes and not line.endswith(b"\n"):
            bad = too_long(size + stream.end_line(), settings.max_bytes, f" at byte {offset}")
            yield bad_record(offset, 0, bad.reason, bad.detail)
            continue
        yield Record(offset, 0, size, _Line(line, offset, as_json, settings))


class _Line:
    """Reads a line's text when it is asked for."""

    __slots__ = ("as_json", "line", "offset", "settings")

    def __init__(self, line: bytes, offset: int, as_json: bool, settings: FilesSettings) -> None:
        self.line, self.offset, self.as_json, self.settings = line, offset, as_json, settings

    def __call__(self) -> str | Bad | Told:
        line = self.line.removesuffix(b"\n").removesuffix(b"\r")
        start = self.offset
        if start == 0 and line.startswith(codecs.BOM_UTF8):
            line, start = line[len(codecs.BOM_UTF8) :], len(codecs.BOM_UTF8)
        text = decoded(line, start, self.settings.encoding)
        if isinstance(text, Bad):
            return text
        if self.as_json and text.strip():
            return json_text(text, self.offset, self.settings)
        return checked(text, "line", self.settings.max_bytes)


def json_text(value: str, offset: int, settings: FilesSettings) -> str | Bad | Told:
    """Return the chosen field of a JSON object, or all of it, or what is wrong with it."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        return Bad("not-json", f"at byte {offset}: {error}")
    if settings.text_field == WHOLE:
        whole = canonical_json(found) if isinstance(found, dict) else None
        return checked(whole, "the object", settings.max_bytes)
    return chosen(found if isinstance(found, dict) else {}, settings)


def binary(start: bytes) -> str:
    """Say what shows that a file which begins like this holds no lines of text; empty where nothing does.

    NUL bytes alone do not: a machine that lost power leaves runs of them in a log. With bytes that are no UTF-8 they do.
    """
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16, which has no lines of bytes: write the file as UTF-8"
    if b"\0" not in start:
        return ""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start.replace(b"\0", b""))
    except UnicodeDecodeError as error:
        return f"NUL bytes, and not UTF-8 at byte {error.start}: the file holds no text"
    return ""
