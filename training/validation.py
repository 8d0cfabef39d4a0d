"""Validation loss per source, on the same held-out rows every time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist

from training.loader import countable, inputs_and_targets, microbatches, share, with_numbers, with_references
from training.model import LanguageModel
from training.parallel import World, reshard
from training.shards import TokenSource


class Validation:
    """Callable: the mean loss of each source.

    Args:
        sources: held-out rows (or pairs) by name; those without a whole row are left out.
        rows: at most this many per source, spread evenly.
        microbatch: rows per forward pass.

    Attributes:
        figures: means of what a model sums up beside its loss, by figure and source; of the last call.
    """

    def __init__(self, sources: Mapping[str, TokenSource], rows: int, microbatch: int) -> None:
        self._microbatch = microbatch
        self._batches = {}
        self._numbers: dict[str, np.ndarray] = {}
        self.figures: dict[str, dict[str, float]] = {}
        for name, source in sources.items():
            count = min(rows, len(source))
            if count:
                chosen = np.arange(count) * len(source) // count
                self._batches[name] = chosen, source.rows_per_draw, *inputs_and_targets(*source.read(chosen))
                if source.numbered:
                    self._numbers[name] = source.numbers(chosen)

    @torch.no_grad()
    def __call__(
        self, model: LanguageModel, world: World, references: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, float]:
        """Return the mean loss by source, in nats per token or pair; every rank computes its share of the rows.

        `references`: of pairs, by source: float32 (pairs, 2).
        """
        model.eval()
        names = tuple(getattr(model, "figures", ()))
        losses: dict[str, float] = {}
        self.figures = {figure: {} for figure in names}
        for name, (chosen, each, inputs, targets) in self._batches.items():
            low, high = share(len(chosen), world.rank, world.size)
            most = math.ceil(len(chosen) / world.size)  # rows of the largest share
            own = slice(low * each, high * each)
            passes = list(
                microbatches(
                    inputs[own], targets[own], self._microbatch * each, math.ceil(most / self._microbatch), each
                )
            )
            tensors: list[tuple[torch.Tensor, ...]] = list(passes)
            if references is not None:
                tensors = with_references(tensors, references[name][chosen[low:high]])
            if name in self._numbers:
                tensors = with_numbers(tensors, self._numbers[name][low:high])
            sums = torch.zeros(2 + len(names), dtype=torch.float64, device=world.device)
            for microbatch in tensors:
                sums[1:] += model(*(tensor.to(world.device) for tensor in microbatch))
                sums[0] += countable(microbatch[1].numpy(), each)
            dist.all_reduce(sums)
            if sums[0] > 0:
                losses[name], *more = (sums[1:] / sums[0]).tolist()
                for figure, value in zip(names, more, strict=True):
                    self.figures[figure][name] = value
        reshard(model)
        model.train()
        return losses
