"""PhoneLM's and MobileLLM's token files: round trips through stages, what a header may not say, ids from elsewhere."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_artifact import finish
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import finished

from hornbook.artifact import Artifact
from hornbook.errors import DataError, RecipeError
from hornbook.store import Store
from training.export_tokens import ExportTokens, ExportTokensSettings
from training.import_tokens import ImportTokens, ImportTokensSettings
from training.packed import shard_index
from training.shards import TokenSource
from training.token_files import HEADER, data_ids, read_header, write_data
from training.tokenizer import as_hugging_face, train_bpe

EOS, VOCABULARY = 0, 512


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tokenizer's artifact, of 512 entries at most."""
    root = tmp_path_factory.mktemp("tokenizer")
    artifact = Artifact(Store(str(root)), "artifacts/tokenizer")
    folder = root / "artifacts/tokenizer/tokenizer"
    texts = (f"word{number} and {number * 7} more" for number in range(500))
    as_hugging_face(train_bpe(texts, VOCABULARY), 256).save_pretrained(folder)
    finish(artifact, "tokenizer", kind="tokenizer", files=[f"tokenizer/{path.name}" for path in folder.iterdir()])
    return artifact


def imported(store: Path, tokenizer: Artifact, **options: Any) -> Artifact:
    stage = ImportTokens("taken", ImportTokensSettings(validation_share=0.0, **options), seed=1)
    stage.check()
    return finished(stage, Store(str(store)), tokenizer=[tokenizer])


def stream(packed: Artifact) -> list[int]:
    index = shard_index(packed)
    return [
        int(token)
        for shard in index.splits["train"]
        for token in np.fromfile(packed.local_folder() / shard.tokens, dtype=index.dtype)
    ]


ids = st.lists(st.integers(0, 300), min_size=1, max_size=200)


@settings(max_examples=25)
@given(ids, st.integers(1, 5), st.integers(1, 40))
def test_phonelm_shards_come_back_as_they_were(
    tmp_path_factory: Any, tokenizer: Artifact, tokens: list[int], part: int, most: int
) -> None:
    root = tmp_path_factory.mktemp("phonelm")
    write_data(root / "a.data", [np.array(tokens)], VOCABULARY, special=5)
    assert read_header(root / "a.data").special == 5 and data_ids(root / "a.data").tolist() == tokens
    packed = imported(
        root / "store", tokenizer, paths=(str(root),), format="phonelm", part_documents=part, part_tokens=50
    )
    assert stream(packed) == tokens
    counts = packed.manifest.counts
    assert counts["planned"] == counts["succeeded"] and counts["tokens"] == len(tokens)
    stage = ExportTokens("given", ExportTokensSettings(format="phonelm", max_tokens=most), seed=1)
    written = finished(stage, Store(str(root / "store")), tokens=[packed])
    files = sorted(written.local_folder("files").glob("train-*.data"))
    assert [int(token) for file in files for token in data_ids(file)] == tokens
    assert all(read_header(file).tokens <= most for file in files)


@settings(max_examples=25)
@given(ids, st.integers(2, 9), st.integers(1, 3))
def test_rows_of_token_ids_come_back_in_order(
    tmp_path_factory: Any, tokenizer: Artifact, tokens: list[int], length: int, nodes: int
) -> None:
    root = tmp_path_factory.mktemp("rows")
    (root / "1").mkdir()
    (root / "1" / "a.jsonl").write_text(json.dumps({"token_ids": tokens}) + "\n\n")
    packed = imported(root / "store", tokenizer, paths=(str(root / "1"),), format="token-ids", part_documents=2)
    assert stream(packed) == tokens
    stage = ExportTokens("given", ExportTokensSettings(format="token-ids", row_tokens=length, nodes=nodes), seed=1)
    written = finished(stage, Store(str(root / "store")), tokens=[packed])
    whole = len(tokens) // length
    assert written.manifest.metrics["train_left_out"] == len(tokens) - whole * length
    if whole:
        folder = written.local_folder("files") / "train"
        assert sorted(path.name for path in folder.iterdir()) == [str(node) for node in range(1, nodes + 1)]
        by_node = [(folder / str(node) / "tokens.jsonl").read_text().splitlines() for node in range(1, nodes + 1)]
        rows = [json.loads(by_node[row % nodes][row // nodes])["token_ids"] for row in range(whole)]
        assert [token for row in rows for token in row] == tokens[: whole * length]


@settings(max_examples=15, deadline=None)
@given(st.lists(ids, min_size=1, max_size=9), st.integers(1, 4), st.booleans())
def test_data_sets_come_back_as_they_were(
    tmp_path_factory: Any, tokenizer: Artifact, rows: list[list[int]], part: int, saved: bool
) -> None:
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("dataset")
    made = datasets.Dataset.from_dict({"n": range(len(rows)), "input_ids": rows})
    if saved:
        made.save_to_disk(str(root / "given"))
    else:
        (root / "given").mkdir()
        made.to_parquet(str(root / "given" / "a.parquet"))
    paths = (str(root / "given"),)
    packed = imported(root / "store", tokenizer, paths=paths, format="dataset", part_documents=part)
    assert stream(packed) == [token for row in rows for token in row]
    stage = ExportTokens("given", ExportTokensSettings(format="dataset"), seed=1)
    written = finished(stage, Store(str(root / "store")), tokens=[packed])
    assert written.manifest.metrics["train_rows"] == len(rows)
    loaded = datasets.load_dataset(str(written.local_folder("files")), cache_dir=str(root / "cache"))
    assert loaded["train"]["input_ids"][:] == rows


def test_data_sets_without_ids_are_named_and_gaps_are_rejects(tmp_path: Path, tokenizer: Artifact) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has no column input_ids or token_ids of lists"):
        imported(tmp_path / "store", tokenizer, paths=(str(tmp_path / "a.parquet"),), format="dataset")
    (tmp_path / "b.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"b\.parquet is no file of a data set"):
        imported(tmp_path / "store", tokenizer, paths=(str(tmp_path / "b.parquet"),), format="dataset")
    pq.write_table(pa.table({"token_ids": [[1, 2], [], None, [1, None], [99999]]}), tmp_path / "c.parquet")
    packed = imported(tmp_path / "other", tokenizer, paths=(str(tmp_path / "c.parquet"),), format="dataset")
    assert stream(packed) == [1, 2] and packed.manifest.reasons == {"bad-tokens": 4}


def test_nodes_are_read_in_their_numbers_order(tmp_path: Path, tokenizer: Artifact) -> None:
    for node in (1, 2, 10):
        (tmp_path / "rows" / str(node)).mkdir(parents=True)
        (tmp_path / "rows" / str(node) / "a.jsonl").write_text(json.dumps({"token_ids": [node, EOS]}))
    packed = imported(tmp_path / "store", tokenizer, paths=(str(tmp_path / "rows"),), format="token-ids")
    assert stream(packed) == [1, EOS, 2, EOS, 10, EOS]
    source = TokenSource(packed.local_folder(), "train", 2, index=shard_index(packed))
    assert source.locate(1, 0).corpus == "taken" and source.locate(1, 0).offset == 0


def test_rows_that_are_none_and_foreign_ids_are_rejects(tmp_path: Path, tokenizer: Artifact) -> None:
    lines = ['{"token_ids": [1, 2]}', "nothing", '{"token_ids": [1, 99999]}', '{"token_ids": []}', '{"token_ids": [1.5]}',
             '{"token_ids": [-1]}', '{"ids": [1]}', '{"token_ids": [[1]]}']  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    packed = imported(tmp_path / "store", tokenizer, paths=(str(tmp_path / "a.jsonl"),), format="token-ids")
    rejects = [row for table in packed.tables("rejects") for row in table.to_pylist()]
    assert stream(packed) == [1, 2] and [row["id"] for row in rejects] == [1, 2, 3, 4, 5, 6, 7]
    assert "at byte 22" in rejects[0]["detail"] and "token id 99999, the tokenizer has 0 to" in rejects[1]["detail"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"XLLM", "does not begin with XLLM"),
        (HEADER.pack(b"GGUF", 1, 0, 0, 0), "does not begin with XLLM"),
        (HEADER.pack(b"XLLM", 2, 0, 0, 0), "version 2"),
        (HEADER.pack(b"XLLM", 1, 0, 0, 7), "dtype 7"),
        (HEADER.pack(b"XLLM", 1, 3, 0, 0) + struct.pack("<2h", 1, 2), "says 3 tokens, 6 bytes, and holds 4"),
        (HEADER.pack(b"XLLM", 1, 0, 0, 1), "the files hold no tokens"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, tokenizer: Artifact, data: bytes, message: str) -> None:
    (tmp_path / "a.data").write_bytes(data)
    with pytest.raises(DataError, match=message):
        imported(tmp_path / "store", tokenizer, paths=(str(tmp_path),), format="phonelm")


def test_a_path_without_files_is_refused(tmp_path: Path) -> None:
    stage = ImportTokens("taken", ImportTokensSettings(paths=(str(tmp_path),), format="phonelm"), seed=1)
    with pytest.raises(RecipeError, match=r"there is no \.data file"):
        stage.check()


def test_conversations_are_not_exported(tmp_path: Path, tokenizer: Artifact) -> None:
    (tmp_path / "a.jsonl").write_text('{"token_ids": [1, 2]}')
    packed = imported(tmp_path / "store", tokenizer, paths=(str(tmp_path / "a.jsonl"),), format="token-ids")
    description = tmp_path / "store" / packed.folder / "pack.json"
    description.write_text(description.read_text().replace('"text"', '"chat"'))
    with pytest.raises(DataError, match="cannot say which tokens are trained on"):
        finished(ExportTokens("given", ExportTokensSettings(format="phonelm"), seed=1), packed.store, tokens=[packed])
