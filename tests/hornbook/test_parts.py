"""Parts: a range is absent or whole, units are conserved, and readers see committed files only."""

from __future__ import annotations

import threading
from collections.abc import Set
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.documents import Document, Reject, document_id, documents_table, rejects_table
from hornbook.errors import StoreError
from hornbook.parts import (
    PartContent,
    PartRange,
    commit_part,
    missing_ranges,
    planned_ranges,
    read_commits,
    read_part,
    same_ids,
)
from hornbook.store import Store


def document(row: int, fan_out: int = 0) -> Document:
    return Document(document_id(row, fan_out), row.to_bytes(16, "big"), f"text {row}.{fan_out}", "test", "text")


def content(
    part: PartRange, rejected: Set[int] = frozenset(), empty: Set[int] = frozenset(), copies: int = 1
) -> PartContent:
    rows = [row for row in range(part.start, part.stop) if row not in rejected | empty]
    documents = documents_table(document(row, copy) for row in rows for copy in range(copies))
    rejects = rejects_table(Reject(row, "unit", "bad") for row in sorted(rejected))
    return PartContent(documents, rejects, empty=len(empty))


@given(rows=st.integers(0, 500), size=st.integers(1, 60))
def test_ranges_cut_the_plan_without_gaps(rows: int, size: int) -> None:
    ranges = list(planned_ranges(rows, size))
    assert [row for part in ranges for row in range(part.start, part.stop)] == list(range(rows))
    assert all(1 <= len(part) <= size for part in ranges)


@settings(max_examples=30)
@given(rows=st.integers(1, 40), seed=st.integers(0, 99), copies=st.integers(1, 3))
def test_every_planned_unit_is_kept_rejected_or_empty(
    tmp_path_factory: pytest.TempPathFactory, rows: int, seed: int, copies: int
) -> None:
    store = Store(str(tmp_path_factory.mktemp("store")))
    generator = np.random.default_rng(seed)
    fate = generator.integers(0, 3, rows)
    rejected = {row for row in range(rows) if fate[row] == 1}
    empty = {row for row in range(rows) if fate[row] == 2}
    record = commit_part(store, "a", PartRange(0, rows), content(PartRange(0, rows), rejected, empty, copies))
    assert record.planned == record.succeeded + record.rejected == rows
    assert record.rejected == len(rejected)
    assert record.empty == len(empty)
    assert record.rows == copies * (rows - len(rejected) - len(empty))
    assert read_part(store, "a", record).num_rows == record.rows


def test_a_lost_or_doubled_unit_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    part = PartRange(0, 4)
    twice = PartContent(documents_table([document(0), document(0)]), planned=range(4))
    with pytest.raises(StoreError, match="an id occurs twice"):
        commit_part(store, "a", part, twice)
    both = PartContent(documents_table([document(1)]), rejects_table([Reject(1, "u", "bad")]))
    with pytest.raises(StoreError, match="rejected and kept"):
        commit_part(store, "a", part, both)
    foreign = PartContent(documents_table([document(9)]))
    with pytest.raises(StoreError, match="no planned unit"):
        commit_part(store, "a", part, foreign)
    lost = PartContent(None, planned=range(4), succeeded=3)
    with pytest.raises(StoreError, match="4 planned, 3 kept, 0 rejected"):
        commit_part(store, "a", part, lost)
    dropped = PartContent(documents_table([document(0), document(2)]), rejects_table([Reject(3, "u", "bad")]))
    with pytest.raises(StoreError, match="4 planned, 2 kept, 1 rejected, 0 empty"):
        commit_part(store, "a", part, dropped)
    assert list(read_commits(store, "a")) == []


def test_attributes_are_counted_by_document_id(tmp_path: Path) -> None:
    ids = [document_id(3), document_id(5)]
    table = pa.table({"id": pa.array(ids, pa.int64()), "score": [0.1, 0.2]})
    record = commit_part(Store(str(tmp_path)), "a", PartRange(0, 8), PartContent(table, planned=ids, unit_of=same_ids))
    assert (record.planned, record.rows) == (2, 2)


def test_the_first_commit_of_a_range_wins_however_many_try(tmp_path: Path) -> None:
    store, part = Store(str(tmp_path)), PartRange(0, 10)
    records = []

    def attempt(copies: int) -> None:
        records.append(commit_part(store, "a", part, content(part, copies=copies)))

    threads = [threading.Thread(target=attempt, args=(copies,)) for copies in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({record.file("data").name for record in records}) == 1
    (kept,) = read_commits(store, "a")
    assert read_part(store, "a", kept).num_rows == kept.rows
    assert len(list((tmp_path / "a" / "data").iterdir())) == 4  # the losers' files are never read


def test_missing_ranges_are_those_without_a_record(tmp_path: Path) -> None:
    store, ranges = Store(str(tmp_path)), list(planned_ranges(25, 10))
    commit_part(store, "a", ranges[1], content(ranges[1]))
    assert missing_ranges(store, "a", ranges) == [ranges[0], ranges[2]]


def test_a_torn_part_is_named_with_its_cure(tmp_path: Path) -> None:
    store, part = Store(str(tmp_path)), PartRange(0, 3)
    record = commit_part(store, "a", part, content(part))
    path = tmp_path / "a" / record.file("data").name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StoreError, match="is damaged") as caught:
        read_part(store, "a", record)
    assert "run again" in caught.value.cure
