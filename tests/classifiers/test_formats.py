"""What was written comes back, in every format, in order, however the plan cuts it and whoever reads which part."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from file_reading import read_documents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from classifiers.files import Files, FilesSettings
from hornbook.errors import DataError, RecipeError
from hornbook.settings import validate


def stage(*paths: Any, **options: Any) -> Files:
    return Files(
        "corpus", validate(FilesSettings, {"paths": [str(path) for path in paths], **options}, "corpus"), seed=1
    )


def read_texts(stage_context: Any, *paths: Any, workers: int = 1, **options: Any) -> list[str]:
    documents, rejects = read_documents(stage_context(made := stage(*paths, **options)), made, workers)
    assert not rejects
    return [documents[unit]["text"] for unit in sorted(documents)]


def as_jsonl(texts: Sequence[str]) -> bytes:
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode()


def as_json(texts: Sequence[str]) -> bytes:
    return json.dumps([{"n": [{"a": "]}"}], "text": text} for text in texts], indent=1, ensure_ascii=False).encode()


def as_csv(texts: Sequence[str], delimiter: str = ",") -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, delimiter=delimiter)
    writer.writerows([["id", "text"], *[[number, text] for number, text in enumerate(texts)]])
    return sink.getvalue().encode()


def as_tsv(texts: Sequence[str]) -> bytes:
    return as_csv(texts, "\t")


def as_xml(texts: Sequence[str]) -> bytes:
    pages = "".join(f"<page><title>t</title>\n<text>{escape(text, {chr(13): '&#13;'})}</text></page>" for text in texts)
    return f'<?xml version="1.0" encoding="utf-8"?><pages>{pages}</pages>'.encode()


def as_parquet(texts: Sequence[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), sink, row_group_size=3)
    return sink.getvalue()


def as_arrow(texts: Sequence[str]) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"n": range(len(texts)), "text": pa.array(texts, pa.large_string())})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return sink.getvalue()


def as_tar(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        folder = tarfile.TarInfo("a-folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return sink.getvalue()


def as_zip(files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return sink.getvalue()


def in_archive(pack: Callable[[dict[str, bytes]], bytes]) -> Callable[[Sequence[str]], bytes]:
    """Pack texts as the two halves of them, in two formats, one compressed."""

    def packed(texts: Sequence[str]) -> bytes:
        half = len(texts) // 2
        first, second = as_jsonl(texts[:half]), as_json(texts[half:])
        return pack({"deep/" * 30 + "ä.jsonl.gz": gzip.compress(first), "empty.txt": b"", "b.json": second})

    return packed


WRITERS: dict[str, Callable[[Sequence[str]], bytes]] = {
    "a.jsonl": as_jsonl,
    "a.ndjson.gz": lambda texts: gzip.compress(as_jsonl(texts[:2])) + gzip.compress(as_jsonl(texts[2:])),
    "a.jsonl.zst": lambda texts: zstandard.compress(as_jsonl(texts)),
    "a.jsonl.bz2": lambda texts: bz2.compress(as_jsonl(texts)),
    "a.json": as_json,
    "a.json.gz": lambda texts: gzip.compress(as_json(texts)),
    "b.json": lambda texts: as_jsonl(texts),  # objects that follow one another
    "a.csv": as_csv,
    "a.csv.gz": lambda texts: gzip.compress(as_csv(texts)),
    "a.tsv": as_tsv,
    "a.xml": as_xml,
    "a.parquet": as_parquet,
    "a.arrow": as_arrow,
    "a.tar": in_archive(as_tar),
    "gnu.tar": in_archive(lambda files: as_tar(files, tarfile.GNU_FORMAT)),
    "a.tar.gz": lambda texts: gzip.compress(in_archive(as_tar)(texts)),
    "a.tgz": lambda texts: gzip.compress(in_archive(as_tar)(texts)),
    "a.zip": in_archive(as_zip),
}
HARD = st.text(alphabet=st.sampled_from("ab \"'\\\n,;[]{}<>&\tä中\U0001f600\u2028"), max_size=30).map(
    lambda text: f"x{text}."
)


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(HARD, min_size=1, max_size=23), part_rows=st.integers(1, 9), workers=st.integers(1, 3))
def test_what_was_written_comes_back(
    tmp_path: Path, stage_context: Any, name: str, texts: list[str], part_rows: int, workers: int
) -> None:
    (tmp_path / name).write_bytes(WRITERS[name](texts))
    options = {"workers": workers, "part_rows": part_rows, "part_bytes": 200}
    assert read_texts(stage_context, tmp_path / name, **options) == texts


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.xml", "a.tar.gz", "a.jsonl.zst"])
def test_records_longer_than_a_block_and_cut_by_blocks_come_back(tmp_path: Path, stage_context: Any, name: str) -> None:
    texts = [f"{number} " + 'wörd "\\ ' * (number * 997 % 30_000) for number in range(24)]
    (tmp_path / name).write_bytes(WRITERS.get(name, lambda texts: gzip.compress(as_jsonl(texts)))(texts))
    for part_bytes in (1, 1 << 20):
        assert read_texts(stage_context, tmp_path / name, part_bytes=part_bytes, workers=2) == texts


def test_whole_files_are_documents_and_share_parts(tmp_path: Path, stage_context: Any) -> None:
    (tmp_path / "a.py").write_text("def f():\n    pass\n")
    (tmp_path / "b.md").write_text("# Title\n\nText\n")
    (tmp_path / "c.html").write_bytes('<meta charset="iso-8859-2"><p>\xb1\n'.encode("latin-1"))
    (tmp_path / "d.txt").write_text("one\ntwo\n")
    (tmp_path / "e.rs.gz").write_bytes(gzip.compress(b"fn main() {}\n"))
    (tmp_path / ".hidden.py").write_text("no = 1\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    made = stage(tmp_path, text_unit="file", part_rows=4)
    documents, rejects = read_documents(stage_context(made), made)
    assert not rejects
    assert [(row["kind"], row["text"]) for row in documents.values()] == [
        ("python", "def f():\n    pass\n"),
        ("markdown", "# Title\n\nText\n"),
        ("html", '<meta charset="iso-8859-2"><p>ą\n'),
        ("text", "one\ntwo\n"),
        ("code", "fn main() {}\n"),
    ]
    from classifiers.file_plan import make_plan, planned_parts

    assert list(map(len, planned_parts(make_plan(made.files, made.settings)))) == [4, 1]
    assert read_texts(stage_context, tmp_path / "d.txt") == ["one", "two"]


def test_members_of_archives_are_read_by_their_names(tmp_path: Path, stage_context: Any) -> None:
    files = {"../../x.py": b"x = 1\n", "lines.txt": b"one\ntwo\n", "page.html": b"<p>p</p>", "logo.png": b"\x89PNG\0"}
    files["inner.tar"] = as_tar({"a.txt": b"a"})
    files["columns.parquet"] = as_parquet(["a"])
    for name, data in (("a.tar", as_tar(files)), ("b.zip", as_zip(files))):
        (tmp_path / name).write_bytes(data)
        made = stage(tmp_path / name, part_rows=2)
        documents, rejects = read_documents(stage_context(made), made, workers=2)
        assert [row["text"] for row in documents.values()] == ["x = 1\n", "one", "two", "<p>p</p>"]
        assert next(json.loads(row["meta"])["member"] for row in documents.values()) == "../../x.py"
        assert {row["reason"] for row in rejects.values()} == {"unknown-format"}
        assert [row["unit"] for row in rejects.values()] == [
            f"{tmp_path / name} {member} row {row}"
            for row, member in ((4, "logo.png"), (5, "inner.tar"), (6, "columns.parquet"))
        ]


@pytest.mark.parametrize("splits", [False, True])
def test_a_saved_dataset_and_a_folder_of_parquet(tmp_path: Path, stage_context: Any, splits: bool) -> None:
    texts = [f"document {number}" for number in range(2300)]
    saved = datasets.Dataset.from_dict({"n": range(2300), "text": texts})
    if splits:
        datasets.DatasetDict(test=saved.select(range(1000)), train=saved.select(range(1000, 2300))).save_to_disk(
            str(tmp_path / "saved")
        )
    else:
        saved.shuffle(seed=1).sort("n").save_to_disk(str(tmp_path / "saved"), num_shards=3)
    assert read_texts(stage_context, tmp_path / "saved", part_rows=700) == texts
    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    (tmp_path / "hub" / "README.md").write_text("# no document")
    (hub / "train-0.parquet").write_bytes(as_parquet(texts[:9]))
    (hub / "train-1.parquet").write_bytes(as_parquet(texts[9:12]))
    assert read_texts(stage_context, tmp_path / "hub") == texts[:12]


def test_the_card_of_a_dataset_is_no_document(tmp_path: Path, stage_context: Any) -> None:
    """A folder as the hub has it: rows in JSON lines or CSV, and a card that describes them."""
    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.jsonl").write_bytes(as_jsonl(["one", "two"]))
    (folder / "dataset_infos.json").write_text('{"default": {}}')
    (folder / "README.md").write_text("---\nlicense: mit\nconfigs: []\n---\n# A dataset")
    assert read_texts(stage_context, folder) == ["one", "two"]
    (folder / "dataset_infos.json").unlink()
    (folder / "README.md").write_text("# A text beside others")
    assert read_texts(stage_context, folder)[0] == "# A text beside others"
    (folder / "data" / "train.jsonl").unlink()
    (folder / "README.md").write_text("---\ntitle: home\n---\n# A page")
    assert len(read_texts(stage_context, folder)) == 1


def test_a_bucket_is_read_by_url_pattern_and_folder(s3_url: str, stage_context: Any) -> None:
    from pyarrow.fs import FileSystem

    url = s3_url.replace("STORE", "reading")
    texts = [f"document {number}" for number in range(40)]
    system, folder = FileSystem.from_uri(f"{url}&allow_delayed_open=true")  # one put: moto has no other
    files = {"one/a.jsonl.gz": gzip.compress(as_jsonl(texts[:20])), "two/b.jsonl": as_jsonl(texts[20:30])}
    for name, data in {**files, "two/c.csv": as_csv(texts[30:])}.items():
        with system.open_output_stream(f"{folder}/raw/{name}", compression=None) as sink:
            sink.write(data)
    at = lambda path: url.replace("reading", f"reading/{path}")  # noqa: E731
    for path in ("raw", "raw/**/*.*"):
        made = stage(at(path), part_rows=7)
        documents, rejects = read_documents(stage_context(made), made, workers=2)
        assert [documents[unit]["text"] for unit in range(40)] == texts and not rejects
        assert json.loads(documents[0]["meta"])["file"] == "s3://corpora/reading/raw/one/a.jsonl.gz"
    assert read_texts(stage_context, at("raw/*/b.jsonl")) == texts[20:30]
    assert len(stage(at("raw/two")).extra_identity()) == 2
    with pytest.raises(RecipeError, match="there is no file s3://corpora/reading/raw/x"):
        stage(at("raw/x*.jsonl")).check()
    with pytest.raises(DataError, match=r"raw/none.jsonl cannot be opened"):
        read_texts(stage_context, at("raw/none.jsonl"))
    with system.open_output_stream(f"{folder}/raw/torn.parquet", compression=None) as sink:
        sink.write(b"no columns")
    with pytest.raises(DataError, match=r"^s3://corpora/reading/raw/torn\.parquet is not a readable Parquet file"):
        read_texts(stage_context, at("raw/torn.parquet"))  # the credentials in the URL are nobody's business


def test_encodings_are_as_said_or_detected(tmp_path: Path, stage_context: Any) -> None:
    text = "Ein größeres Stück Straße über dem Fluß, schön und weiß. " * 3
    (tmp_path / "latin.txt").write_bytes((text + "\n").encode("latin-1"))
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + as_jsonl([text]))
    assert read_texts(stage_context, tmp_path / "latin.txt", encoding="latin-1") == [text]
    assert read_texts(stage_context, tmp_path / "latin.txt", encoding="detect") == [text]
    assert read_texts(stage_context, tmp_path / "bom.jsonl") == [text]
    (tmp_path / "wide.md").write_bytes(text.encode("utf-16"))
    assert read_texts(stage_context, tmp_path / "wide.md") == [text]
    with pytest.raises(RecipeError, match=r"corpus\.encoding: .*not a known text encoding"):
        stage(tmp_path / "latin.txt", encoding="base64")
