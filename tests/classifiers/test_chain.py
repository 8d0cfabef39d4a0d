"""The whole of the filter on a few dozen real files: read, annotate (echo judge), train a scorer, score."""

from __future__ import annotations

import json

import numpy as np
import pytest

from classifiers.annotate import Annotate, AnnotateSettings
from classifiers.embed import Embed, EmbedSettings
from classifiers.installed_python import InstalledPython, InstalledPythonSettings
from classifiers.quality import Quality, QualitySettings
from classifiers.score import Score, ScoreSettings
from hornbook.engines.interface import EngineSettings
from hornbook.errors import DataError, RecipeError

ECHO = EngineSettings(kind="echo")
PACKAGES = ("jinja2", "click", "idna", "rich", "pydantic")


def web_stage(**settings) -> InstalledPython:
    return InstalledPython(
        "web", InstalledPythonSettings(files=48, part_rows=12, distributions=PACKAGES, **settings), seed=7
    )


def forget_parts(artifact, keep: int) -> list[str]:
    """Do what a killed run leaves: no manifest, and commit records of the first parts only. Return those kept."""
    store, folder = artifact.store, artifact.folder
    store.delete(f"{folder}/manifest.json")
    names = store.names(f"{folder}/parts")
    for name in names[keep:]:
        store.delete(f"{folder}/parts/{name}")
    artifact.__dict__.clear()
    artifact.store, artifact.folder = store, folder
    return [store.read(f"{folder}/parts/{name}") for name in names[:keep]]


@pytest.fixture(scope="module")
def chain(ray_cluster, shared_stage_context):
    """Documents, their embeddings and the echo judge's grades, made once."""
    web = shared_stage_context.finished(web_stage())
    annotations = shared_stage_context.finished(
        Annotate("grades", AnnotateSettings(sample=30, engine=ECHO, part_rows=8), seed=7), documents=[web]
    )
    embeddings = shared_stage_context.finished(Embed("vectors", EmbedSettings(), seed=7), documents=[web])
    return {"documents": [web], "embeddings": [embeddings], "annotations": [annotations]}


def quality_stage(**settings) -> Quality:
    return Quality("quality", QualitySettings(trees=20, rivals=False, **settings), seed=7)


def scored_by(stage_context, chain, scorer, embeddings: bool):
    inputs = {"documents": chain["documents"], "scorer": [scorer]}
    if embeddings:
        inputs["embeddings"] = chain["embeddings"]
    return stage_context.finished(Score("scores", ScoreSettings(), seed=7), **inputs)


def test_every_stage_accounts_for_every_document_in_order(chain, stage_context):
    scorer = stage_context.finished(quality_stage(), **chain)
    scored = scored_by(stage_context, chain, scorer, embeddings=True)
    (web,), (embedded,), (annotated,) = chain["documents"], chain["embeddings"], chain["annotations"]
    assert web.manifest.counts["planned"] == 48
    for artifact in (web, embedded, annotated, scored):
        counts = artifact.manifest.counts
        assert counts["planned"] == counts["succeeded"] + counts["rejected"]
    documents = [row for table in web.tables() for row in table.select(["id", "key", "source", "text"]).to_pylist()]
    for attributes in (embedded, scored):
        assert [part.start for part in attributes.parts] == [part.start for part in web.parts]
        rows = [row for table in attributes.tables() for row in table.to_pylist()]
        assert [(row["id"], row["key"]) for row in rows] == [(row["id"], row["key"]) for row in documents]
    assert [row["bytes"] for row in rows] == [len(row["text"].encode()) for row in documents]
    vectors = np.array([row["embedding"] for table in embedded.tables() for row in table.to_pylist()])
    assert vectors.shape[1] == 384 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    metrics = scorer.manifest.metrics
    assert metrics["train"] + metrics["held_out"] == annotated.manifest.counts["rows"]
    assert json.loads(json.dumps(metrics)) == metrics
    assert {entry.name for entry in scorer.manifest.files} == {
        "scorer.json", "head.skops", "held_out.parquet", "threshold.json"
    }  # fmt: skip
    metrics = scored.manifest.metrics
    assert sum(source["documents"] for source in metrics["kept"].values()) == len(documents)
    assert sum(map(sum, metrics["histogram"]["counts"].values())) == len(documents)
    assert json.loads(json.dumps(metrics)) == metrics
    assert [entry.name for entry in scored.manifest.files] == ["threshold.json"]
    dial = scored.store.read_json(f"{scored.folder}/dial.json")  # beside the files: it is no content
    assert sum(map(sum, dial["documents"])) == len(documents)
    assert dial["held_out"]["grades"] == scorer.manifest.metrics["held_out"]
    assert dial["chosen"] == scored.manifest.metrics["threshold"]


def test_scores_are_the_same_with_embeddings_that_were_kept_and_without(chain, stage_context):
    kept = {row["id"]: row["score"] for row in scores_of(stage_context, chain, embeddings=True)}
    for row in scores_of(stage_context, chain, embeddings=False):
        assert row["score"] == pytest.approx(kept[row["id"]], abs=0.1)  # other batches round otherwise in bfloat16


def scores_of(stage_context, chain, embeddings: bool):
    inputs = chain if embeddings else {name: value for name, value in chain.items() if name != "embeddings"}
    scorer = stage_context.finished(quality_stage(), **inputs)
    return [row for table in scored_by(stage_context, chain, scorer, embeddings).tables() for row in table.to_pylist()]


def test_embeddings_made_otherwise_than_the_scorers_are_refused(chain, stage_context):
    scorer = stage_context.finished(quality_stage(), **chain)
    shorter = stage_context.finished(
        Embed("shorter", EmbedSettings(max_tokens=16), seed=7), documents=chain["documents"]
    )
    with pytest.raises(RecipeError, match="shorter embeds otherwise than the scorer was trained"):
        scored_by(stage_context, {**chain, "embeddings": [shorter]}, scorer, embeddings=True)


def test_scoring_that_died_makes_only_what_is_missing_and_the_same(chain, stage_context):
    scorer = stage_context.finished(quality_stage(), **chain)
    scored = scored_by(stage_context, chain, scorer, embeddings=True)
    digest = scored.manifest.digest
    kept = forget_parts(scored, keep=2)
    again = scored_by(stage_context, chain, scorer, embeddings=True)
    assert again.manifest.digest == digest
    first = again.store.names(f"{again.folder}/parts")[:2]
    assert [again.store.read(f"{again.folder}/parts/{name}") for name in first] == kept


def test_training_again_gives_the_same_scorer_here_or_by_workers(chain, stage_context, monkeypatch):
    scorer = stage_context.finished(quality_stage(), **chain)
    digest = scorer.manifest.digest
    scorer.store.delete(scorer.folder)
    monkeypatch.setattr("classifiers.quality.SMALL_TRAINING", 0)
    monkeypatch.setattr("classifiers.quality.SMALL_CORPUS", 0)
    assert stage_context.finished(quality_stage(), **chain).manifest.digest == digest


def test_reading_that_died_goes_on_with_the_same_plan(ray_cluster, stage_context):
    web = stage_context.finished(web_stage())
    digest = web.manifest.digest
    forget_parts(web, keep=1)
    assert stage_context.finished(web_stage()).manifest.digest == digest


def test_annotations_of_one_class_are_refused_with_a_cure(chain, stage_context):
    with pytest.raises(DataError, match=r"all .* annotations are bad at the cut 5.000") as raised:
        stage_context.finished(quality_stage(label_cut=5.0), **chain)
    assert "label_cut" in raised.value.cure


def test_annotations_of_other_documents_are_refused(chain, stage_context):
    other = InstalledPython(
        "other", InstalledPythonSettings(files=48, part_rows=12, distributions=("networkx",)), seed=7
    )
    inputs = {"documents": [stage_context.finished(other)], "annotations": chain["annotations"]}
    with pytest.raises(DataError, match="only 0 of 30 annotations belong to these documents"):
        stage_context.finished(quality_stage(head="ngrams"), **inputs)
    with pytest.raises(RecipeError, match="vectors has attributes of other documents than other"):
        stage_context.finished(quality_stage(), **inputs, embeddings=chain["embeddings"])
