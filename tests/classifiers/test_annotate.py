"""The annotated sample and what judges say of it, with judges whose opinions are known; no Ray, no model."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from finished_artifact import finish
from hypothesis import given
from hypothesis import strategies as st
from in_process import context_of, corpus

from classifiers import annotation_sample
from classifiers.agreement import agreement, quadratic_kappa
from classifiers.annotate import ANNOTATION_SCHEMA, Annotate
from classifiers.annotation_sample import draw_sample
from classifiers.strata import fair_shares
from hornbook.artifact import Artifact
from hornbook.documents import Document, content_key, documents_table
from hornbook.engines.interface import Reply, Request, Sampling, failed
from hornbook.errors import DataError, RecipeError
from hornbook.labelling import EXCERPTS
from hornbook.parts import PartCommit, PartContent, PartRange, commit_part, parquet_bytes
from hornbook.settings import validate
from hornbook.store import Store

LENGTHS = [20, 20, 20, 20, 20, 20, 300, 300, 5000]
TEXTS = [f"{'good' if n % 3 else 'bad'} {n} ".ljust(LENGTHS[n % 9], "x") for n in range(90)]
SOURCES = ["small" if n % 15 == 0 else "large" for n in range(90)]


class Judge:
    """An engine whose opinion is a function of the prompt: the probability of its last choice (Yes, or 5)."""

    def __init__(self, opinion: Callable[[str], float | str]) -> None:
        self.opinion = opinion

    def __len__(self) -> int:
        return 1

    async def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Reply:
        said = self.opinion(request.messages[-1]["content"])
        if isinstance(said, str):
            return failed(said)
        others = dict.fromkeys(request.choices[:-1], (1 - said) / (len(request.choices) - 1))
        probabilities = {**others, request.choices[-1]: said}
        return Reply(max(probabilities, key=lambda name: probabilities[name]), "stop", 50, 1, "", probabilities)


def likes_good(prompt: str) -> float:
    return 0.9 if re.search(r"good \d", prompt) else 0.1


def likes_bad(prompt: str) -> float:
    return 1 - likes_good(prompt)


def second_wording_differs(prompt: str) -> float:
    return likes_good(prompt) if "text for students" in prompt else likes_bad(prompt)


def fails_on_some(prompt: str) -> float | str:
    return "the model was tired" if "good 1 " in prompt else math.nan if "good 2 " in prompt else likes_good(prompt)


def annotate(store: Store, engines: Mapping[str, Judge], folder: Path | None = None, **settings: Any) -> Artifact:
    values = {"sample": 40, "calibrate": False, "engine": {"kind": "openai", "model": "one"}, **settings}
    stage = Annotate("labels", validate(Annotate.Settings, values, "labels"), seed=3)
    stage.folder = folder
    stage.check()
    web = corpus(store, "web", TEXTS, part_rows=12, sources=SOURCES)
    context = context_of(stage, store, documents=[web])
    context.open_engine = lambda settings, wait=True: engines[settings.model]  # type: ignore[assignment,return-value]
    result = stage.run(context)
    finish(context.artifact, stage.produces, kind=stage.kind, metrics=result.metrics, files=result.files)
    return context.artifact


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for table in artifact.tables() for row in table.to_pylist()]


# --- the sample ------------------------------------------------------------------------------------------------------


def test_weights_count_the_whole_corpus_stratum_by_stratum(tmp_path: Path):
    sample = draw_sample([corpus(Store(str(tmp_path)), "web", TEXTS, sources=SOURCES)], 40, seed=1).to_pylist()
    for source in ("small", "large"):
        taken = [row["weight"] for row in sample if row["source"] == source]
        assert sum(taken) == pytest.approx(SOURCES.count(source))
    lengths = {row["id"] >> 16: len(TEXTS[row["id"] >> 16]) for row in sample}
    mean = np.average([lengths[row["id"] >> 16] for row in sample], weights=[row["weight"] for row in sample])
    assert mean == pytest.approx(np.mean([len(text) for text in TEXTS]), rel=0.02)
    assert np.mean(list(lengths.values())) > 1.2 * mean  # what weights are for: long texts are graded more often


def test_one_part_is_in_memory_at_a_time(tmp_path: Path):
    held: list[int] = []

    class Watched(Artifact):
        def read(self, part: PartCommit, role: str = "data", columns: Sequence[str] | None = None) -> pa.Table:
            until = time.monotonic() + 2  # Arrow's own threads let go of buffers a moment later
            while pa.total_allocated_bytes() - before > 500_000 and time.monotonic() < until:
                time.sleep(0.01)
            held.append(pa.total_allocated_bytes() - before)
            return super().read(part, role, columns)

    web = corpus(Store(str(tmp_path)), "web", ["x" * 500_000] * 12, part_rows=3)
    before = pa.total_allocated_bytes()
    draw_sample([Watched(web.store, web.folder)], 2, seed=1)
    assert len(held) == 4 and max(held) < 500_000


def test_what_is_dropped_early_would_never_have_been_taken(tmp_path: Path, monkeypatch):
    web = corpus(Store(str(tmp_path)), "web", TEXTS, part_rows=4, sources=SOURCES)
    whole = draw_sample([web], 12, seed=1)
    monkeypatch.setattr(annotation_sample, "SPARE", -30)
    assert draw_sample([web], 12, seed=1).equals(whole)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=7), st.integers(1, 60))
def test_the_largest_share_shrinks_while_strata_grow(sizes, wanted):
    before, after = [size for size, _ in sizes], [size + more for size, more in sizes]
    if sum(before) >= wanted:
        assert max(fair_shares(after, wanted)) <= max(fair_shares(before, wanted))


def test_no_documents_and_ids_that_occur_twice_are_errors(tmp_path: Path):
    store = Store(str(tmp_path))
    stage = Annotate("labels", Annotate.Settings(), seed=1)
    with pytest.raises(DataError, match="no documents to grade"):
        stage.run(context_of(stage, store, documents=[corpus(store, "none", [])]))
    # Committed as two units that gave the same document: only a foreign artifact looks so.
    twice = [Document(1, content_key(b"a"), text, "web", "text") for text in ("one", "two")]
    artifact = Artifact(store, "artifacts/twice")
    record = commit_part(store, artifact.folder, PartRange(0, 1), PartContent(documents_table(twice[:1]), planned=[0]))
    store.write(f"{artifact.folder}/{record.file('data').name}", parquet_bytes(documents_table(twice)))
    with pytest.raises(DataError, match="the id 1 occurs 2 times"):
        draw_sample([artifact], 5, seed=1)


# --- judges ----------------------------------------------------------------------------------------------------------


def test_one_judge_is_asked_in_two_wordings_and_their_agreement_is_measured(tmp_path: Path):
    found = annotate(Store(str(tmp_path)), {"one": Judge(second_wording_differs)})
    metrics = found.manifest.metrics
    assert metrics["agreement"]["of"] == "two wordings of one judge"
    assert (metrics["agreement"]["spearman"], metrics["agreement"]["exact"]) == (-1.0, 0.0)
    for row in rows_of(found):
        liked = TEXTS[row["id"] >> 16].startswith("good")
        assert row["score_a"] == pytest.approx(4.5 if liked else 0.5)
        assert row["score"] == pytest.approx((row["score_a"] + row["score_b"]) / 2)
        assert (row["grade_a"], row["judge"]) == ("Yes" if liked else "No", "one")
    assert found.manifest.counts["prompt_tokens"] == 40 * 2 * 50


def test_two_judges_are_asked_the_same_and_it_is_their_agreement(tmp_path: Path):
    judges = {"one": Judge(likes_good), "two": Judge(likes_bad)}
    found = annotate(Store(str(tmp_path)), judges, second_engine={"kind": "openai", "model": "two"})
    agreed = found.manifest.metrics["agreement"]
    assert (agreed["of"], agreed["first"], agreed["second"]) == ("two judges", "one", "two")
    assert (agreed["spearman"], agreed["within_one"]) == (-1.0, 0.0)
    assert {row["judge"] for row in rows_of(found)} == {"one + two"}
    assert found.manifest.counts["completion_tokens:second_engine"] == 40
    asked = found.store.read_json(f"{found.folder}/asked.json")["voices"]
    assert asked[0]["messages"] == asked[1]["messages"] and asked[1]["judge"] == "two"


def test_estimates_for_the_corpus_are_weighted(tmp_path: Path):
    found = annotate(Store(str(tmp_path)), {"one": Judge(likes_good)})
    rows = rows_of(found)
    assert sum(row["weight"] for row in rows) == pytest.approx(len(TEXTS))
    scores = found.manifest.metrics["scores"]
    assert scores["corpus_mean"] == pytest.approx(
        np.average([row["score"] for row in rows], weights=[row["weight"] for row in rows]), abs=1e-3
    )
    assert pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA).num_rows == 40


def test_a_judge_that_fails_or_says_no_number_costs_one_document(tmp_path: Path):
    found = annotate(Store(str(tmp_path)), {"one": Judge(fails_on_some)}, sample=90)
    assert found.manifest.reasons == {"judge_error": 1, "unparsable": 1}
    assert found.manifest.counts["planned"] == 90 and found.manifest.counts["rows"] == 88
    assert all(math.isfinite(row["score"]) for row in rows_of(found))


def test_a_judge_that_grades_nothing_is_an_error(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"no document got a grade; the first one: judge_error: no such model"
    ) as raised:
        annotate(Store(str(tmp_path)), {"one": Judge(always_fails)})
    assert "--from labels" in raised.value.cure


def always_fails(prompt: str) -> str:
    return "no such model"


def test_what_the_judges_read_is_kept_beside_the_grades(tmp_path: Path):
    found = annotate(Store(str(tmp_path)), {"one": Judge(fails_on_some)}, sample=90, characters=50)
    kept = [row for table in found.tables(role=EXCERPTS) for row in table.to_pylist()]
    assert len(kept) == 90  # those without a grade, too
    for row in kept:
        text = TEXTS[row["id"] >> 16]
        assert (row["text"], row["characters"], row["kind"]) == (text[:50].strip(), len(text), "web")


# --- rubrics of the user's own ---------------------------------------------------------------------------------------


def test_a_rubric_of_ones_own_is_what_the_judge_is_asked(tmp_path: Path):
    (tmp_path / "mine.jinja").write_text("--- system\nBe strict.\n--- user\nIs it {{ document }}?\n")
    found = annotate(Store(str(tmp_path / "store")), {"one": Judge(asked_mine)}, tmp_path, rubric="mine.jinja")
    rows = rows_of(found)
    assert all(row["score_a"] == pytest.approx(5) and row["score_b"] is None for row in rows)
    assert found.manifest.metrics["agreement"] == {}  # one voice: nothing to agree with
    assert rows[0]["score"] == rows[0]["score_a"]


def asked_mine(prompt: str) -> float:
    return float(prompt.startswith("Is it "))


def test_other_words_in_a_rubric_are_another_artifact(tmp_path: Path):
    def identity(text: str) -> dict[str, str]:
        (tmp_path / "mine.jinja").write_text(text)
        stage = Annotate("labels", Annotate.Settings(rubric=("mine.jinja",)), seed=1)
        stage.folder = tmp_path
        return stage.extra_identity()

    assert identity("--- user\nIs {{ document }} good?") != identity("--- user\nIs {{ document }} bad?")
    assert Annotate("labels", Annotate.Settings(), seed=1).extra_identity() == {}


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "missing.jinja cannot be read"),
        ("--- user\nIs it good?", "never shows the document"),
        ("{{ document }}", "text before the first message"),
        ("--- user\n{{ document }} {{ grade }}", "'grade' is undefined"),
        ("--- user\n{{ document", "unexpected end of template"),
        ("--- user\n{{ document }}\n--- assistant\nYes", "messages are of user, assistant"),
        ("--- teacher\n{{ document }}", "messages are of teacher"),
    ],
)
def test_a_rubric_that_cannot_be_asked_is_refused_before_anything_runs(tmp_path: Path, text, message):
    name = "missing.jinja" if text is None else "mine.jinja"
    if text is not None:
        (tmp_path / name).write_text(text)
    stage = Annotate("labels", Annotate.Settings(rubric=(name,)), seed=1)
    stage.folder = tmp_path
    with pytest.raises(RecipeError, match=message):
        stage.check()


def test_agreement_that_would_mean_nothing_is_refused(tmp_path: Path):
    for name in ("a.jinja", "b.jinja"):
        (tmp_path / name).write_text("--- user\n{{ document }}")
    stage = Annotate("labels", Annotate.Settings(rubric=("a.jinja", "b.jinja")), seed=1)
    stage.folder = tmp_path
    with pytest.raises(RecipeError, match="say the same"):
        stage.check()
    with pytest.raises(RecipeError, match="engine once more"):
        validate(Annotate.Settings, {"second_engine": {}}, "labels")
    with pytest.raises(RecipeError, match="name one rubric"):
        validate(Annotate.Settings, {"rubric": ["a", "b"], "second_engine": {"model": "other"}}, "labels")


# --- agreement -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_kappa_measures_distances_of_grades_not_of_ranks(pairs):
    from sklearn.metrics import cohen_kappa_score

    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    found = quadratic_kappa(first, second)
    if len(set(first) | set(second)) == 1:
        assert math.isnan(found)
    else:
        wanted = cohen_kappa_score(first, second, weights="quadratic", labels=list(range(6)))
        assert found == pytest.approx(wanted, abs=1e-9)


def test_grades_of_which_only_some_occur_keep_their_distances():
    first, second = np.array([0.0, 5.0, 0.0, 5.0, 1.0, 0.0]), np.array([0.0, 5.0, 1.0, 5.0, 0.0, 0.0])
    # One apart twice is little beside five: by rank, 0, 1, 5 would be 0, 1, 2.
    assert (agreement(first, second)["kappa"] or 0) > 0.9
