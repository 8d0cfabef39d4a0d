"""An estimate as people read it: a table with intervals, and what they must know beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hornbook.estimate import METHOD, StageEstimate, total
from hornbook.intervals import Quantity
from hornbook.progress import duration, money, size


def table(found: Sequence[StageEstimate]) -> list[list[str]]:
    """Return the rows of the table: stage, figure, estimate, and the ends of the interval."""
    shown = [stage for stage in found if stage.state == "estimated"]
    return [row for stage in [*shown, *([total(found)] if len(shown) > 1 else [])] for row in _block(stage)]


def remarks(found: Sequence[StageEstimate]) -> Iterator[str]:
    """Yield what a reader must know beside the table: notes by stage, the stages that are not in it, the method."""
    for stage in found:
        if stage.state == "estimated":
            pilot = stage.pilot
            yield (
                f"{stage.stage}: {pilot['rows']:,.0f} rows in {duration(pilot['seconds'])}, {pilot['accepted']:,.0f} accepted; "
                f"start {duration(pilot['start_seconds'])}"
            )
        yield from (f"{stage.stage}: {note}" for note in stage.notes if note)
    if finished := [stage.stage for stage in found if stage.state == "finished"]:
        yield f"finished already, nothing to pay: {', '.join(finished)}"
    if others := [f"{stage.stage} ({stage.kind})" for stage in found if stage.state == "not estimated"]:
        yield f"not estimated: {', '.join(others)}"
    yield METHOD


def _block(stage: StageEstimate) -> Iterator[list[str]]:
    named = [
        ("planned rows", "planned", _whole),
        ("accepted rows", "rows", _whole),
        ("tokens to read", "prompt_tokens", _whole),
        ("tokens to write", "completion_tokens", _whole),
        ("time here", "seconds", duration),
        ("money", "money", money),
        ("disk", "disk", size),
    ]
    lines: list[tuple[str, Quantity, Callable[[float], str]]] = [
        (title, stage.figures[name], write) for title, name, write in named if name in stage.figures
    ]
    if stage.acceptance is not None:
        lines.insert(2, ("acceptance", stage.acceptance, lambda value: f"{value:.1%}"))
    for count, hours in stage.gpu_hours.items():
        lines.append((f"time on {count} GPU{'s' if count > 1 else ''}", hours, lambda value: duration(3600 * value)))
    for number, (title, quantity, write) in enumerate(lines):
        low, high = write(quantity.low), write(quantity.high)
        ends = ["", ""] if low == high else [low, high]
        yield [stage.stage if number == 0 else "", title, write(quantity.value), *ends]


def _whole(value: float) -> str:
    return f"{value:,.0f}"
