"""What the commands that only look print: artifacts, runs and plans. (`hornbook.trace` has the trace of a document.)"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hornbook.artifact import ARTIFACTS, Artifact, Manifest
from hornbook.engines.usage import MONEY
from hornbook.errors import StoreError
from hornbook.events import read_events
from hornbook.progress import duration, money, size
from hornbook.run_view import flat_figures, mapping, sequence
from hornbook.runs import Run, all_runs, load_run
from hornbook.settings import nearest
from hornbook.store import Store

if TYPE_CHECKING:
    from hornbook.pipeline import Planned
    from hornbook.recipe import Recipe

SHOWN_CHARACTERS = 100
SHOWN_UNIT = 200
"""Characters of a rejected unit: a file with its row, or how a prompt begins."""
FOLLOW_SECONDS = 1.0
REJECTS_SHOWN = 3
"""Rejects of each reason that `hornbook show` prints."""
PARTS_READ = 20
"""Parts that are opened at most to find them."""


def artifacts(store: Store) -> list[Artifact]:
    """Return every artifact folder in the store, finished or not."""
    return [Artifact(store, f"{ARTIFACTS}/{name}") for name in store.names(ARTIFACTS)]


def find_artifact(store: Store, name: str) -> Artifact:
    """Return a finished artifact by folder name, by a prefix that only it has, or as RUN/STAGE (`latest/stories`).

    Raises:
        StoreError: none or several fit, or it is not finished.
    """
    run, slash, stage = name.partition("/")
    if slash and run != ARTIFACTS:
        stages = load_run(store, run).value["stages"]
        if stage not in stages or not stages[stage]["folder"]:
            raise StoreError(f"run {run} has no artifact of a stage {stage!r}{nearest(stage, list(stages))}")
        found = Artifact(store, stages[stage]["folder"])
    else:
        known = store.names(ARTIFACTS)
        wanted = name.removeprefix(f"{ARTIFACTS}/").rstrip("/")
        matches = [wanted] if wanted in known else [folder for folder in known if folder.startswith(wanted)]
        if len(matches) != 1:
            what = f"several artifacts begin with {wanted!r}" if matches else f"there is no artifact {wanted!r}"
            raise StoreError(what, "`hornbook ls` lists them")
        found = Artifact(store, f"{ARTIFACTS}/{matches[0]}")
    if not found.complete:
        raise StoreError(
            f"{store.describe(found.folder)} is not finished", "run its recipe again: it goes on where it stood"
        )
    return found


def list_artifacts(store: Store) -> list[list[str]]:
    """Return a table row for each artifact, newest last; unfinished and damaged ones say so."""
    rows = []
    for artifact in artifacts(store):
        taken = size(sum(count for _, count in store.files(artifact.folder)))
        folder = artifact.folder.removeprefix(f"{ARTIFACTS}/")
        if not artifact.complete:
            rows.append((0.0, [folder, "(unfinished)", "", "", "", taken, ""]))
            continue
        try:
            manifest = artifact.manifest
        except StoreError:  # `hornbook show` says what is wrong with it
            rows.append((0.0, [folder, "(damaged)", "", "", "", taken, ""]))
            continue
        tokens = manifest.counts.get("tokens")  # of text that nobody tokenized yet it is unknown, not 0
        counts = [
            *(_count(manifest.counts.get(name, 0)) for name in ("rows", "rejected")),
            _count(tokens) if tokens else "",
        ]
        rows.append((manifest.created, [folder, manifest.stage, *counts, taken, _when(manifest.created)]))
    return [row for _, row in sorted(rows, key=lambda entry: entry[0])]


def list_runs(store: Store) -> list[list[str]]:
    """Return a table row for each run, newest last."""
    rows = []
    for run in sorted(all_runs(store), key=lambda found: float(found.value["started"])):
        value, stages, state = run.value, run.value["stages"], run.state()
        finished = sum(stage["state"] in ("made", "reused") for stage in stages.values())
        now = next((name for name, stage in stages.items() if stage["state"] == "running"), "")
        ended = value["finished"] or (time.time() if state == "running" else None)
        took = duration(ended - value["started"]) if ended else ""
        error = str(value.get("error", "")).splitlines()
        note = now if state == "running" else (error[0][:SHOWN_CHARACTERS] if error else "")
        rows.append([run.id, state, _when(value["started"]), took, f"{finished}/{len(stages)}", note])
    return rows


def follow_events(run: Run, follow: bool) -> Iterator[str]:
    """Yield a run's events as lines; with `follow`, go on until the run ends."""
    seen = 0
    while True:
        running = load_run(run.store, run.id).state() == "running"
        events = list(read_events(run.store, run.folder))
        for event in events[seen:]:
            fields = {name: value for name, value in event.items() if name not in ("time", "event")}
            text = " ".join(f"{name}={value}" for name, value in fields.items())
            yield f"{time.strftime('%H:%M:%S', time.localtime(event['time']))} {event['event']:<12} {text}"
        seen = len(events)
        if not follow or not running:
            return
        time.sleep(FOLLOW_SECONDS)


def describe_artifact(artifact: Artifact, rows: int) -> Iterator[str]:
    """Yield the lines of `hornbook show`."""
    manifest = artifact.manifest
    yield f"{artifact.store.describe(artifact.folder)}"
    made = f"made {_when(manifest.created)} in {duration(manifest.seconds)}"
    yield f"  {manifest.produces} of stage {manifest.stage} ({manifest.kind}), {made}"
    yield f"  fingerprint {manifest.fingerprint}"
    yield f"  digest      {manifest.digest}"
    yield f"  seed        {manifest.seed}"
    for name, revision in manifest.models.items():
        yield f"  model       {name} at {revision}"
    yield f"  settings    {json.dumps(manifest.settings, ensure_ascii=False)}"
    yield "lineage"
    yield from _lineage(artifact, "  ", set())
    yield "counts"
    for name, value in manifest.counts.items():
        write = money if name.split(":")[0] == MONEY else _count
        yield f"  {name:<20} {write(value)}"
    if manifest.reasons:
        yield "rejects"
        for reason, count in sorted(manifest.reasons.items(), key=lambda entry: -entry[1]):
            yield f"  {reason:<20} {count:,}"
        yield from _some_rejects(artifact)
    if figures := [*_rules(manifest.metrics), *flat_figures(manifest.metrics)]:
        yield "figures"
        width = max(len(name) for name, _ in figures)
        yield from (f"  {name:<{width}}  {value}" for name, value in figures)
    if warnings := manifest.metrics.get("warnings"):
        yield "warnings"
        yield from (f"  {warning}" for warning in warnings)
    if manifest.files:
        yield "files"
        for file in manifest.files:
            yield f"  {file.name:<40} {size(file.size)}"
    if manifest.columns:
        yield "schema"
        for column in manifest.columns:
            yield f"  {column}"
        yield f"first {rows} rows"
        yield from _first_rows(artifact, rows)


def plan_tree(recipe: Recipe, planned: Mapping[str, Planned]) -> Iterator[str]:
    """Yield the plan as a tree: what each stage would do, below it what it is made from."""
    made = sum(not plan.complete for plan in planned.values())
    yield f"{recipe.name}: {len(planned)} stages, {made} to make, {len(planned) - made} reused"
    needed = {parent for name in planned for role in recipe.stages[name].inputs.values() for parent in role}
    shown: set[str] = set()
    roots = [name for name in planned if name not in needed]
    for number, root in enumerate(roots):
        yield from _tree(recipe, planned, root, "", number == len(roots) - 1, shown)


def _tree(
    recipe: Recipe, planned: Mapping[str, Planned], name: str, indent: str, last: bool, shown: set[str]
) -> Iterator[str]:
    plan = planned[name]
    state = "exists" if plan.complete else "make"
    figures = []
    if plan.expected.rows is not None or plan.expected.planned is not None:
        figures.append(f"{plan.expected.rows or plan.expected.planned:,} {plan.expected.unit}")
    if plan.expected.distinct is not None:
        figures.append(f"{plan.expected.distinct:,} distinct prompts")
    if plan.expected.tokens:
        figures.append(f"{'' if plan.complete else '~'}{plan.expected.tokens:,} tokens")
    where = plan.artifact.folder if plan.artifact is not None else "(after its inputs)"
    if plan.to_download:
        where = f"(after the download of {', '.join(plan.to_download)})"
    again = " (see above)" if name in shown else ""
    branch = "`-- " if last else "|-- "
    yield f"{indent}{branch}{name} [{state}] {plan.entry.stage.kind} {', '.join(figures)} {where}{again}".rstrip()
    if name in shown:
        return
    shown.add(name)
    parents = [parent for role in recipe.stages[name].inputs.values() for parent in role]
    for number, parent in enumerate(dict.fromkeys(parents)):
        below = indent + ("    " if last else "|   ")
        yield from _tree(recipe, planned, parent, below, number == len(set(parents)) - 1, shown)


def _lineage(artifact: Artifact, indent: str, shown: set[str]) -> Iterator[str]:
    """Yield what an artifact was made from, and what that was made from, down to the roots."""
    for role, references in artifact.manifest.inputs.items():
        for reference in references:
            again = reference.folder in shown
            shown.add(reference.folder)
            parent = Artifact(artifact.store, reference.folder)
            line = f"{indent}{role}: {reference.stage}, {reference.folder}, digest {reference.digest[:16]}"
            if again:
                yield f"{line} (see above)"
                continue
            manifest, remark = _manifest_as_it_was(parent, reference.digest)
            yield line + remark
            if manifest is not None:
                for name, revision in manifest.models.items():
                    yield f"{indent}  model {name} at {revision}"
                yield from _lineage(parent, indent + "  ", shown)


def _manifest_as_it_was(artifact: Artifact, digest: str) -> tuple[Manifest | None, str]:
    """Return an input's manifest, and a remark where it is not, or no longer, what went into the artifact."""
    try:
        if not artifact.complete:
            return None, " (not in this store any more)"
        if artifact.manifest.digest != digest:
            return None, f" (made anew since: it now holds {artifact.manifest.digest[:16]})"
        return artifact.manifest, ""
    except StoreError:
        return None, " (damaged)"


def _rules(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what each rule of a selection dropped, in the rules' order."""
    for step in sequence(mapping(metrics.get("funnel")).get("steps")):
        yield f"dropped by “{step['rule']}”", f"{step['dropped']:,}, {step['left']:,} left"


def _some_rejects(artifact: Artifact) -> Iterator[str]:
    """Yield up to REJECTS_SHOWN rejects of each reason, from the first parts that have any."""
    missing = {reason: min(count, REJECTS_SHOWN) for reason, count in artifact.manifest.reasons.items()}
    opened = 0
    for part in artifact.parts:
        if opened == PARTS_READ or not any(missing.values()):
            return
        if not any(missing.get(reason) for reason in part.reasons):
            continue
        opened += 1
        for row in artifact.read(part, "rejects", columns=["id", "unit", "reason", "detail"]).to_pylist():
            if missing.get(row["reason"]):
                missing[row["reason"]] -= 1
                detail = f", detail={short(row['detail'])}" if row["detail"] else ""
                unit = " ".join(row["unit"].split())[:SHOWN_UNIT]
                yield f"  id={row['id']} {row['reason']}: unit={json.dumps(unit, ensure_ascii=False)}{detail}"


def _first_rows(artifact: Artifact, rows: int) -> Iterator[str]:
    left = rows
    for table in artifact.tables(columns=plain_columns(artifact)):
        for row in table.slice(0, left).to_pylist():
            left -= 1
            key = row.pop("key", b"").hex()
            made_by = row.pop("made_by", None)
            fields = ", ".join(f"{name}={short(value)}" for name, value in row.items() if value not in (None, [], "{}"))
            finish = f", finish={made_by['finish_reason']}" if made_by else ""
            yield f"  {key}  {fields}{finish}"
        if left <= 0:
            return


def plain_columns(artifact: Artifact) -> list[str]:
    """Return the names of an artifact's columns but those of vectors, which are large and which nobody reads."""
    columns = [column.split(": ", 1) for column in artifact.manifest.columns]
    return [name for name, kind in columns if name == "parents" or not kind.startswith(("list", "fixed_size_list"))]


def short(value: Any) -> str:
    """Return a value on one line, at most SHOWN_CHARACTERS of it."""
    if isinstance(value, list):
        return "[" + ", ".join(item.hex()[:12] if isinstance(item, bytes) else str(item) for item in value) + "]"
    if isinstance(value, bytes):  # a document's key
        return value.hex()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return str(value)
    text = value if isinstance(value, str) else str(value)
    text = " ".join(text.split())
    return json.dumps(text[:SHOWN_CHARACTERS] + ("..." if len(text) > SHOWN_CHARACTERS else ""), ensure_ascii=False)


def _count(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
