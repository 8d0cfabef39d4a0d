"""What every format gives: records, each one planned unit, which are either a text or the reason why there is none.

The plan and the workers run the same readers: the plan counts what they yield and never asks for a text, so that both agree
on how many records a damaged file holds.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hornbook.errors import DataError

if TYPE_CHECKING:
    from classifiers.files import FilesSettings

REPLACED_SHARE = (
    0.01  # of a page's characters; a page with more that its encoding does not know was not in that encoding
)
DETECTED_BYTES = 5 * 1024
WHOLE = "*"
"""In place of a field's name: the whole record, as JSON."""
BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


@dataclass(frozen=True)
class Bad:
    """Why a record is no document: a short reason, counted in the manifest, and what a person needs to know."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Told:
    """A record's text, and what the fields that were asked for say beside it."""

    text: str
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """One planned unit of a file.

    Attributes:
        offset: byte of the (decompressed) file, or row of a file of columns, from which its reader can start, to find this record
            `skip` records on.
        skip: records between the one at `offset` and this one; 0 where every record can be the first one read.
        size: bytes that it takes in memory, about.
        read: gives the text, or says what is wrong with the record; called by workers only, at once.
        meta: what is known beside the text (URL, date, member of an archive).
        kind: what the document is called: `text`, `html`, `code`.
    """

    offset: int
    skip: int
    size: int
    read: Callable[[], str | Bad | Told]
    meta: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "text"


class Broken(Exception):
    """A file cannot be read further: what came before stays, the rest is one reject of this reason."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def bad_record(offset: int, skip: int, reason: str, detail: str, meta: Mapping[str, Any] | None = None) -> Record:
    """Return a record that is a reject."""
    bad = Bad(reason, detail)
    return Record(offset, skip, 0, lambda: bad, meta or {})


def checked(text: Any, field_name: str, max_bytes: int) -> str | Bad:
    """Return a value if it is a text that a corpus can hold, else what is wrong with it."""
    if not isinstance(text, str):
        return Bad("no-text", f"{field_name!r} is missing, or not text")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:  # JSON can spell half a character: "\ud800"
        return Bad("encoding", f"half a surrogate pair at character {error.start}")
    if size > max_bytes:
        return too_long(size, max_bytes)
    if "\0" in text:
        return Bad("nul-bytes", f"a NUL at character {text.index(chr(0))}")
    return text if text.strip() else Bad("empty", "only white space")


def chosen(row: Mapping[str, Any], settings: FilesSettings) -> str | Bad | Told:
    """Return the text of a row, with the fields that `meta_fields` names where there are any, or what is wrong with it.

    What JSON has not (a time, bytes, NaN) is written as Python shows it; half a surrogate pair is a question mark.
    """
    found = checked(row.get(settings.text_field), settings.text_field, settings.max_bytes)
    if isinstance(found, Bad) or not settings.meta_fields:
        return found
    fields = {name: row[name] for name in settings.meta_fields if row.get(name) is not None}
    told = json.dumps(fields, default=str, ensure_ascii=False).encode("utf-8", "replace")
    if len(told) > settings.max_bytes:
        return too_long(len(told), settings.max_bytes, " in meta_fields")
    return Told(found, json.loads(told, parse_constant=str))


def require_columns(names: Sequence[str], file: str, settings: FilesSettings) -> None:
    """Refuse a table without a column that is asked for, or with two of that name. Raises DataError naming file and setting."""
    if settings.text_field == WHOLE:
        return
    for setting, columns in (("text_field", (settings.text_field,)), ("meta_fields", settings.meta_fields)):
        for column in columns:
            if (found := names.count(column)) != 1:
                number = "several columns" if found else "no column"
                raise DataError(f"{file} has {number} {column!r} (it has: {', '.join(names)})", f"set {setting}")


def too_long(size: int, max_bytes: int, where: str = "") -> Bad:
    """Return the reject of a record beyond the limit."""
    return Bad("too-long", f"{size} bytes{where}, max_bytes is {max_bytes}")


def decoded(data: bytes, offset: int, encoding: str) -> str | Bad:
    """Return bytes as text: of the encoding exactly, or as detected where that is `detect`."""
    if encoding == "detect":
        return page_text(data)[0]
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8" else encoding
        return Bad("encoding", f"not {name} at byte {offset + error.start}: {error.reason}")


def page_text(data: bytes, declared: str | None = None) -> tuple[str | Bad, str]:
    """Return a page's text, and the encoding that it was in.

    A byte order mark counts first, then what the server declared, then what the page declares, then what the bytes look
    like. A few characters that the encoding does not know are replaced, as browsers do; many make the page a reject.
    """
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    marked = [(mark, name) for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)]
    encoding, text = "utf-8", ""
    if marked:
        mark, encoding = marked[0]
        text = data[len(mark) :].decode(encoding, "replace")
    else:
        known = map_encoding_to_html5(declared, fallback_utf8=False) if declared else None
        for found in (known, detect_encoding(data, DETECTED_BYTES, from_html_meta=True)):
            if found is None:
                continue
            encoding = found
            try:
                text = data.decode(encoding, "replace")
            except LookupError:  # a browser's encoding that Python has not
                text = data.decode("utf-8", "replace")
            if _fits(text):
                break
    if not _fits(text):
        return Bad("encoding", f"{text.count(chr(0xFFFD))} characters are not {encoding}"), encoding
    return text, encoding


def _fits(text: str) -> bool:
    return text.count(chr(0xFFFD)) <= max(1, REPLACED_SHARE * len(text))
