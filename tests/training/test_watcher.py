"""What the driver learns of the workers' steps, and tells Ray's metrics."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import ray

from training import launch


class Recorder:
    """Stands for Ray's gauges: what is set leaves this process."""

    values: ClassVar[dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.tags = name, dict.fromkeys(tag_keys, "")

    def set_default_tags(self, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tags)
        self.tags = tags

    def set(self, value: float) -> None:
        self.values[self.name, tuple(sorted(self.tags.items()))] = value


class Shown:
    def __init__(self) -> None:
        self.tokens: list[float] = []

    def advance(self, units: int, tokens: float, note: str) -> None:
        self.tokens.append(tokens)


def row(step: int, tokens: int) -> dict[str, Any]:
    values = {"loss": 2.0 / step, "lr": 0.1, "tokens_per_second": 100.0 * step, "loader_wait_share": 0.25}
    return {"step": step, "tokens": tokens} | values


def test_each_step_is_shown_once_and_the_last_one_is_published(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ray.util.metrics.Gauge", Recorder)
    stopping = [False]
    context: Any = SimpleNamespace(run="run-1", stage="pretrain", stop_requested=lambda: stopping[0], events=None)
    board, shown = launch._open_board("test-board"), Shown()
    watcher = launch._Watcher(context, board, shown, done=2)
    for step in (1, 2, 3, 4, 3, 4, 5):  # a group that was started again repeats steps
        assert ray.get(board.add.remote(row(step, step))) is False
    stopping[0] = True
    watcher.close()
    assert shown.tokens == [3, 4, 5]
    assert ray.get(board.add.remote(row(6, 6))) is True, "the stop request did not reach the workers"
    tags = (("run", "run-1"), ("stage", "pretrain"))
    assert Recorder.values == {
        ("hornbook_training_loss", tags): 0.4,
        ("hornbook_training_learning_rate", tags): 0.1,
        ("hornbook_training_tokens_per_second", tags): 500.0,
        ("hornbook_training_loader_wait_share", tags): 0.25,
    }
