"""Scoring a corpus with a trained scorer: a score for every document, with its own vectors or with embeddings, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import context_of, corpus, finished
from small_corpora import beside
from small_corpora import finished as described

from classifiers.embed import Embed, EmbedSettings
from classifiers.features import FeatureSettings
from classifiers.quality import Quality, QualitySettings
from classifiers.score import Score, ScoreSettings
from hornbook import cluster
from hornbook.artifact import THRESHOLD, Artifact
from hornbook.errors import DataError, RecipeError
from hornbook.parts import PartContent, PartRange, commit_part, same_ids
from hornbook.store import Store

STATIC = FeatureSettings(kind="static", max_tokens=32)
PLANTS = [
    f"The {colour} leaf of a plant grows toward the light, number {number}."
    for number in range(20)
    for colour in ("green", "red")
]
NUMBERS = [f"0x{number:04x}, 0x{number * 7:04x}, {number}, {number + 1}, {number * 3}," for number in range(40)]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "expected_gpus", lambda: 0.0)  # parts are made in this process, without a cluster


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def web(store: Store, name: str = "web", sources: Sequence[str] | None = None) -> Artifact:
    """Return a finished corpus of prose about plants and lines of numbers, in turns, in parts of 30."""
    texts = [text for pair in zip(PLANTS, NUMBERS, strict=True) for text in pair]
    return corpus(store, name, texts, 30, sources or ["left", "left", "right", "right"] * 20)


def scorer(store: Store, documents: Artifact) -> Artifact:
    """Return a scorer that was taught to like plants."""
    rows = sum(part.rows for part in documents.parts)
    grades = beside(store, documents, {"score": [5.0 if row % 2 == 0 else 0.0 for row in range(rows)]}, "grades")
    stage = Quality("quality", QualitySettings(features=STATIC, label_cut=2.5, trees=20, rivals=False, folds=2), 1)
    return finished(stage, store, documents=[documents], annotations=[grades])


def score(store: Store, name: str = "scores", **inputs: Artifact) -> Artifact:
    stage = Score(name, ScoreSettings(), 1)
    return finished(stage, store, **{role: [artifact] for role, artifact in inputs.items()})


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for table in artifact.tables() for row in table.to_pylist()]


def test_every_document_has_a_score_and_its_size(store: Store):
    documents = web(store)
    trained = scorer(store, documents)
    scored = score(store, documents=documents, scorer=trained)
    wanted, found = rows_of(documents), rows_of(scored)
    assert set(found[0]) == {"id", "key", "source", "score", "bytes"}
    for row, document in zip(found, wanted, strict=True):
        assert (row["id"], row["key"], row["source"]) == (document["id"], document["key"], document["source"])
        assert row["bytes"] == len(document["text"].encode())
        assert (row["score"] > 0.5) == ("leaf" in document["text"])
    threshold = store.read_json(f"{scored.folder}/{THRESHOLD}")["threshold"]
    metrics = scored.manifest.metrics
    assert metrics["threshold"] == threshold == store.read_json(f"{trained.folder}/{THRESHOLD}")["threshold"]
    assert sum(entry["kept"] for entry in metrics["kept"].values()) == sum(row["score"] >= threshold for row in found)
    assert metrics["source_auc"] == pytest.approx(0.5, abs=0.15) and metrics["warnings"] == []


def test_scores_that_sort_by_source_raise_the_alarm(store: Store):
    documents = web(store, sources=["books", "tables"] * 40)
    metrics = score(store, documents=documents, scorer=scorer(store, documents)).manifest.metrics
    assert metrics["source_auc"] > 0.95
    (warning,) = metrics["warnings"]
    assert "'tables'" in warning and "'books'" in warning and "source_blind" in warning


def test_embeddings_give_the_scores_of_the_texts(store: Store):
    documents = web(store)
    trained = scorer(store, documents)
    embeddings = finished(Embed("embed", EmbedSettings(**STATIC.model_dump()), 1), store, documents=[documents])
    embeddings = relabelled(store, embeddings, documents, STATIC)
    own = rows_of(score(store, "own", documents=documents, scorer=trained))
    assert rows_of(score(store, "with", documents=documents, scorer=trained, embeddings=embeddings)) == own


def relabelled(store: Store, artifact: Artifact, documents: Artifact, settings: FeatureSettings) -> Artifact:
    """Return an artifact's parts under a manifest that says what a pipeline's would: its inputs and settings."""
    name = f"{Path(artifact.folder).name}-of-documents"
    for part in artifact.parts:
        table = artifact.read(part)
        ids = [
            row["id"]
            for row in documents.read({found.start: found for found in documents.parts}[part.start]).to_pylist()
        ]
        content = PartContent(table, planned=ids, unit_of=same_ids, empty=len(ids) - table.num_rows)
        commit_part(store, f"artifacts/{name}", part.range, content)
    inputs = {"documents": [documents]}
    return described(store, name, "attributes", inputs, settings=settings.identity(), kind="embed")


def vectors_beside(store: Store, documents: Artifact, vectors: np.ndarray, name: str = "vectors") -> Artifact:
    """Return embeddings made by hand that claim to be static ones."""
    import pyarrow as pa

    first = 0
    for part in documents.parts:
        table = documents.read(part, columns=["id", "key"])
        own = pa.array(vectors[first : first + table.num_rows].ravel(), pa.float32())
        column = pa.FixedSizeListArray.from_arrays(own, vectors.shape[1])
        content = PartContent(
            table.append_column("embedding", column), planned=table["id"].to_numpy(), unit_of=same_ids
        )
        commit_part(store, f"artifacts/{name}", part.range, content)
        first += table.num_rows
    return described(store, name, "attributes", {"documents": [documents]}, settings=STATIC.identity(), kind="embed")


def test_a_vector_that_is_no_number_is_a_counted_reject(store: Store):
    documents = web(store)
    trained = scorer(store, documents)
    vectors = np.random.default_rng(0).normal(size=(80, 384)).astype(np.float32)
    vectors[3, 5], vectors[40, 0] = np.nan, np.inf
    scored = score(store, documents=documents, scorer=trained, embeddings=vectors_beside(store, documents, vectors))
    assert [part.reasons for part in scored.parts] == [{"not-finite": 1}, {"not-finite": 1}, {}]
    ids = [row["id"] for row in rows_of(documents)]
    assert [row["id"] for row in rows_of(scored)] == [found for row, found in enumerate(ids) if row not in (3, 40)]


def test_vectors_of_another_size_are_refused(store: Store):
    documents = web(store)
    trained = scorer(store, documents)
    vectors = np.ones((80, 7), dtype=np.float32)
    with pytest.raises(DataError, match="7 dimensions, the scorer was trained on 384"):
        score(store, documents=documents, scorer=trained, embeddings=vectors_beside(store, documents, vectors))


def test_other_embeddings_and_other_documents_are_refused_before_anything_runs(store: Store):
    documents = web(store)
    trained = scorer(store, documents)
    other = FeatureSettings(kind="static", max_tokens=64)
    embeddings = finished(Embed("embed", EmbedSettings(**other.model_dump()), 1), store, documents=[documents])
    with pytest.raises(RecipeError, match="embeds otherwise than the scorer was trained"):
        score(store, documents=documents, scorer=trained, embeddings=relabelled(store, embeddings, documents, other))
    elsewhere = corpus(store, "elsewhere", ["a", "b"])
    same = relabelled(store, embeddings, documents, STATIC)
    with pytest.raises(RecipeError, match="attributes of other documents"):
        score(store, documents=elsewhere, scorer=trained, embeddings=same)


def test_an_empty_corpus_and_empty_texts_are_scored(store: Store):
    trained = scorer(store, web(store))
    odd = ["", "\x00", "word", "long " * 200_000, " \n", "苹果"]
    scored = score(store, "odd", documents=corpus(store, "odd-texts", odd), scorer=trained)
    assert [row["bytes"] for row in rows_of(scored)] == [len(text.encode()) for text in odd]
    assert all(0 <= row["score"] <= 1 for row in rows_of(scored))
    nothing = score(store, "nothing", documents=corpus(store, "no-texts", []), scorer=trained)
    assert rows_of(nothing) == [] and nothing.manifest.metrics["source_auc"] is None
    empty_part = Artifact(store, "artifacts/empty-part")
    table = web(store, "other").read(next(iter(web(store, "other").parts))).slice(0, 0)
    commit_part(store, empty_part.folder, PartRange(0, 5), PartContent(table, empty=5))
    described(store, "empty-part", "documents", {})
    assert rows_of(score(store, "empty", documents=empty_part, scorer=trained)) == []


def test_a_finished_part_is_not_scored_again(store: Store):
    documents = web(store)
    trained = scorer(store, documents)
    stage = Score("scores", ScoreSettings(), 1)
    context = context_of(stage, store, documents=[documents], scorer=[trained])
    stage.run(context)
    before = {part.start: part.files for part in context.artifact.parts}
    stage.run(context)
    assert {part.start: part.files for part in context.artifact.parts} == before
