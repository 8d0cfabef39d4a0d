"""The few kinds of error that hornbook raises on purpose.

Each carries what happened (naming the file, the row or the setting) and, where there is one, the cure. The command
line prints both without a traceback and leaves with the error's exit code: 2 where the user's own input is
wrong, 1 where the world failed, 3 where the run was stopped before its end. Any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class HornbookError(Exception):
    """Something failed that a user can understand: a message, and the cure where one is known."""

    exit_code = 1

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(message, cure)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message}\n  cure: {self.cure}" if self.cure else self.message


class RecipeError(HornbookError):
    """A recipe or a setting is wrong: misspelled key, wrong type, cycle, missing input."""

    exit_code = 2


class StoreError(HornbookError):
    """The store or an artifact in it cannot be read or written: missing, damaged, full, held by another driver."""


class DataError(HornbookError):
    """Input data that no row-level reject can express: an unreadable file, a missing column, an empty corpus."""


class ModelError(HornbookError):
    """A model name does not resolve, or a model folder cannot do what was asked of it."""

    exit_code = 2


class EngineError(HornbookError):
    """An LLM engine does not start, or keeps dying beyond its bounded restarts."""


class ClusterError(HornbookError):
    """Ray cannot be reached or started, or the cluster lacks what the recipe needs."""


class TrainingError(HornbookError):
    """A training run cannot go on: non-finite loss, data that changed under a checkpoint, no valid checkpoint."""


class SandboxError(HornbookError):
    """Generated code cannot be confined on this machine; nothing was run."""


class Stopped(HornbookError):
    """The run was asked to stop (`hornbook stop`); everything finished so far is saved. Not a failure, but not the
    whole recipe either: 0 would show a Ray job as SUCCEEDED and let `hornbook run ... && next` go on."""

    exit_code = 3
