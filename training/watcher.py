"""On the driver: shows what the workers report of their steps, publishes it, and passes a stop request on."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from hornbook import errors
from hornbook.errors import TrainingError
from hornbook.progress import size
from hornbook.stage import StageContext
from training.metrics import json_ready

POLL_SECONDS = 0.5
SHOWN_WAIT = 0.005
GAUGES = {
    "loss": ("hornbook_training_loss", "Training loss of the last step, nats per token."),
    "step": ("hornbook_training_step", "Optimizer steps done."),
    "lr": ("hornbook_training_learning_rate", "Learning rate of the last step."),
    "grad_norm": ("hornbook_training_gradient_norm", "Norm of the last step's gradient, before clipping."),
    "tokens_per_second": ("hornbook_training_tokens_per_second", "Tokens trained on per second, all workers together."),
    "mfu": (
        "hornbook_training_mfu",
        "Share of the hardware's operations a second that the last step used for the model.",
    ),
    "loader_wait_share": ("hornbook_training_loader_wait_share", "Share of the last step spent waiting for its batch."),
    "memory_bytes": ("hornbook_training_memory_bytes", "Peak memory of the first worker: its GPU's, or its process's."),
    "eta_seconds": ("hornbook_training_eta_seconds", "Seconds that the steps left will take."),
    "skipped": ("hornbook_training_skipped_steps", "Steps left out so far: not finite, or a leap."),
}
"""What Ray's metrics show of training: name and description by the key of a metrics row."""
GAUGES_BY_SOURCE = {
    "validation": ("hornbook_training_validation_loss", "Held-out loss of a source, nats per token."),
    "bits_per_byte": (
        "hornbook_training_validation_bits_per_byte",
        "Held-out loss of a source, bits per byte of text.",
    ),
}
"""Likewise of figures by source."""
EVENT_SECONDS = 30.0
"""Between events of steps: `metrics.jsonl` holds every step, the run's record only how it goes."""


class Board:
    """An actor beside the driver, between it and the workers, wherever they run: steps, a stop request, an error."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._stop = False
        self._failure: dict[str, str] = {}

    def add(self, row: dict[str, Any]) -> bool:
        """Note a step; return whether the run is to stop."""
        self._rows.append(row)
        return self._stop

    def take(self, stop: bool) -> list[dict[str, Any]]:
        """Return the steps since the last call, and pass on whether the run is to stop."""
        self._stop = self._stop or stop
        rows, self._rows = self._rows, []
        return rows

    def fail(self, failure: dict[str, str]) -> None:
        """Note an error that another start would only bring back; the first one stays."""
        self._failure = self._failure or failure

    def failure(self) -> dict[str, str]:
        """Return the error, empty if there is none."""
        return self._failure


def open_board(name: str) -> Any:
    """Start a `Board` on this node, known to the workers by its name."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Board).options(name=name, num_cpus=0, scheduling_strategy=here).remote()


def raise_failure(board: Any) -> None:
    """Raise the error that a worker noted on the board, if one did."""
    import ray

    if value := ray.get(board.failure.remote()):
        raise getattr(errors, value["kind"], TrainingError)(value["message"], value["cure"])


class Watcher:
    """Shows the steps that rank 0 reports, publishes them, and passes a stop request on, in a thread of its own."""

    def __init__(
        self,
        context: StageContext,
        board: Any,
        progress: Any,
        done: int,
        stop: Callable[[], bool] | None = None,
        preflight: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._stop = stop or context.stop_requested
        self._context, self._board, self._progress, self._done = context, board, progress, done
        self._preflight = preflight or self._tell_preflight
        self._gauges = _Gauges(context)
        self._by_source: dict[str, dict[str, float]] = {}
        self._told = 0.0
        self._failed = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="training-watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show what is left and end."""
        self._closed.set()
        self._thread.join()
        self._look()

    def _work(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            self._look()

    def _look(self) -> None:
        """Show what is new; what cannot be shown (a closed terminal, a full disk) is no reason to pass no stop request on."""
        try:
            self._show()
        except Exception as error:
            if not self._failed:
                warnings.warn(f"steps of {self._context.stage} are no longer all shown: {error!r}", stacklevel=2)
            self._failed = True

    def _show(self) -> None:
        import ray

        rows = ray.get(self._board.take.remote(self._stop()))
        for row in rows:
            if row["step"] <= self._done:
                continue  # done again, after a worker died
            self._done = row["step"]
            self._by_source |= {key: row[key] for key in GAUGES_BY_SOURCE if row.get(key)}
            self._progress.tell(progress_figures(row, self._by_source.get("validation", {})), row["eta_seconds"])
            self._progress.advance(1, tokens=row["tokens"])
            if "preflight" in row:
                self._preflight(row.pop("preflight"))
            self._tell(row)
        if rows:
            self._gauges.set({**rows[-1], **self._by_source})

    def _tell_preflight(self, found: dict[str, Any]) -> None:
        """Note what the run will take; of a long one, say it."""
        from training.preflight import LONG_SECONDS, lines

        self._context.events.emit("preflight", stage=self._context.stage, **found)
        if found["seconds"] >= LONG_SECONDS:
            self._progress.say("\n".join(f"{self._context.stage}: {line}" for line in lines(found)))

    def _tell(self, row: dict[str, Any]) -> None:
        """Note in the run's record what is worth it: validations, samples, and now and then a step."""
        stage, emit, samples = self._context.stage, self._context.events.emit, row.pop("samples", [])
        for text in row.pop("warnings", []):
            emit("warning", stage=stage, text=text)
            self._progress.say(f"{stage}: {text}")
        if "validation" in row:
            emit("validation", stage=stage, **json_ready(row))
        elif time.monotonic() - self._told >= EVENT_SECONDS:
            emit("training", stage=stage, **json_ready(row))
            self._told = time.monotonic()
        if samples:
            emit("samples", stage=stage, step=row["step"], samples=samples)
        for sample in samples:
            text = " ".join(sample["text"].split())
            self._progress.say(f"{stage} step {row['step']}: {sample['prompt']} | {text}")


class _Gauges:
    """Ray's gauges of one training stage."""

    def __init__(self, context: StageContext) -> None:
        from ray.util.metrics import Gauge

        tags = {"run": context.run, "stage": context.stage}
        self._plain = {key: Gauge(name, text, tag_keys=tuple(tags)) for key, (name, text) in GAUGES.items()}
        self._by_source = {
            key: Gauge(name, text, tag_keys=(*tags, "source")) for key, (name, text) in GAUGES_BY_SOURCE.items()
        }
        for gauge in [*self._plain.values(), *self._by_source.values()]:
            gauge.set_default_tags(tags)

    def set(self, row: Mapping[str, Any]) -> None:
        """Publish a step's figures."""
        for key in self._plain.keys() & row.keys():
            self._plain[key].set(row[key])
        for key, gauge in self._by_source.items():
            for source, value in row.get(key, {}).items():
                gauge.set(value, tags={"source": source})


def progress_figures(row: Mapping[str, Any], held_out: Mapping[str, float]) -> str:
    """Return what a person wants to see of a step in one line; `held_out`: the last validation's losses by source."""
    figures = [f"loss {row['loss']:.3f}"]
    if held_out:
        figures.append(f"held out {sum(held_out.values()) / len(held_out):.3f}")
    figures.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    figures += [f"MFU {row['mfu']:.1%}"] if "mfu" in row else []
    figures.append(size(row["memory_bytes"]))
    figures += [f"lr {row['lr']:.2g}", f"gradient {row['grad_norm']:.2g}"]
    if row["loader_wait_share"] >= SHOWN_WAIT:
        figures.append(f"waiting for data {row['loader_wait_share']:.0%}")
    if row["skipped"]:
        figures.append(f"{row['skipped']:,} skipped")
    return ", ".join(figures)
