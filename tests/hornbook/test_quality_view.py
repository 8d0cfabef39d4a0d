"""The report's sections on quality: what is measured is shown, and nothing is asked for that may be missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_report import RUN, Page, SampleRun

from hornbook.report import render_report
from hornbook.store import Store

HEAD = {"auc": [0.81, 0.72, 0.9], "average_precision": [0.7, 0.6, 0.8], "auc_above_ngrams": [0.11, -0.02, 0.2]}
NGRAMS = {"auc": [0.7, 0.6, 0.8], "average_precision": [0.65, 0.5, 0.7]}
CURVE = [[0, 0], [0.2, 0.7], [1, 1]]
METRICS: dict[str, Any] = {
    "head": "ridge",
    "train": 168,
    "held_out": 72,
    "threshold": 0.4375,
    "precision": 0.75,
    "warnings": ["<b>only</b> 72 held-out annotations"],
    "agreement": {"kappa": 0.1875},
    "measured": {
        "folds": {"cross_validated": 5},
        "cross_validated": {"ridge": HEAD, "ngrams": NGRAMS},
        "held_out": {"ridge": HEAD, "ngrams": NGRAMS},
        "out_of_bag": {},
        "curves": {
            "good_share": 0.5,
            "roc": {"ridge": CURVE, "ngrams": CURVE, "held_out": CURVE},
            "precision_recall": {"ridge": CURVE, "held_out": CURVE},
        },
        "calibration": {"curve": [[0.1, 0.2, 30], [0.8, 0.7, 42]], "brier": 0.1875, "ece": 0.0625},
        "at_threshold": {
            "confusion": {"kept_good": 31, "kept_bad": 12, "dropped_good": 7, "dropped_bad": 22},
            "precision": [0.721, 0.6, 0.85],
            "level": 0.95,
        },
        "by_source": [
            {"source": "<i>blog</i>", "documents": 44, "good_share": 0.25, "kept_share": 0.5, "auc": None},
        ],
    },
    "source_alarm": {
        "sources": 6, "grades": 0.834, "decisions": 0.512,
        "source_blind": {"decisions_before": 0.912, "auc_before": 0.79, "auc_after": 0.74},
    },
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> SampleRun:
    return SampleRun(Store(str(tmp_path)))


def page(run: SampleRun, metrics: dict[str, Any]) -> Page:
    run.stage("labels", "annotate", "classifiers", "attributes", metrics={"agreement": {"kappa": 0.1875}})
    run.stage("learned", "quality", "classifiers", "scorer", files={"scorer.json": b"{}"}, metrics=metrics)
    scores = {"threshold": 0.4375, "histogram": {"edges": [0, 0.5, 1], "counts": {"code": [4, 2]}}}
    run.stage("scores", "score", "classifiers", "attributes", metrics=scores)
    return run.write()


def test_a_scorer_is_shown_with_its_rivals_curves_and_alarm(run: SampleRun) -> None:
    shown = page(run, METRICS)
    for words in (
        "Learning quality: learned", "ridge on the grades (scores)", "n-grams, no embeddings", "0.810 0.720 to 0.900",
        "0.110 -0.020 to 0.200", "At the threshold of 0.438", "graded good 31 7", "graded bad 12 22", "0.912", "0.790, 0.740",
        "calibration error 0.062", "<i>blog</i> 44 25% 50% –", "<b>only</b> 72 held-out annotations.", "Quality: scores",
    ):  # fmt: skip
        assert words in shown.text, words
    assert "out of bag" not in shown.text and "logistic" not in shown.text
    assert shown.text.count("labels are weak") == shown.text.count("Agreement of the two judge prompts") == 1
    assert {"quality"} <= shown.ids() and not [tag for tag, _ in shown.tags if tag == "b"]
    labels = [attributes["aria-label"] for tag, attributes in shown.tags if tag == "svg"]
    for words in ("ROC curves", "Precision-recall curves", "Calibration", "Documents by quality score"):
        assert sum(words in str(label) for label in labels) == 2, words  # wide and narrow


@pytest.mark.parametrize(
    "broken",
    [
        {"measured": 3},
        {"measured": {"cross_validated": {"ridge": 7}}},
        {"measured": {"cross_validated": {"ridge": {"auc": ["high", 0, 1]}}, "curves": {"roc": {"ridge": [[1]]}}}},
        {"measured": {"held_out": {"ngrams": NGRAMS}, "calibration": {"curve": [[0, None, 1]]}, "by_source": [3, {}]}},
        {"measured": {"held_out": {"ngrams": NGRAMS}}, "source_alarm": {"grades": "loud"}, "head": None},
        {"source_alarm": {"grades": 0.9, "source_blind": 4}},
        {"measured": {**METRICS["measured"], "at_threshold": {"confusion": {"kept_good": "x"}, "recall": [0.1]}}},
    ],
)
def test_figures_that_are_missing_or_of_another_shape_are_left_out(run: SampleRun, broken: dict[str, Any]) -> None:
    page(run, {**METRICS, **broken})


def test_who_graded_is_said(run: SampleRun) -> None:
    assert "People graded 40 of the 240 annotated" in page(run, {**METRICS, "left_out": {"graded_by_people": 40}}).text
    text = page(run, {**METRICS, "left_out": {"graded_by_people": 240}}).text
    assert "All annotated documents were graded by people" in text and "labels are weak" not in text


def test_the_page_needs_no_request_and_no_width(run: SampleRun) -> None:
    page(run, METRICS)
    written = render_report(run.store, RUN)
    assert "http" not in written.split("<style>")[1].split("</style>")[0]
    assert written.count('class="charts"') == 2
