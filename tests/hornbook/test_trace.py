"""Traces and `hornbook show`: the right document where several have its key, back to the roots, and why units were rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from small_artifacts import document_key, make, stories

from hornbook.artifact import Artifact
from hornbook.documents import Document, Reject, document_id, documents_table
from hornbook.inspection import describe_artifact
from hornbook.parts import PartCommit, PartContent, same_ids
from hornbook.recipe import load_recipe
from hornbook.runs import new_run
from hornbook.stage import TokenLocation
from hornbook.store import Store
from hornbook.trace import trace_document, trace_token

KEY = document_key(0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def packed(store: Store, name: str, corpus: Artifact, source: str) -> Artifact:
    content = PartContent(None, planned=[0], succeeded=1, files={"tokens": b"x"})
    return make(store, name, "pack", "tokens", [content], {"documents": [corpus]}, metrics={"source": source})


def scores(**columns: Any) -> PartContent:
    table = pa.table({"id": pa.array([document_id(0)], pa.int64()), "key": pa.array([KEY], pa.binary(16)), **columns})
    return PartContent(table, planned=[document_id(0)], unit_of=same_ids)


def test_a_token_s_document_is_the_one_that_was_trained_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    other, first, second, last = (
        make(store, name, "stories", "documents", [stories([f"Text {name}."])]) for name in "abcd"
    )
    inputs = {"tokens": [packed(store, "one", first, "one"), packed(store, "two", second, "two")]}
    model = make(store, "m", "pretrain", "model", inputs=inputs)
    recipe = load_recipe("demo")
    (trained,) = [name for name, entry in recipe.stages.items() if entry.stage.kind == "pretrain"]
    for source, own in (("one", first), ("two", second)):
        monkeypatch.setattr(
            type(recipe.stages[trained].stage), "locate_token", lambda *_, corpus=source: TokenLocation(corpus, KEY, 5)
        )
        fields = {"stages": {trained: {"folder": model.folder, "state": "made"}}, "source": recipe.source}
        with new_run(store, "demo", fields) as run:
            lines = list(trace_token(store, f"{run.id}@1:0:0"))
        assert f"token 5 of a document of {source}" in lines[0]
        assert f"artifact {own.folder}" in lines[2]
        others = [line for line in lines if "also in" in line]
        assert len(others) == 3 and all("ANOTHER text" in line for line in others)
        assert {folder for folder in (other.folder, last.folder) if folder in "".join(others)} == {
            other.folder,
            last.folder,
        }


def test_a_key_s_document_is_the_newest_run_s(store: Store) -> None:
    mine = make(store, "a", "stories", "documents", [stories(["The same."])])
    twin = make(store, "b", "stories", "documents", [stories(["The same."])])
    for artifact, elsewhere in ((mine, twin), (twin, mine)):
        with new_run(store, "small", {"stages": {"stories": {"folder": artifact.folder, "state": "made"}}}):
            lines = list(trace_document(store, KEY.hex()))
        assert f"artifact {artifact.folder}" in lines[1]
        assert f"also in  {elsewhere.folder}" in lines[2] and "the same text" in lines[2]


def test_a_parent_is_looked_for_where_the_child_was_made_from(store: Store) -> None:
    books, later = (make(store, name, "textbooks", "documents", [stories([f"Book {name}."])]) for name in "ab")
    child = Document(document_id(0), document_key(9), "Why?", "questions", "question", parents=(KEY,))
    make(store, "c", "questions", "documents", [PartContent(documents_table([child]))], {"documents": [books]})
    store.write(f"{make(store, 'd', 'stories', 'documents').folder}/manifest.json", b"{ damaged")
    lines = list(trace_document(store, document_key(9).hex()))
    text = "\n".join(lines)
    assert f"artifact {books.folder}" in text and f"also in  {later.folder}" in text
    assert 'text     "Book a."' in text


def test_scores_are_shown_without_reading_the_vectors(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make(store, "a", "stories", "documents", [stories(["One."])])
    vector = pa.array([[0.5] * 8], pa.list_(pa.float32(), 8))
    make(store, "b", "embed", "attributes", [scores(embedding=vector)], {"documents": [corpus]})
    make(store, "c", "quality", "attributes", [scores(embedding=vector, score=[0.75])], {"documents": [corpus]})
    read: list[Any] = []
    real = Artifact.read

    def spy(self: Artifact, part: PartCommit, role: str = "data", **options: Any) -> pa.Table:
        read.append((self, options))
        return real(self, part, role, **options)

    monkeypatch.setattr(Artifact, "read", spy)
    lines = list(trace_document(store, KEY.hex()))
    assert [line for line in lines if "scores" in line] == ["  scores   c: score=0.75"]
    assert [options for artifact, options in read if artifact.folder != corpus.folder] == [
        {"columns": ["id", "key", "score"]}
    ]


def test_a_selected_document_has_the_scores_that_it_was_selected_by(store: Store) -> None:
    scored = make(store, "a", "files", "documents", [stories(["One.", "Two."])])
    table = pa.table({"id": [document_id(row) for row in range(2)], "source": ["web"] * 2, "score": [0.75, 0.123456789],
                      "key": pa.array([document_key(row) for row in range(2)], pa.binary(16)), "of": [None, "x"]})  # fmt: skip
    beside = PartContent(table, planned=[document_id(row) for row in range(2)], unit_of=same_ids)
    attributes = make(store, "b", "score", "attributes", [beside], {"documents": [scored]})
    make(store, "c", "select", "documents", [stories(["One."])], {"documents": [scored], "attributes": [attributes]})
    lines = list(trace_document(store, KEY.hex()))
    assert [line for line in lines if "scores" in line] == ["  scores   b: score=0.75"]
    assert '  scores   b: score=0.1235, of="x"' in list(trace_document(store, document_key(1).hex()))


def test_show_has_rejects_and_the_lineage_to_the_roots(store: Store) -> None:
    rejects = [Reject(row, f"unit {row}", "truncated", f"cut at {row} tokens") for row in range(1, 8)]
    rejects.append(Reject(8, "unit 8", "refused"))
    books = make(store, "a", "textbooks", "documents", [stories(["Book."], rejects)], models={"smollm2": "revision-1"})
    questions = make(store, "b", "questions", "documents", [stories(["Why?"])], {"documents": [books]})
    shards = packed(store, "c", questions, "questions")
    model = make(store, "d", "pretrain", "model", inputs={"tokens": [shards], "more": [shards]})
    text = "\n".join(describe_artifact(books, 10))
    assert 'id=1 truncated: unit="unit 1", detail="cut at 1 tokens"' in text
    assert 'id=8 refused: unit="unit 8"' in text
    assert text.count("truncated: unit=") == 3
    lines = list(describe_artifact(model, 10))
    lineage = lines[lines.index("lineage") + 1 : lines.index("counts")]
    assert [line.split(", digest")[0] for line in lineage[:4]] == [
        f"  tokens: c, {shards.folder}",
        f"    documents: b, {questions.folder}",
        f"      documents: a, {books.folder}",
        "        model smollm2 at revision-1",
    ]
    assert lineage[4].startswith("  more: c") and lineage[4].endswith("(see above)")
    store.delete(questions.folder)
    assert "(not in this store any more)" in "\n".join(describe_artifact(Artifact(store, model.folder), 10))


def test_show_prints_keys_as_they_are_asked_for_and_numbers_plainly(store: Store) -> None:
    table = documents_table([Document(0, KEY, "A text.", "web", "text")]).select(["id", "key"])
    table = table.append_column("duplicate_of", pa.array([KEY], pa.binary(16))).append_column("kept", pa.array([False]))
    content = PartContent(table, planned=[0], unit_of=same_ids)
    shown = "\n".join(describe_artifact(make(store, "e", "dedup", "attributes", [content]), 10))
    assert f"{KEY.hex()}  id=0, duplicate_of={KEY.hex()}, kept=False" in shown
