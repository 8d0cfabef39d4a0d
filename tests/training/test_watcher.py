"""What the driver learns of the workers' steps, and tells Ray's metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import ray

from hornbook.events import Events, read_events
from hornbook.store import Store
from training.watcher import Watcher, open_board


class Recorder:
    """Stands for Ray's gauges: what is set leaves this process."""

    values: ClassVar[dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.tags = name, dict.fromkeys(tag_keys, "")

    def set_default_tags(self, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tags) - {"source"}
        self.tags = {**self.tags, **tags}

    def set(self, value: float, tags: Mapping[str, str] = MappingProxyType({})) -> None:
        self.values[self.name, tuple(sorted((self.tags | dict(tags)).items()))] = value


class Shown:
    def __init__(self) -> None:
        self.tokens: list[float] = []
        self.told: list[tuple[str, float]] = []
        self.said: list[str] = []

    def advance(self, units: int, tokens: float) -> None:
        self.tokens.append(tokens)

    def tell(self, figures: str, left: float) -> None:
        self.told.append((figures, left))

    def say(self, text: str) -> None:
        self.said.append(text)


class Closed(Shown):
    """A terminal that is gone."""

    def advance(self, units: int, tokens: float) -> None:
        super().advance(units, tokens)
        raise BrokenPipeError


def row(step: int, tokens: int) -> dict[str, Any]:
    values = {"loss": 2.0 / step, "lr": 0.1, "tokens_per_second": 100.0 * step, "loader_wait_share": 0.25}
    values |= {"grad_norm": 0.5, "mfu": 0.4, "memory_bytes": 3 << 30, "eta_seconds": 90.0 - step, "skipped": 0}
    return {"step": step, "tokens": tokens} | values


def test_each_step_is_shown_once_and_the_last_one_is_published(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ray.util.metrics.Gauge", Recorder)
    stopping = [False]
    events = Events(Store(str(tmp_path)), "runs/run-1")
    context: Any = SimpleNamespace(run="run-1", stage="pretrain", stop_requested=lambda: stopping[0], events=events)
    board, shown = open_board("test-board"), Shown()
    watcher = Watcher(context, board, shown, done=2)
    for step in (1, 2, 3, 4, 3, 4, 5):  # a group that was started again repeats steps
        more: dict[str, Any] = {"validation": {"web": 2.5}} if step == 4 else {}
        more |= {"samples": [{"prompt": "Once", "text": " upon\na time"}], "warnings": ["no disk"]} if step == 5 else {}
        assert ray.get(board.add.remote(row(step, step) | more)) is False
    stopping[0] = True
    watcher.close()
    assert shown.tokens == [3, 4, 5]
    assert ray.get(board.add.remote(row(6, 6))) is True, "the stop request did not reach the workers"
    assert shown.told[-1] == (
        "loss 0.400, held out 2.500, 500 tokens/s, MFU 40.0%, 3.0 GiB, lr 0.1, gradient 0.5, waiting for data 25%",
        85.0,
    )
    assert shown.said == ["pretrain: no disk", "pretrain step 5: Once | upon a time"]
    recorded = {event["event"]: event for event in read_events(Store(str(tmp_path)), "runs/run-1")}
    assert set(recorded) == {"training", "validation", "samples", "warning"}
    assert recorded["samples"]["samples"] == [{"prompt": "Once", "text": " upon\na time"}]
    tags = (("run", "run-1"), ("stage", "pretrain"))
    assert Recorder.values == {
        ("hornbook_training_loss", tags): 0.4,
        ("hornbook_training_step", tags): 5,
        ("hornbook_training_gradient_norm", tags): 0.5,
        ("hornbook_training_mfu", tags): 0.4,
        ("hornbook_training_memory_bytes", tags): 3 << 30,
        ("hornbook_training_eta_seconds", tags): 85.0,
        ("hornbook_training_skipped_steps", tags): 0,
        ("hornbook_training_validation_loss", (*tags[:1], ("source", "web"), *tags[1:])): 2.5,
        ("hornbook_training_learning_rate", tags): 0.1,
        ("hornbook_training_tokens_per_second", tags): 500.0,
        ("hornbook_training_loader_wait_share", tags): 0.25,
    }


def test_a_stop_request_passes_although_nothing_can_be_shown(ray_cluster: None, tmp_path: Path) -> None:
    stopping = [False]
    events = Events(Store(str(tmp_path)), "runs/run-2")
    context: Any = SimpleNamespace(run="run-2", stage="sft", stop_requested=lambda: stopping[0], events=events)
    board, closed = open_board("closed-board"), Closed()
    ray.get(board.add.remote(row(1, 1)))
    with pytest.warns(UserWarning, match="steps of sft are no longer all shown: BrokenPipeError"):
        watcher = Watcher(context, board, closed, done=0)
        while not closed.tokens:
            time.sleep(0.01)
        stopping[0] = True
        while not ray.get(board.add.remote(row(2, 2))):
            time.sleep(0.01)
        watcher.close()
