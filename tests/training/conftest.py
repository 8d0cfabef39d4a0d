"""One thread for torch in the tests' own process: two that share a busy machine wait for each other at every operation."""

from __future__ import annotations

import os

import torch

torch.set_num_threads(1)
os.environ.setdefault("LOCAL_WORLD_SIZE", "2")  # what join_world divides the processors by
