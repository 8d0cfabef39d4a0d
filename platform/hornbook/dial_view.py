"""The dial in a run's report, standing still: what each threshold on scores keeps, and documents at the chosen one's border."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hornbook.artifact import Artifact
from hornbook.charts import Ribbon, Series, line_chart
from hornbook.dial_figures import DIAL, FEW, FORMAT, about, figures_at, nearest_step
from hornbook.dial_samples import border, read_texts
from hornbook.errors import StoreError
from hornbook.run_view import RunView, Sample, StageView, clean

SHARES = (0.9, 0.75, 0.5, 0.25, 0.1, 0.05)
"""Shares of the documents to show a threshold for."""
SHOWN_SOURCES = 12
SHOWN_CHARACTERS = 3000
POINTS = 4
"""Every so many thresholds become a point of a line."""


def dials(run: RunView) -> list[dict[str, Any]]:
    """Return, per stage that left figures for a dial, its chart, tables and three border documents."""
    found = []
    for stage in run.stages:
        try:
            figures = _figures(stage)
            if figures and stage.artifact and any(map(sum, figures["documents"])):
                found.append(_stage(stage, stage.artifact, figures, str(run.record.get("run", "latest"))))
        except (StoreError, KeyError, TypeError, ValueError, IndexError, ZeroDivisionError):
            continue  # damaged figures: a report shows what there is
    return found


def _figures(stage: StageView) -> Mapping[str, Any] | None:
    if (
        stage.artifact is None
        or stage.manifest is None
        or not stage.artifact.store.exists(f"{stage.artifact.folder}/{DIAL}")
    ):
        return None
    figures = stage.artifact.store.read_json(f"{stage.artifact.folder}/{DIAL}")
    return figures if isinstance(figures, Mapping) and figures.get("format") == FORMAT else None


def _stage(stage: StageView, artifact: Artifact, figures: Mapping[str, Any], run: str) -> dict[str, Any]:
    chosen = figures["chosen"]
    steps = _steps(figures)
    shown = [figures_at(figures, step) for step in steps]
    sources = [
        {
            "name": source["name"],
            "documents": source["documents"],
            "shares": [row["sources"][place]["kept_documents"] / max(source["documents"], 1) for row in shown],
        }
        for place, source in enumerate(shown[0]["sources"])
    ]
    lines, ribbons = _lines(figures)
    graded = figures["held_out"]
    return {
        "name": stage.name,
        "address": f"{run}/{stage.name}",
        "graded": graded is not None,
        "few": FEW,
        "legend": [(line.name, line.colour) for line in lines],
        "chart": line_chart(
            lines,
            ribbons=ribbons,
            threshold=chosen,
            label=f"What thresholds of {stage.name} keep",
            x_label="threshold on the score",
            y_label="%",
            counted=False,
        ),
        "caption": _caption(figures),
        "rows": [
            {
                "threshold": f"{row['threshold']:.4g}", "own": row["threshold"] == chosen, "documents": row["kept_documents"],
                "share": row["kept_documents"] / row["documents"], "tokens": about(row["kept_tokens"]),
                "precision": row["precision"], "recall": row["recall"],
            }
            for row in shown
        ],
        "sources": sources[:SHOWN_SOURCES],
        "left_out": max(0, len(sources) - SHOWN_SOURCES),
        "samples": _samples(artifact, figures) if chosen is not None else [],
    }  # fmt: skip


def _steps(figures: Mapping[str, Any]) -> list[int]:
    """Return the thresholds to show: the chosen one, and those that keep about the SHARES of the documents."""
    counts = [sum(column) for column in zip(*figures["documents"], strict=True)]
    total, left, steps = sum(counts), sum(counts), set()
    kept = []
    for count in counts:
        kept.append(left / total)
        left -= count
    for share in SHARES:
        steps.add(min(range(len(kept)), key=lambda step: (abs(kept[step] - share), step)))
    if figures["chosen"] is not None:
        steps.add(nearest_step(figures, figures["chosen"]))
    return sorted(steps)


def _lines(figures: Mapping[str, Any]) -> tuple[list[Series], list[Ribbon]]:
    """Return shares in per cent over the threshold: documents and tokens kept; precision and recall with their intervals."""
    thresholds = figures["thresholds"]
    shown = sorted({*range(0, len(thresholds), POINTS), len(thresholds) - 1})
    found = {step: figures_at(figures, step) for step in shown}
    lines = [
        Series(
            f"{name} kept",
            colour,
            [(thresholds[step], 100 * row[f"kept_{name}"] / row[name]) for step, row in found.items()],
        )
        for name, colour in (("documents", "ink"), ("tokens", "c2"))
        if found[0][name]
    ]
    ribbons = []
    for name, colour in (("precision", "c0"), ("recall", "c1")) if figures["held_out"] else ():
        told = [(thresholds[step], *(100 * value for value in row[name])) for step, row in found.items() if row[name]]
        lines.append(Series(name, colour, [(at, value) for at, value, *_ in told]))
        ribbons.append(Ribbon(colour, [(at, low, high) for at, _, low, high in told]))
    return lines, ribbons


def _caption(figures: Mapping[str, Any]) -> str:
    graded, tokenizer = figures["held_out"], figures["tokenizer"]
    tokens = (
        f"Tokens are estimated from bytes, as {tokenizer} cuts a sample" if tokenizer else "Tokens are bytes over 4"
    )
    if graded is None:
        return f"{tokens}."
    return (
        f"{tokens}. Precision and recall rest on {graded['grades']} held-out grades, {graded['good']} of them good; the bands are "
        f"{graded['method']}."
    )


def _samples(artifact: Artifact, figures: Mapping[str, Any]) -> list[Sample]:
    """Return the three documents nearest to the chosen threshold, best first, of both sides of it."""
    chosen = figures["chosen"]
    above, below = border(figures, nearest_step(figures, chosen), 2)
    sides = [(entry, "kept") for entry in above] + [(entry, "dropped") for entry in below]
    nearest = sorted(sides, key=lambda side: abs(side[0][4] - chosen))[:3]
    references = [entry for entry, _ in nearest]
    [corpus] = artifact.manifest.inputs["documents"]
    texts = read_texts(Artifact(artifact.store, corpus.folder), references)
    names = [source["name"] for source in figures["sources"]]
    return [
        Sample(
            text=clean(texts[start, identifier][:SHOWN_CHARACTERS]),
            source=names[source],
            caption=f"score {score:.4f}, {side} · {key[:12]}",
        )
        for (start, identifier, key, source, score), side in sorted(nearest, key=lambda side: -side[0][4])
        if (start, identifier) in texts
    ]
