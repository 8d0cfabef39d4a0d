"""What the report says of quality: how a scorer was measured, how its scores lie, and what its threshold keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hornbook.charts import Series, histogram, line_chart, named_colours
from hornbook.run_view import RunView, StageView, flat_figures, mapping, numeric, sequence

SHOWN_APART = (
    "histogram", "kept", "threshold", "agreement", "warnings", "measured", "source_alarm", "left_out",
)  # fmt: skip
HEADS = {
    "forest": "random forest",
    "forest-regressor": "forest on the grades",
    "logistic": "logistic regression",
    "ridge": "ridge on the grades",
    "ngrams": "n-grams, no embeddings",
}
"""Heads of `classifiers.heads`: their names for people. The n-grams are the baseline."""
MEASURED = {
    "cross_validated": "cross-validated",
    "unseen_sources": "on unseen sources",
    "out_of_bag": "out of bag",
    "held_out": "held out",
}
AT_THRESHOLD = {"precision": "precision", "recall": "recall", "f1": "F1", "kept_share": "share of the corpus kept"}

Interval = tuple[float, float, float]


def trained(run: RunView) -> list[dict[str, Any]]:
    """Return, per stage that trained a scorer, its figures, charts, source alarm and warnings."""
    return [found for stage in run.stages if (found := _trained(stage))]


def _trained(stage: StageView) -> dict[str, Any] | None:
    measured = mapping(stage.metrics.get("measured"))
    columns = [name for name in MEASURED if mapping(measured.get(name))]
    if not columns:
        return None
    heads = [head for head in HEADS if any(head in mapping(measured.get(name)) for name in columns)]
    colours = {head: f"c{place}" for place, head in enumerate(HEADS)}
    scoring = str(stage.metrics.get("head", ""))
    rest = {key: value for key, value in stage.metrics.items() if key not in (*SHOWN_APART, *AT_THRESHOLD)}
    there = mapping(measured.get("at_threshold"))
    return {
        "stage": stage,
        "head": HEADS.get(scoring, scoring),
        "scoring": scoring,
        "heads": [(head, HEADS[head], colours[head]) for head in heads],
        "columns": [(name, MEASURED[name]) for name in columns],
        "figures": {
            (head, name): _figures(mapping(mapping(measured.get(name)).get(head))) for head in heads for name in columns
        },
        **_curves(stage, mapping(measured.get("curves")), colours),
        **_calibration(stage, mapping(measured.get("calibration"))),
        "threshold": numeric(stage.metrics.get("threshold")),
        "there": [(words, found) for name, words in AT_THRESHOLD.items() if (found := _interval(there.get(name)))],
        "confusion": {name: numeric(count) for name, count in mapping(there.get("confusion")).items()},
        "level": numeric(there.get("level")),
        "sources": _sources(measured),
        "alarm": _alarm(stage),
        "by_people": numeric(mapping(stage.metrics.get("left_out")).get("graded_by_people")) or 0,
        "annotated": sum(numeric(stage.metrics.get(name)) or 0 for name in ("train", "held_out")),
        "rest": flat_figures(rest),
        "warnings": stage.warnings,
    }


def _figures(found: Mapping[str, Any]) -> dict[str, Interval | None]:
    return {name: _interval(found.get(name)) for name in ("auc", "average_precision", "auc_above_ngrams")}


def _interval(value: Any) -> Interval | None:
    """Return (value, low, high), or None where a figure is undefined."""
    figures = [numeric(entry) for entry in sequence(value)]
    if len(figures) != 3 or None in figures:
        return None
    return figures[0], figures[1], figures[2]  # type: ignore[return-value]


def _curves(stage: StageView, curves: Mapping[str, Any], colours: Mapping[str, str]) -> dict[str, Any]:
    """Return the ROC and the precision-recall chart with their legend; the curve of chance is pale."""
    scoring = str(stage.metrics.get("head", ""))
    good = numeric(curves.get("good_share")) or 0.0
    names = {
        **{head: (words, colours[head]) for head, words in HEADS.items()},
        "held_out": (f"{HEADS.get(scoring, scoring)}, held out", "ink"),
    }

    def drawn(key: str, chance: float, x_label: str, y_label: str, what: str) -> Any:
        lines = [
            Series(words, colour, points)
            for name, (words, colour) in names.items()
            if (points := _points(mapping(curves.get(key)).get(name)))
        ]
        if not lines:
            return ""
        level = Series("chance", "ink", [(0.0, chance), (1.0, 1.0 if key == "roc" else chance)], faint=True)
        return line_chart(
            [*lines, level], label=f"{what} of the heads of {stage.name}", x_label=x_label, y_label=y_label
        )

    known = mapping(curves.get("roc"))
    return {
        "legend": [names[name] for name in names if _points(known.get(name))],
        "roc": drawn("roc", 0.0, "bad documents kept", "good documents kept", "ROC curves"),
        "precision_recall": drawn(
            "precision_recall", good, "recall: good documents kept", "precision: good among the kept",
            "Precision-recall curves",
        ),
        "good_share": good,
    }  # fmt: skip


def _calibration(stage: StageView, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reliability diagram, its bins (said, observed, documents), Brier score and calibration error."""
    bins = [
        (said, observed, count)
        for entry in map(sequence, sequence(found.get("curve")))
        if len(entry) == 3
        and (said := numeric(entry[0])) is not None
        and (observed := numeric(entry[1])) is not None
        and (count := numeric(entry[2])) is not None
    ]
    chart: Any = ""
    if bins:
        lines = [
            Series("right", "ink", [(0.0, 0.0), (1.0, 1.0)], faint=True),
            Series("share of good documents", "c0", [(said, observed) for said, observed, _ in bins], marked=True),
        ]
        chart = line_chart(
            lines,
            label=f"Calibration of the scores of {stage.name}",
            x_label="score",
            y_label="share of good documents",
        )
    return {
        "calibration": chart,
        "bins": bins,
        "brier": numeric(found.get("brier")),
        "calibration_error": numeric(found.get("ece")),
    }


def _points(value: Any) -> list[tuple[float, float]]:
    found = []
    for point in map(sequence, sequence(value)):
        if len(point) == 2 and (x := numeric(point[0])) is not None and (y := numeric(point[1])) is not None:
            found.append((x, y))
    return found


def _sources(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "source": str(entry.get("source", "")),
            **{name: numeric(entry.get(name)) for name in ("documents", "good_share", "kept_share")},
            "auc": _interval(entry.get("auc")),
        }
        for entry in map(mapping, sequence(measured.get("by_source")))
    ]


def _alarm(stage: StageView) -> dict[str, Any]:
    """Return how well the source alone predicts grades and decisions, and what a source-blind scorer was before."""
    found = mapping(stage.metrics.get("source_alarm"))
    blind = mapping(found.get("source_blind"))
    names = ("decisions_before", "auc_before", "auc_after", "mapped_sources")
    return {
        **{name: numeric(found.get(name)) for name in ("sources", "grades", "decisions")},
        "blind": {name: numeric(blind.get(name)) for name in names} if blind else None,
    }


def agreements(run: RunView) -> list[tuple[StageView, list[tuple[str, str]]]]:
    """Return how far the judges' wordings agree, each once: a stage that only passes the figures on comes later."""
    found = {
        str(flat): (stage, flat)
        for stage in reversed(run.stages)
        if (flat := flat_figures(stage.metrics.get("agreement")))
    }
    return list(reversed(found.values()))


def scored(run: RunView, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the chart of every stage with a histogram of scores, and how many documents of each source are kept."""
    found = []
    for stage in run.stages:
        shown = mapping(stage.metrics.get("histogram"))
        edges = [numeric(edge) for edge in sequence(shown.get("edges"))]
        counts = {
            source: [numeric(value) or 0.0 for value in sequence(values)]
            for source, values in mapping(shown.get("counts")).items()
        }
        if not counts or None in edges:
            continue
        threshold = numeric(stage.metrics.get("threshold"))
        named = named_colours(counts, colours)
        chart = histogram(
            [edge for edge in edges if edge is not None],
            counts,
            colours=named,
            label=f"Documents by quality score, {stage.name}",
            x_label="quality score",
            y_label="documents",
            threshold=threshold,
        )
        if chart:
            rest = {key: value for key, value in stage.metrics.items() if key not in SHOWN_APART}
            found.append({
                "stage": stage, "chart": chart, "threshold": threshold, "colours": named, "counts": counts,
                "edges": edges, "kept": _kept(stage), "figures": flat_figures(rest),
                "warnings": stage.warnings,
            })  # fmt: skip
    return found


def _kept(stage: StageView) -> list[tuple[str, float, float]]:
    rows = []
    for source, value in mapping(stage.metrics.get("kept")).items():
        documents, kept = numeric(mapping(value).get("documents")), numeric(mapping(value).get("kept"))
        if documents is not None and kept is not None:
            rows.append((source, documents, kept))
    return rows
