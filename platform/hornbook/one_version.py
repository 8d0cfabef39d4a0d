"""A job must run one version of the code, and Ray makes it easy to run two.

An uploaded working directory brings `generators`, `classifiers` and `training`, while `hornbook` comes from whatever is
installed on the node, unless `platform/hornbook` travels along as a py_module. A mixture works until it does not, and then
nobody can say which code made an artifact; so every command checks at its start and refuses one.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from hornbook.errors import HornbookError

STAGE_PACKAGES = ("generators", "classifiers", "training")


def require_one_version(packages: Sequence[str] = STAGE_PACKAGES) -> None:
    """Check that the stages' packages and the imported `hornbook` are of one version; takes a few milliseconds.

    Imports nothing. A package that is not there at all is left to whoever needs it.

    Raises:
        HornbookError: two versions are mixed; the message names both places.
    """
    ours = Path(__file__).resolve().parent
    check_roots(ours, {name: root for name in packages if (root := _root_of(name)) is not None})


def check_roots(hornbook: Path, roots: dict[str, Path]) -> None:
    """Check a `hornbook` package folder against the folders that hold the stages' packages (package name -> folder).

    Raises:
        HornbookError: as `require_one_version`.
    """
    digest = None
    for name, root in roots.items():
        beside = _hornbook_beside(root)
        if beside == hornbook:
            continue
        if beside is None:
            raise _mixture(name, root / name, hornbook, "and there is no hornbook beside it")
        digest = digest or source_digest(hornbook)
        if source_digest(beside) != digest:
            raise _mixture(name, root / name, hornbook, f"which differs from {beside}")
    if len(set(roots.values())) > 1:
        places = ", ".join(f"{name} from {root}" for name, root in roots.items())
        raise HornbookError(f"two versions of hornbook's code are mixed: {places}", _CURE)


def source_digest(package: Path) -> str:
    """Return a hash over the names and contents of a package folder's Python files."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()


_CURE = (
    "submit with `hornbook submit`, or with `ray job submit --runtime-env clusters/runtime_env.yaml`, which ship both "
    "together; outside a job, run from one checkout or uninstall the other copy (`pip uninstall hornbook`)"
)


def _mixture(name: str, stages: Path, hornbook: Path, how: str) -> HornbookError:
    return HornbookError(
        f"two versions of hornbook's code are mixed: {name} comes from {stages}, hornbook from {hornbook}, {how}", _CURE
    )


def _root_of(package: str) -> Path | None:
    """Return the folder that holds a top-level package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).resolve().parent.parent


def _hornbook_beside(root: Path) -> Path | None:
    """Return the hornbook that belongs to a root: `platform/hornbook` in a source tree, `hornbook` where installed."""
    for candidate in (root / "platform" / "hornbook", root / "hornbook"):
        if (candidate / "__init__.py").is_file():
            return candidate
    return None
