"""Validation loss per source, on the same held-out rows every time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.distributed as dist

from training.loader import inputs_and_targets, microbatches, share
from training.loss import IGNORED
from training.model import LanguageModel
from training.parallel import World, reshard
from training.shards import TokenSource


class Validation:
    """Callable: the mean loss of each source.

    Args:
        sources: held-out rows by name; those without a whole row are left out.
        rows: at most this many per source, spread evenly.
        microbatch: rows per forward pass.
    """

    def __init__(self, sources: Mapping[str, TokenSource], rows: int, microbatch: int) -> None:
        self._microbatch = microbatch
        self._batches = {}
        for name, source in sources.items():
            count = min(rows, len(source))
            if count:
                chosen = np.arange(count) * len(source) // count
                self._batches[name] = inputs_and_targets(*source.read(chosen))

    @torch.no_grad()
    def __call__(self, model: LanguageModel, world: World) -> dict[str, float]:
        """Return the mean cross entropy in nats per token by source; every rank computes its share of the rows."""
        model.eval()
        losses = {}
        for name, (inputs, targets) in self._batches.items():
            low, high = share(len(inputs), world.rank, world.size)
            most = math.ceil(len(inputs) / world.size)  # rows of the largest share
            sums = torch.zeros(2, dtype=torch.float64, device=world.device)
            for tokens, wanted in self._passes(inputs[low:high], targets[low:high], most):
                sums[0] += model(tokens.to(world.device), wanted.to(world.device))
                sums[1] += (wanted != IGNORED).sum()
            dist.all_reduce(sums)
            if sums[1] > 0:
                losses[name] = (sums[0] / sums[1]).item()
        reshard(model)
        model.train()
        return losses

    def _passes(
        self, inputs: np.ndarray, targets: np.ndarray, most: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return microbatches(inputs, targets, self._microbatch, math.ceil(most / self._microbatch))
