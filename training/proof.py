"""Proof that what is written computes what was trained: the same log-probabilities, within a tolerance that is stated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hornbook.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAME = 1e-3
"""Largest difference of a log-probability, in nats, of the same weights in float32: adapters are folded in by a product of
their own, blocks and kernels may add up in another order."""
ROWS, TOKENS = 4, 48


@dataclass(frozen=True)
class Closeness:
    """How near one model's predictions are to another's.

    Attributes:
        largest: largest difference of a log-probability, nats.
        divergence: mean Kullback-Leibler divergence of the other's prediction from the first's, nats per token.
        agreement: share of positions at which both have the same likeliest token.
    """

    largest: float
    divergence: float
    agreement: float

    def record(self, allowed: float) -> dict[str, float]:
        """Return the figures with what was allowed, for a manifest."""
        return {**{name: float(f"{value:.3e}") for name, value in asdict(self).items()}, "allowed": allowed}


def random_rows(vocabulary: int, context: int) -> list[list[int]]:
    """Return rows of ids, the same for every call, for proofs that have no text at hand."""
    generator = torch.Generator().manual_seed(0)
    rows: list[list[int]] = torch.randint(vocabulary, (ROWS, min(TOKENS, context)), generator=generator).tolist()
    return rows


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return a plain model's log-probabilities of the next token, float32 (tokens, vocabulary) for each row of ids."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    found = []
    for row in rows:
        logits = model(input_ids=torch.tensor([list(row)], device=device), use_cache=False).logits[0]
        found.append(torch.log_softmax(logits.float(), dim=-1).cpu())
    model.train(training)
    return found


def closeness(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> Closeness:
    """Compare log-probabilities of the same rows; a prediction that is not a number makes the divergence infinite."""
    one, other = torch.cat(list(ours)).double(), torch.cat(list(theirs)).double()
    difference = float((one - other).abs().max())
    divergence = float((one.exp() * (one - other)).sum(dim=-1).mean())
    if not torch.isfinite(other).all():
        difference = divergence = float("inf")
    return Closeness(difference, max(divergence, 0.0), float((one.argmax(-1) == other.argmax(-1)).double().mean()))


def prove_folder(folder: Path, rows: Sequence[Sequence[int]], trained: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Return the proof that a Hugging Face folder, loaded anew without remote code, predicts what the trained model does.

    Args:
        rows: of ids.
        trained: the trained model's log-probabilities of them.

    Raises:
        ModelError: it does not load, or it differs by more than SAME.
    """
    from transformers import AutoModelForCausalLM

    try:
        loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} does not load in transformers: {error}") from error
    found = closeness(trained, log_probabilities(loaded, rows))
    if not found.largest <= SAME:
        raise ModelError(
            f"the exported folder does not predict what the trained model does: log-probabilities differ by up to "
            f"{found.largest:.3g} nats, {SAME:g} are allowed",
            "this is a bug of hornbook's or of the transformers version installed; the checkpoints are untouched",
        )
    return found.record(SAME)
