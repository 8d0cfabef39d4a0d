"""Best-fit rows: no document that fits is cut, every token stands once, lineage is kept, nothing crosses a document's end."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import best_fit
from training.best_fit import Documents, lay_out
from training.shards import ShardBuilder, TokenSource, write_shard_folder

EOS = 0


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HORNBOOK_CACHE", str(tmp_path / "cache"))


def packed(folder: Path, lengths: list[int], closed: bool = True, shards: int = 2) -> list[np.ndarray]:
    """Write documents of these lengths (end-of-text token included); every token's id is its own."""
    builders = [ShardBuilder(EOS, vocabulary=1 << 20) for _ in range(shards)]
    documents, first = [], 1
    for number, length in enumerate(lengths):
        ids = np.arange(first, first + length)
        if closed:
            ids[-1] = EOS
        first += length
        documents.append(ids)
        builder = builders[number * shards // len(lengths)]
        builder.add_whole(number, bytes([number % 256] * 16), "c", "train", ids)
    write_shard_folder(folder, [builder for builder in builders if builder.files()])
    return documents


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(2, 40))
def test_rows_are_as_full_as_one_by_one_best_fit_makes_them(sizes: list[int], room: int) -> None:
    """Against the algorithm as the paper states it: longest first, each into the fullest row that takes it."""
    sizes = [min(size, room) for size in sizes]
    left: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [(has, row) for row, has in enumerate(left) if has >= size]
        row = min(fitting)[1] if fitting else len(left)
        left += [room] if not fitting else []
        left[row] -= size
    pieces, rows = best_fit.best_fit(np.array(sizes), room)
    found = [room - sum(sizes[piece] for piece in pieces[low:high]) for low, high in itertools.pairwise(rows)]
    assert sorted(found) == sorted(left) and sorted(pieces.tolist()) == list(range(len(sizes)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 50), min_size=1, max_size=40), st.integers(4, 20), st.booleans())
def test_every_token_is_a_target_once_and_is_traced(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], row: int, closed: bool
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    documents = packed(folder, lengths, closed)
    source = TokenSource(folder, "train", row, "best-fit")
    tokens, trained = source.read(np.arange(len(source)))
    assert not trained[:, 0].any() or tokens.shape[1] == 1
    everything = Counter(int(token) for ids in documents for token in ids)
    seen = Counter(tokens[:, 1:][trained[:, 1:]].tolist())
    firsts_of_rows = [ids for ids in seen if seen[ids] > everything[ids]]
    assert not firsts_of_rows and seen == everything
    assert source.row_tokens * len(source) == pytest.approx(sum(lengths))
    for sequence in range(len(source)):
        for position in range(row):
            target = int(tokens[sequence, position + 1])
            if trained[sequence, position + 1] and target != EOS:
                number = next(number for number, ids in enumerate(documents) if target in ids)
                before = int(np.flatnonzero(documents[number] == target)[0]) - 1
                # what stands before a target is its own predecessor, or the end-of-text token that opens a document
                assert tokens[sequence, position] == (documents[number][before] if before >= 0 else EOS)
                if before >= 0:
                    found = source.locate(sequence, position)
                    assert (found.document, found.offset) == (number, before)
    whole = [ids for ids in documents if len(ids) <= row]
    text = [row.tolist() for row in tokens]
    for ids in whole:
        assert any(
            ids.tolist() == have[at : at + len(ids)] for have in text for at in range(1, len(have) - len(ids) + 1)
        )


def test_one_corpus_serves_any_length_and_lays_out_the_same_rows_again(tmp_path: Path) -> None:
    packed(tmp_path / "data", [7, 30, 4, 12, 3, 9, 21, 5])
    for row in (8, 16, 32):
        first = TokenSource(tmp_path / "data", "train", row, "best-fit")
        kept = [path for path in (tmp_path / "cache" / "rows").iterdir() if f"-{row}-" in path.name]
        assert len(kept) == 1
        before = (kept[0] / "pieces.bin").stat().st_mtime_ns
        again = TokenSource(tmp_path / "data", "train", row, "best-fit")
        assert (kept[0] / "pieces.bin").stat().st_mtime_ns == before
        rows = np.arange(len(first))
        assert (first.read(rows)[0] == again.read(rows)[0]).all()


def test_groups_bound_memory_and_change_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 4000).tolist()
    packed(tmp_path / "data", lengths, shards=5)
    whole = TokenSource(tmp_path / "data", "train", 64, "best-fit")
    monkeypatch.setattr(best_fit, "GROUP", 1000)
    monkeypatch.setenv("HORNBOOK_CACHE", str(tmp_path / "other"))
    grouped = TokenSource(tmp_path / "data", "train", 64, "best-fit")
    assert abs(len(grouped) - len(whole)) <= 0.02 * len(whole)
    tokens, trained = grouped.read(np.arange(len(grouped)))
    assert trained.sum() == sum(lengths) and len(np.unique(tokens[trained])) == sum(lengths) - len(lengths) + 1


@pytest.mark.parametrize(("over_long", "rows"), [("cut", 4), ("drop", 2)])
def test_longer_documents_are_cut_or_left_out(tmp_path: Path, over_long: best_fit.OverLong, rows: int) -> None:
    documents = Documents(np.array([0, 5, 30, 38]), np.array([5, 25, 8, 9]), np.zeros(4, dtype=bool))
    plan = lay_out(documents, 8, over_long)
    assert len(plan) == rows and not plan.pieces["context"].any() and plan.pieces["tokens"].max() <= 8
    assert sorted(plan.pieces["start"].tolist()) == ([0, 5, 30, 38] if over_long == "cut" else [0, 30])
