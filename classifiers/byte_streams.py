"""Bytes of a file from front to back: plain, decompressed, or a member of an archive; memory: a block, whatever the file.

`Stream` says at which byte it is. Nothing that was delivered is lost when a file turns out to be broken further on, and how
much is delivered does not depend on how it was asked for: the plan and every worker see the same bytes before the same end.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, BinaryIO

import pyarrow as pa

from classifiers.records import Broken

BLOCK = 1 << 16  # bytes
CODECS = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


class Stream:
    """Sequential bytes with a position.

    Args:
        raw: where bytes come from.
        seekable: whether `go_to` may seek in it, in place of reading on.
    """

    def __init__(self, raw: Any, seekable: bool = False) -> None:
        self.file = io.BufferedReader(raw, BLOCK)
        self.seekable = seekable
        self.offset = 0
        """Byte of the (decompressed) file that comes next."""

    def read(self, size: int = BLOCK) -> bytes:
        """Return some bytes, at most `size`; none at the end. Raises Broken where the file cannot be read further."""
        data = self.file.read1(size)
        self.offset += len(data)
        return data

    def exactly(self, size: int) -> bytes:
        """Return `size` bytes, fewer only at the end."""
        pieces, left = [], size
        while left and (piece := self.read(min(left, BLOCK))):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def readline(self, limit: int) -> bytes:
        """Return the next line with its end, or its first `limit` bytes."""
        line = self.file.readline(limit)
        self.offset += len(line)
        return line

    def end_line(self) -> int:
        """Read to the end of a line and forget it; return how many bytes that were."""
        before = self.offset
        while (more := self.readline(BLOCK)) and not more.endswith(b"\n"):
            pass
        return self.offset - before

    def skip(self, size: int) -> int:
        """Read over `size` bytes; return how many there were."""
        if self.seekable and size > BLOCK:
            end = self.file.seek(0, os.SEEK_END)
            size = min(size, end - self.offset)
            self.offset = self.file.seek(self.offset + size)
            return size
        left = size
        while left and (piece := self.read(min(left, BLOCK))):
            left -= len(piece)
        return size - left

    def peek(self) -> bytes:
        """Return the bytes that come next without passing them: a few, up to a block; none at the end."""
        return self.file.peek(BLOCK)

    def close(self) -> None:
        """Close what bytes come from."""
        self.file.close()


def codec_of(name: str) -> str | None:
    """Return the compression that a name's ending says, None for a plain file."""
    return CODECS.get(PurePath(name.lower()).suffix)


def file_stream(file: BinaryIO, name: str, max_expanded_bytes: int) -> Stream:
    """Return a file's stream, decompressed where its name ends like a compressed one's."""
    codec = codec_of(name)
    if codec is None:
        return Stream(_Plain(file), seekable=True)
    return Stream(_Expanded(file, codec, max_expanded_bytes))


def member_stream(parent: Stream, size: int, name: str, max_expanded_bytes: int) -> Stream:
    """Return the stream of the next `size` bytes of `parent`, decompressed by the name. Closing it leaves `parent` open."""
    window = _Window(parent.read, size)
    codec = codec_of(name)
    return Stream(_Expanded(io.BufferedReader(window, BLOCK), codec, max_expanded_bytes) if codec else window)


def limited_stream(file: Any, name: str, max_expanded_bytes: int) -> Stream:
    """Return the stream of a zip's member: decompressed again by its name, and never more than the limit."""
    codec = codec_of(name)
    source = io.BufferedReader(_Limited(file, max_expanded_bytes), BLOCK)
    return Stream(_Expanded(source, codec, max_expanded_bytes) if codec else _Limited(file, max_expanded_bytes))


class _Raw(io.RawIOBase):
    """Gives whatever `piece` gives, in whatever sizes it is asked for."""

    def __init__(self) -> None:
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def piece(self) -> bytes:
        raise NotImplementedError

    def readinto(self, target: Any) -> int:
        if not self._ready:
            self._ready = memoryview(self.piece())
        size = min(len(target), len(self._ready))
        target[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


class _Plain(io.RawIOBase):
    """A file as it lies there."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, target: Any) -> int:
        return self._file.readinto(target)  # type: ignore[attr-defined]

    def close(self) -> None:
        self._file.close()
        super().close()


class _Expanded(_Raw):
    """Decompresses; a limit guards against bombs. Blocks are of one size, so that all readers see the same last byte."""

    def __init__(self, file: Any, codec: str, limit: int) -> None:
        super().__init__()
        self._file, self._codec, self._limit, self._given = file, codec, limit, 0
        self._stream = pa.CompressedInputStream(file, codec)
        self._broken: Broken | None = None

    def piece(self) -> bytes:
        if self._broken is not None:  # whoever asks again, as an archive does after its member, is told again
            raise self._broken
        if self._given >= self._limit:
            self._broken = Broken("too-large", f"expands to more than {self._limit} bytes, the limit")
            raise self._broken
        try:
            data = bytes(self._stream.read(BLOCK))
        except (OSError, pa.ArrowException) as error:
            data = self._last_bytes() if self._file.seekable() else b""
            where = f"from about byte {self._given + len(data)}, decompressed"
            self._broken = Broken("unreadable-rest", f"{where}: {error}")
            if not data:
                raise self._broken from error
        self._given += len(data)
        return data

    def _last_bytes(self) -> bytes:
        """Return what the block holds that could not be read whole: the file is read again, that block byte by byte."""
        pieces: list[bytes] = []
        try:
            self._file.seek(0)
            self._first = self._stream  # kept: it would close the file that it goes away with
            self._stream = pa.CompressedInputStream(self._file, self._codec)
            left = self._given
            while left:
                left -= len(self._stream.read(min(left, BLOCK)))
            while True:
                pieces.append(bytes(self._stream.read(1)))
        except (OSError, pa.ArrowException):
            return b"".join(pieces)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Window(_Raw):
    """The next bytes of something longer."""

    def __init__(self, read: Callable[[int], bytes], size: int) -> None:
        super().__init__()
        self._read, self._left = read, size

    def piece(self) -> bytes:
        if not self._left:
            return b""
        data = self._read(min(self._left, BLOCK))
        if not data:
            raise Broken("unreadable-rest", f"the file ends {self._left} bytes before its member")
        self._left -= len(data)
        return data


class _Limited(_Raw):
    """A zip's member; a limit guards against bombs, and what zipfile raises is Broken."""

    def __init__(self, file: Any, limit: int) -> None:
        super().__init__()
        self._file, self._left = file, limit

    def piece(self) -> bytes:
        import zipfile
        import zlib

        if self._left <= 0:
            raise Broken("too-large", "expands to more than max_member_bytes")
        try:
            data: bytes = self._file.read1(min(self._left, BLOCK))
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise Broken("unreadable-rest", str(error)) from error
        self._left -= len(data)
        return data
