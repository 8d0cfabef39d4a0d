from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_reading import read_documents

from classifiers.file_plan import make_plan
from classifiers.files import Files, FilesSettings
from hornbook.errors import DataError, RecipeError


def stage(*paths: Path, **settings) -> Files:
    return Files("corpus", FilesSettings(paths=tuple(map(str, paths)), **settings), seed=1)


def read_all(stage_context, made: Files):
    """Read every planned range in this process; return (texts by planned unit, rejects by planned unit)."""
    documents, rejects = read_documents(stage_context(made), made)
    return {unit: row["text"] for unit, row in documents.items()}, rejects


@pytest.mark.parametrize("part_rows", [1, 7, 10, 100])
def test_parquet_and_lines_give_the_same_rows_however_they_are_cut(tmp_path, stage_context, part_rows):
    rows = [f"document {number}" for number in range(30)]
    pq.write_table(pa.table({"body": rows[:20]}), tmp_path / "a.parquet", row_group_size=6)
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in rows[20:]))
    texts, rejects = read_all(stage_context, stage(tmp_path / "*", text_field="body", part_rows=part_rows))
    assert [texts[unit] for unit in sorted(texts)] == rows and not rejects


def test_bad_lines_are_rejects_that_say_where(tmp_path, stage_context):
    good = json.dumps({"text": "good"}).encode()
    lines = [good, b'{"text": "caf\xe9"}', b"{", b'{"other": 1}', b"", b'{"text": "' + b"x" * 50_000_000 + b'"}', good]
    (tmp_path / "bad.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    texts, rejects = read_all(stage_context, stage(tmp_path / "bad.jsonl"))
    assert texts == {0: "good", 6: "good"}
    assert [rejects[row]["reason"] for row in range(1, 6)] == ["encoding", "not-json", "no-text", "empty", "too-long"]
    assert f"byte {len(good) + 1 + 13}" in rejects[1]["detail"] and rejects[1]["unit"].endswith("bad.jsonl row 1")
    assert rejects[5]["text"] == ""


def test_a_file_that_is_not_parquet_is_named(tmp_path):
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    made = stage(tmp_path / "torn.parquet")
    with pytest.raises(DataError, match=r"torn\.parquet is not a readable Parquet file") as raised:
        make_plan(made.files, made.settings)
    assert raised.value.cure


def test_parquet_damaged_inside_is_named(tmp_path, stage_context):
    path = tmp_path / "rotten.parquet"
    pq.write_table(pa.table({"text": [f"{number} text" * 50 for number in range(500)]}), path)
    data = bytearray(path.read_bytes())
    data[100:2000] = bytes(1900)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"rotten\.parquet is damaged"):
        read_all(stage_context, stage(path))


def test_a_missing_column_and_a_column_of_numbers_are_named(tmp_path):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    for field, message in (("text", "holds int64, not text"), ("body", r"no column 'body' \(it has: text\)")):
        made = stage(tmp_path / "numbers.parquet", text_field=field)
        with pytest.raises(DataError, match=message):
            make_plan(made.files, made.settings)
    twice = pa.table([["a"], ["b"]], names=["text", "text"])
    as_column_file(tmp_path / "twice.parquet", twice)
    made = stage(tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="several columns 'text'"):
        make_plan(made.files, made.settings)


def as_column_file(path: Path, table: pa.Table) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("field", ["text", "*"])
def test_text_that_is_no_utf8_costs_its_row_alone(tmp_path, stage_context, name, field):
    data = b"one" + b"caf\xe9" + b"two"
    texts = pa.StringArray.from_buffers(3, pa.py_buffer(struct.pack("4i", 0, 3, 7, 10)), pa.py_buffer(data))
    as_column_file(tmp_path / name, pa.table({"text": texts}))
    found, rejects = read_all(stage_context, stage(tmp_path / name, text_field=field))
    assert sorted(found) == [0, 2] and "one" in found[0] and "two" in found[2]
    assert rejects[1]["reason"] == "encoding" and "byte 3" in rejects[1]["detail"]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()])
def test_text_of_any_width_is_text(tmp_path, stage_context, kind):
    for name in ("a.parquet", "a.arrow"):
        as_column_file(tmp_path / name, pa.table({"text": pa.array(["one", "a word more than twelve bytes"], kind)}))
        assert list(read_all(stage_context, stage(tmp_path / name))[0].values()) == [
            "one",
            "a word more than twelve bytes",
        ]


def test_offsets_that_lead_out_of_an_arrow_file_are_named_and_not_followed(tmp_path):
    path = tmp_path / "a.arrow"
    as_column_file(path, pa.table({"text": ["one", "two", "three"]}))
    offsets = struct.pack("4i", 0, 3, 6, 11)
    path.write_bytes(path.read_bytes().replace(offsets, struct.pack("4i", 0, 1 << 30, (1 << 30) + 9, 11)))
    code = "import sys\nfrom classifiers.file_plan import make_plan\nfrom classifiers.files import FilesSettings\n"
    code += "make_plan(sys.argv[1:], FilesSettings(paths=sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 1 and "a.arrow is not readable Arrow data" in done.stderr


ONE_ROW_GROUP = """
import sys
from pathlib import Path
from classifiers.file_plan import make_plan, planned_parts
from classifiers.files import PLAN, FilesSettings, ReadRows
from hornbook.artifact import Artifact
from hornbook.parts import parquet_bytes
from hornbook.store import Store

def read(name):
    settings = FilesSettings(paths=(name,), part_rows=int(sys.argv[1]))
    artifact = Artifact(Store(name + "-store"), "artifacts/a")
    plan = make_plan([name], settings)
    artifact.store.write(f"{artifact.folder}/{PLAN}", parquet_bytes(plan))
    maker = ReadRows(settings, artifact)
    maker.setup()
    return sum(maker.make(part).table.num_rows for part in planned_parts(plan))

def peak():  # in KiB; not ru_maxrss, which begins with the parent's
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

def bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])

read(sys.argv[2])
before = peak(), bytes_read()
rows = read(sys.argv[3])
print(rows, (peak() - before[0]) // 1024, bytes_read() - before[1])
"""


@pytest.mark.parametrize(("count", "size"), [(8000, 6000), (96, 480_000)])
def test_a_row_group_as_large_as_its_file_is_read_once_in_bounded_memory(tmp_path, count, size):
    """pandas and pyarrow write a million rows to a group: it is not held whole, nor begun anew for every part."""
    generator = random.Random(4)
    for name, rows in (("small", count // 16), ("large", count)):
        texts = pa.table({"text": [generator.randbytes(size).hex() for _ in range(rows)]})
        pq.write_table(texts, tmp_path / f"{name}.parquet", row_group_size=rows, compression="none", write_batch_size=4)
    files = [str(tmp_path / f"{name}.parquet") for name in ("small", "large")]
    command = [sys.executable, "-c", ONE_ROW_GROUP, str(count // 16), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, megabytes, read = map(int, done.stdout.split())
    assert rows == count and megabytes < 40 and 90_000_000 < read < 190_000_000, done.stdout


def test_links_are_read_as_they_are_called(tmp_path, stage_context):
    """The hub's cache links `data/train.parquet` to a file without an ending."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "blobs" / "1f3a")
    (tmp_path / "data" / "train.parquet").symlink_to("../blobs/1f3a")
    for path in ("train.parquet", "*.parquet", "../data/train.parquet", ""):
        made = stage(tmp_path / "data" / path)
        assert made.files == [str(tmp_path / "data" / "train.parquet")]
        assert list(read_all(stage_context, made)[0].values()) == ["one", "two"]


def test_a_name_that_is_no_text_is_said(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("text\n")
    with pytest.raises(RecipeError, match=r"caf\\xe9\.txt.* not UTF-8"):
        stage(tmp_path).check()


def test_fields_that_are_asked_for_come_along(tmp_path, stage_context):
    rows = [
        {"text": f"text {row}", "url": f"https://a.example/{row}.html", "id": row % 2, "much": "x" * 99}
        for row in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "c.csv").write_text(
        "id,url,text\n" + "".join(f"{row['id']},{row['url']},{row['text']}\n" for row in rows)
    )
    odd = [
        '{"text": "t", "id": NaN, "url": "\\ud800"}',
        '{"text": "t", "url": null}',
        '{"text": "t", "url": "%s"}' % ("u" * 999),
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(odd))
    made = stage(tmp_path / "*", meta_fields=["url", "id"], max_bytes=900)
    documents, rejects = read_documents(stage_context(made), made)
    metas = {unit: json.loads(row["meta"]) for unit, row in documents.items()}
    for unit in range(9):
        place = {"file": str(tmp_path / "abc"[unit // 3]), "row": unit % 3}
        assert metas[unit].pop("file").startswith(place["file"]) and metas[unit].pop("row") == place["row"]
        assert metas[unit] == {"url": rows[unit % 3]["url"], "id": str(unit % 3 % 2) if unit >= 6 else unit % 3 % 2}
    assert (metas[9]["id"], metas[9]["url"]) == ("NaN", "?") and "url" not in metas[10]
    assert rejects[11]["reason"] == "too-long"
    with pytest.raises(DataError, match=r"a\.parquet has no column 'licence' \(it has: text, url, id, much\)"):
        missing = stage(tmp_path / "a.parquet", meta_fields="licence")
        make_plan(missing.files, missing.settings)
    with pytest.raises(ValueError, match="row: the document's place"):
        stage(tmp_path / "*", meta_fields=["row"])


def test_excluded_files_are_left_out_of_what_a_pattern_names(tmp_path):
    for name in ("a.md", "b.md", "damaged.parquet"):
        (tmp_path / name).write_text("PAR1")
    assert stage(tmp_path / "*", exclude=[str(tmp_path / "*.parquet"), str(tmp_path / "b.md")]).files == [
        str(tmp_path / "a.md")
    ]
    for wrong, said in (("none.*", "corpus.exclude: there is no file"), ("*", "corpus.exclude: no file is left")):
        with pytest.raises(RecipeError, match=said):
            stage(tmp_path / "*", exclude=str(tmp_path / wrong)).check()


def test_empty_files_are_counted_and_nothing_at_all_is_an_error(tmp_path, ray_cluster, stage_context):
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(DataError, match="no rows"):
        stage_context.finished(stage(tmp_path / "empty.txt"))
    (tmp_path / "full.txt").write_text("one\ntwo\n")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    pq.write_table(pa.table({"text": ["three"]}), mixed / "table.parquet")
    for name in ("page.html", "readme.md"):
        (mixed / name).write_text("not read: the folder has a table")
    other = Files("both", FilesSettings(paths=(str(tmp_path / "*.txt"), str(mixed))), seed=1)
    manifest = stage_context.finished(other).manifest
    empty, passed_over = manifest.metrics.pop("warnings")
    assert empty == f"{tmp_path / 'empty.txt'} is empty"
    assert f"not {mixed / 'page.html'} and 1 others: name those by a pattern" in passed_over
    assert manifest.metrics == {"files": 3, "rows": 3, "empty_files": 1}
    with pytest.raises(RecipeError, match="there is no file"):
        stage(tmp_path / "nowhere-*.txt").check()


def test_other_content_is_another_artifact(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    before = stage(path).extra_identity()
    path.write_text("two!\n")
    assert stage(path).extra_identity() != before
