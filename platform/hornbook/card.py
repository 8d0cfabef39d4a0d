"""The card of a data set: YAML that the Hugging Face hub reads, and what a person must know before using the text.

All of it comes from the artifact's manifest, from the record of the run that made it, and from a sample of its rows.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from hornbook.artifact import Artifact, Manifest
from hornbook.corpus_sample import UNKNOWN, CorpusSample, figures_of, plain_number, quantiles
from hornbook.documents import DOCUMENT_SCHEMA, REJECT_SCHEMA
from hornbook.errors import HornbookError, RecipeError, StoreError
from hornbook.fingerprint import data_files, fingerprint
from hornbook.models import licence_of, short_name
from hornbook.runs import Run, all_runs, load_run
from hornbook.stages import stage_class

README = "README.md"
MARK = "<!-- written by hornbook push -->"
PLACEHOLDER = f"""{MARK}
# Incomplete

`hornbook push` is writing this data set. Until it has finished, shards are missing; run the same command again to go on.
"""
MOST_FIGURES = 80
SHOWN_APART = ("acceptance", "prompts", "waves")
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
         (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"),
         (10**12, "100B<n<1T"))  # fmt: skip
PRIVATE_SETTINGS = ("base_url", "api_key_env", "request_log")
"""Settings of a recipe that are nobody else's business: internal addresses, names of variables, paths."""
LANGUAGES = {
    "english": "en", "german": "de", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt", "dutch": "nl",
    "polish": "pl", "czech": "cs", "russian": "ru", "ukrainian": "uk", "turkish": "tr", "arabic": "ar", "hindi": "hi",
    "chinese": "zh", "japanese": "ja", "korean": "ko", "swedish": "sv", "danish": "da", "finnish": "fi", "greek": "el",
}  # fmt: skip


@dataclass
class Card:
    """The README's text, and what the one who publishes should know or decide."""

    text: str
    warnings: list[str] = field(default_factory=list)


def dataset_card(artifact: Artifact, name: str, target: str, *, licence: str = "", rejects: bool = False) -> Card:
    """Return the card of an artifact of documents; the same for the same artifact.

    Args:
        name: the artifact as the user named it: with RUN/STAGE that run's recipe is shown.
        target: where it goes, for the example that loads it.
        licence: the data set's own licence; empty: unknown, with a warning.
        rejects: whether the rejects are there as a second configuration.
    """
    import jinja2

    manifest = artifact.manifest
    warnings: list[str] = []
    run, stage = _run_of(artifact, name)
    recipe = public_recipe(run.value.get("source")) if run else {}
    ancestors = list(_ancestors(artifact, set()))
    found = CorpusSample(artifact)
    models = _models([manifest, *(parent.manifest for parent in ancestors)], found.models)
    sources = {parent.manifest.stage: CorpusSample(parent).licences for parent in ancestors if _was_read(parent)}
    if not found.generated and not ancestors:
        sources = {stage: found.licences}
    prompts, prompts_note = _prompts(artifact, recipe, stage) if found.generated else ([], "")
    prompts += [prompt for parent in ancestors for prompt in _kept_prompts(parent.manifest)]
    languages = _languages(manifest, found.generated)
    warnings += _warnings(licence, models, sources, recipe, languages)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(fence=fence, cell=cell, number=plain_number)
    body = environment.from_string(_packaged("card.md.jinja")).render(
        mark=MARK,
        title=_title(run, stage),
        about=_about(manifest, recipe, stage),
        manifest=manifest,
        generated=found.generated,
        loads=target.removeprefix("hf://datasets/"),
        rejects=rejects,
        columns=_columns(),
        recipe=_yaml(recipe) if recipe else "",
        settings=_yaml(manifest.settings),
        prompts=prompts,
        prompts_note=prompts_note,
        models=models,
        sources=sources,
        licence=licence,
        sampled=len(found.characters),
        lengths=[(what, quantiles(values)) for what, values in found.lengths() if values],
        figures=list(figures_of({key: value for key, value in manifest.metrics.items() if key not in SHOWN_APART}))[
            :MOST_FIGURES
        ],
        rows=found.rows,
        writers=_writers(manifest.metrics.get("acceptance")),
        reasons=sorted(manifest.reasons.items(), key=lambda entry: (-entry[1], entry[0])),
        inputs=[(role, found) for role, references in manifest.inputs.items() for found in references],
    )
    front = _front_matter(manifest, _title(run, stage), licence or UNKNOWN, languages, rejects, found.generated)
    return Card(f"---\n{front}\n---\n{body}", warnings)


def public_recipe(source: Any) -> dict[str, Any]:
    """Return a recipe without the settings that must not be published, at any depth."""

    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): strip(entry) for key, entry in value.items() if key not in PRIVATE_SETTINGS}
        return [strip(entry) for entry in value] if isinstance(value, list | tuple) else value

    stripped: dict[str, Any] = strip(source) if isinstance(source, Mapping) else {}
    return stripped


def features(schema: pa.Schema) -> list[dict[str, Any]]:
    """Return a schema as the `features` of a card, as the library `datasets` writes them."""
    return [{"name": entry.name, **_feature(entry.type)} for entry in schema]


def fence(text: str, language: str = "") -> str:
    """Return a text as a Markdown code block that nothing within it can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"


def cell(value: Any) -> str:
    """Return a value as the content of a Markdown table's cell: one line, and no markup that it could hold works."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", text)


# --- front matter ----------------------------------------------------------------------------------------------------


def _front_matter(
    manifest: Manifest, title: str, licence: str, languages: Sequence[str], rejects: bool, generated: bool
) -> str:
    from huggingface_hub import DatasetCardData

    rows = int(manifest.counts.get("rows", 0))
    rejected = int(manifest.counts.get("rejected", 0))
    configs = [("default", "data", DOCUMENT_SCHEMA, rows), ("rejects", "rejects", REJECT_SCHEMA, rejected)]
    configs = configs if rejects else configs[:1]
    card = DatasetCardData(
        pretty_name=title,
        license=licence,
        language=list(languages) or None,
        size_categories=[next((label for limit, label in SIZES if rows < limit), "n>1T")],
        task_categories=["text-generation"],
        tags=["hornbook", *(["synthetic"] if generated else [])],
        configs=[
            {"config_name": config, "data_files": [{"split": "train", "path": f"{folder}/train-*"}]}
            for config, folder, _, _ in configs
        ],
        dataset_info=[
            {
                "config_name": config,
                "features": features(readable_schema(schema)),
                "splits": [{"name": "train", "num_examples": count}],
            }
            for config, _, schema, count in configs
        ],
    )
    return card.to_yaml()


def readable_schema(schema: pa.Schema) -> pa.Schema:
    """Return a schema with keys as hexadecimal text, as `hornbook.push.readable` makes them."""
    return pa.schema([entry.with_type(_readable_type(entry.type)) for entry in schema])


def _readable_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_binary(kind):
        return pa.string()
    return pa.list_(_readable_type(kind.value_type)) if pa.types.is_list(kind) else kind


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_struct(kind):
        return {"struct": features(kind)}
    if pa.types.is_list(kind):
        inner = _feature(kind.value_type)
        return {"list": inner.get("dtype") or inner.get("struct")}
    return {"dtype": str(kind)}


def _languages(manifest: Manifest, generated: bool) -> list[str]:
    """Return language codes: those the stage was asked for, else English where our own prompts, which are, made the text."""
    asked = manifest.settings.get("languages") or manifest.settings.get("language") or []
    asked = [asked] if isinstance(asked, str) else asked
    codes = [LANGUAGES.get(str(name).lower(), str(name).lower()) for name in asked]
    return sorted({code for code in codes if re.fullmatch("[a-z]{2,3}", code)}) or (["en"] if generated else [])


# --- where it comes from ---------------------------------------------------------------------------------------------


def _run_of(artifact: Artifact, name: str) -> tuple[Run | None, str]:
    """Return the run that the user named, or the newest one that has the artifact, and the stage's name in it."""
    prefix, slash, stage = name.partition("/")
    store = artifact.store
    if slash and prefix != "artifacts":
        return load_run(store, prefix), stage
    for run in sorted(all_runs(store), key=lambda run: -float(run.value["started"])):
        for stage, entry in run.value["stages"].items():
            if entry.get("folder") == artifact.folder:
                return run, stage
    return None, artifact.manifest.stage


def _ancestors(artifact: Artifact, seen: set[str]) -> Iterator[Artifact]:
    """Yield what an artifact was made from, and what that was made from, as far as it is still as it was."""
    for references in artifact.manifest.inputs.values():
        for reference in references:
            parent = Artifact(artifact.store, reference.folder)
            if reference.folder in seen:
                continue
            seen.add(reference.folder)
            try:
                if parent.complete and parent.manifest.digest == reference.digest:
                    yield parent
                    yield from _ancestors(parent, seen)
            except StoreError:
                continue


def _was_read(artifact: Artifact) -> bool:
    return artifact.manifest.produces == "documents" and not CorpusSample(artifact, most=1).generated


@dataclass(frozen=True)
class _Model:
    name: str
    engine: str
    revision: str
    licence: str


def _models(manifests: Sequence[Manifest], writers: Mapping[str, str]) -> list[_Model]:
    """Return the models that had a part in the text: those of our own engines, and those that the rows name."""
    revisions = {name: revision for manifest in manifests for name, revision in manifest.models.items()}
    asked = {name: revision for manifest in manifests for name, revision in _engines_in(manifest.settings)}
    known = set(revisions.values())  # rows name a model of ours by its short name
    writers = {name: revision for name, revision in writers.items() if revision not in known}
    revisions = {**asked, **writers, **revisions}
    found = []
    for name, revision in sorted(revisions.items()):
        engine = revision.split(":")[0] if revision.startswith(("openai:", "echo:")) else ""
        licence = "none (no model: words from a table)" if engine == "echo" else UNKNOWN if engine else licence_of(name)
        found.append(_Model(short_name(name), engine, revision, licence))
    return found


def _engines_in(settings: Any) -> Iterator[tuple[str, str]]:
    """Yield (model, revision) of the engines in a stage's settings that are not ours to resolve: writers, judges."""
    if isinstance(settings, Mapping):
        if settings.get("kind") in ("openai", "echo") and settings.get("model"):
            yield str(settings["model"]), f"{settings['kind']}:{settings['model']}"
        for entry in settings.values():
            yield from _engines_in(entry)
    elif isinstance(settings, list | tuple):
        for entry in settings:
            yield from _engines_in(entry)


class _PromptFile(NamedTuple):
    """A file that prompts of a stage are made of; only of templates the text is shown."""

    stage: str
    name: str
    version: str
    text: str


def _kept_prompts(manifest: Manifest) -> list[_PromptFile]:
    kept = manifest.metrics.get("prompts") or {}
    return [
        _PromptFile(manifest.stage, name, prompt["version"], prompt.get("text", "")) for name, prompt in kept.items()
    ]


def _prompts(artifact: Artifact, recipe: Mapping[str, Any], stage: str) -> tuple[list[_PromptFile], str]:
    """Return the files of the kind's prompts, and a remark on whether they are those that made the text."""
    manifest = artifact.manifest
    if kept := _kept_prompts(manifest):
        return kept, "Kept with the corpus."
    kind = _kind(recipe, stage, manifest)
    try:
        found = stage_class(kind, stage, Path())
    except RecipeError:
        return [], f"The file of the kind `{kind}` is not at hand; each row carries its prompt."
    templates = [path for path in data_files(Path(inspect.getfile(found))) if path.suffix == ".jinja"]
    prompts = [
        _PromptFile(stage, path.name, hashlib.sha256(path.read_bytes()).hexdigest(), path.read_text(encoding="utf-8"))
        for path in templates
    ]
    digests = {role: [entry.digest for entry in entries] for role, entries in manifest.inputs.items()}
    try:
        now = fingerprint(manifest.kind, found.__module__, manifest.settings, manifest.seed, manifest.models, digests)
    except HornbookError:
        now = ""
    if now == manifest.fingerprint:
        return prompts, "The code is as it was when the text was made."
    return (
        prompts,
        "The code may have changed since the text was made: it gives another fingerprint. Each row carries its own prompt.",
    )


def _kind(recipe: Mapping[str, Any], stage: str, manifest: Manifest) -> str:
    stages = recipe.get("stages")
    entry = stages.get(stage) if isinstance(stages, Mapping) else None
    return str(entry.get("kind", manifest.kind)) if isinstance(entry, Mapping) else manifest.kind


def _about(manifest: Manifest, recipe: Mapping[str, Any], stage: str) -> str:
    try:
        found = stage_class(_kind(recipe, stage, manifest), stage, Path())
    except RecipeError:
        return ""
    return next(iter((found.__doc__ or "").strip().splitlines()), "")


def _title(run: Run | None, stage: str) -> str:
    return f"{run.value['recipe']}: {stage}" if run else stage


def _warnings(
    licence: str,
    models: Sequence[_Model],
    sources: Mapping[str, Mapping[str, int]],
    recipe: Mapping[str, Any],
    languages: Sequence[str],
) -> list[str]:
    warnings = (
        [] if licence else ["the data set's licence is `unknown`: choose one with --license, say --license odc-by"]
    )
    warnings += [f"the licence of the model {model.name} is unknown" for model in models if model.licence == UNKNOWN]
    for name, licences in sources.items():
        share = licences.get(UNKNOWN, 0) / max(1, sum(licences.values()))
        if share:
            warnings.append(f"the licence of {share:.0%} of the documents of the source {name} is unknown")
    if not languages:
        warnings.append("the language is unknown: the card names none")
    paths = sorted(_paths(recipe))
    return [*warnings, f"the recipe names paths of this machine: {', '.join(paths)}"] if paths else warnings


def _paths(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        return set().union(*(_paths(entry) for entry in value.values()))
    if isinstance(value, list):
        return set().union(*map(_paths, value))
    return {value} if isinstance(value, str) and re.match(r"(~|/)\S*/\S", value) else set()


# --- small parts ------------------------------------------------------------------------------------------------------


def _writers(acceptance: Any) -> list[tuple[str, int, int]]:
    """Return (model, planned rows, accepted rows) as the stage counted them."""
    if not isinstance(acceptance, Mapping):
        return []
    return [
        (str(model), int(counts["planned"]), int(counts["accepted"]))
        for model, counts in acceptance.items()
        if isinstance(counts, Mapping) and {"planned", "accepted"} <= counts.keys()
    ]


def _columns() -> list[tuple[str, str, str]]:
    about = {
        "id": "planned row x 65,536 + number of the document made from it; unique",
        "key": "hash of what made the text (prompt, model revision, sampling, seed), or of the text that was read",
        "text": "the text",
        "source": "what mixtures call it",
        "kind": "what sort of text it is: story, text, chat, ...",
        "parents": "keys of the documents that it was made from",
        "made_by": "prompt, seeds, model, revision, sampling, finish reason, token counts; null for text that was read",
        "meta": "JSON object; a chat record is its `chat`",
    }
    return [
        (entry.name, str(entry.type).split("<")[0], about.get(entry.name, ""))
        for entry in readable_schema(DOCUMENT_SCHEMA)
    ]


def _yaml(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


def _packaged(name: str) -> str:
    return importlib.resources.files("hornbook").joinpath(name).read_text(encoding="utf-8")
