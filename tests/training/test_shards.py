"""Token shards and their source: rows across shards, lineage, damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hornbook.errors import DataError
from training.shards import ShardBuilder, ShardIndex, TokenSource, token_dtype, write_shard_folder

LENGTHS = [5, 40, 1, 17, 90, 3]


def documents() -> list[np.ndarray]:
    return [np.arange(1, length + 1) + 100 * number for number, length in enumerate(LENGTHS)]


def write(folder: Path, vocabulary: int = 1000) -> np.ndarray:
    """Write the documents in two shards; return all tokens in order."""
    builders = [ShardBuilder(eos=0, vocabulary=vocabulary) for _ in range(2)]
    for number, ids in enumerate(documents()):
        builders[number // 3].add(number, bytes([number] * 16), "corpus", "train", ids)
    write_shard_folder(folder, builders)
    return np.concatenate([np.append(ids, 0) for ids in documents()])


@pytest.mark.parametrize("vocabulary", [1000, 70_000])
def test_windows_are_cut_from_the_concatenation(tmp_path: Path, vocabulary: int) -> None:
    everything = write(tmp_path, vocabulary)
    assert ShardIndex.read(tmp_path).dtype == token_dtype(vocabulary) == ("<u2" if vocabulary == 1000 else "<u4")
    source = TokenSource(tmp_path, "train", 10)
    assert source.tokens == len(everything) and len(source) == (len(everything) - 1) // 10
    tokens, trained = source.read(np.arange(len(source)))
    for row in range(len(source)):
        assert tokens[row].tolist() == everything[10 * row : 10 * row + 11].tolist()
    assert trained.all()


def test_every_position_is_traced_to_its_document(tmp_path: Path) -> None:
    write(tmp_path)
    source = TokenSource(tmp_path, "train", 10)
    for sequence in range(len(source)):
        tokens, _ = source.read(np.array([sequence]))
        for position in range(10):
            found = source.locate(sequence, position)
            ids = np.append(documents()[found.document], 0)
            assert ids[found.offset] == tokens[0, position]
            assert found.key == bytes([found.document] * 16) and found.corpus == "corpus"
    with pytest.raises(IndexError):
        source.locate(len(source), 0)


def test_document_rows_are_opened_padded_and_cut(tmp_path: Path) -> None:
    write(tmp_path)
    source = TokenSource(tmp_path, "train", 20, "documents")
    assert len(source) == len(LENGTHS)
    tokens, trained = source.read(np.arange(len(LENGTHS)))
    for row, ids in enumerate(documents()):
        kept = np.append(ids, 0)[:20]
        assert tokens[row].tolist() == [0, *kept, *[0] * (20 - len(kept))]
        assert trained[row].tolist() == [False] + [True] * len(kept) + [False] * (20 - len(kept))
    assert source.locate(3, 0).offset == 0 and source.locate(3, 1).offset == 0 and source.locate(3, 5).offset == 4
    with pytest.raises(IndexError, match="padding"):
        source.locate(0, 9)


def test_masks_mark_targets(tmp_path: Path) -> None:
    builder = ShardBuilder(eos=0, vocabulary=100, masked=True)
    builder.add(0, bytes(16), "chat", "train", np.array([5, 6, 7, 8]), np.array([0, 0, 1, 1], dtype=bool))
    builder.add(1, bytes(16), "chat", "validation", np.array([9]), np.array([True]))
    write_shard_folder(tmp_path, [builder])
    source = TokenSource(tmp_path, "train", 6, "documents")
    _, trained = source.read(np.array([0]))
    assert trained[0].tolist() == [False, False, False, True, True, True, False]
    assert source.masked and len(TokenSource(tmp_path, "validation", 6, "documents")) == 1


def test_damage_names_the_file(tmp_path: Path) -> None:
    write(tmp_path)
    shard = tmp_path / "train-00001.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2])
    with pytest.raises(DataError, match=r"train-00001.bin has \d+ bytes, its index says \d+"):
        TokenSource(tmp_path, "train", 10)
    shard.write_bytes(b"\xff\xff" + whole[2:])
    source = TokenSource(tmp_path, "train", 10)
    with pytest.raises(DataError, match=r"train-00001.bin holds token id 65535 .* beyond the vocabulary of 1000"):
        source.read(np.arange(len(source)))
    shard.unlink()
    with pytest.raises(DataError, match=r"train-00001.bin is missing"):
        TokenSource(tmp_path, "train", 10)
    (tmp_path / "shards.json").write_text("{")
    with pytest.raises(DataError, match=r"shards.json is missing or damaged"):
        TokenSource(tmp_path, "train", 10)


def test_an_id_beyond_the_vocabulary_is_refused_and_not_wrapped() -> None:
    """Two bytes hold the ids of 60,000 words; 65,537 would become 1. A tokenizer whose ids have gaps gives such."""
    builder = ShardBuilder(eos=0, vocabulary=60_000)
    builder.add(1, bytes(16), "web", "train", np.array([59_999]))
    for wrong in (65_537, 60_000, -1):
        with pytest.raises(DataError, match=r"token ids from .* the vocabulary has 60,000"):
            builder.add(2, bytes(16), "web", "train", np.array([5, wrong]))
    assert builder.counts()["train_tokens"] == 2


def test_the_fingerprint_is_of_content_not_of_names(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two")
    index = json.loads((tmp_path / "two" / "shards.json").read_text())
    for number, shard in enumerate(index["splits"]["train"]):
        (tmp_path / "two" / shard["tokens"]).rename(tmp_path / "two" / f"again-{number}.bin")
        shard["tokens"] = f"again-{number}.bin"
    (tmp_path / "two" / "shards.json").write_text(json.dumps(index))
    one, two = ShardIndex.read(tmp_path / "one"), ShardIndex.read(tmp_path / "two")
    assert one != two and one.fingerprint("train") == two.fingerprint("train")
