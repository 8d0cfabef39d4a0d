"""`hornbook trace`: from a training token to its document, from a document to what made it, its parents and its scores.

A key says what made a document, not what it says: two artifacts may hold the same key with texts that were sampled
differently. So a trace looks first where the question comes from (what the training read, what the child was made from),
and says which other artifacts hold the key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from hornbook.artifact import ARTIFACTS, Artifact
from hornbook.documents import planned_row
from hornbook.errors import StoreError
from hornbook.events import Events
from hornbook.inspection import artifacts, find_artifact, plain_columns, short
from hornbook.runs import all_runs, load_run
from hornbook.settings import nearest
from hornbook.stage import StageContext
from hornbook.store import Store


def trace_document(store: Store, key: str) -> Iterator[str]:
    """Yield the lines of `hornbook trace KEY`: the document, what made it, its parents likewise, and its scores.

    Where several artifacts hold the key, the newest run's counts, then the newest artifact.

    Raises:
        StoreError: no document of the store has this key, or the prefix fits several.
    """
    try:
        bytes.fromhex(key + "0" * (len(key) % 2))
    except ValueError:
        raise StoreError(
            f"{key!r} is not a document key: hexadecimal digits are wanted", "`hornbook show` prints keys"
        ) from None
    runs = sorted(all_runs(store), key=lambda run: float(run.value["started"]))
    newest = {stage["folder"] for run in runs[-1:] for stage in run.value["stages"].values()}
    corpora = _finished(store, "documents")
    corpora.sort(key=lambda found: (found.folder not in newest, -found.manifest.created))
    found = _find_documents(corpora, key.lower())
    keys = sorted({row["key"].hex() for _, row in found})
    if not keys:
        raise StoreError(f"no document in {store.describe(ARTIFACTS)} has a key {key!r}", "`hornbook show` prints keys")
    if len(keys) > 1:
        raise StoreError(
            f"several documents have keys that begin with {key!r}: {', '.join(keys[:5])}", "give more digits"
        )
    yield from _trace(store, corpora, found, "")


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
    corpora = _read_first(_origins(artifact, found.corpus), _finished(store, "documents"))
    documents = _find_documents(corpora, found.key.hex())
    if not documents:
        raise StoreError(
            f"the document {found.key.hex()} is not in this store any more", "run the recipe again to make its corpus"
        )
    yield from _trace(store, corpora, documents, "")


def _no_engine(settings: object, wait: bool = True) -> Any:
    raise AssertionError("tracing asks no engine")


def _trace(
    store: Store, corpora: Sequence[Artifact], found: list[tuple[Artifact, dict[str, Any]]], indent: str
) -> Iterator[str]:
    """Yield what is known of the first of the documents found, which all have one key, and where the others are."""
    (artifact, row), *others = found
    yield f"{indent}document {row['key'].hex()}: {row['kind']} from {row['source']}, planned row {planned_row(row['id'])}"
    yield f"{indent}  artifact {artifact.folder} (stage {artifact.manifest.stage})"
    for other, copy in others:
        text = "the same text" if copy["text"] == row["text"] else "ANOTHER text"
        yield f"{indent}  also in  {other.folder} (stage {other.manifest.stage}), {text}"
    yield f"{indent}  text     {short(row['text'])}"
    if row["meta"] != "{}":
        yield f"{indent}  meta     {row['meta']}"
    made_by = row["made_by"]
    if made_by is not None:
        prompt = " / ".join(message["content"] for message in json.loads(made_by["prompt"]))
        yield f"{indent}  prompt   {json.dumps(prompt, ensure_ascii=False)}"
        yield f"{indent}  seeds    {made_by['seeds']}"
        yield f"{indent}  model    {made_by['model']} at {made_by['revision']}"
        yield f"{indent}  sampling {made_by['sampling']}, row seed {made_by['row_seed']}"
        yield f"{indent}  finished {made_by['finish_reason']}, {made_by['completion_tokens']} tokens after {made_by['prompt_tokens']}"
    same = [artifact, *(other for other, copy in others if copy["text"] == row["text"])]
    for attributes, scores in _scores(store, row, same):
        yield f"{indent}  scores   {attributes.manifest.stage}: {scores}"
    for parent in row["parents"]:
        yield f"{indent}  made from:"
        nearer = _read_first(_origins(artifact), corpora)
        if documents := _find_documents(nearer, parent.hex()):
            yield from _trace(store, nearer, documents, indent + "    ")
        else:
            yield f"{indent}    document {parent.hex()}: not in this store any more"


def _origins(artifact: Artifact, corpus: str = "") -> list[str]:
    """Return the folders that an artifact was made from, nearest first; before all others what `corpus` was packed from."""
    found: list[str] = []
    level = [artifact]
    while level:
        below = []
        for child in level:
            try:
                manifest = child.manifest
            except StoreError:  # gone or damaged: its inputs are unknown
                continue
            inputs = [reference for references in manifest.inputs.values() for reference in references]
            if corpus and manifest.metrics.get("source") == corpus:
                found[:0] = [reference.folder for reference in inputs]
            new = [reference.folder for reference in inputs if reference.folder not in found]
            found += new
            below += [Artifact(artifact.store, folder) for folder in dict.fromkeys(new)]
        level = below
    return list(dict.fromkeys(found))


def _read_first(folders: Sequence[str], corpora: Sequence[Artifact]) -> list[Artifact]:
    """Return corpora with those in `folders` first, in that order; the order of the others stays."""
    rank = {folder: number for number, folder in enumerate(folders)}
    return sorted(corpora, key=lambda corpus: rank.get(corpus.folder, len(rank)))


def _finished(store: Store, produces: str) -> list[Artifact]:
    """Return the finished artifacts of a sort; damaged ones are passed over, `hornbook ls` shows them."""
    found = []
    for artifact in artifacts(store):
        try:
            if artifact.complete and artifact.manifest.produces == produces:
                found.append(artifact)
        except StoreError:
            continue
    return found


def _find_documents(corpora: Sequence[Artifact], prefix: str) -> list[tuple[Artifact, dict[str, Any]]]:
    """Return documents whose key begins with the hexadecimal `prefix`, in the order of the corpora."""
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


def _scores(store: Store, row: dict[str, Any], corpora: Sequence[Artifact]) -> Iterator[tuple[Artifact, str]]:
    """Yield the attributes of a document from every finished artifact that scores one of the corpora that hold it."""
    told = ("id", "key", "source")
    digests = {corpus.manifest.digest for corpus in corpora}
    for attributes in _finished(store, "attributes"):
        sources = {reference.digest for references in attributes.manifest.inputs.values() for reference in references}
        columns = plain_columns(attributes)
        if not digests & sources or not set(columns) - {"id", "key"}:
            continue
        for table in attributes.tables(columns=columns):
            rows = [found for found in table.to_pylist() if found["key"] == row["key"]]
            for found in rows[:1]:
                yield (
                    attributes,
                    ", ".join(
                        f"{name}={short(value)}"
                        for name, value in found.items()
                        if name not in told and value is not None
                    ),
                )
