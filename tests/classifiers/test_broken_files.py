"""Files that are broken, hostile or not what their name says: counted rejects or a clear error, in bounded memory."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from file_reading import read_documents
from test_formats import as_arrow, as_csv, as_json, as_jsonl, as_tar, as_zip

from classifiers.file_plan import make_plan, planned_parts
from classifiers.files import PLAN, Files, FilesSettings, ReadRows
from hornbook.errors import DataError
from hornbook.parts import parquet_bytes

TEXTS = [f"document {number} " + "of many words " * (number % 7) for number in range(3000)]


def read(stage_context: Any, path: Path, workers: int = 1, **options: Any) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the texts in order, and (reason, detail) of each reject in order."""
    made = Files("corpus", FilesSettings(paths=(str(path),), **options), seed=1)
    documents, rejects = read_documents(stage_context(made), made, workers)
    texts = [documents[unit]["text"] for unit in sorted(documents)]
    return texts, [(rejects[unit]["reason"], rejects[unit]["detail"]) for unit in sorted(rejects)]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tar"])
def test_a_torn_compressed_file_keeps_what_can_be_read(
    tmp_path: Path, stage_context: Any, name: str, ending: str
) -> None:
    whole = {"a.jsonl": as_jsonl, "a.json": as_json, "a.csv": as_csv}.get(
        name, lambda texts: as_tar({"a.jsonl": as_jsonl(texts)})
    )(TEXTS)
    packed = gzip.compress(whole) if ending == ".gz" else zstandard.compress(whole)
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(packed[: len(packed) * 3 // 4])
    for part_rows, workers in ((100, 2), (10_000, 1)):
        texts, rejects = read(stage_context, path, workers, part_rows=part_rows)
        assert 500 < len(texts) < 3000 and texts == TEXTS[: len(texts)]
        assert rejects[-1][0] == "unreadable-rest" and "byte" in rejects[-1][1]
        assert len(rejects) == (2 if name == "a.tar" else 1)  # the member that broke off, and the archive's rest


def test_a_small_torn_file_keeps_its_lines_up_to_the_tear(tmp_path: Path, stage_context: Any) -> None:
    packed = gzip.compress(as_jsonl([hashlib.sha512(text.encode()).hexdigest() for text in TEXTS[:200]]))
    for cut, least in ((1, 200), (500, 180)):
        (tmp_path / "a.jsonl.gz").write_bytes(packed[:-cut])
        texts, rejects = read(stage_context, tmp_path / "a.jsonl.gz", 2, part_rows=30)
        assert len(texts) >= least and [reason for reason, _ in rejects] == ["unreadable-rest"]


def test_a_bad_record_costs_no_other(tmp_path: Path, stage_context: Any) -> None:
    (tmp_path / "a.json").write_text(
        '[{"text": "one"}, {"text": bad}, 7, {"text": "open}\n, {"other": 1}, {"text": "two"}]'
    )
    texts, rejects = read(stage_context, tmp_path / "a.json", part_rows=2)
    assert texts[0] == "one"
    assert [reason for reason, _ in rejects][:2] == ["not-json", "no-text"]
    assert all("byte" in detail for _, detail in rejects)
    (tmp_path / "b.json").write_text('[{"text": "one"}, {"text": "open\n}, {"other": 1}, {"text": "two"}]')
    texts, rejects = read(stage_context, tmp_path / "b.json")
    assert (texts, [reason for reason, _ in rejects]) == (["one", "two"], ["not-json", "no-text"])
    rows = [
        "id,text",
        '1,"open and never closed',
        "2,two",
        '3,"three"x',
        "4,caf\xe9",
        "5,five,too many",
        '6,"six ""quoted""\nlines"',
    ]
    (tmp_path / "a.csv").write_bytes("\n".join(rows).encode("latin-1"))
    for part_rows in (1, 100):
        texts, rejects = read(stage_context, tmp_path / "a.csv", part_rows=part_rows)
        assert texts == ["two", 'six "quoted"\nlines']
        assert [reason for reason, _ in rejects] == ["not-csv", "not-csv", "encoding", "not-csv"]
        assert "byte 8" in rejects[0][1]
    (tmp_path / "a.xml").write_text("<p><text>one</text><text>a &amp; <b>b</b></text><text>lost</p>")
    texts, rejects = read(stage_context, tmp_path / "a.xml")
    assert texts == ["one", "a & b"] and [reason for reason, _ in rejects] == ["not-xml"]


def test_files_that_are_not_what_their_names_say(tmp_path: Path, stage_context: Any) -> None:
    program = Path(sys.executable).resolve().read_bytes()[:300_000]
    binary = dict.fromkeys(("a.txt", "a.jsonl", "a.json", "a.csv"), "binary")
    torn = {"a.jsonl.gz": "unreadable-rest", "a.tar": "unreadable-rest", "a.zip": "not-zip", "a.xml": "not-xml"}
    for name, reason in {**binary, **torn, "a.md": "encoding"}.items():
        (tmp_path / name).write_bytes(program)
        texts, rejects = read(stage_context, tmp_path / name)
        assert not texts and [found for found, _ in rejects] == [reason], name
    (tmp_path / "wide.txt").write_bytes("text\n".encode("utf-16"))
    assert "UTF-16" in read(stage_context, tmp_path / "wide.txt")[1][0][1]
    (tmp_path / "torn.txt").write_bytes(b"one\n" + bytes(4096) + b"\ntwo\nthr\0ee\n")
    texts, rejects = read(stage_context, tmp_path / "torn.txt")
    assert texts == ["one", "two"] and [reason for reason, _ in rejects] == ["nul-bytes", "nul-bytes"]
    (tmp_path / "a.arrow").write_bytes(b"no arrow")
    with pytest.raises(DataError, match=r"a\.arrow is not readable Arrow data"):
        read(stage_context, tmp_path / "a.arrow")
    (tmp_path / "b.arrow").write_bytes(as_arrow(["a"]))
    with pytest.raises(DataError, match="holds int64, not text"):
        read(stage_context, tmp_path / "b.arrow", text_field="n")
    (tmp_path / "b.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"b\.csv has no column 'text' \(it has: a, b\)"):
        read(stage_context, tmp_path / "b.csv")


def test_archives_beyond_the_limits_are_rejected_where_they_break_them(tmp_path: Path, stage_context: Any) -> None:
    good, huge = b"good\n", (b"line " * 20 + b"\n") * 20_000
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(good + huge))
    texts, rejects = read(stage_context, tmp_path / "a.txt.gz", max_file_bytes=100_000)
    assert texts[0] == "good" and 900 < len(texts) < 2000 and [reason for reason, _ in rejects] == ["too-large"]
    files = {"a.txt": good, "b.txt": huge, "b.txt.gz": gzip.compress(huge), "c.txt": good, "d.html": b"x" * 70_000}
    for name, data in (("a.tar", as_tar(files)), ("a.tar.gz", gzip.compress(as_tar(files))), ("a.zip", as_zip(files))):
        (tmp_path / name).write_bytes(data)
        texts, rejects = read(
            stage_context, tmp_path / name, 2, part_rows=900, max_member_bytes=100_000, max_bytes=60_000
        )
        assert texts[0] == "good" and texts[-1] == "good", name
        assert [reason for reason, _ in rejects] == ["too-large", "too-large", "too-long"], name
    path = tmp_path / "locked.zip"
    path.write_bytes(
        as_zip({"a.txt": good, "b.txt": good}).replace(
            b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01", 1
        )
    )
    texts, rejects = read(stage_context, path)
    assert texts == ["good"] and [reason for reason, _ in rejects] == ["unreadable-member"]
    (tmp_path / "later.zip").write_bytes(
        as_zip({"a.txt": good}).replace(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\x58")
    )
    assert read(stage_context, tmp_path / "later.zip") == ([], [("not-zip", "zip file version 8.8")])
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as archive:
        entry = tarfile.TarInfo("n" * 3_000_000)
        archive.addfile(entry)
    (tmp_path / "name.tar").write_bytes(sink.getvalue())
    assert "extended header of 3000001 bytes" in read(stage_context, tmp_path / "name.tar")[1][0][1]


def test_xml_that_would_blow_up_is_refused(tmp_path: Path, stage_context: Any) -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "lol"}">' for n in range(10))
    laughs = f"<!DOCTYPE p [{entities}]><p><text>&e9;</text></p>"
    bombs = {
        "declares an entity": laughs,
        "10000 deep": "<a>" * 20_000,
        "a tag of more": "<p a='" + "x" * 5_000_000,
    }
    for said, content in bombs.items():
        (tmp_path / "a.xml").write_text(content)
        texts, rejects = read(stage_context, tmp_path / "a.xml")
        assert not texts and [reason for reason, _ in rejects] == ["not-xml"] and said in rejects[0][1]


def test_a_file_that_changed_after_the_plan_is_named(tmp_path: Path, stage_context: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_jsonl(TEXTS[:20]))
    made = Files("corpus", FilesSettings(paths=(str(path),), part_rows=5), seed=1)
    context = stage_context(made)
    plan = make_plan(made.files, made.settings)
    context.artifact.store.write(f"{context.artifact.folder}/{PLAN}", parquet_bytes(plan))
    maker = ReadRows(made.settings, context.artifact)
    maker.setup()
    parts = planned_parts(plan)
    maker.make(parts[0])
    path.write_bytes(as_jsonl(TEXTS[:19]))
    with pytest.raises(DataError, match=r"a\.jsonl changed while it was read"):
        maker.make(parts[1])


BOMBS = """
import sys
from pathlib import Path
from classifiers.file_plan import make_plan
from classifiers.file_records import stream_records
from classifiers.files import FilesSettings
settings = FilesSettings(paths=sys.argv[1:], max_file_bytes=150_000_000)
make_plan(sys.argv[1:2], settings), list(stream_records(sys.argv[1], settings))
# Not ru_maxrss: a child begins with its parent's.
peak = lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
before = peak()
for name in sys.argv[1:]:
    make_plan([name], settings)
    print([(found := record.read()).reason for record in stream_records(name, settings)])
print((peak() - before) // 1024)
"""


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    """120 MB in a line, a value, a cell, a page, a member, plain or packed: a reject each, within 40 MB."""
    size, block = 120_000_000, b"x" * 1_000_000
    small = tmp_path / "small.jsonl"
    small.write_text("{}\n")
    with (tmp_path / "line.txt").open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
    heads = {
        "a.jsonl": b'{"text": "',
        "a.json": b'[{"text": "',
        "a.csv": b'text\n"',
        "a.xml": b"<p><text>",
        "a.html": b"<p>",
    }
    for name, head in heads.items():
        with gzip.open(tmp_path / f"{name}.gz", "wb", compresslevel=1) as file:
            file.write(head)
            for _ in range(size // len(block)):
                file.write(block)
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a.txt", "w") as file,
    ):
        for _ in range(size // len(block)):
            file.write(block)
    (tmp_path / "b.txt.zst").write_bytes(zstandard.compress(b"\0" * 2 * size))
    names = sorted(str(path) for path in tmp_path.iterdir() if path != small)
    made = subprocess.run([sys.executable, "-c", BOMBS, str(small), *names], capture_output=True, text=True, check=True)
    *reasons, megabytes = made.stdout.splitlines()
    assert json.loads(reasons[0].replace("'", '"')) == ["no-text"]
    found = dict(zip(names, reasons[1:], strict=True))
    assert int(megabytes) < 40, made.stdout
    for name, said in found.items():
        assert "too-l" in said or "not-" in said, (name, said)
