"""Hours per number of GPUs: of a pilot that ran on GPUs, or of a published throughput; none where neither is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hornbook.engines.interface import EngineSettings, engines_of
from hornbook.intervals import NONE, Quantity, per_planned
from hornbook.pilot import Chunk, Pilot


@dataclass(frozen=True)
class KnownThroughput:
    """A published throughput: completion tokens a second on one GPU."""

    model: str
    tokens_per_second: float
    gpu: str
    source: str
    at_least: bool = False
    """The figure is of a larger model of the same family, so that hours are at most what it gives."""


KNOWN_THROUGHPUTS = (
    KnownThroughput("smollm2-1.7b", 9200, "H100", "FinePhrase, with suffix speculation"),
    KnownThroughput("smollm2-360m", 9200, "H100", "FinePhrase, of the larger SmolLM2-1.7B", at_least=True),
    KnownThroughput("smollm2-135m", 9200, "H100", "FinePhrase, of the larger SmolLM2-1.7B", at_least=True),
    KnownThroughput("mixtral-8x7b", 700, "H100", "Cosmopedia v1, its upper end"),
)
"""What others report; an assumption wherever no GPU was there to measure."""


def gpu_hours(
    settings: Any, pilot: Pilot, planned: Quantity, seconds: Quantity, gpus: Sequence[int]
) -> tuple[dict[int, Quantity], list[str]]:
    """Return hours by number of GPUs, and what a reader must know of them.

    Every engine that wrote tokens in the pilot counts by its own tokens: writers, judges, a stronger model. An endpoint's
    GPUs are not ours, so its hours are not among them.

    Args:
        settings: the stage's.
        planned: rows that the stage will plan.
        seconds: what they take here.
        gpus: the numbers to give hours for.
    """
    asked = {
        name: engine
        for name, engine in engines_of(settings).items()
        if any(_written_by(name, chunk) for chunk in pilot.chunks)
    }
    ours = {name: engine for name, engine in asked.items() if engine.kind == "vllm"}
    others = " and ".join(sorted({engine.kind for engine in asked.values()} - {"vllm"}))
    if not ours:
        return {}, [f"no hours per GPU: the engine is {others or 'not asked'}, not vllm"]
    wide = max(engine.tensor_parallel for engine in ours.values())
    hours, notes = (_measured if pilot.gpus >= wide else _assumed)(ours, pilot, planned, seconds, gpus)
    if hours and others:
        notes.append(
            f"hours per GPU: of {', '.join(ours)} alone; {others} is asked, too, and may be what is waited for"
        )
    return hours, notes


def _written_by(engine: str, chunk: Chunk) -> float:
    return chunk.written.get(engine, 0.0)


def _measured(
    ours: Mapping[str, EngineSettings], pilot: Pilot, planned: Quantity, seconds: Quantity, gpus: Sequence[int]
) -> tuple[dict[int, Quantity], list[str]]:
    wide = max(engine.tensor_parallel for engine in ours.values())
    pools = set(ours.values())  # equal settings share one
    taken = [pool.tensor_parallel * (pool.replicas or pilot.gpus // pool.tensor_parallel) for pool in pools]
    used = min(pilot.gpus, sum(taken))
    hours = {count: seconds * (used / (count // wide * wide) / 3600) for count in gpus if count >= wide}
    return hours, [f"hours per GPU: measured on {used:.0f}, linear in replicas"]


def _assumed(
    ours: Mapping[str, EngineSettings], pilot: Pilot, planned: Quantity, seconds: Quantity, gpus: Sequence[int]
) -> tuple[dict[int, Quantity], list[str]]:
    known = {name: _known(engine.model) for name, engine in ours.items()}
    if None in known.values():
        unknown = sorted({ours[name].model for name, found in known.items() if found is None})
        return {}, [f"no hours per GPU: no GPU here, and no published throughput of {', '.join(unknown)} is known"]
    on_one = NONE  # seconds on one GPU
    notes = []
    for name, found in known.items():
        assert found is not None
        tokens = planned * per_planned(pilot, partial(_written_by, name))
        on_one += tokens * (1 / found.tokens_per_second)
        bound = "at most these: " if found.at_least else ""
        notes.append(
            f"hours per GPU: not measured, assumed; {bound}{found.tokens_per_second:,.0f} tokens/s on an {found.gpu} "
            f"({found.source}), linear in GPUs"
        )
    return {count: on_one * (1 / count / 3600) for count in gpus}, list(dict.fromkeys(notes))


def _known(model: str) -> KnownThroughput | None:
    name = model.lower().split("/")[-1]
    return next((known for known in KNOWN_THROUGHPUTS if name.startswith(known.model)), None)
