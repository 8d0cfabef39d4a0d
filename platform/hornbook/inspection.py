"""What the commands that only look print: artifacts, runs, plans, and the trace of a document."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hornbook.artifact import ARTIFACTS, Artifact
from hornbook.documents import planned_row
from hornbook.errors import StoreError
from hornbook.events import Events, read_events
from hornbook.progress import duration
from hornbook.runs import Run, load_run, run_ids
from hornbook.settings import nearest
from hornbook.stage import StageContext
from hornbook.store import Store

if TYPE_CHECKING:
    from hornbook.pipeline import Planned
    from hornbook.recipe import Recipe

SHOWN_CHARACTERS = 100
FOLLOW_SECONDS = 1.0


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
        size = _bytes(sum(size for _, size in store.files(artifact.folder)))
        folder = artifact.folder.removeprefix(f"{ARTIFACTS}/")
        if not artifact.complete:
            rows.append((0.0, [folder, "(unfinished)", "", "", "", size, ""]))
            continue
        try:
            manifest = artifact.manifest
        except StoreError:  # `hornbook show` says what is wrong with it
            rows.append((0.0, [folder, "(damaged)", "", "", "", size, ""]))
            continue
        counts = [_count(manifest.counts.get(name, 0)) for name in ("rows", "rejected", "tokens")]
        rows.append((manifest.created, [folder, manifest.stage, *counts, size, _when(manifest.created)]))
    return [row for _, row in sorted(rows, key=lambda entry: entry[0])]


def list_runs(store: Store) -> list[list[str]]:
    """Return a table row for each run, newest last."""
    rows = []
    for run in sorted((load_run(store, name) for name in run_ids(store)), key=lambda found: found.value["started"]):
        value, stages = run.value, run.value["stages"]
        finished = sum(stage["state"] in ("made", "reused") for stage in stages.values())
        now = next((name for name, stage in stages.items() if stage["state"] == "running"), "")
        ended = value["finished"] or (time.time() if run.state() == "running" else None)
        took = duration(ended - value["started"]) if ended else ""
        error = str(value.get("error", "")).splitlines()
        note = now if run.state() == "running" else (error[0][:SHOWN_CHARACTERS] if error else "")
        rows.append([run.id, run.state(), _when(value["started"]), took, f"{finished}/{len(stages)}", note])
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
    yield "lineage"
    yield f"  seed {manifest.seed}"
    for role, references in manifest.inputs.items():
        for reference in references:
            yield f"  {role}: {reference.stage}, {reference.folder}, digest {reference.digest[:16]}"
    for name, revision in manifest.models.items():
        yield f"  model {name} at {revision}"
    yield f"  settings {json.dumps(manifest.settings, ensure_ascii=False)}"
    yield "counts"
    for name, value in manifest.counts.items():
        yield f"  {name:<20} {_count(value)}"
    if manifest.reasons:
        yield "rejects"
        for reason, count in sorted(manifest.reasons.items(), key=lambda entry: -entry[1]):
            yield f"  {reason:<20} {count:,}"
    if manifest.files:
        yield "files"
        for file in manifest.files:
            yield f"  {file.name:<40} {_bytes(file.size)}"
    if manifest.columns:
        yield "schema"
        for column in manifest.columns:
            yield f"  {column}"
        yield f"first {rows} rows"
        yield from _first_rows(artifact, rows)


def trace_document(store: Store, key: str) -> Iterator[str]:
    """Yield the lines of `hornbook trace`: the document, what made it, its parents likewise, and its scores.

    Raises:
        StoreError: no document of the store has this key, or the prefix fits several.
    """
    try:
        bytes.fromhex(key + "0" * (len(key) % 2))
    except ValueError:
        raise StoreError(
            f"{key!r} is not a document key: hexadecimal digits are wanted", "`hornbook show` prints keys"
        ) from None
    corpora = [found for found in artifacts(store) if found.complete and found.manifest.produces == "documents"]
    found = _find_documents(corpora, key.lower())
    keys = sorted({row["key"].hex() for _, row in found})
    if not keys:
        raise StoreError(f"no document in {store.describe(ARTIFACTS)} has a key {key!r}", "`hornbook show` prints keys")
    if len(keys) > 1:
        raise StoreError(
            f"several documents have keys that begin with {key!r}: {', '.join(keys[:5])}", "give more digits"
        )
    artifact, row = found[0]
    yield from _trace(store, corpora, artifact, row, "")


def trace_token(store: Store, place: str) -> Iterator[str]:
    """Yield the trace of the document behind a training token, `RUN[/STAGE]@STEP:ROW:POSITION`.

    Without a stage the run's last pretraining counts. The step is the optimizer step as the metrics number it, from 1; row
    and position count from 0.

    Raises:
        StoreError, DataError: no such run, stage, step, row or position.
    """
    from hornbook.recipe import check_recipe

    name, _, numbers = place.partition("@")
    try:
        step, row, position = (int(number) for number in numbers.split(":"))
    except ValueError:
        raise StoreError(f"{place!r} is not RUN@STEP:ROW:POSITION", "for example latest@40:3:17") from None
    run_name, _, stage_name = name.partition("/")
    run = load_run(store, run_name)
    recipe = check_recipe(run.value["source"], f"{run.folder}/run.json")
    trained = [stage for stage, entry in recipe.stages.items() if entry.stage.kind == "pretrain"]
    stage_name = stage_name or (trained[-1] if trained else "")
    if stage_name not in run.value["stages"]:
        known = list(run.value["stages"])
        raise StoreError(f"run {run.id} has no stage {stage_name!r}{nearest(stage_name, known)}", "give RUN/STAGE@...")
    artifact = find_artifact(store, f"{run.id}/{stage_name}")
    references = artifact.manifest.inputs
    context = StageContext(
        artifact=artifact,
        inputs={role: [Artifact(store, found.folder) for found in entries] for role, entries in references.items()},
        input_stages={role: [found.stage for found in entries] for role, entries in references.items()},
        stage=stage_name,
        seed=artifact.manifest.seed,
        run=run.id,
        events=Events(store, run.folder),
        stop_requested=lambda: False,
        open_engine=_no_engine,
    )
    found = recipe.stages[stage_name].stage.locate_token(context, step, row, position)
    yield f"step {step}, row {row}, position {position} of {stage_name}: token {found.offset} of a document of {found.corpus}"
    yield from trace_document(store, found.key.hex())


def _no_engine(settings: object) -> Any:
    raise AssertionError("tracing asks no engine")


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


def _trace(
    store: Store, corpora: list[Artifact], artifact: Artifact, row: dict[str, Any], indent: str
) -> Iterator[str]:
    key = row["key"]
    yield f"{indent}document {key.hex()}: {row['kind']} from {row['source']}, planned row {planned_row(row['id'])}"
    yield f"{indent}  artifact {artifact.folder} (stage {artifact.manifest.stage})"
    yield f"{indent}  text     {_short(row['text'])}"
    if row["meta"] != "{}":
        yield f"{indent}  meta     {_short(row['meta'])}"
    made_by = row["made_by"]
    if made_by is not None:
        prompt = " / ".join(message["content"] for message in json.loads(made_by["prompt"]))
        yield f"{indent}  prompt   {json.dumps(prompt, ensure_ascii=False)}"
        yield f"{indent}  seeds    {made_by['seeds']}"
        yield f"{indent}  model    {made_by['model']} at {made_by['revision']}"
        yield f"{indent}  sampling {made_by['sampling']}, row seed {made_by['row_seed']}"
        yield f"{indent}  finished {made_by['finish_reason']}, {made_by['completion_tokens']} tokens after {made_by['prompt_tokens']}"
    for attributes, scores in _scores(store, row, artifact):
        yield f"{indent}  scores   {attributes.manifest.stage}: {scores}"
    for parent in row["parents"]:
        yield f"{indent}  made from:"
        found = _find_documents(corpora, parent.hex())
        if found:
            yield from _trace(store, corpora, *found[0], indent + "    ")
        else:
            yield f"{indent}    document {parent.hex()}: not in this store any more"


def _find_documents(corpora: list[Artifact], prefix: str) -> list[tuple[Artifact, dict[str, Any]]]:
    """Return documents whose key begins with the hexadecimal `prefix`, one per artifact and key."""
    found = []
    for corpus in corpora:
        for part in corpus.parts:
            if not part.rows:
                continue
            keys = corpus.read(part, columns=["key"]).column("key")
            matches = [number for number, key in enumerate(keys.to_pylist()) if key.hex().startswith(prefix)]
            if matches:
                rows = corpus.read(part).take(matches)
                found += [(corpus, row) for row in rows.sort_by("id").to_pylist()]
    return found


def _scores(store: Store, row: dict[str, Any], corpus: Artifact) -> Iterator[tuple[Artifact, str]]:
    """Yield the attributes of a document from every finished artifact that scores its corpus."""
    for attributes in artifacts(store):
        if not attributes.complete or attributes.manifest.produces != "attributes":
            continue
        sources = {reference.digest for references in attributes.manifest.inputs.values() for reference in references}
        if corpus.manifest.digest not in sources:
            continue
        for table in attributes.tables():
            rows = [found for found in table.drop_columns(_vectors(table)).to_pylist() if found["key"] == row["key"]]
            for found in rows[:1]:
                scores = ", ".join(f"{n}={v}" for n, v in found.items() if n not in ("id", "key"))
                if scores:
                    yield attributes, scores


def _vectors(table: Any) -> list[str]:
    import pyarrow.types as types

    return [field.name for field in table.schema if types.is_fixed_size_list(field.type) or types.is_list(field.type)]


def _first_rows(artifact: Artifact, rows: int) -> Iterator[str]:
    left = rows
    for table in artifact.tables():
        table = table.drop_columns(_vectors_but_parents(table))
        for row in table.slice(0, left).to_pylist():
            left -= 1
            key = row.pop("key", b"").hex()
            made_by = row.pop("made_by", None)
            fields = ", ".join(
                f"{name}={_short(value)}" for name, value in row.items() if value not in (None, [], "{}")
            )
            finish = f", finish={made_by['finish_reason']}" if made_by else ""
            yield f"  {key}  {fields}{finish}"
        if left <= 0:
            return


def _vectors_but_parents(table: Any) -> list[str]:
    return [name for name in _vectors(table) if name != "parents"]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(item.hex()[:12] if isinstance(item, bytes) else str(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else str(value)
    text = " ".join(text.split())
    return json.dumps(text[:SHOWN_CHARACTERS] + ("..." if len(text) > SHOWN_CHARACTERS else ""), ensure_ascii=False)


def _count(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
