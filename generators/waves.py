"""Runs the plan of a kind: all at once, or wave by wave where later rows depend on what became of earlier ones.

A wave's range and decisions are committed before it starts; it sees the waves before it and nothing else. Its rows are
written as drafts, in any order, and sifted into the corpus in plan order.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from generators.asking import Writer, writer
from generators.diversity import EVERYWHERE, SMALLEST_CELL
from generators.kind_faults import kind_error
from generators.prompted import PromptedStage
from generators.replies import DRAFTS, SAVED, EarlierReplies, earlier_replies
from generators.sifting import Sifted, Sifter
from generators.writing import PromptMaker
from hornbook.artifact import Artifact, sum_counts, sum_reasons
from hornbook.documents import canonical_json, written_tokens
from hornbook.errors import DataError, HornbookError
from hornbook.parts import PartRange, committed_starts, cut_range, read_commits
from hornbook.stage import StageContext, StageResult

SAMPLED_DOCUMENTS = 50_000
DOUBLINGS = 3
"""A steered plan's first wave is an eighth of a whole one; each later one is twice as large, up to a whole one."""
SMALLEST_STEERED_WAVE = 2 * SMALLEST_CELL
SIFTED_AT_ONCE = 4096
"""Rows sifted between two looks at progress and at whether the run was stopped."""
SIFTERS = 3
"""Sifting processes that are tried for a wave before the stage fails."""
SHOWN_REASONS = 4
SHOWN_CHARACTERS = 160
"""How many reasons, and how much of an example of each, an error tells."""
MORE_THAN_NEEDED = 1.05
"""The last wave of `accepted` rows plans so much more than the acceptance until then asks for: a further wave costs more."""


@dataclass(frozen=True)
class WavePlan:
    """A wave's planned units and the decisions that hold in it, as committed."""

    number: int
    units: PartRange
    decisions: Mapping[str, Any] = field(default_factory=dict)


def run_waves(stage: PromptedStage, context: StageContext) -> StageResult:
    """Write and sift every planned row that is not there yet.

    Raises:
        DataError: `accepted` rows cannot be had within the over-generation that the settings allow.
    """
    limit = stage.planned(context) * stage.settings.samples  # a kind that counts its documents has opened them then
    if limit:
        _check_first_prompt(stage, context)
    engines = _Writers(stage, context)
    earlier = earlier_replies(context.artifact, stage.kind, context.anew)
    sifter = _RemoteSifter(stage, context)
    waves: list[dict[str, Any]] = []
    sifted = Sifted(0)
    planned = 0
    while planned < limit and (size := _next_size(stage, len(waves), sifted.accepted, planned, limit)):
        wave = _commit_wave(context, WavePlan(len(waves), PartRange(planned, planned + size), sifted.decisions))
        _write(stage, context, wave, engines, earlier)
        sifted = sifter.sift(wave)
        waves.append(_wave_record(wave, sifted))
        if stage.learns:
            context.events.emit("wave", stage=context.stage, **waves[-1])
            more = bool(_next_size(stage, len(waves), sifted.accepted, wave.units.stop, limit))
            print(_wave_line(stage, waves[-1], sifted, more), file=sys.stderr, flush=True)
        planned = wave.units.stop
    wanted = stage.settings.accepted
    if wanted is not None and sifted.accepted < wanted:
        sifter.close()
        raise _too_few(stage, context.artifact, sifted.accepted, planned)
    diversity = sifter.diversity()
    sifter.close()
    _drop_drafts(context.artifact)
    metrics = {**_metrics(stage, context.artifact), "diversity": diversity}
    if stage.learns:
        metrics["waves"] = waves
    return StageResult(metrics=metrics, files=[_wave_name(wave["wave"]) for wave in waves])


class _Writers:
    """The stage's engines, opened when the first row wants them: a resumed stage may have nothing left to ask."""

    def __init__(self, stage: PromptedStage, context: StageContext) -> None:
        self._stage, self._context = stage, context
        self._opened: dict[str, Writer] | None = None

    def open(self, earlier: EarlierReplies, parts: Sequence[PartRange]) -> dict[str, Writer]:
        """Return the writers by settings field, once the engines answer, or at once where there may be nothing to ask."""
        if self._opened is None:
            wait = not earlier.cover(parts)
            self._opened = {
                name: writer(engine, self._context.open_engine(engine, wait))
                for name, engine in self._stage.engines().items()
            }
        return self._opened


class _RemoteSifter:
    """The sifter, in a process of its own: what it remembers grows (to a bound), and the driver's memory must not.

    A process that dies is replaced; the new one is told all that the old one knew, by sifting the waves before again.
    """

    def __init__(self, stage: PromptedStage, context: StageContext) -> None:
        self._stage, self._context = stage, context
        self._done: list[WavePlan] = []
        self._actor = self._start()

    def sift(self, wave: WavePlan) -> Sifted:
        """Return what came of a wave. Raises the HornbookError that the sifter raised, or Stopped."""
        sifted: Sifted = self._survive(lambda: self._sift(wave))
        self._done.append(wave)
        return sifted

    def diversity(self) -> dict[str, Any]:
        """Return what the report shows of the diversity of all that was sifted."""
        found: dict[str, Any] = self._survive(lambda: self._ask(self._actor.diversity.remote()))
        return found

    def _survive(self, work: Callable[[], Any]) -> Any:
        """Return what `work` returns, in another process if this one dies."""
        from ray.exceptions import RayActorError

        for attempt in range(SIFTERS):
            try:
                return work()
            except RayActorError:
                if attempt == SIFTERS - 1:
                    raise
                self._actor = self._start()
                for earlier in self._done:
                    self._sift(earlier)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End the process."""
        import ray

        ray.kill(self._actor)

    def _start(self) -> Any:
        import ray

        actor: Any = ray.remote(Sifter)
        return actor.options(num_cpus=0, max_restarts=0).remote(self._stage, self._context.artifact)

    def _sift(self, wave: WavePlan) -> Sifted:
        part = self._stage.settings.part_rows
        step = max(1, SIFTED_AT_ONCE // part) * part
        with self._context.progress(len(wave.units), "rows sifted") as progress:
            for start in range(wave.units.start, wave.units.stop, step):
                units = PartRange(start, min(start + step, wave.units.stop))
                self._ask(self._actor.sift.remote(units))
                progress.advance(len(units))
                self._context.check_stop()
        return self._ask(self._actor.conclude.remote(wave.units, dict(wave.decisions)))

    def _ask(self, reference: Any) -> Any:
        import ray
        from ray.exceptions import RayTaskError

        try:
            return ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, HornbookError):
                raise error.cause from None
            raise


def _check_first_prompt(stage: PromptedStage, context: StageContext) -> None:
    """Find a kind or template that cannot make a prompt before an engine is started for it."""
    _ = stage.templates  # read here, so that they travel
    first = copy.copy(stage)
    with kind_error(stage, "open()"):
        first.open(context.inputs)
    first.check_prompt()


def _next_size(stage: PromptedStage, wave: int, accepted: int, planned: int, limit: int) -> int:
    """Return how many units the next wave plans, a multiple of `part_rows` but for the last; 0 if enough were accepted.

    The first waves are smaller where they are steered: what is written before anything was seen is steered by nothing.
    """
    settings = stage.settings
    if not stage.learns:
        return limit - planned
    size = settings.wave_rows * settings.samples
    if settings.diversity.steer:
        size = max(SMALLEST_STEERED_WAVE, size >> max(0, DOUBLINGS - wave))
    if settings.accepted is not None:
        missing = settings.accepted - accepted
        if missing <= 0:
            return 0
        rate = max(accepted, 1) / planned if planned else 1.0
        size = min(size, int(missing / rate * (MORE_THAN_NEEDED if planned else 1.0)) + 1)
    whole_parts = -(-size // settings.part_rows) * settings.part_rows
    return min(whole_parts, limit - planned)


def _wave_name(number: int) -> str:
    return f"waves/{number:05d}.json"


def _commit_wave(context: StageContext, wave: WavePlan) -> WavePlan:
    """Commit a wave's range and decisions; return those that hold: if it was committed before, those of then."""
    store, name = context.artifact.store, f"{context.artifact.folder}/{_wave_name(wave.number)}"
    value: dict[str, Any] = {"start": wave.units.start, "stop": wave.units.stop, "decisions": dict(wave.decisions)}
    if not store.create(name, canonical_json(value).encode()):
        value = store.read_json(name)
    return WavePlan(wave.number, PartRange(value["start"], value["stop"]), value["decisions"])


def _write(
    stage: PromptedStage, context: StageContext, wave: WavePlan, writers: _Writers, earlier: EarlierReplies
) -> None:
    """Write the drafts of a wave that are neither there nor sifted already."""
    store, folder = context.artifact.store, context.artifact.folder
    sifted = committed_starts(store, folder)
    wanted = [part for part in cut_range(wave.units, stage.settings.part_rows) if part.start not in sifted]
    drafts = Artifact(store, f"{folder}/{DRAFTS}")
    if not {part.start for part in wanted} - committed_starts(store, drafts.folder):
        return
    steered = copy.copy(stage)
    steered.decisions = wave.decisions
    maker = PromptMaker(steered, writers.open(earlier, wanted), context.inputs, earlier, wave.number)
    replace(context, artifact=drafts).make_parts(maker, wanted, tokens="completion_tokens")


def _drop_drafts(artifact: Artifact) -> None:
    """Delete what was sifted; the replies stay: they are the parts' own files now."""
    store, drafts = artifact.store, f"{artifact.folder}/{DRAFTS}"
    store.delete(f"{artifact.folder}/{SAVED}")
    for name in ("parts", "data", "rejects"):
        store.delete(f"{drafts}/{name}")


# --- figures -------------------------------------------------------------------------------------------------------------


def _wave_record(wave: WavePlan, sifted: Sifted) -> dict[str, Any]:
    whole = sifted.figures.get(EVERYWHERE, {})
    steer = wave.decisions.get("steer", {})
    return {
        "wave": wave.number,
        "start": wave.units.start,
        "planned": len(wave.units),
        "accepted": whole.get("texts", 0),
        "figures": whole,
        "worst_cells": _worst_cells(sifted.figures),
        "steered": {name: dict(entry) for name, entry in steer.items()},
    }


def _worst_cells(figures: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    """Return the three cells with the commonest openers: [cell, opener, share]."""
    found = [
        [name, *entry["openers"][0]] for name, entry in figures.items() if name != EVERYWHERE and entry.get("openers")
    ]
    return sorted(found, key=lambda entry: -entry[2])[:3]


def _wave_line(stage: PromptedStage, record: Mapping[str, Any], sifted: Sifted, more: bool) -> str:
    """Return what a person reads after a wave; `more` tells whether another will follow."""
    opener, share = (record["figures"].get("openers") or [["none", 0.0]])[0]
    steered = len(sifted.decisions.get("steer", {})) if more else 0
    steers = f"; steering {steered} cell{'s' if steered != 1 else ''} of the next wave" if steered else ""
    wanted = stage.settings.accepted
    return (
        f"{stage.name}: wave {record['wave'] + 1}: {record['accepted']:,} of {record['planned']:,} rows accepted"
        f"{f' ({sifted.accepted:,} of {wanted:,} in all)' if wanted else ''}, commonest opener {share:.1%} ({opener!r}){steers}"
    )


def _metrics(stage: PromptedStage, artifact: Artifact) -> dict[str, Any]:
    parts = list(read_commits(artifact.store, artifact.folder))
    counts = sum_counts(parts)
    return {
        **corpus_metrics(Artifact(artifact.store, artifact.folder)),
        **_finish_reasons(counts),
        "acceptance": _acceptance(counts),
        "prompts": stage.prompt_versions(),
    }


def _acceptance(counts: Mapping[str, float]) -> dict[str, Any]:
    """Return planned and accepted rows of each model that wrote."""
    models = sorted(name.partition(":")[2] for name in counts if name.startswith("planned:"))
    return {
        model: {"planned": int(counts[f"planned:{model}"]), "accepted": int(counts.get(f"accepted:{model}", 0))}
        for model in models
    }


def corpus_metrics(artifact: Artifact) -> dict[str, Any]:
    """Return what the report shows of a generated corpus: lengths and the commonest openings.

    Of about SAMPLED_DOCUMENTS documents, from parts spread evenly over the artifact: the driver must not read it all.
    """
    import pyarrow.compute as pc

    parts = [part for part in artifact.parts if part.rows]
    step = max(1, sum(part.rows for part in parts) // SAMPLED_DOCUMENTS)
    openers: Counter[str] = Counter()
    lengths: list[int] = []
    for part in parts[::step]:
        table = artifact.read(part, columns=["text", "made_by.completion_tokens", "meta"])
        openers.update(" ".join(text.split(None, 3)[:3]) for text in table["text"].to_pylist())
        first = pc.struct_field(table["made_by"], "completion_tokens").to_pylist()
        lengths += map(written_tokens, first, table["meta"].to_pylist())
    lengths.sort()
    median = lengths[len(lengths) // 2] if lengths else 0
    return {"median_tokens": median, "openers": openers.most_common(10)}


def _finish_reasons(counts: Mapping[str, float]) -> dict[str, Any]:
    reasons = {
        name: int(counts[f"finish_{name}"]) for name in ("stop", "length", "error") if f"finish_{name}" in counts
    }
    return {"finish_reasons": reasons, "completion_tokens": int(counts.get("completion_tokens", 0))}


def _too_few(stage: PromptedStage, artifact: Artifact, accepted: int, planned: int) -> DataError:
    settings = stage.settings
    outcome = f"{stage.name}: {accepted:,} of {settings.accepted:,} rows were accepted after {planned:,} planned ones"
    rejected = _rejected(artifact)
    distinct = None if stage.combinations is None else len(stage.combinations) * settings.samples
    if planned < settings.planned_rows * settings.samples or planned == distinct:
        return DataError(
            f"{outcome}: there are no more distinct prompts{rejected}",
            f"{stage.too_many_rows}; or mend what is rejected",
        )
    return DataError(
        f"{outcome}, the most that the settings allow{rejected}",
        "raise over_generation (or rows) and run again, it goes on from here; or ask for fewer, or mend what is rejected",
    )


def _rejected(artifact: Artifact) -> str:
    """Return the commonest reasons of an unfinished artifact's rejects, an example of each, as lines of a message."""
    parts = list(read_commits(artifact.store, artifact.folder))
    common = dict(Counter(sum_reasons(parts)).most_common(SHOWN_REASONS))
    examples: dict[str, str] = {}
    for part in parts:
        if set(part.reasons) & (set(common) - set(examples)):
            for row in artifact.read(part, "rejects", columns=["reason", "detail", "text"]).to_pylist():
                examples.setdefault(
                    row["reason"], " ".join(f"{row['detail']} {row['text']}".split())[:SHOWN_CHARACTERS]
                )
    return "".join(f"\n  rejected: {reason} {count:,}, as {examples[reason]!r}" for reason, count in common.items())
