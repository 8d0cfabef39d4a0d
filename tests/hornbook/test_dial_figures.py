"""The dial's figures are those that brute force counts, and its intervals hold what they promise."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_corpus import Row, grades, scored_corpus, web

from hornbook.dial_figures import NAMED_SOURCES, REFERENCES, dial_figures, figures_at, nearest_step
from hornbook.errors import DataError
from hornbook.precision_recall import precision_recall
from hornbook.store import Store
from hornbook.token_estimate import TokensOf, embedded_tokens

WORDS = TokensOf("words", lambda texts: [len(text.split()) for text in texts])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_every_threshold_counts_what_a_selection_would_keep(store: Store) -> None:
    rows = web(600)
    corpus, scored = scored_corpus(store, rows, threshold=0.43217)
    figures = dial_figures(scored, corpus, grades(200), WORDS)
    assert figures["thresholds"][:3] == [0.0, 0.0025, 0.005] and 0.43217 in figures["thresholds"]
    scores = np.array([score for _, score, _ in rows], dtype=np.float32)
    for step, threshold in enumerate(figures["thresholds"]):
        found = figures_at(figures, step)
        kept = [row for row, score in zip(rows, scores, strict=True) if score >= threshold]
        assert found["kept_documents"] == len(kept)
        for source in found["sources"]:
            own = [text for name, _, text in kept if name == source["name"]]
            assert source["kept_documents"] == len(own)
            ratio = next(row["bytes_per_token"] for row in figures["sources"] if row["name"] == source["name"])
            assert source["kept_tokens"] * ratio == pytest.approx(sum(len(text.encode()) for text in own))


scores_of = st.sampled_from(["a", "b", "c"]).flatmap(
    lambda source: st.floats(0, 1, width=32).map(lambda score: (source, score, "text"))
)


@settings(max_examples=25)
@given(st.lists(scores_of, max_size=60), st.one_of(st.none(), st.floats(0, 1)))
def test_kept_and_dropped_are_all_and_fewer_stay_at_a_higher_threshold(rows: list[Row], own: float | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus, scored = scored_corpus(Store(folder), rows, part_rows=7, threshold=own)
        figures = dial_figures(scored, corpus, None, WORDS)
    steps = [figures_at(figures, step) for step in range(len(figures["thresholds"]))]
    assert steps[0]["kept_documents"] == steps[0]["documents"] == len(rows)
    for step, found in enumerate(steps):
        dropped = sum(sum(counts[:step]) for counts in figures["documents"])
        assert dropped + found["kept_documents"] == len(rows)
    for before, after in itertools.pairwise(steps):
        assert before["threshold"] < after["threshold"]
        assert before["kept_documents"] >= after["kept_documents"] and before["kept_tokens"] >= after["kept_tokens"]


def test_the_figures_do_not_depend_on_how_the_corpus_is_cut_but_for_the_sample(store: Store, tmp_path: Path) -> None:
    rows, figures = web(300), []
    for part_rows in (20, 300):
        corpus, scored = scored_corpus(Store(str(tmp_path / str(part_rows))), rows, part_rows=part_rows)
        figures.append(dial_figures(scored, corpus, None, WORDS))
    assert figures[0]["documents"] == figures[1]["documents"]
    shown = [[[reference[2] for reference in references] for references in found["references"]] for found in figures]
    assert shown[0] == shown[1]  # the same documents, whatever part they lie in


def test_references_are_documents_of_their_interval(store: Store) -> None:
    rows = web(500)
    corpus, scored = scored_corpus(store, rows)
    figures = dial_figures(scored, corpus, None, WORDS)
    borders = [*figures["thresholds"], float("inf")]
    known = {part.start: set(corpus.read(part).column("id").to_pylist()) for part in corpus.parts}
    for step, references in enumerate(figures["references"]):
        assert len(references) == min(REFERENCES, sum(counts[step] for counts in figures["documents"]))
        for start, identifier, key, source, score in references:
            assert identifier in known[start] and len(key) == 32
            assert borders[step] <= np.float32(score) < borders[step + 1]
            assert rows[identifier >> 16][0] == figures["sources"][source]["name"]


def test_scores_without_sizes_get_them_from_the_texts(store: Store, tmp_path: Path) -> None:
    rows = web(120)
    corpus, scored = scored_corpus(store, rows)
    plain = scored_corpus(Store(str(tmp_path / "plain")), rows, sized=False)
    assert dial_figures(plain[1], plain[0], None, WORDS)["bytes"] == dial_figures(scored, corpus, None, WORDS)["bytes"]


def test_grades_from_0_to_5_have_a_dial_too_and_what_has_no_score_is_counted_apart(store: Store) -> None:
    rows = [("stories", score, "a story") for score in (0.5, 3.5, 4.25, 5.0, float("nan"))]
    corpus, scored = scored_corpus(store, rows)
    figures = dial_figures(scored, corpus, None, WORDS)
    assert (figures["thresholds"][0], figures["thresholds"][-1], figures["unscored"]) == (0, 5, 1)
    assert [figures_at(figures, nearest_step(figures, at))["kept_documents"] for at in (0, 3.5, 4.3, 5)] == [4, 3, 1, 1]


def test_an_empty_corpus_has_a_dial_that_keeps_nothing(store: Store) -> None:
    corpus, scored = scored_corpus(store, [])
    found = figures_at(dial_figures(scored, corpus), 0)
    assert (found["documents"], found["tokens"], found["sources"]) == (0, 0, [])


def test_very_many_sources_are_folded_and_the_figures_stay_small(store: Store) -> None:
    draws = np.random.default_rng(0)
    rows = [
        (f"site-{int(n) if n < 5 else row}", float(draws.random()), "text")
        for row, n in enumerate(draws.zipf(1.3, 15_000))
    ]
    corpus, scored = scored_corpus(store, rows, part_rows=5000)
    figures = dial_figures(scored, corpus, grades(500), WORDS)
    assert len(figures["sources"]) == NAMED_SOURCES and figures["sources"][-1]["folded"]
    names = {name for name, *_ in rows}
    assert figures["sources"][-1]["name"] == f"{len(names) - NAMED_SOURCES + 1} other sources"
    assert sum(map(sum, figures["documents"])) == len(rows)
    assert {"site-1", "site-2", "site-3", "site-4"} <= {source["name"] for source in figures["sources"]}
    assert len(json.dumps(figures)) < 1_000_000


def test_scores_of_other_documents_are_refused(store: Store, tmp_path: Path) -> None:
    _, scored = scored_corpus(store, web(100), part_rows=10)
    other, _ = scored_corpus(Store(str(tmp_path / "other")), web(100), part_rows=50)
    with pytest.raises(DataError, match="other documents"):
        dial_figures(scored, other)


def test_tokens_are_estimated_by_source_with_their_error(store: Store) -> None:
    draws = np.random.default_rng(0)
    long, short = "extraordinarily ", "a b c d "
    rows = [
        (name, 0.5, text * int(draws.integers(2, 9)))
        for name, text in (("long", long), ("short", short))
        for _ in range(60)
    ]
    corpus, scored = scored_corpus(store, rows, part_rows=10)
    figures = dial_figures(scored, corpus, None, WORDS)
    ratios = {source["name"]: source for source in figures["sources"]}
    assert ratios["long"]["bytes_per_token"] == pytest.approx(16, rel=0.01)
    assert ratios["short"]["bytes_per_token"] == pytest.approx(2, rel=0.01)
    assert ratios["long"]["error"] < 0.5 and 16 <= ratios["long"]["measured"] <= 32
    assert figures_at(figures, 0)["tokens"] == pytest.approx(sum(len(text.split()) for *_, text in rows), rel=0.01)


def test_the_embedded_tokenizer_counts_as_its_model_does() -> None:
    tokens = embedded_tokens()
    assert tokens is not None and tokens.name == "smollm2-135m-instruct"
    assert tokens.count(["", "The cat sat on the mat."])[0] == 0
    assert 6 <= tokens.count(["The cat sat on the mat."])[0] <= 8


# --- precision and recall --------------------------------------------------------------------------------------------


def test_precision_and_recall_are_weighted_shares() -> None:
    held_out = pa.table({
        "score": pa.array([0.9, 0.8, 0.6, 0.4, 0.2], pa.float32()), "label": [True, False, True, True, False],
        "weight": pa.array([1.0, 3.0, 2.0, 4.0, 10.0], pa.float32()),
    })  # fmt: skip
    found = precision_recall(held_out, [0.0, 0.5, 0.7, 0.95])
    assert [entry and entry[0] for entry in found["precision"]] == [0.35, 0.5, 0.25, None]
    assert [entry and entry[0] for entry in found["recall"]] == [1.0, round(3 / 7, 4), round(1 / 7, 4), 0.0]
    assert (found["kept"], found["grades"], found["good"], found["good_share"]) == ([5, 3, 2, 0], 5, 3, 0.35)
    for value, low, high in filter(None, found["precision"] + found["recall"]):
        assert 0 <= low <= value <= high <= 1


def test_equal_weights_give_wilsons_interval_and_a_missing_column_is_equal_weights() -> None:
    scores, labels = np.full(10, 0.5), [True] * 7 + [False] * 3
    plain = pa.table({"score": scores, "label": labels})
    doubled = plain.append_column("weight", pa.array([2.0] * 10))
    assert precision_recall(plain, [0.0]) == precision_recall(doubled, [0.0])
    assert precision_recall(plain, [0.0])["precision"] == [[0.7, 0.3968, 0.8922]]  # 7 of 10, as in Brown, Cai, DasGupta


def test_rows_that_say_nothing_are_left_out() -> None:
    held_out = pa.table({
        "score": [0.5, float("nan"), 0.5, 0.5, 0.5], "label": [True, True, None, False, True],
        "weight": [1.0, 1.0, 1.0, 0.0, float("nan")],
    })  # fmt: skip
    assert precision_recall(held_out, [0.0])["grades"] == 1
    empty = precision_recall(held_out.slice(0, 0), [0.0, 0.5])
    assert (empty["precision"], empty["recall"], empty["good_share"]) == ([None, None], [None, None], None)


@pytest.mark.parametrize(("heavy", "light"), [(0.5, 0.05), (0.9, 0.6), (0.2, 0.95)])
def test_the_intervals_hold_the_truth_as_often_as_they_say(heavy: float, light: float) -> None:
    """A common stratum sampled thinly beside a rare one sampled thickly: what `annotate` draws."""
    draws, truth = np.random.default_rng(1), 0.8 * heavy + 0.2 * light
    hits = 0
    for _ in range(500):
        labels = np.concatenate([draws.random(100) < heavy, draws.random(100) < light])
        weights = np.repeat([8.0, 2.0], 100)
        held_out = pa.table({"score": np.full(200, 0.5), "label": labels, "weight": weights})
        _, low, high = precision_recall(held_out, [0.0])["precision"][0]
        hits += low <= truth <= high
    assert 0.93 <= hits / 500 <= 0.99, hits
