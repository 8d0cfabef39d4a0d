"""Fingerprints: the name of an artifact before it exists, a hash of everything that can change its content.

Kind, the code of its stage (syntax trees without comments and docstrings: of the module and of what it imports from
its own package), the files beside the module that share its name (templates, word lists), the settings that are not
`runtime`, the recipe's seed, the digests of models and of inputs. Nothing here is listed by hand, so nothing drifts.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hornbook.documents import canonical_json
from hornbook.errors import RecipeError

FINGERPRINT_VERSION = 1


def fingerprint(
    kind: str,
    module: str,
    settings: Mapping[str, Any],
    seed: int,
    models: Mapping[str, str],
    inputs: Mapping[str, Sequence[str]],
) -> str:
    """Return the 64-digit hexadecimal fingerprint of the artifact that a stage would make.

    Args:
        kind: the stage's kind, as recipes name it.
        module: the stage's module (`generators.stories`).
        settings: its settings that affect results (`Settings.identity()`).
        seed: the seed that the stage derives all randomness from.
        models: digest of each model it uses, by name.
        inputs: digests of its input artifacts, by role, in recipe order.
    """
    parts = {
        "version": FINGERPRINT_VERSION,
        "kind": kind,
        "code": code_digest(module),
        "settings": dict(settings),
        "seed": seed,
        "models": dict(models),
        "inputs": {role: list(digests) for role, digests in inputs.items()},
    }
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


@cache
def code_digest(module: str) -> str:
    """Return a hash of a module's meaning: its syntax tree, its data files, and its own package's modules it imports."""
    digest = hashlib.sha256()
    for name in sorted(_reachable(module)):
        path = _source(name)
        digest.update(f"{name}\n{_tree(path)}\n".encode())
        for file in data_files(path):
            digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def data_files(module_path: Path) -> list[Path]:
    """Return the files beside a module that are its own: `stories.py` owns `stories.jinja` and `stories.words.txt`.

    A file of the bare name with another ending may be anything, as a user's recipe `riddles.yaml` beside `riddles.py`.
    """
    stem = module_path.stem
    return sorted(
        path
        for path in module_path.parent.glob(f"{stem}.*")
        if path.is_file() and (path.name == f"{stem}.jinja" or path.name.count(".") > 1)
    )


def _reachable(module: str) -> set[str]:
    """Return `module` and all modules of the same top package that it imports, directly or not, at any depth of code."""
    package = module.split(".")[0]
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for node in ast.walk(ast.parse(_source(name).read_text(encoding="utf-8"))):
            for imported in _imported(node):
                if imported.split(".")[0] == package and imported != package and _exists(imported):
                    waiting.append(imported)
    return found


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def _exists(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return False
    return spec is not None and spec.origin is not None


def _source(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise RecipeError(f"the module {module} cannot be found", "check the import string of the stage")
    return Path(spec.origin)


def _tree(path: Path) -> str:
    """Return a module's syntax tree as text, without docstrings, comments and positions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0] = ast.Expr(ast.Constant(""))
    return ast.dump(tree)
