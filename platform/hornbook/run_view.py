"""A run as its report sees it: the record, and of each stage what can be read, whatever state it is in.

Reports are wanted most when something failed, so nothing here insists: a stage that never ran, an artifact that is gone
and a figure of the wrong type are all simply absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hornbook.artifact import Artifact, Manifest, sum_counts, sum_reasons
from hornbook.charts import number
from hornbook.corpus_sample import stored_bytes
from hornbook.documents import FAN_OUT_BITS
from hornbook.errors import StoreError
from hornbook.events import read_events
from hornbook.parts import PartCommit
from hornbook.store import Store

CURVE, WRITTEN = "metrics.jsonl", "samples.jsonl"
EXAMPLE = 1200
PARTS_READ = 20
"""Parts that are opened at most to find samples and examples: a report costs the same on any corpus."""


@dataclass(frozen=True)
class Sample:
    """A text to show, with a line that says what it is."""

    text: str
    source: str
    caption: str = ""
    prompt: str = ""


@dataclass
class StageView:
    """One stage of a run: its entry in the run's record, and its artifact as far as it exists."""

    name: str
    entry: Mapping[str, Any]
    artifact: Artifact | None
    manifest: Manifest | None
    problem: str = ""
    began: float | None = None
    ended: float | None = None

    @property
    def kind(self) -> str:
        """The stage's kind."""
        return str(self.entry.get("kind", ""))

    @property
    def state(self) -> str:
        """`reused`, `made`, `stopped`, `failed`, `running` or `pending`."""
        return str(self.entry.get("state", "pending"))

    @property
    def seconds(self) -> float:
        """Seconds that it took in this run; 0 if reused."""
        return numeric(self.entry.get("seconds")) or 0.0

    @property
    def made_in(self) -> float | None:
        """Seconds that making the artifact took, in whatever run that was."""
        return self.manifest.seconds if self.manifest else self.seconds or None

    @property
    def produces(self) -> str:
        """What its artifact is; of an unfinished one, as its group tells."""
        if self.manifest:
            return self.manifest.produces
        return "documents" if self.entry.get("group") == "generators" else ""

    @cached_property
    def parents(self) -> set[str]:
        """The names of the stages that it takes in."""
        if self.manifest:
            return {reference.stage for references in self.manifest.inputs.values() for reference in references}
        return {str(name) for names in mapping(self.entry.get("inputs")).values() for name in sequence(names)}

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The figures that the stage left for the report."""
        return self.manifest.metrics if self.manifest else {}

    @property
    def warnings(self) -> list[str]:
        """What the stage says that a person should know before they use what it made."""
        return [clean(str(warning)) for warning in sequence(self.metrics.get("warnings"))]

    @cached_property
    def parts(self) -> Sequence[PartCommit]:
        """Commit records, those of an unfinished artifact included."""
        try:
            return self.artifact.parts if self.artifact else []
        except (StoreError, TypeError, KeyError):
            return []

    @cached_property
    def counts(self) -> Mapping[str, float]:
        """The manifest's counts; of an unfinished artifact, the sums over what is committed."""
        if self.manifest:
            return self.manifest.counts
        return sum_counts(self.parts)

    @property
    def disk(self) -> float:
        """Bytes that its parts take in the store."""
        return float(sum(map(stored_bytes, self.parts)))

    @cached_property
    def reasons(self) -> Mapping[str, int]:
        """Rejects by reason."""
        if self.manifest:
            return self.manifest.reasons
        return sum_reasons(self.parts)


@dataclass
class RunView:
    """A run's record and its stages, in order."""

    record: Mapping[str, Any]
    stages: list[StageView]
    events: list[dict[str, Any]] = field(default_factory=list)
    estimates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What `hornbook estimate` foretold, by stage."""

    @property
    def sources(self) -> list[StageView]:
        """The stages whose artifacts are corpora."""
        return [stage for stage in self.stages if stage.produces == "documents"]

    @property
    def corpora(self) -> list[list[StageView]]:
        """The corpora, each from the stage that read or wrote it through those that only clean or thin it out.

        A stage goes on with a corpus if it is a classifier's that makes documents of this one alone, and no other does: where
        several select from a corpus, each selection is a corpus of its own.
        """
        cleaned: dict[str, list[StageView]] = {}
        for stage in self.sources:
            before = [source.name for source in self.sources if source.name in stage.parents]
            if len(before) == 1 and stage.entry.get("group") == "classifiers":
                cleaned.setdefault(before[0], []).append(stage)
        goes_on = {name: stages[0] for name, stages in cleaned.items() if len(stages) == 1}
        further = {stage.name for stage in goes_on.values()}
        chains = [[stage] for stage in self.sources if stage.name not in further]
        for chain in chains:
            while chain[-1].name in goes_on:
                chain.append(goes_on[chain[-1].name])
        return chains


def read_run(store: Store, run_id: str) -> RunView:
    """Read a run's record, events and manifests. Raises StoreError if the run has no readable record."""
    record = store.read_json(f"runs/{run_id}/run.json")
    if not isinstance(record, dict):
        raise StoreError(f"{store.describe(f'runs/{run_id}/run.json')} is damaged")
    events = [event for event in read_events(store, f"runs/{run_id}") if isinstance(event, dict)]
    entries = mapping(record.get("stages"))
    stages = [_stage(store, name, mapping(entries[name])) for name in _order(entries, events)]
    times = {stage.name: stage for stage in stages}
    for event in events:
        stage = times.get(str(event.get("stage")))
        if stage is None:
            continue
        if event.get("event") == "stage-start":
            stage.began, stage.ended = numeric(event.get("time")), None
        elif event.get("event") in ("stage-end", "stage-failed", "stage-stopped"):
            stage.ended = numeric(event.get("time"))
    return RunView(record, stages, events, read_estimate(store, str(record.get("recipe"))))


def estimate_name(recipe: str) -> str:
    """Return the store name of a recipe's estimate."""
    return f"estimates/{recipe}.json"


def read_estimate(store: Store, recipe: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the stages of a recipe's estimate (`hornbook estimate`) by name, as JSON values; none where there is none."""
    name = estimate_name(recipe)
    try:
        value = store.read_json(name) if store.exists(name) else {}
    except StoreError:
        return {}
    return {stage: mapping(entry) for stage, entry in mapping(mapping(value).get("stages")).items()}


def read_curve(stage: StageView) -> list[dict[str, Any]]:
    """Return the rows of a training stage's `metrics.jsonl`, in step order; none if it left none."""
    if stage.artifact is None:
        return []
    store, folder = stage.artifact.store, stage.artifact.folder
    names = [entry.name for entry in stage.manifest.files] if stage.manifest else []
    named = [name for name in names if name.split("/")[-1] == CURVE]
    if not named and store.exists(f"{folder}/{CURVE}"):
        named = [CURVE]
    if not named and stage.manifest is None and stage.entry.get("group") == "training":
        named = [name for name, _ in store.files(folder) if name.split("/")[-1] == CURVE]
    if not named:
        return []
    rows: dict[float, dict[str, Any]] = {}
    for line in store.read(f"{folder}/{named[0]}").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # torn last line of a killed run
        if isinstance(row, dict) and (step := numeric(row.get("step"))) is not None:
            rows[step] = row
    return [rows[step] for step in sorted(rows)]


def read_written(stage: StageView) -> list[tuple[int, str, str]]:
    """Return what a model wrote while it was trained, in step order, as (step, prompt, text); none if it left none."""
    if stage.artifact is None or not stage.artifact.store.exists(f"{stage.artifact.folder}/{WRITTEN}"):
        return []
    found = []
    for line in stage.artifact.store.read(f"{stage.artifact.folder}/{WRITTEN}").splitlines():
        try:
            row = mapping(json.loads(line))
        except ValueError:
            continue  # torn last line of a killed run
        for sample in map(mapping, sequence(row.get("samples"))):
            if (step := numeric(row.get("step"))) is not None:
                prompt, text = (clean(str(sample.get(key) or "")) for key in ("prompt", "text"))
                found.append((int(step), prompt, text))
    return sorted(found, key=lambda row: row[0])


def generated_samples(stages: Sequence[StageView], wanted: int) -> list[Sample]:
    """Return the first documents in plan order of the generated corpora, taken in turn, no prompt twice."""
    streams = [_documents(stage) for stage in stages if stage.entry.get("group") == "generators"]
    found: list[Sample] = []
    while streams and len(found) < wanted:
        for stream in list(streams):
            sample = next(stream, None)
            if sample is None:
                streams.remove(stream)
            elif len(found) < wanted:
                found.append(sample)
    return found


def model_samples(stages: Sequence[StageView], wanted: int) -> list[Sample]:
    """Return what the trained model wrote, as the last stage that has `samples` among its metrics recorded it."""
    for stage in reversed(stages):
        samples = [mapping(value) for value in sequence(stage.metrics.get("samples"))]
        shown = [value for value in samples if isinstance(value.get("text"), str)]
        if shown:
            return [
                Sample(
                    text=clean(value["text"]),
                    source=stage.name,
                    caption=clean(str(value.get("engine") or "")),
                    prompt=clean(str(value.get("prompt") or "")),
                )
                for value in shown[:wanted]
            ]
    return []


def reject_examples(stage: StageView) -> dict[str, str]:
    """Return one reject of each reason, as text (what it was, why, what was produced), from the first parts with any."""
    examples: dict[str, str] = {}
    opened = 0
    for part in stage.parts:
        if opened >= PARTS_READ or set(examples) >= set(stage.reasons):
            break
        if stage.artifact is None or not set(part.reasons) - set(examples):
            continue
        opened += 1
        try:
            rows = stage.artifact.read(part, "rejects", columns=["unit", "reason", "detail", "text"]).to_pylist()
        except StoreError:
            continue
        for row in rows:
            shown = [clean(row[key])[:EXAMPLE] for key in ("unit", "detail", "text") if row[key]]
            examples.setdefault(row["reason"], "\n\n".join(shown))
    return examples


def rule_steps(stage: StageView) -> list[tuple[str, float]]:
    """Return how many documents are left after each rule of a selection, in the rules' order; nothing of other stages."""
    steps = [mapping(step) for step in sequence(mapping(stage.metrics.get("funnel")).get("steps"))]
    return [
        (f"after “{step['rule']}”", left)
        for step in steps
        if (left := numeric(step.get("left"))) is not None and "rule" in step
    ]


def numeric(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping with text keys; an empty one for anything else."""
    return {str(key): entry for key, entry in value.items()} if isinstance(value, Mapping) else {}


def sequence(value: Any) -> Sequence[Any]:
    """Return a list; an empty one for anything else."""
    return value if isinstance(value, list | tuple) else []


def clean(text: str) -> str:
    """Replace characters that HTML forbids (control codes, lone surrogates) by the replacement character."""
    return "".join(
        "\ufffd" if (character < " " and character not in "\n\t") or "\x7f" <= character < "\xa0"
        or "\ud800" <= character <= "\udfff" else character
        for character in text.replace("\r\n", "\n")
    )  # fmt: skip


def _order(entries: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the stages' names as the run took them: its first event says so, the record's JSON is sorted by name."""
    told = [str(name) for event in events if event.get("event") == "run" for name in sequence(event.get("stages"))]
    return [name for name in dict.fromkeys([*told, *entries]) if name in entries]


def _stage(store: Store, name: str, entry: Mapping[str, Any]) -> StageView:
    folder = str(entry.get("folder") or "")
    if not folder:
        return StageView(name, entry, None, None)
    artifact = Artifact(store, folder)
    try:
        return StageView(name, entry, artifact, artifact.manifest if artifact.complete else None)
    except StoreError as error:
        return StageView(name, entry, artifact, None, problem=error.message)


def _documents(stage: StageView) -> Iterator[Sample]:
    seen: set[str] = set()
    for part in list(stage.parts)[:PARTS_READ]:
        if stage.artifact is None or not any(entry.role == "data" for entry in part.files):
            continue
        try:
            table = stage.artifact.read(part, columns=["id", "text", "made_by"])
        except (StoreError, ValueError, KeyError):
            continue
        for row in table.to_pylist():
            made_by = mapping(row["made_by"])
            prompt = str(made_by.get("prompt") or row["id"])
            if prompt in seen:
                continue
            seen.add(prompt)
            caption = f"row {row['id'] >> FAN_OUT_BITS}{_seeds(made_by.get('seeds'))}"
            yield Sample(clean(row["text"]), stage.name, clean(caption))


def _seeds(value: Any) -> str:
    """Write a document's seeds as a short line: the short texts and lists among them."""
    try:
        seeds = mapping(json.loads(value))
    except (TypeError, ValueError):
        return ""
    words = []
    for seed in seeds.values():
        words += [str(word) for word in (sequence(seed) or [seed]) if isinstance(word, str) and 0 < len(word) <= 60]
    return "".join(f" · {word}" for word in words[:6])


def flat_figures(value: Any, prefix: str = "", depth: int = 3) -> list[tuple[str, str]]:
    """Return the numbers and short texts of nested figures as (name, text); long lists are left to their own sections."""
    rows: list[tuple[str, str]] = []
    for key, entry in mapping(value).items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(entry, bool):
            rows.append((name, "yes" if entry else "no"))
        elif (figure := numeric(entry)) is not None:
            rows.append((name, number(figure, 3)))
        elif isinstance(entry, str) and len(entry) <= 200:
            rows.append((name, entry))
        elif isinstance(entry, Mapping) and depth:
            rows += flat_figures(entry, f"{name}, ", depth - 1)
        elif key == "openers":
            pairs = [sequence(pair) for pair in sequence(entry)]
            rows.append((name, ", ".join(f"“{pair[0]}” {pair[1]}" for pair in pairs[:5] if len(pair) == 2)))
    return rows[:60]
