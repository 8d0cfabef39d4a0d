"""What the report says of a generated corpus: who wrote it, and how alike its texts are, before and after steering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hornbook.charts import Series, line_chart
from hornbook.run_view import RunView, StageView, mapping, numeric, sequence

NAMES = {"all": "all rows", "first_wave": "first wave", "last_wave": "last wave"}
FIGURES = {
    "texts": ("texts", 0),
    "distinct_1": ("different words, of all words", 3),
    "distinct_2": ("different word pairs", 3),
    "distinct_3": ("different word triples", 3),
    "compression_ratio": ("compression ratio (higher is more alike)", 2),
    "embedding_similarity": ("mean cosine between texts", 3),
}
"""Figures of `generators.diversity`: their names for people, and digits."""


def diversity(run: RunView, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return, per stage that generated text, its models, figures and openers, and a chart where it ran in waves."""
    return [found for stage in run.stages if (found := _stage(stage, colours))]


def _stage(stage: StageView, colours: Mapping[str, str]) -> dict[str, Any] | None:
    known = mapping(stage.metrics.get("diversity"))
    shown = {name: mapping(known[name]) for name in NAMES if name in known}
    if not shown:
        return None
    rows = [
        (label, [numeric(figures.get(key)) for figures in shown.values()], digits)
        for key, (label, digits) in FIGURES.items()
        if any(numeric(figures.get(key)) is not None for figures in shown.values())
    ]
    return {
        "stage": stage,
        "columns": [NAMES[name] for name in shown],
        "rows": rows,
        **{key: numeric(next(iter(shown.values())).get(key)) for key in ("compared", "embedded")},
        "openers": [_openers(figures) for figures in shown.values()],
        "duplicates": [numeric(figures.get("near_duplicates")) for figures in shown.values()],
        "all_duplicates": numeric(known.get("near_duplicates")),
        "models": _models(stage),
        "waves": _waves(stage),
        "chart": _chart(stage, colours),
    }


def _openers(figures: Mapping[str, Any]) -> list[tuple[str, float]]:
    pairs = [sequence(pair) for pair in sequence(figures.get("openers"))]
    return [(str(pair[0]), float(pair[1])) for pair in pairs if len(pair) == 2 and numeric(pair[1]) is not None]


def _models(stage: StageView) -> list[tuple[str, int, int]]:
    """Return (model, planned rows, accepted rows), of stages that several models wrote or one."""
    found = mapping(stage.metrics.get("acceptance"))
    return [
        (name, int(numeric(mapping(counts).get("planned")) or 0), int(numeric(mapping(counts).get("accepted")) or 0))
        for name, counts in found.items()
    ]


def _waves(stage: StageView) -> list[dict[str, Any]]:
    """Return what each wave gave, and how it was steered."""
    return [
        {
            "number": int(numeric(wave.get("wave")) or 0) + 1,
            "planned": int(numeric(wave.get("planned")) or 0),
            "accepted": int(numeric(wave.get("accepted")) or 0),
            "opener": _openers(mapping(wave.get("figures")))[:1],
            "duplicates": numeric(mapping(wave.get("figures")).get("near_duplicates")),
            "steered": _steered(mapping(wave.get("steered"))),
        }
        for wave in map(mapping, sequence(stage.metrics.get("waves")))
    ]


def _steered(steer: Mapping[str, Any]) -> str:
    """Return in words what steered a wave."""
    cells = {name: mapping(entry) for name, entry in steer.items()}
    avoided = list(dict.fromkeys(str(words) for entry in cells.values() for words, _ in sequence(entry.get("avoid"))))
    noted = list(dict.fromkeys(str(words) for entry in cells.values() for words in sequence(entry.get("notes"))))
    hotter = [name for name, entry in cells.items() if numeric(entry.get("temperature"))]
    rested = [name for name, entry in cells.items() if entry.get("rest")]
    said = []
    if avoided:
        said.append(f"{_counted(avoided, 'opening')} made unlikely ({_some(avoided)})")
    if noted:
        said.append(f"asked not to begin with {_some(noted)}")
    if hotter:
        said.append(f"{_counted(hotter, 'cell')} hotter")
    if rested:
        said.append(f"rested: {_some(rested)}")
    return "; ".join(said)


def _counted(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'s' if len(names) != 1 else ''}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"“{name}”" for name in names[:4]) + (" …" if len(names) > 4 else "")


def _chart(stage: StageView, colours: Mapping[str, str]) -> Any:
    points = [(float(wave["number"]), 100 * wave["opener"][0][1]) for wave in _waves(stage) if wave["opener"]]
    if len(points) < 2:
        return ""
    line = Series("commonest opener", colours.get(stage.name, "c0"), points, marked=True)
    return line_chart(
        [line],
        label=f"Commonest opener by wave, {stage.name}",
        x_label="wave",
        y_label="% of the wave's rows",
        height_share=0.6,
        counted=True,
    )
