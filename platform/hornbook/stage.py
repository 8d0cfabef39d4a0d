"""What a stage is: settings, what it takes in, and `run`. And what it is handed when it runs.

A stage is one file in `generators`, `classifiers` or `training` with a subclass of `Stage`; `hornbook.pipeline` finds it by
its kind in one table. Stages meet only on storage: each reads finished artifacts and leaves one.
"""

from __future__ import annotations

import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, SupportsIndex

from hornbook.artifact import Artifact
from hornbook.errors import DataError, Stopped
from hornbook.events import Events
from hornbook.progress import Progress
from hornbook.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hornbook.engines.interface import EngineSettings
    from hornbook.engines.pool import EngineHandle
    from hornbook.parts import PartRange
    from hornbook.partwork import PartMaker, Totals

OWN_SOURCE = "__hornbook_source__"
"""Where a module that was made from a user's file keeps that file's text."""

Produces = Literal["documents", "attributes", "scorer", "tokenizer", "tokens", "files", "model", "losses", "figures"]


@dataclass(frozen=True)
class Input:
    """A role that a stage's inputs play in it.

    Attributes:
        produces: what the artifacts in this role must be.
        many: whether several stages may play it.
        optional: whether it may be left out.
    """

    produces: Produces
    many: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Expected:
    """What a stage is expected to make, for `--dry-run` and ETAs. None where it cannot be known before."""

    planned: int | None = None
    unit: str = "rows"
    rows: int | None = None
    tokens: int | None = None
    distinct: int | None = None
    """Distinct prompts that there are for generated text."""


@dataclass(frozen=True)
class StageResult:
    """What `run` returns: figures for the report, and the names of files (not parts) that belong to the artifact."""

    metrics: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[str] = ()


@dataclass(frozen=True)
class TokenLocation:
    """Where a training token comes from: the document's key and the token's number in it."""

    corpus: str
    key: bytes
    offset: int


class Stage(ABC):
    """One step of a recipe.

    Class attributes:
        kind: the name that recipes use.
        produces: what its artifact is.
        Settings: its settings model.
        inputs: the roles of its inputs.
        file_settings: the settings that name a file of the user's, or a tuple of them, looked for as a kind's own file is;
            jobs take it along.
    """

    kind: ClassVar[str]
    produces: ClassVar[Produces]
    Settings: ClassVar[type[Settings]]
    inputs: ClassVar[Mapping[str, Input]] = {}
    file_settings: ClassVar[tuple[str, ...]] = ()

    folder: Path | None = None
    """The recipe's folder, where files that settings name are looked for before the current one."""

    def __init__(self, name: str, settings: Any, seed: int) -> None:
        self.name = name
        self.settings = settings
        self.seed = seed

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Pickle a user's own kind together with its source: a worker need not have the file."""
        module = sys.modules[type(self).__module__]
        if not hasattr(module, OWN_SOURCE):
            return super().__reduce_ex__(protocol)
        source = (module.__name__, str(module.__file__), getattr(module, OWN_SOURCE))
        return _of_own_module, (source, type(self).__name__), self.__getstate__()

    def models(self) -> Sequence[str]:
        """Return the names of the models it uses; their digests enter the fingerprint."""
        return ()

    def extra_identity(self) -> dict[str, str]:
        """Return digests of what the stage reads that is neither a setting, a model nor an input: files it finds itself.

        They enter the fingerprint, so that other files are another artifact. Must be the same on every machine that holds
        the same files; called before `run`, on the driver.
        """
        return {}

    def check(self) -> None:  # noqa: B027 - most stages have nothing more to check
        """Refuse settings that pydantic cannot judge alone (a missing file, say), before anything runs.

        Raises:
            RecipeError: naming the setting and the cure.
        """

    def check_inputs(self, inputs: Mapping[str, Sequence[Stage]]) -> None:  # noqa: B027 - most stages take any
        """Refuse settings that do not go with the stages in the inputs' roles, before anything runs; fill in what follows from them.

        Called once, by the recipe, for each stage after those that it needs.

        Raises:
            RecipeError: naming the setting and the cure.
        """

    def ready(self) -> None:  # noqa: B027 - most stages run anywhere
        """Make sure that this machine can run the stage: called before any stage of a run begins that is still to be made.

        Raises:
            HornbookError: what this machine lacks (a sandbox for generated code, say), and the cure.
        """

    def expected(self, inputs: Mapping[str, Sequence[Expected]]) -> Expected:
        """Return what the stage will make of what its inputs are expected to hold. Must be cheap."""
        return Expected()

    def locate_token(self, context: StageContext, step: int, row: int, position: int) -> TokenLocation:
        """Return where the input token at a position of a row of an optimizer step (1 is the first) came from.

        Raises:
            DataError: the stage trains nothing, or there is no such step, row or position.
        """
        raise DataError(
            f"{self.name} ({self.kind}) trains on no tokens", "name a training stage: RUN/STAGE@STEP:ROW:POSITION"
        )

    def preflight(self, context: StageContext) -> Sequence[Sequence[str]] | None:
        """Return what `run` will take, tried for a moment on its real workers, as lines of a table: what, how much, remark.

        None if the stage has nothing to say. `context.artifact` is a scratch one; its inputs are finished.

        Raises:
            HornbookError: it cannot fit; the message says what would.
        """
        return None

    @abstractmethod
    def run(self, context: StageContext) -> StageResult:
        """Make the artifact in `context.artifact`; called again after a crash, it makes only what is missing."""


def _of_own_module(source: tuple[str, str, str], name: str) -> Stage:
    """Return an empty stage of a user's kind, its module made first; unpickling fills in the state after this."""
    from hornbook.stages import own_module

    module = sys.modules.get(source[0]) or own_module(*source)
    return object.__new__(getattr(module, name))


class OpenEngine(Protocol):
    """How a stage gets the handle of an engine pool; see `EnginePool.handle`."""

    def __call__(self, settings: EngineSettings, wait: bool = True) -> EngineHandle: ...  # noqa: D102


@dataclass
class StageContext:
    """What a running stage is given.

    Attributes:
        artifact: the artifact to make; its folder may hold parts or checkpoints of an earlier attempt.
        inputs: finished artifacts by role, in recipe order.
        input_stages: the names of the stages that made them, likewise.
        stage: this stage's name in the recipe.
        seed: derive all randomness from it (`hornbook.plan.derive_seed`).
        run: the run's id.
        events: the run's record.
        stop_requested: whether `hornbook stop` was called.
        open_engine: returns a handle to a shared engine pool, once it answers; with `wait=False` at once.
        anew: whether the user wants it made anew, with nothing taken over from earlier artifacts.
    """

    artifact: Artifact
    inputs: Mapping[str, Sequence[Artifact]]
    input_stages: Mapping[str, Sequence[str]]
    stage: str
    seed: int
    run: str
    events: Events
    stop_requested: Callable[[], bool]
    open_engine: OpenEngine
    anew: bool = False

    def input(self, role: str) -> Artifact:
        """Return the only artifact in a role."""
        (artifact,) = self.inputs[role]
        return artifact

    def optional_input(self, role: str) -> Artifact | None:
        """Return the artifact in a role, or None if the recipe names none."""
        artifacts = self.inputs.get(role, ())
        return artifacts[0] if artifacts else None

    def make_parts(self, maker: PartMaker, ranges: Iterable[PartRange], **options: Any) -> Totals:
        """Make every planned range that is not committed yet, with Ray Data. See `hornbook.partwork.make_parts`."""
        from hornbook.partwork import make_parts

        return make_parts(self, maker, ranges, **options)

    @contextmanager
    def progress(self, total: int, unit: str = "rows", done: int = 0) -> Iterator[Progress]:
        """Show progress of work that is not made of parts."""
        progress = Progress(self.stage, total, unit, done)
        try:
            yield progress
        finally:
            progress.close()

    def check_stop(self) -> None:
        """Raise Stopped if `hornbook stop` was called."""
        if self.stop_requested():
            raise Stopped(f"{self.stage} was stopped", f"`hornbook run` goes on where it stood (run {self.run})")

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a temporary local folder."""
        with tempfile.TemporaryDirectory(prefix=f"hornbook-{self.stage}-") as folder:
            yield Path(folder)

    def save_folder(self, folder: Path, name: str) -> list[str]:
        """Copy a local folder's files into the artifact under `name`; return their names for StageResult.files."""
        store, target = self.artifact.store, f"{self.artifact.folder}/{name}"
        store.delete(target)
        store.upload(folder, target)
        return [f"{name}/{path}" for path, _ in store.files(target)]
