"""What turns gradients into steps: AdamW, Muon for the blocks' matrices, an average of the weights, and a guard."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from training.model import LanguageModel
from training.settings import LoopSettings

NORM_MEMORY = 0.98
"""How much of the running mean of gradient norms each step keeps: about the last 50 steps count."""
NORM_STEPS = 20
"""Steps before the mean says anything: the first gradients of a model are its largest."""


class Optimizer:
    """One or two of torch's optimizers as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts; a change of `lr` in them holds."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> Mapping[Any, Mapping[str, torch.Tensor]]:
        """The state of all parts by parameter."""
        return dict(itertools.chain.from_iterable(part.state.items() for part in self.parts))

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.param_groups:
            group["lr"] = rate

    def step(self) -> None:
        """Change the parameters by their gradients."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad()


def make_optimizer(model: LanguageModel, settings: LoopSettings) -> Optimizer:
    """Return the optimizer that the settings name, over the model's parameters; only matrices decay.

    adamw: AdamW (arXiv 1711.05101). muon: Muon (Jordan et al., 2024) for the matrices of the blocks, its steps scaled to the
    size of AdamW's (arXiv 2502.16982), so that one learning rate serves both; AdamW for embeddings, head, norms and biases.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices: list[nn.Parameter] = []
    if settings.optimizer == "muon":
        inside = {parameter for block in model.blocks for parameter in block.parameters()}
        matrices = [parameter for parameter in parameters if parameter in inside and parameter.ndim == 2]
    by_muon = set(matrices)
    rest = [parameter for parameter in parameters if parameter not in by_muon]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    parts: list[torch.optim.Optimizer] = []
    if groups:
        rate, betas, epsilon = settings.learning_rate, settings.betas, settings.epsilon
        parts.append(torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=True))
    if matrices:
        parts.append(
            torch.optim.Muon(
                matrices,
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                momentum=settings.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return Optimizer(parts)


class Average:
    """An exponential moving average of the weights, sharded as they are; empty if the decay is None."""

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.decay = decay
        self.weights: dict[str, torch.Tensor] = {}
        if decay is not None:
            self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's weights in, after a step."""
        if self.decay is not None:
            for name, parameter in model.named_parameters():
                self.weights[name].lerp_(parameter.detach(), 1.0 - self.decay)

    @contextlib.contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Let a model compute with the average, which is what will be left of it; without one it stays as it is."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        if self.decay is not None:
            for name, parameter in model.named_parameters():
                own = parameter.detach().clone()
                parameter.copy_(self.weights[name])
                self.weights[name].copy_(own)


@dataclass
class Guard:
    """Says which steps are to be left out: those that are not finite, and those whose gradient leaps.

    Attributes:
        leap: how many times the running mean of norms a norm may be; None: any.
        mean: that mean; 0 before the first step.
        steps: steps that it was made of.
        skipped: steps left out so far.
        in_a_row: of these, the last ones without a good one between.
    """

    leap: float | None = None
    mean: float = 0.0
    steps: int = 0
    skipped: int = 0
    in_a_row: int = 0

    def passes(self, loss: float, norm: float) -> bool:
        """Judge a step by its loss and gradient norm, and remember it."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        leaps = finite and self.leap is not None and self.steps >= NORM_STEPS and norm > self.leap * self.mean
        if not finite or leaps:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            return False
        self.mean = norm if not self.steps else NORM_MEMORY * self.mean + (1.0 - NORM_MEMORY) * norm
        self.steps, self.in_a_row = self.steps + 1, 0
        return True

    def counters(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it."""
        return {name: value for name, value in vars(self).items() if name != "leap"}

    def restore(self, counters: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        for name, value in counters.items():
            setattr(self, name, value)
