"""What the report says of graded documents: who graded how many, how far they agree, what the sources got."""

from __future__ import annotations

from typing import Any

from hornbook.run_view import RunView, StageView, mapping, numeric, sequence


def graded(run: RunView) -> list[dict[str, Any]]:
    """Return, per stage that made annotations, its agreements, scores and warnings."""
    return [found for stage in run.stages if (found := _stage(stage))]


def _stage(stage: StageView) -> dict[str, Any] | None:
    scores = mapping(stage.metrics.get("scores"))
    by_source = mapping(stage.metrics.get("scores_by_source"))
    if not by_source or numeric(scores.get("documents")) is None:
        return None
    # People: every two of them, and all of them beside the judge. Judges: the one agreement there is.
    agreements = [mapping(pair) for pair in sequence(stage.metrics.get("agreement_of_graders"))]
    agreements += [mapping(stage.metrics.get("agreement_with_judge"))]
    if not any(agreements):
        agreements = [mapping(stage.metrics.get("agreement"))]
    rows = {"all": scores, **by_source} if len(by_source) > 1 else by_source
    return {
        "stage": stage,
        "agreements": [pair for pair in agreements if pair],
        "biased": any("bias" in pair for pair in agreements),
        "graders": [(str(name), numeric(count)) for name, count in mapping(stage.metrics.get("graders")).items()],
        "scores": [(str(name), mapping(spread)) for name, spread in rows.items()],
        "weighted": any("corpus_mean" in mapping(spread) for spread in rows.values()),
        "warnings": stage.warnings,
    }
