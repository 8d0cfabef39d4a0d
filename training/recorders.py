"""Where a run's figures go beside `metrics.jsonl`: TensorBoard, MLflow, Weights & Biases.

A recorder is given each row of the metrics on rank 0 and knows nothing else of training. It must never cost a run: one that
fails is left out from then on, with a warning. A resumed run records each step once, as `metrics.jsonl` holds it.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from training.settings import Recorded

SPEED = ("tokens_per_second", "mfu", "loader_wait_share", "memory_bytes", "eta_seconds", "seconds", "tokens",
         "checkpoint_seconds", "checkpoint_wait")  # fmt: skip
"""Figures of a row that are about the machine; the others are about the model."""
PROJECT = "hornbook"
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}


class Recorder(Protocol):
    """One place where figures go."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Record a step's figures."""
        ...

    def texts(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        """Record what the model wrote after a step: `prompt` and `text` of each sample."""
        ...

    def flush(self) -> None:
        """Make sure that all of it outlives this process: a checkpoint comes next, and no resume makes its steps again."""
        ...

    def close(self) -> None:
        """Write out what is left."""
        ...


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a row's finite numbers by tag: `train/loss`, `speed/mfu`, `validation/stories`, ..."""
    found: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{source}": number for source, number in value.items()}
        elif key != "step":
            found[f"{'speed' if key in SPEED else 'train'}/{key}"] = value
    return {
        tag: float(value) for tag, value in found.items() if isinstance(value, int | float) and math.isfinite(value)
    }


class Recorders:
    """All of a run's recorders as one that does not fail.

    Args:
        names: which.
        folder: the run's; each writes below a folder of its own name, unless its environment variables send it elsewhere.
        first: steps that the resumed checkpoint holds; what was recorded of later ones is replaced or passed over.
        title: what the run is called where runs of many machines meet.

    Attributes:
        problems: what failed, in words; whoever shows them takes them out.
    """

    def __init__(self, names: Sequence[Recorded], folder: Path, first: int, title: str) -> None:
        self._recorders: dict[str, Recorder] = {}
        self.problems: list[str] = []
        for name in names:
            self._guarded(name, partial(self._open, name, folder, first, title))

    def row(self, row: Mapping[str, Any]) -> None:
        """Record a step's figures."""
        self._each(lambda recorder: recorder.row(row))

    def texts(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        """Record what the model wrote after a step."""
        self._each(lambda recorder: recorder.texts(step, samples))

    def flush(self) -> None:
        """Make what was recorded outlive this process."""
        self._each(lambda recorder: recorder.flush())

    def close(self) -> None:
        """Write out what is left."""
        self._each(lambda recorder: recorder.close())

    def _open(self, name: Recorded, folder: Path, first: int, title: str) -> None:
        self._recorders[name] = OPEN[name](folder, first, title)

    def _each(self, act: Callable[[Recorder], None]) -> None:
        for name, recorder in list(self._recorders.items()):
            self._guarded(name, partial(act, recorder))

    def _guarded(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a package, a disk or a server does
            self._recorders.pop(name, None)
            missing = isinstance(error, ModuleNotFoundError)
            cure = f"; pip install {PACKAGES[name]}" if missing else ""
            text = f"nothing more is recorded in {name}: {type(error).__name__}: {error}{cure}; metrics.jsonl goes on"
            self.problems.append(text)
            warnings.warn(text, stacklevel=4)


class TensorBoard:
    """Event files below `tensorboard/`. A resume tells TensorBoard from which step on older files do not count."""

    def __init__(self, folder: Path, first: int, title: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it misses TensorFlow, which nobody needs here
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1, flush_secs=10)

    def row(self, row: Mapping[str, Any]) -> None:
        """Record a step's figures."""
        for tag, value in scalars(row).items():
            self._writer.add_scalar(tag, value, row["step"])

    def texts(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        """Record what the model wrote, each prompt under a tag of its own."""
        for number, sample in enumerate(samples):
            indented = "\n".join("    " + line for line in (sample["prompt"] + sample["text"]).splitlines())
            self._writer.add_text(f"samples/{number}", indented, step)  # as Markdown: a block of code, taken literally
        self._writer.flush()

    def flush(self) -> None:
        """Write out."""
        self._writer.flush()

    def close(self) -> None:
        """Write out and close."""
        self._writer.close()


class MLflow:
    """A run of the experiment `hornbook`, at MLFLOW_TRACKING_URI or in `mlflow/mlflow.db`.

    Found again by its tag; steps that it holds from an earlier attempt, which were the same, are not recorded again.
    """

    def __init__(self, folder: Path, first: int, title: str) -> None:
        from mlflow.tracking import MlflowClient

        home = folder / "mlflow"
        files = None
        if not (address := os.environ.get("MLFLOW_TRACKING_URI", "")):
            home.mkdir(parents=True, exist_ok=True)
            address, files = f"sqlite:///{home / 'mlflow.db'}", str(home / "files")
        self._client = MlflowClient(tracking_uri=address)
        known = self._client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known else self._client.create_experiment(PROJECT, files)
        mark = _identity(folder)
        runs = self._client.search_runs([experiment], f"tags.`hornbook.run` = '{mark}'")
        self._fresh = not runs
        self._run = (
            runs[0] if runs else self._client.create_run(experiment, tags={"hornbook.run": mark}, run_name=title)
        ).info.run_id
        history = [] if self._fresh else self._client.get_metric_history(self._run, "train/lr")
        self._last = max((metric.step for metric in history), default=0)

    def row(self, row: Mapping[str, Any]) -> None:
        """Record a step's figures."""
        from mlflow.entities import Metric

        if row["step"] > self._last:
            now = int(1000 * time.time())
            self._client.log_batch(
                self._run, [Metric(tag, value, now, row["step"]) for tag, value in scalars(row).items()]
            )

    def texts(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        """Keep what the model wrote as a file of the run."""
        self._client.log_text(self._run, _as_text(samples), f"samples/step-{step:08d}.txt")

    def flush(self) -> None:
        """Nothing: each row is there when `row` returns."""

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._run)


class WeightsAndBiases:
    """A run of the project `hornbook`: on the server if there is a key for it, else kept below `wandb/` for `wandb sync`.

    The run's id follows from its folder, so a resume goes on with the same run.
    """

    def __init__(self, folder: Path, first: int, title: str) -> None:
        import wandb

        home = folder / "wandb"
        home.mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        self._last_step = home / "last-step"  # an offline run cannot be asked
        self._last = int(self._last_step.read_text()) if self._last_step.exists() else 0
        self._table = wandb.Table
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), id=_identity(folder), name=title, resume="allow",
            dir=str(home), mode=mode, settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip

    def row(self, row: Mapping[str, Any]) -> None:
        """Record a step's figures."""
        if row["step"] > self._last:
            self._run.log(scalars(row), step=row["step"])
            self._last_step.write_text(str(row["step"]))

    def texts(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        """Record what the model wrote as a table."""
        if step > self._last:
            rows = [[step, sample["prompt"], sample["text"]] for sample in samples]
            self._run.log({"samples": self._table(columns=["step", "prompt", "text"], data=rows)}, step=step)

    def flush(self) -> None:
        """Nothing: a process of its own writes what it was given."""

    def close(self) -> None:
        """End the run."""
        self._run.finish()


OPEN: dict[str, Callable[[Path, int, str], Recorder]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def _identity(folder: Path) -> str:
    """Return an id that an artifact's run has on every attempt."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _as_text(samples: Sequence[Mapping[str, str]]) -> str:
    return "\n\n".join(f"{sample['prompt']}|{sample['text']}" for sample in samples) + "\n"
