"""One thread for torch in the tests' own process: two that share a busy machine wait for each other at every operation."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from training.parallel import World, join_world, leave_world

torch.set_num_threads(1)
os.environ.setdefault("LOCAL_WORLD_SIZE", "2")  # what join_world divides the processors by


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """This process as the only worker."""
    yield join_world()
    leave_world()
