"""Keeps packed documents apart: attention and positions that end where a document ends.

A packed row holds several documents. The end-of-text token that closes one also opens the next: as a target it says "stop
here", as an input it is the next document's first position. So a document sees in a packed row exactly what it would see
alone behind one end-of-text token, and a test holds the logits equal.
"""

from __future__ import annotations

import torch


def document_numbers(tokens: torch.Tensor, eos: int) -> torch.Tensor:
    """Return which document each input token belongs to: int64 (rows, T) from int64 (rows, T), from 0 in each row."""
    return (tokens == eos).cumsum(dim=1)


def document_positions(numbers: torch.Tensor) -> torch.Tensor:
    """Return each token's position within its document: int64 (rows, T) from `document_numbers`."""
    here = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
    starts_document = torch.ones_like(numbers, dtype=torch.bool)
    starts_document[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return here - torch.where(starts_document, here, 0).cummax(dim=1).values


def document_attention(numbers: torch.Tensor) -> torch.Tensor:
    """Return who may attend to whom: bool (rows, 1, T, T), true where query and key share a document, causally."""
    length = numbers.shape[1]
    same = numbers[:, :, None] == numbers[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=numbers.device).tril()
    return (same & causal)[:, None]
