"""Direct preference optimisation (arXiv 2305.18290): a model learns to prefer one answer to another, against its former self.

A pair stands in two successive rows, the chosen answer first. The loss of a pair is -log sigmoid(beta x margin), where the
margin is how much more the model now prefers the chosen answer, in nats, than the model did that training started from. What
that one thought of every pair is worked out once, before the first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from training.loader import PAIR, inputs_and_targets, share
from training.loss import IGNORED, chunk_tokens
from training.model import LanguageModel
from training.parallel import World, reshard
from training.shards import TokenSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PreferenceModel(LanguageModel):
    """A causal language model with the summed loss of pairs.

    Args:
        model: any transformers causal language model with a linear head.
        eos: end-of-text id, which opens every row.
        beta: how strongly the model is held to its former self; larger is closer.
        length_normalised: compare mean instead of summed log-probabilities, so that longer answers are not favoured.
    """

    figures = ("accuracy", "margin")
    """What `forward` sums up beside the loss: pairs preferred rightly, and their margins."""

    def __init__(self, model: PreTrainedModel, eos: int, beta: float, length_normalised: bool = False) -> None:
        super().__init__(model, eos, document_mask=False)  # an answer is alone in its row
        self.beta = beta
        self.length_normalised = length_normalised

    def forward(
        self, tokens: torch.Tensor, targets: torch.Tensor, reference: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return sums over pairs, float32 (3,): loss, rightly preferred, margins; or, without `reference`, what it will be.

        Args:
            tokens, targets: int64 (2 x pairs, T), the chosen answer of a pair before the rejected one.
            reference: what the former self gave, float32 (2 x pairs,) seen as int32: FSDP would round floats to bf16.

        Without a reference: the log-probabilities of the rows' targets, float32 (2 x pairs,). A pair that lacks targets on
        either side counts nothing.
        """
        head = self.model.get_output_embeddings()
        found = row_log_probabilities(self.hidden(tokens), head.weight, getattr(head, "bias", None), targets)
        lengths = (targets != IGNORED).sum(dim=1)
        if self.length_normalised:
            found = found / lengths.clamp(min=1)
        if reference is None:
            return found
        gained = (found - reference.view(torch.float32)).view(-1, PAIR)
        margins = gained[:, 0] - gained[:, 1]
        counted = (lengths.view(-1, PAIR) > 0).all(dim=1)
        losses = torch.where(counted, -functional.logsigmoid(self.beta * margins), 0.0)
        right = (counted & (margins > 0)).float()
        return torch.stack([losses.sum(), right.sum(), torch.where(counted, self.beta * margins, 0.0).sum()])


def row_log_probabilities(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """Return the summed log-probability of each row's targets, float32 (rows,); the logits exist a chunk at a time.

    Args:
        hidden: (rows, T, width).
        weight: (vocabulary, width); bias: (vocabulary,) or None.
        targets: int64 (rows, T); IGNORED (-100) counts nothing.
    """
    chunk = chunk_tokens(hidden.device, len(weight))
    states, wanted = hidden.flatten(0, 1), targets.flatten()
    pieces = [
        checkpoint(
            _log_probabilities, states[low : low + chunk], weight, bias, wanted[low : low + chunk], use_reentrant=False
        )
        for low in range(0, len(states), chunk)
    ]
    return torch.cat(pieces).view(targets.shape).sum(dim=1)


def _log_probabilities(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    logits = functional.linear(states, weight, bias)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = functional.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="none")
    return -losses


@torch.no_grad()
def reference_log_probabilities(
    model: PreferenceModel, sources: Mapping[str, TokenSource], microbatch: int, world: World
) -> dict[str, np.ndarray]:
    """Return what a model thinks of every pair, float32 (pairs, 2) by source; each rank works out its share.

    Args:
        model: laid over the world, as it will be trained: another arithmetic would begin with margins that are none.
        microbatch: pairs per forward pass.
    """
    model.eval()
    found: dict[str, np.ndarray] = {}
    for name, source in sources.items():
        low, high = share(len(source), world.rank, world.size)
        most = -(-len(source) // world.size)
        own: list[np.ndarray] = []
        for start in range(low, low + most, microbatch):  # as many passes on every rank: a pass is a collective
            rows = np.arange(start, min(start + microbatch, low + most)).clip(max=max(len(source) - 1, 0))
            tokens, targets = (torch.from_numpy(array) for array in inputs_and_targets(*source.read(rows)))
            values = model(tokens.to(world.device), targets.to(world.device))
            own.append(values.float().cpu().numpy().reshape(-1, PAIR))
        mine = np.concatenate([*own, np.empty((0, PAIR), np.float32)])[: high - low]
        everyones: list[Any] = [None] * world.size
        dist.all_gather_object(everyones, mine)
        found[name] = np.concatenate(everyones).astype(np.float32)
    reshard(model)
    model.train()
    return found
