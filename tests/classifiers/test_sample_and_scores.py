"""Laws of the parts that need no model: the sample, excerpts, agreement, rejected embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from classifiers.annotate import agreement, draw_sample, sample_ranges
from classifiers.embed import embedded_content
from classifiers.excerpt import excerpt
from classifiers.strata import fair_shares
from hornbook.artifact import Artifact
from hornbook.documents import Document, content_key, document_id, documents_table
from hornbook.parts import PartContent, PartRange, commit_part
from hornbook.store import Store


def corpus(store: Store, name: str, texts: dict[str, list[str]], part_rows: int) -> Artifact:
    rows = [(source, text) for source, texts in texts.items() for text in texts]
    for start in range(0, len(rows), part_rows):
        documents = [
            Document(document_id(number), content_key(text.encode()), text, source, "python")
            for number, (source, text) in list(enumerate(rows))[start : start + part_rows]
        ]
        commit_part(store, name, PartRange(start, start + len(documents)), PartContent(documents_table(documents)))
    return Artifact(store, name)


def test_the_sample_is_fair_to_sources_and_lengths_and_blind_to_parts(tmp_path: Path):
    store = Store(str(tmp_path))
    texts = {
        "big": [f"{number} " * (10 if number % 2 else 200) for number in range(60)],
        "small": ["a few words here", "and a few more words"],
    }
    sample = draw_sample([corpus(store, "a", texts, 7)], 20, seed=1)
    sources = sample.column("source").to_pylist()
    assert sample.num_rows == 20 and sources.count("small") == 2
    keys = sorted(sample.column("key").to_pylist())
    assert sorted(draw_sample([corpus(store, "b", texts, 30)], 20, seed=1).column("key").to_pylist()) == keys
    assert sorted(draw_sample([corpus(store, "c", texts, 30)], 20, seed=2).column("key").to_pylist()) != keys


def test_parts_of_the_sample_stay_within_one_input():
    sample = pa.table({"input": pa.array([0] * 5 + [1] * 3, pa.int32())})
    assert [(part.start, part.stop) for part in sample_ranges(sample, 4)] == [(0, 4), (4, 5), (5, 8)]


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 200))
def test_shares_use_up_what_there_is_and_no_stratum_envies_another(sizes, wanted):
    shares = fair_shares(sizes, wanted)
    assert sum(shares) == min(wanted, sum(sizes))
    assert all(share <= size for share, size in zip(shares, sizes, strict=True))
    unsated = [share for share, size in zip(shares, sizes, strict=True) if share < size]
    assert not unsated or max(shares) <= min(unsated) + 1


def test_an_excerpt_leaves_out_the_legal_notice_and_nothing_else():
    code = '"""Teach."""\n\nx = 1  # licence plates'
    notice = "# Copyright 2020 The Authors.\n# Licensed under the Apache License.\n\n"
    assert excerpt(notice + code, 100) == code
    assert excerpt(code, 100) == code
    assert excerpt("# How to sort\n" + code, 13) == "# How to sort"
    assert excerpt("# Licence only\n", 100) == "# Licence only"


def test_agreement_knows_equal_opposite_and_constant_judges():
    scores = np.array([0.1, 1.2, 2.6, 3.4, 4.9])
    assert agreement(scores, scores) == {"spearman": 1.0, "kappa": 1.0, "exact": 1.0, "within_one": 1.0}
    assert agreement(scores, 5 - scores)["spearman"] == -1.0
    assert agreement(scores, np.full(5, 2.0))["spearman"] is None
    assert agreement(np.full(5, 2.0), np.full(5, 2.0))["kappa"] is None


def test_an_embedding_that_is_not_finite_is_a_reject():
    rows = pa.table({"id": [5, 6, 7], "key": pa.array([bytes(16)] * 3, pa.binary(16))})
    vectors = np.array([[1, 0], [np.nan, 0], [0, 1]], dtype=np.float32)
    content = embedded_content(rows, vectors)
    assert content.table.column("id").to_pylist() == [5, 7]
    assert content.table.column("embedding").to_pylist() == [[1, 0], [0, 1]]
    assert content.rejects.select(["id", "reason"]).to_pylist() == [{"id": 6, "reason": "not-finite"}]
    assert list(np.asarray(content.planned)) == [5, 6, 7]
