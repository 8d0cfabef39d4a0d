"""`hornbook submit`: one recipe as one Ray job, with one version of the code and an id that says what it runs.

The four packages and the recipe are staged in a temporary folder and shipped whole, so that the job runs the code that
checked the recipe, whether that came from a checkout or from an installed wheel. The submission id is a function of
command, recipe, code and store: asking twice for the same work does not start it twice.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook import __version__
from hornbook.documents import canonical_json
from hornbook.errors import ClusterError, HornbookError, RecipeError, StoreError
from hornbook.fingerprint import data_files
from hornbook.one_version import STAGE_PACKAGES, require_one_version
from hornbook.recipe import load_recipe, recipe_names
from hornbook.stages import own_file

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ENTRY_POINTS = {
    "run": "python -m hornbook.cli run {recipe}",
    "generate-textbooks": "python -m generators.cli --recipe {recipe}",
    "train-phi-style": "python -m training.cli --recipe {recipe}",
}
"""Modules rather than console scripts: the job then needs no installation of hornbook on the cluster, only its needs."""

PASSED_ON = ("HORNBOOK_STORE_SHARED",)
"""Environment variables that a job gets from here besides the store. Never a secret: anyone who may see the job sees
its runtime environment. Keys belong into the cluster's own environment."""


@dataclass(frozen=True)
class Submission:
    """A job that was submitted, or that was found running already (`new` is False)."""

    id: str
    address: str
    new: bool
    metadata: Mapping[str, str]

    def __str__(self) -> str:
        what = f"submitted {self.id}" if self.new else f"{self.id} is at this work already; nothing was submitted"
        return f"{what}\n  follow it: {self.follow_command}"

    @property
    def follow_command(self) -> str:
        """The command that follows its log."""
        return f"ray job logs --address {self.address} --follow {self.id}"


def submit(
    recipe: str,
    overrides: Sequence[str] = (),
    command: str = "run",
    address: str | None = None,
) -> Submission:
    """Submit a recipe as a Ray job and return at once.

    Args:
        recipe: a recipe's name or a path to its file.
        overrides: `key.path=value` strings, as for `hornbook run --set`.
        command: what the job runs: `run`, `generate-textbooks` or `train-phi-style`.
        address: the cluster's Jobs API (`http://127.0.0.1:8265`); None asks RAY_API_SERVER_ADDRESS, RAY_ADDRESS, then
            looks for a Ray on this machine.

    Raises:
        RecipeError: the recipe is wrong, or the command is not one of the three.
        StoreError: HORNBOOK_STORE is not set or relative; a job's working directory is a temporary copy.
        ClusterError: no cluster answers there, or it refuses this token.
        HornbookError: the code here is a mixture of two versions.
    """
    if command not in ENTRY_POINTS:
        raise RecipeError(f"a job cannot run {command!r}", f"use one of {', '.join(ENTRY_POINTS)}")
    require_one_version()
    store = job_store()
    checked = load_recipe(recipe, overrides)
    with staged_code(_recipe_file(recipe), overrides) as (folder, recipe_name):
        code = code_digest(folder)
        fingerprint = hashlib.sha256(
            canonical_json({"recipe": dict(checked.source), "code": code}).encode()
        ).hexdigest()
        base = submission_id(command, checked.name, fingerprint, store)
        metadata = {
            "recipe": checked.name,
            "command": command,
            "fingerprint": fingerprint,
            "hornbook": __version__,
            "store": store.split("?")[0],
        }
        client = _connect(address)
        where = str(client.get_address())
        number, running = _next_number(client, base)
        identifier = base if number == 1 else f"{base}-{number}"
        submission = Submission(identifier, where, not running, metadata)
        if running:
            return submission
        _call(
            "submitting",
            lambda: client.submit_job(
                entrypoint=_entry_point(command, recipe_name, overrides),
                submission_id=identifier,
                runtime_env=runtime_environment(folder, store),
                metadata=dict(metadata),
            ),
        )
    return submission


def submission_id(command: str, recipe: str, fingerprint: str, store: str) -> str:
    """Return the id of the job that does this work: the same for the same command, recipe, code and store."""
    mark = hashlib.sha256(canonical_json([command, fingerprint, store]).encode()).hexdigest()
    return f"{command}-{recipe}-{mark[:12]}"


def job_store() -> str:
    """Return HORNBOOK_STORE as a job may have it.

    Raises:
        StoreError: it is not set, is relative, or carries credentials.
    """
    store = os.environ.get("HORNBOOK_STORE", "")
    if re.search(r"://[^/?]*@|[?&](access|secret)_key=", store):
        raise StoreError(
            "HORNBOOK_STORE carries credentials, and whoever may see a job sees its environment",
            "give the cluster's machines the right to the bucket (a role, or keys in their own environment) and leave "
            "the credentials out of the URL",
        )
    if "://" in store or Path(store).is_absolute():
        return store
    what = f"HORNBOOK_STORE is the relative path {store!r}" if store else "HORNBOOK_STORE is not set"
    raise StoreError(
        f"{what}, and a job's working directory is a temporary copy",
        "export HORNBOOK_STORE=s3://bucket/prefix (or gs://, or an absolute path that every node mounts)",
    )


@contextmanager
def staged_code(recipe: Path, overrides: Sequence[str] = ()) -> Iterator[tuple[Path, str]]:
    """Copy the code and one recipe into a temporary folder laid out like the repository; yield it and the recipe's path.

    Kinds that the recipe names by their file go along, with their templates, and files that settings name.

    Raises:
        RecipeError: such a file does not lie below the recipe's or the current folder, so that a job would not find it.
    """
    with tempfile.TemporaryDirectory(prefix="hornbook-job-") as name:
        folder = Path(name)
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
        for package in STAGE_PACKAGES:
            shutil.copytree(_package_folder(package), folder / package, ignore=ignore)
        ours = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "recipes")  # where installed, recipes lie inside
        shutil.copytree(_package_folder("hornbook"), folder / "platform" / "hornbook", ignore=ours)
        (folder / "recipes").mkdir()
        shutil.copy(recipe, folder / "recipes" / recipe.name)
        kinds = {file: [path, *data_files(path)] for file, path in own_kinds(recipe).items()}
        named = {file: [path] for file, path in named_files(recipe, overrides).items()}
        for file, parts in {**kinds, **named}.items():
            if Path(file).is_absolute() or ".." in Path(file).parts:
                raise RecipeError(
                    f"{recipe}: a job cannot take along {file}", "name it relative to the recipe's folder"
                )
            target = folder / "recipes" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            for part in parts:
                shutil.copy(part, target.parent)
        yield folder, f"recipes/{recipe.name}"


def own_kinds(recipe: Path) -> dict[str, Path]:
    """Return the files of the kinds that a recipe names as `FILE.py:CLASS`: as it names them, and where they lie."""
    import yaml

    stages = yaml.safe_load(recipe.read_text(encoding="utf-8")).get("stages", {})
    named = {str(stage.get("kind", "")).rpartition(":")[0] for stage in stages.values()}
    found = {file: own_file(file, recipe.parent) for file in named if file.endswith(".py")}
    return {file: path for file, path in found.items() if path is not None}


def named_files(recipe: Path, overrides: Sequence[str] = ()) -> dict[str, Path]:
    """Return the files that settings of a recipe's stages name (`Stage.file_settings`): as named, and where they lie."""
    stages = [entry.stage for entry in load_recipe(str(recipe), overrides).stages.values()]
    values = [getattr(stage.settings, setting) for stage in stages for setting in stage.file_settings]
    named = [file for value in values for file in (value if isinstance(value, tuple) else (value,))]
    found = {file: own_file(file, recipe.parent) for file in named if isinstance(file, str) and file}
    return {file: path for file, path in found.items() if path is not None}


def runtime_environment(folder: Path, store: str) -> dict[str, Any]:
    """Return the Ray runtime environment that ships a staged folder: stages as working directory, hornbook as py_module."""
    variables = {"HORNBOOK_STORE": store, "RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}
    variables |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {
        "working_dir": str(folder),
        "py_modules": [str(folder / "platform" / "hornbook")],
        "env_vars": variables,
    }


def code_digest(folder: Path) -> str:
    """Return a hash over the names and contents of all files under a staged folder, recipes apart (but not their kinds)."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if not (name.startswith("recipes/") and path.suffix in (".yaml", ".yml")):
            digest.update(f"{name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _recipe_file(recipe: str) -> Path:
    return recipe_names().get(recipe) or Path(recipe)


def _package_folder(package: str) -> Path:
    import importlib.util

    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise HornbookError(f"the package {package} is not installed", "pip install hornbook, or run from a checkout")
    return Path(spec.origin).parent


def _entry_point(command: str, recipe: str, overrides: Sequence[str]) -> str:
    settings = "".join(f" --set {shlex.quote(override)}" for override in overrides)
    return ENTRY_POINTS[command].format(recipe=shlex.quote(recipe)) + settings


def _connect(address: str | None) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    where = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "this machine"
    return _call(f"connecting to the Ray cluster at {where}", lambda: JobSubmissionClient(address))


def _next_number(client: JobSubmissionClient, base: str) -> tuple[int, bool]:
    """Return the number of the job to submit, or of the one that runs (True). A used id cannot be used again."""
    known = {job.submission_id: job.status for job in _call("listing the jobs", client.list_jobs) if job.submission_id}
    number = 1
    while (identifier := base if number == 1 else f"{base}-{number}") in known:
        if not known[identifier].is_terminal():
            return number, True
        number += 1
    return number, False


def _call(what: str, ask: Callable[[], Any]) -> Any:
    """Ask the Jobs API; turn its failures into errors with a cure."""
    from ray.exceptions import RayError

    try:
        return ask()
    except (RayError, RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip()
        raise ClusterError(f"{what} failed: {reason.splitlines()[0] if reason else error!r}", _cure(reason)) from error


def _cure(reason: str) -> str:
    if re.search(r"Authenticat|\b40[13]\b|token", reason, re.IGNORECASE):
        return (
            "the cluster wants its token: export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE (a copy of the head "
            "node's token, mode 0600)"
        )
    if re.search(r"\b404\b|JSON|Expecting value", reason):
        return "something else listens at that address: pass --address http://HOST:PORT of Ray's dashboard"
    return (
        "start one (`RAY_AUTH_MODE=token ray start --head --dashboard-host 127.0.0.1`), open a tunnel to one "
        "(`ray dashboard clusters/gpu.yaml`), or pass --address http://HOST:PORT"
    )
