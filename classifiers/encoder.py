"""Embeds by running a model: a sentence-transformers model, or a causal language model as phi-1 did with CodeGen.

Texts are sorted by their length in tokens and go through the model in batches of a number of tokens, not of texts: on a CPU, few
enough that what lies between the layers stays in the caches. On a CPU the matrices are multiplied in bfloat16 where the processor
can, and all between them stays float32: sums over residuals in bfloat16 cost three times the difference.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from classifiers.features import Features, FeatureSettings, Vectors
from classifiers.short_tokens import ShortTokens, Tokens
from hornbook.errors import ModelError

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = {"cpu": 1024, "cuda": 131_072}
LENGTH_STEP = 8  # lengths are rounded up to a multiple: oneDNN compiles and keeps code for every shape that it meets


class Encoder(Features):
    """A model that runs: tokens in, vectors out."""

    tokens: ShortTokens
    padding: int = 0

    def __init__(self, settings: FeatureSettings, device: str) -> None:
        super().__init__(settings)
        self.device = device
        self.precision = chosen_precision(settings.precision, device)
        self.batch_tokens = settings.batch_tokens or BATCH_TOKENS.get(device, BATCH_TOKENS["cpu"])
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one processor per worker: threads would only compete
        import torch

        if device == "cpu":
            torch.set_num_threads(settings.threads)
        self._load()

    @abstractmethod
    def _load(self) -> None:
        """Set the model, `dimension`, `tokens` and `padding`."""

    @abstractmethod
    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return vectors of tokens (rows, length); `mask` is 1 where there is one, at the beginning of each row."""

    def vectors(self, heads: Sequence[str]) -> Vectors:
        """Return a vector for each text."""
        import torch

        tokens = self.tokens(heads)
        vectors = np.empty((len(tokens), self.dimension), dtype=np.float32)
        with torch.inference_mode():
            for rows in batches([len(row) for row in tokens], self.batch_tokens):
                ids, mask = padded([tokens[row] for row in rows], self.padding)
                found = self._forward(torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device))
                vectors[rows] = found.float().cpu().numpy()
        return vectors

    def _make_ready(self, model: Any, whole: Any) -> None:
        """Put a loaded float32 model on the device, in its precision.

        Args:
            model: the transformer.
            whole: it, with whatever comes after it.
        """
        import torch

        precision = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        whole.eval()
        kind = model.config.model_type
        if self.device == "cpu":
            from classifiers.cpu_attention import use_plain_attention
            from classifiers.packed_linear import NARROW, PACKED, pack_linears

            if kind in PACKED:
                pack_linears(model, precision, narrow=kind in NARROW)
                if kind in NARROW and precision is torch.bfloat16:
                    use_plain_attention(model)
                return
        whole.to(self.device, precision)


class SentenceEncoder(Encoder):
    """A sentence-transformers model: its own tokens, pooling and further layers."""

    def _load(self) -> None:
        from sentence_transformers import SentenceTransformer

        from hornbook.models import resolve

        name = self.settings.model
        try:
            self._model = SentenceTransformer(
                str(resolve(name).path),
                device=self.device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{name} is not a sentence-transformers model: {error}",
                "name all-minilm-l6-v2 or another, or set kind: causal-lm for a language model",
            ) from error
        self.dimension = int(self._model.get_embedding_dimension() or 0)
        limit = self._model.max_seq_length or self.settings.max_tokens
        self._model.max_seq_length = limit = min(self.settings.max_tokens, limit)
        self._make_ready(self._model[0].auto_model, self._model)
        tokenizer = self._model.tokenizer
        self.tokens = ShortTokens(fast_tokenizer(tokenizer, name), limit)
        self.padding = tokenizer.pad_token_id or 0
        self._prompt = self._model.prompts.get(self._model.default_prompt_name or "") or ""

    def vectors(self, heads: Sequence[str]) -> Vectors:
        """Return a vector for each text, the model's own prompt before it."""
        return super().vectors([self._prompt + head for head in heads] if self._prompt else heads)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self._model({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
        return vectors


class CausalLM(Encoder):
    """A causal language model without its head: its last hidden states, pooled."""

    def _load(self) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        from hornbook.models import resolve

        name = self.settings.model
        folder = str(resolve(name).path)
        options = {"trust_remote_code": False, "local_files_only": True}
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            model = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **options)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"{name} is not a language model: {error}", "name smollm2-135m-instruct or another"
            ) from error
        if getattr(model.config, "is_encoder_decoder", False):
            raise ModelError(f"{name} is not a causal language model", "name smollm2-135m-instruct or another")
        self.dimension = int(model.config.hidden_size)
        self._make_ready(model, model)
        self._model = model
        limit = getattr(model.config, "max_position_embeddings", None) or self.settings.max_tokens
        self.tokens = ShortTokens(fast_tokenizer(tokenizer, name), min(self.settings.max_tokens, limit))
        given = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
        self.padding = next(token for token in given if token is not None)  # stands for a text without tokens, too

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        import torch

        hidden = self._model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        if self.settings.pooling == "last":
            return hidden[torch.arange(len(ids), device=ids.device), (mask.sum(1) - 1).clamp(min=0)]
        weights = mask.to(torch.float32)
        return torch.einsum("rld,rl->rd", hidden.float(), weights) / weights.sum(1, keepdim=True)


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield rows in batches of at most `batch_tokens` tokens, padding included, the longest first; at least one row each."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // rounded(lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


def padded(tokens: Sequence[Tokens], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and a mask of which are tokens, int64 (rows, length); a row of no tokens counts as one of padding."""
    ids = np.full((len(tokens), rounded(max(map(len, tokens)))), padding, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, own in enumerate(tokens):
        ids[row, : len(own)] = own
        mask[row, : max(1, len(own))] = 1
    return ids, mask


def rounded(length: int) -> int:
    """Return the length of a batch whose longest row has `length` tokens."""
    return max(1, -(-length // LENGTH_STEP)) * LENGTH_STEP


def chosen_precision(setting: str, device: str) -> str:
    """Return float32 or bfloat16: what `auto` means on this device."""
    if setting != "auto":
        return setting
    import torch

    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    # Emulated bfloat16 is slower than float32: ask for the instructions.
    quick = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if quick else "float32"


def fast_tokenizer(tokenizer: Any, name: str) -> Any:
    """Return what a transformers tokenizer stands on. Raises ModelError if that is not the `tokenizers` library."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{name} has no tokenizer.json", "save its tokenizer again with transformers, as a fast one")
    return tokenizer.backend_tokenizer
