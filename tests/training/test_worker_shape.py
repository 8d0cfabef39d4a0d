"""How many training workers a cluster gets: GPUs that are still to be started count."""

from __future__ import annotations

import pytest

from hornbook.cluster import Resources
from training.launch import CPU_WORKERS, _worker_shape


@pytest.mark.parametrize(
    ("live", "expected", "workers", "shape"),
    [
        (0, 8, None, (8, True, 0.25)),  # a CPU head whose GPU nodes come when they are asked for
        (2, 2, None, (2, True, 1.0)),
        (0, 0, None, (CPU_WORKERS, False, 1.0)),
        (0, 8, 3, (3, True, 4 / 6)),
    ],
)
def test_workers_follow_the_gpus_that_are_expected(
    monkeypatch: pytest.MonkeyPatch, live: int, expected: int, workers: int | None, shape: tuple[int, bool, float]
) -> None:
    monkeypatch.setattr("hornbook.cluster.resources", lambda: Resources(nodes=1, cpus=4, gpus=live))
    monkeypatch.setattr("hornbook.cluster.expected_gpus", lambda: float(expected))
    assert _worker_shape(workers) == shape
