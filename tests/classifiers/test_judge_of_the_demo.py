"""The real judge, SmolLM2-135M, on documents whose order no one would dispute."""

from __future__ import annotations

import pytest

from classifiers.annotate import Annotate, AnnotateSettings
from hornbook.documents import Document, content_key, document_id, documents_table
from hornbook.engines.interface import EngineSettings
from hornbook.parts import PartContent, PartRange, commit_part


@pytest.mark.slow
def test_the_small_judge_grades_every_document_with_some_spread(ray_cluster, stage_context):
    texts = [
        "# Sorting\n\nTo sort cards we take them one by one and put each where it belongs. For example, given 3, 1, 2 we ...",
        "# Loops\n\nA loop repeats a step. Here we learn how to count from one to ten, and why the last number matters.",
        "from .alpha import Alpha\nfrom .beta import Beta\n__all__ = ['Alpha', 'Beta']\n",
        "CODES = {0x41: 0x61, 0x42: 0x62, 0x43: 0x63, 0x44: 0x64, 0x45: 0x65, 0x46: 0x66}\n" * 10,
    ]
    documents = stage_context(Annotate("documents", AnnotateSettings(), seed=1)).artifact
    rows = [Document(document_id(n), content_key(text.encode()), text, "web", "text") for n, text in enumerate(texts)]
    commit_part(documents.store, documents.folder, PartRange(0, 4), PartContent(documents_table(rows)))
    settings = AnnotateSettings(sample=4, engine=EngineSettings(max_model_len=1024, max_num_seqs=8))
    context = stage_context(Annotate("grades", settings, seed=1), documents=[documents])
    metrics = Annotate("grades", settings, seed=1).run(context).metrics
    scores = {row["id"]: row for table in context.artifact.tables() for row in table.to_pylist()}
    assert sorted(scores) == [document_id(n) for n in range(4)]
    assert all(0 <= row["score"] <= 5 and row["grade_a"] in ("Yes", "No") for row in scores.values())
    assert metrics["scores"]["deviation"] > 0.05
    assert set(metrics["prior"]) == {"a", "b"} and len(metrics["prior"]["a"]) == 2
