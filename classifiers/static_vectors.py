"""Embeds without running a model: the weighted mean of the vectors that the model gives each token before its first layer.

After Tulkens and van den Dongen's model2vec (2024) and Arora, Liang and Ma's SIF (2017), without what they add and what did not
help here (`docs/lab-log.md`): running the model over its vocabulary, principal components. Vocabularies are sorted by frequency,
more or less, so a token's weight grows with its number as Zipf's law has it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from classifiers.features import Features, FeatureSettings, Vectors
from classifiers.short_tokens import ShortTokens
from hornbook.errors import ModelError

if TYPE_CHECKING:
    import torch

AT_ONCE = 256  # texts
TABLES = ("word_embeddings.weight", "embed_tokens.weight", "wte.weight", "embed_in.weight", "shared.weight")
"""How the architectures call a vocabulary's vectors, at the end of the name."""


class StaticVectors(Features):
    """The mean of word vectors, on a CPU."""

    def __init__(self, settings: FeatureSettings) -> None:
        super().__init__(settings)
        self.precision = "float32"
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import torch
        from tokenizers import Tokenizer

        from hornbook.models import resolve

        torch.set_num_threads(settings.threads)
        folder = resolve(settings.model).path
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(
                f"{settings.model} has no tokenizer.json", "save its tokenizer again with transformers, as a fast one"
            )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokens = ShortTokens(tokenizer, settings.max_tokens, special=False)
        table = vocabulary_vectors(folder, settings.model)
        self._table = table * torch.log1p(torch.arange(len(table), dtype=torch.float32))[:, None]
        self.dimension = table.shape[1]

    def vectors(self, heads: Sequence[str]) -> Vectors:
        """Return the weighted mean of each text's word vectors; zeros for one without tokens."""
        import torch

        found = []
        for start in range(0, len(heads), AT_ONCE):
            tokens = self.tokens(heads[start : start + AT_ONCE])
            starts = np.cumsum([0, *(len(own) for own in tokens[:-1])])
            ids = torch.from_numpy(np.concatenate(tokens).astype(np.int64))
            with torch.inference_mode():
                mean = torch.nn.functional.embedding_bag(ids, self._table, torch.from_numpy(starts), mode="mean")
            found.append(mean.numpy())
        return np.concatenate(found)


def vocabulary_vectors(folder: Path, name: str) -> torch.Tensor:
    """Return a model's vectors of its vocabulary, float32 (tokens, dimension), read from its weights alone.

    Raises:
        ModelError: none of its tensors is called as architectures call these.
    """
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for key in sorted(weights.keys()):
                if key.endswith(TABLES):
                    table: torch.Tensor = weights.get_tensor(key).float()
                    return table
    raise ModelError(f"{name} has no word vectors under a known name ({', '.join(TABLES)})", "name another model")
