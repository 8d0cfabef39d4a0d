from __future__ import annotations

import json
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
