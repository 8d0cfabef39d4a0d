"""XML files as records: each element of the chosen name, with all text inside it.

XML cannot be entered in the middle and must be whole: from the first error on, the rest of the file is one reject. Entities of
the file's own are refused, as they can spell a terabyte in a line; so are elements 10,000 deep and tags of megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.parsers import expat

from classifiers.byte_streams import Stream
from classifiers.records import Broken, Record, bad_record, checked, too_long

if TYPE_CHECKING:
    from classifiers.files import FilesSettings

DEEPEST = 10_000
LARGEST_TAG = 4 << 20  # bytes between two things that the parser understood


def xml_records(stream: Stream, settings: FilesSettings) -> Iterator[Record]:
    """Yield a record per element named `text_field`, from the start of the file. Raises Broken at what is no XML."""
    elements = _Elements(settings)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    elements.listen(parser)
    found = 0
    while True:
        block, problem = stream.read(), None
        try:
            parser.Parse(block, not block)
        except (expat.ExpatError, Broken) as error:
            problem = error
        for offset, size, text in elements.take():
            if text is None:
                bad = too_long(size, settings.max_bytes, f" at byte {offset}")
                yield bad_record(0, found, bad.reason, bad.detail)
            else:
                yield Record(0, found, size, _Text(text, settings))
            found += 1
        if isinstance(problem, Broken):
            raise problem
        if problem is not None:
            if stream.offset == 0:
                return  # an empty file holds no records, as with every other format
            raise Broken("not-xml", f"at byte {parser.ErrorByteIndex}: {problem}")
        if not block:
            return
        if stream.offset - parser.CurrentByteIndex > LARGEST_TAG:
            raise Broken("not-xml", f"a tag of more than {LARGEST_TAG} bytes at byte {parser.CurrentByteIndex}")


class _Text:
    __slots__ = ("settings", "text")

    def __init__(self, text: str, settings: FilesSettings) -> None:
        self.text, self.settings = text, settings

    def __call__(self) -> Any:
        return checked(self.text, self.settings.text_field, self.settings.max_bytes)


class _Elements:
    """Collects the text of the chosen elements; an element inside one of its own name belongs to the outer one."""

    def __init__(self, settings: FilesSettings) -> None:
        self.name, self.limit = settings.text_field, settings.max_bytes
        self.ready: list[tuple[int, int, str | None]] = []
        self.pieces: list[str] = []
        self.depth, self.inside, self.offset, self.size = 0, 0, 0, 0

    def listen(self, parser: Any) -> None:
        self.parser = parser
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.text
        parser.EntityDeclHandler = self.entity

    def take(self) -> list[tuple[int, int, str | None]]:
        """Return (byte, bytes of text, text or None beyond the limit) of the elements that ended since."""
        taken, self.ready = self.ready, []
        return taken

    def start(self, name: str, attributes: Any) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Broken("not-xml", f"elements more than {DEEPEST} deep at byte {self.parser.CurrentByteIndex}")
        if self.inside or name == self.name:
            self.inside += 1
            if self.inside == 1:
                self.offset, self.size, self.pieces = self.parser.CurrentByteIndex, 0, []

    def end(self, name: str) -> None:
        self.depth -= 1
        if self.inside:
            self.inside -= 1
            if not self.inside:
                whole = self.size <= self.limit
                self.ready.append((self.offset, self.size, "".join(self.pieces) if whole else None))
                self.pieces = []

    def text(self, data: str) -> None:
        if self.inside:
            self.size += len(data.encode("utf-8", "surrogatepass"))
            if self.size <= self.limit:
                self.pieces.append(data)

    def entity(self, name: str, *_: Any) -> None:
        raise Broken("not-xml", f"the file declares an entity of its own ({name!r}): these are not expanded")
