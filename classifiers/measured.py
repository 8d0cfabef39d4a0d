"""What is known of trained heads, and what the report, the choice of a head and the warnings make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from classifiers.annotated import Annotated, Split
from classifiers.calibration import reliability
from classifiers.heads import HEADS, NGRAMS
from classifiers.quality_figures import at_threshold, by_source, compared, curves, effective, sources_tell
from classifiers.ranking import Ranking
from classifiers.scorer import Scorer
from classifiers.source_alarm import ALARM

CROSS_VALIDATED, UNSEEN_SOURCES, OUT_OF_BAG, HELD_OUT = "cross_validated", "unseen_sources", "out_of_bag", "held_out"
DEAR = 0.05
"""AUC that a source-blind scorer may lose before the report says so."""
LEFT_OUT_WORDS = {
    "bad_grades": "without a grade from 0 to 5 or a weight",
    "of_other_documents": "of documents that are not here",
    "empty_text": "of empty documents",
    "no_embedding": "of documents rejected when embedded",
    "not_finite": "whose embedding has NaN or infinity",
}

Choose = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
"""Chooses a threshold: scores, labels, weights."""


@dataclass(frozen=True)
class Measured:
    """Annotated documents, and what heads gave those that they did not learn from.

    Attributes:
        unseen: by CROSS_VALIDATED, ... and by kind of head: float32 (rows,), NaN where there is no such score.
        folds: how many, by CROSS_VALIDATED and UNSEEN_SOURCES; 0: not possible.
        seed: of the bootstrap.
    """

    annotated: Annotated
    split: Split
    unseen: Mapping[str, Mapping[str, np.ndarray]]
    folds: Mapping[str, int]
    seed: int

    @cached_property
    def figures(self) -> dict[str, dict[str, Any]]:
        """AUC and average precision by CROSS_VALIDATED, ... and by kind of head."""
        labels, weights = self.split.labels, self.annotated.weights
        return {name: compared(scores, labels, weights, self.seed) for name, scores in self.unseen.items()}

    def best(self) -> str:
        """Return the kind of head with the highest cross-validated AUC; of equals, and without figures, the first of HEADS."""
        found = self.figures[CROSS_VALIDATED]
        kinds = [kind for kind in HEADS if kind in self.unseen[HELD_OUT]]
        return max(kinds, key=lambda kind: found[kind]["auc"][0]) if found else kinds[0]

    def of(self, kind: str) -> np.ndarray:
        """Return a head's scores of all documents, each by one that had not learned from it; float32 (rows,) with NaN."""
        trained = self.unseen[CROSS_VALIDATED].get(kind, np.full(len(self.annotated), np.nan, np.float32))
        return np.where(self.split.held_out, self.unseen[HELD_OUT][kind], trained)

    def finished(self, scorer: Scorer) -> np.ndarray:
        """Return the scores of `of`, as a scorer with such a head gives them."""
        return scorer.finished(self.of(scorer.kind), self.annotated.sources)


def threshold_on_held_out(measured: Measured, scores: np.ndarray, choose: Choose) -> float:
    """Return the threshold chosen on the held-out documents' `scores`, (rows,) of all documents."""
    held = measured.split.held_out
    return choose(scores[held], measured.split.labels[held], measured.annotated.weights[held])


def metrics_of(measured: Measured, scorer: Scorer, plain: Scorer, choose: Choose) -> dict[str, Any]:
    """Return the figures of a scorer for the report, JSON-ready.

    Args:
        measured: the heads.
        scorer: the one that is kept.
        plain: the same before it was made source-blind; itself if it was not.
        choose: a threshold.
    """
    annotated, split = measured.annotated, measured.split
    held, sources = split.held_out, annotated.sources
    scores = measured.finished(scorer)
    threshold = threshold_on_held_out(measured, scores, choose)
    labels, weights, grades = split.labels[held], annotated.weights[held], annotated.grades[held]
    there = at_threshold(scores[held], labels, weights, threshold, measured.seed)
    return {
        "head": scorer.kind,
        "train": int((~held).sum()),
        "held_out": int(held.sum()),
        "held_out_effective": effective(weights),
        "label_cut": round(split.cut, 4),
        "good_share": round(float(split.labels.mean()), 4),
        "auc": round(float(Ranking(scores[held], labels).auc(weights)), 4),
        "spearman": _spearman(scores[held], grades),
        "threshold": threshold,
        **{name: there[name][0] for name in ("precision", "recall", "f1", "kept_share")},
        "measured": {
            "folds": dict(measured.folds),
            **measured.figures,
            "curves": curves(
                {**measured.unseen[CROSS_VALIDATED], HELD_OUT: np.where(held, scores, np.nan)},
                split.labels,
                annotated.weights,
            ),
            "calibration": reliability(scores[held], labels, weights),
            "at_threshold": there,
            "by_source": by_source(scores, split.labels, annotated.weights, sources, threshold, measured.seed),
        },
        "source_alarm": source_figures(measured, scorer, plain, choose),
    }


def source_figures(measured: Measured, scorer: Scorer, plain: Scorer, choose: Choose) -> dict[str, Any]:
    """Return how well sources alone predict grades and decisions; of a source-blind scorer, before and after, and its cost."""
    annotated, labels = measured.annotated, measured.split.labels

    def decided(scores: np.ndarray) -> float | None:
        rows = np.flatnonzero(np.isfinite(scores))
        kept = scores[rows] >= threshold_on_held_out(measured, scores, choose)
        return sources_tell(kept, [annotated.sources[row] for row in rows], annotated.weights[rows])

    def auc(scores: np.ndarray) -> float:
        rows = np.isfinite(scores)
        return round(float(Ranking(scores[rows], labels[rows]).auc(annotated.weights[rows])), 4)

    scores = measured.finished(scorer)
    found: dict[str, Any] = {
        "sources": len(set(annotated.sources)),
        "grades": sources_tell(labels, annotated.sources, annotated.weights),
        "decisions": decided(scores),
    }
    if scorer.blind is not None:
        before = measured.finished(plain)
        found["source_blind"] = {
            "mapped_sources": len(scorer.blind.sources),
            "decisions_before": decided(before),
            "auc_before": auc(before),
            "auc_after": auc(scores),
        }
    return found


def warnings_of(metrics: Mapping[str, Any], left_out: Mapping[str, int], agreement: Mapping[str, Any]) -> list[str]:
    """Return what a person should know before they believe a scorer."""
    found, head = [], metrics["head"]
    if any(left_out.get(name) for name in LEFT_OUT_WORDS):
        said = ", ".join(f"{left_out[name]} {words}" for name, words in LEFT_OUT_WORDS.items() if left_out.get(name))
        found.append(f"annotations were left out: {said}")
    if metrics["held_out"] < 50:
        found.append(f"only {metrics['held_out']} held-out annotations: its figures are rough")
    elif metrics["held_out_effective"] < 50:
        found.append(
            f"the held-out annotations' weights differ so much that they tell as much as {metrics['held_out_effective']:.0f} "
            "alike: its figures are rough"
        )
    if metrics["auc"] < 0.6:
        found.append(
            f"the {head} hardly predicts the grades held out (AUC {metrics['auc']:.2f}, 0.5 is chance): grade more, or with a better judge"
        )
    measured = metrics["measured"]
    if not measured[CROSS_VALIDATED]:
        found.append("there are too few good, or bad, annotations to cross-validate")
    above = measured[CROSS_VALIDATED].get(head, {}).get("auc_above_ngrams")
    if above and above[0] <= 0:
        found.append(
            f"words and characters alone (head: {NGRAMS}) rank as well as the {head}: embeddings add nothing here"
        )
    alarm = metrics["source_alarm"]
    if (alarm["grades"] or 0) > ALARM:
        found.append(
            f"the source alone predicts the grades (AUC {alarm['grades']:.2f}): the judge sorts by source, or the sources do differ"
        )
    if (alarm["decisions"] or 0) > ALARM:
        found.append(
            f"the source alone predicts what is kept (AUC {alarm['decisions']:.2f}): the {head} sorts by source; look at what it keeps "
            "of each, and set source_blind where that is not what you want"
        )
    blind = alarm.get("source_blind")
    if blind and blind["auc_before"] - blind["auc_after"] > DEAR:
        found.append(
            f"being blind to sources costs AUC against the grades: {blind['auc_before']:.2f} before, {blind['auc_after']:.2f} after"
        )
    spearman = agreement.get("spearman")
    judged = metrics["train"] + metrics["held_out"] - left_out.get("graded_by_people", 0)
    if judged > 0 and not agreement:
        found.append("each document was graded once, so nothing says how far the grades can be trusted")
    elif judged > 0 and (spearman is None or spearman < 0.5):
        said = "cannot be told" if spearman is None else f"is {spearman:.2f} (1 is equal order)"
        found.append(f"the agreement of {agreement.get('of', 'the annotators')} {said}: the grades are weak labels")
    return found


def _spearman(scores: np.ndarray, grades: np.ndarray) -> float | None:
    from scipy.stats import spearmanr

    if np.ptp(scores) == 0 or np.ptp(grades) == 0:
        return None
    return round(float(spearmanr(scores, grades).statistic), 4)
