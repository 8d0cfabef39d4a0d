"""Pages of web archives: fetched ones become documents, everything else a counted reject, and damage stays where it is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from file_reading import read_documents

from classifiers.files import Files, FilesSettings


def page(number: int, body: bytes = b"", kind: str = "text/html", status: str = "200 OK", extra: str = "") -> bytes:
    """Return a response record as a crawler writes it."""
    body = body or f"<p>page {number}</p>".encode()
    http = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{extra}\r\n".encode() + body
    return record("response", http, f"http://example.org/{number}", "application/http; msgtype=response")


def record(kind: str, content: bytes, url: str = "http://example.org/", content_type: str = "text/plain") -> bytes:
    header = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-05-06T07:08:09Z\r\n"
        f"WARC-Record-ID: <urn:uuid:0>\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return header.encode() + content + b"\r\n\r\n"


PACKED = {
    "a.warc": b"".join,
    "a.warc.gz": lambda records: b"".join(map(gzip.compress, records)),
    "whole.warc.gz": lambda records: gzip.compress(b"".join(records)),
    "a.warc.zst": lambda records: b"".join(map(zstandard.compress, records)),
}


def read(stage_context: Any, path: Path, workers: int = 1, **options: Any) -> tuple[dict, dict]:
    made = Files("web", FilesSettings(paths=(str(path),), **options), seed=1)
    return read_documents(stage_context(made), made, workers)


@pytest.mark.parametrize("name", PACKED)
def test_pages_come_back_with_where_and_when_they_were_fetched(tmp_path: Path, stage_context: Any, name: str) -> None:
    others = [
        record("warcinfo", b"software: x\r\n"),
        record("request", b"GET / HTTP/1.1\r\n\r\n", content_type="application/http"),
    ]
    records = [other for number in range(40) for other in (*others, page(number))]
    (tmp_path / name).write_bytes(PACKED[name](records))
    for part_rows, workers in ((7, 1), (3, 2), (100, 1)):
        documents, rejects = read(stage_context, tmp_path / name, workers, part_rows=part_rows)
        assert not rejects
        assert [documents[unit]["text"] for unit in range(40)] == [f"<p>page {number}</p>" for number in range(40)]
    assert documents[7]["kind"] == "html"
    assert json.loads(documents[7]["meta"]) == {
        "file": str(tmp_path / name), "row": 7, "url": "http://example.org/7", "date": "2024-05-06T07:08:09Z",
        "content_type": "text/html", "status": 200,
    }  # fmt: skip


def test_what_is_no_page_is_rejected_by_its_reason(tmp_path: Path, stage_context: Any) -> None:
    zipped = gzip.compress("<p>größer</p>".encode("iso-8859-1"))
    records = [
        page(0, zipped, "text/html; charset=iso-8859-1", extra="Content-Encoding: gzip\r\n"),
        page(1, b"5\r\nhello\r\n0\r\n\r\n", "text/plain", extra="Transfer-Encoding: chunked\r\n"),
        record("conversion", b"already text\n"),
        page(3, b"\x89PNG", "image/png"),
        page(4, status="404 Not Found"),
        page(5, b"<p>" + b"x" * 200_000),
        page(6, gzip.compress(b"x" * 60_000_000), extra="Content-Encoding: gzip\r\n"),
        page(7, b"not gzip", extra="Content-Encoding: gzip\r\n"),
        page(8, b"<p>nul \0</p>"),
        page(9),
    ]
    (tmp_path / "a.warc.gz").write_bytes(PACKED["a.warc.gz"](records))
    documents, rejects = read(stage_context, tmp_path / "a.warc.gz", part_rows=3, max_bytes=100_000)
    assert {unit: row["text"] for unit, row in documents.items()} == {
        0: "<p>größer</p>", 1: "hello", 2: "already text\n", 9: "<p>page 9</p>",
    }  # fmt: skip
    assert [rejects[unit]["reason"] for unit in range(3, 9)] == [
        "no-text", "http-status", "too-long", "too-long", "not-http", "nul-bytes",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.zst"])
def test_damage_costs_the_records_that_it_hit(tmp_path: Path, stage_context: Any, name: str) -> None:
    records = [PACKED[name]([page(number)]) for number in range(12)]
    damaged = bytearray(records[5])
    damaged[:40] = b"\xff" * 40
    whole = b"".join([*records[:5], bytes(damaged), *records[6:]])
    kept = [f"<p>page {number}</p>" for number in range(12) if number != 5]
    (tmp_path / name).write_bytes(whole)
    for part_rows, workers in ((2, 2), (5, 1), (100, 1)):
        documents, rejects = read(stage_context, tmp_path / name, workers, part_rows=part_rows)
        assert [row["text"] for _, row in sorted(documents.items())] == kept
        (reject,) = rejects.values()
        assert reject["reason"] == "unreadable-record"
        assert f"before byte {sum(map(len, records[:6]))}" in reject["detail"]


@pytest.mark.parametrize("name", PACKED)
def test_every_torn_end_is_one_reject_at_most(tmp_path: Path, stage_context: Any, name: str) -> None:
    records = [page(number) for number in range(4)]
    data = PACKED[name](records)
    last = len(PACKED[name](records[3:]))
    for cut in range(1, last, 11):
        (tmp_path / name).write_bytes(data[:-cut])
        documents, rejects = read(stage_context, tmp_path / name, part_rows=2)
        if name != "whole.warc.gz":
            assert len(documents) >= 3
        assert len(rejects) <= 1
        assert len(documents) == 4 or rejects, f"{cut} bytes off the end and nothing is said"


def test_garbage_is_one_reject(tmp_path: Path, stage_context: Any) -> None:
    for name, data in (
        ("a.warc", b"garbage\n" * 100),
        ("a.warc.gz", b"garbage"),
        ("b.warc.gz", gzip.compress(b"garbage")),
    ):
        (tmp_path / name).write_bytes(data)
        documents, rejects = read(stage_context, tmp_path / name)
        assert not documents and [row["reason"] for row in rejects.values()] == ["unreadable-rest"]
