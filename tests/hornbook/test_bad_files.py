"""Files that a user names and that are broken: through `hornbook run`, each is said or rejected by name, none is lost."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import Answer

from hornbook.artifact import Artifact
from hornbook.store import Store

Run = Callable[..., Answer]


def recipe(folder: Path, *paths: Path, **settings: Any) -> str:
    """Write a recipe of one stage that reads these files."""
    stage = {"kind": "files", "paths": [str(path) for path in paths], **settings}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "own", "stages": {"own": stage}}))
    return str(path)


def refused(answer: Answer, folder: Path, *said: str) -> None:
    """Check that a run failed with one message and a cure, and that it left no artifact that counts."""
    assert answer.code in (1, 2)
    for text in said:
        assert text in answer.err
    assert answer.err.count("error:") == 1
    assert "cure:" in answer.err
    assert "Traceback" not in answer.err
    store = Store(str(folder / "store"))
    assert not [name for name in store.names("artifacts") if Artifact(store, f"artifacts/{name}").complete]


def whole_parquet(path: Path, rows: int = 400) -> Path:
    texts = [f"document {number} " + "word " * 200 for number in range(rows)]
    pq.write_table(pa.table({"text": texts}), path, compression="none", row_group_size=100, use_dictionary=False)
    return path


@pytest.mark.parametrize("damage", ["torn", "not-parquet", "no-bytes"])
def test_a_parquet_file_that_cannot_be_opened(hornbook: Run, tmp_path: Path, ray_cluster: None, damage: str) -> None:
    bad = whole_parquet(tmp_path / "bad.parquet")
    content = {"torn": bad.read_bytes()[:5000], "not-parquet": b"PAR1 but not really" * 10, "no-bytes": b""}[damage]
    bad.write_bytes(content)
    good = whole_parquet(tmp_path / "good.parquet")
    answer = hornbook("run", recipe(tmp_path, good, bad))
    refused(answer, tmp_path, f"{bad} is not a readable Parquet file", "name it under `exclude`")


def test_a_parquet_file_that_is_damaged_inside(hornbook: Run, tmp_path: Path, ray_cluster: None) -> None:
    bad = whole_parquet(tmp_path / "bad.parquet")
    content = bytearray(bad.read_bytes())
    offset = pq.ParquetFile(bad).metadata.row_group(2).column(0).data_page_offset
    content[offset : offset + 60] = b"\xff" * 60
    bad.write_bytes(content)
    path = recipe(tmp_path, bad, part_rows=100)
    refused(hornbook("run", path), tmp_path, f"{bad} is damaged", "write it again")
    whole_parquet(bad)
    assert hornbook("run", path).code == 0
    assert "400" in hornbook("show", "latest/own").out


def test_a_parquet_file_without_the_column(hornbook: Run, tmp_path: Path, ray_cluster: None) -> None:
    good = whole_parquet(tmp_path / "good.parquet", rows=3)
    answer = hornbook("run", recipe(tmp_path, good, text_field="content"))
    refused(answer, tmp_path, f"{good} has no column 'content' (it has: text)", "set text_field")


def test_nothing_but_empty_files(hornbook: Run, tmp_path: Path, ray_cluster: None) -> None:
    (tmp_path / "empty.txt").touch()
    answer = hornbook("run", recipe(tmp_path, tmp_path / "empty.txt"))
    refused(answer, tmp_path, f"{tmp_path / 'empty.txt'}: no rows")


def test_a_file_that_is_not_there(hornbook: Run, tmp_path: Path) -> None:
    answer = hornbook("run", recipe(tmp_path, tmp_path / "gone.jsonl"))
    refused(answer, tmp_path, "there is no file", "gone.jsonl")
    assert answer.code == 2


def test_rows_that_are_no_text_are_rejected_by_file_and_reason(
    hornbook: Run, tmp_path: Path, ray_cluster: None
) -> None:
    """A line of 50 MB, invalid UTF-8, broken JSON, a torn gzip: the rest is kept, and `hornbook show` names each."""
    names = ("huge.txt", "latin.txt", "empty.txt", "torn.jsonl", "cut.txt.gz")
    huge, latin, empty, torn, cut = (tmp_path / name for name in names)
    cut.write_bytes(gzip.compress(b"a whole line\nanother one\n")[:-9])
    huge.write_bytes(b"a good line\n" + b"x" * 50_000_000 + b"\nanother good line\n")
    latin.write_bytes("café\n".encode("latin-1") + "café\n".encode())
    empty.touch()
    torn.write_text('{"text": "whole"}\n{"text": "to\n{"other": 1}\n')
    answer = hornbook("run", recipe(tmp_path, huge, latin, empty, torn, cut))
    assert answer.code == 0, answer.err
    assert "5 rows, 5 rejected" in answer.out
    shown = hornbook("show", "latest/own").out
    for path, reason in (
        (huge, "too-long"),
        (latin, "encoding"),
        (torn, "not-json"),
        (torn, "no-text"),
        (cut, "unreadable-rest"),
    ):
        assert any(str(path) in line and reason in line for line in shown.splitlines()), shown
    assert f"  {empty} is empty" in shown.splitlines()
    assert "50000001 bytes" in shown
