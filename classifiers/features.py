"""What a text looks like to a scorer: a vector from an embedding model, the same when it is trained and when it scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from classifiers.excerpt import excerpt
from hornbook.settings import Settings, runtime

CHARACTERS_PER_TOKEN = 12  # code with much white space; more characters than that per token are not read

SENTENCE_TRANSFORMERS, CAUSAL_LM, STATIC = "sentence-transformers", "causal-lm", "static"
DEFAULT_MODELS = {
    SENTENCE_TRANSFORMERS: "all-minilm-l6-v2",
    CAUSAL_LM: "smollm2-135m-instruct",
    STATIC: "all-minilm-l6-v2",
}

Vectors = npt.NDArray[np.float32]


class FeatureSettings(Settings):
    """Which model embeds, and how much of each document it reads."""

    kind: Literal["sentence-transformers", "causal-lm", "static"] = Field(
        "sentence-transformers",
        description="sentence-transformers: such a model. causal-lm: the last hidden states of a language model, as phi-1 "
        "did. static: the mean of a model's word vectors, without running it: the fastest.",
    )
    model: str = Field(
        "all-minilm-l6-v2", description="Name or folder of the model; default for causal-lm: smollm2-135m-instruct."
    )
    pooling: Literal["mean", "last"] = Field(
        "mean", description="causal-lm: the mean of the hidden states of all tokens read, or the last one's."
    )
    max_tokens: int = Field(256, ge=8, description="Tokens read of each document; the rest is not looked at.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="What the model computes in; auto: bfloat16 where the processor or GPU multiplies in it, else float32. "
        "static is always float32.",
    )
    batch_tokens: int | None = runtime(
        None, ge=1, description="Tokens per forward pass; default: 1,024 on a CPU, 131,072 on a GPU."
    )
    threads: int = runtime(1, ge=1, description="Processors per worker on a CPU.")

    @model_validator(mode="before")
    @classmethod
    def _default_model(cls, values: Any) -> Any:
        if isinstance(values, dict) and "model" not in values and values.get("kind") in DEFAULT_MODELS:
            return {**values, "model": DEFAULT_MODELS[values["kind"]]}
        return values

    @model_validator(mode="after")
    def _pooling_is_of_causal_models(self) -> FeatureSettings:
        if self.pooling != "mean" and self.kind != CAUSAL_LM:
            raise ValueError(f"pooling: {self.pooling} is for the kind {CAUSAL_LM}; {self.kind} pools by itself")
        return self


class Features(ABC):
    """A loaded embedding model.

    Attributes:
        precision: float32 or bfloat16: what it computes in.
        dimension: numbers of a vector.
    """

    precision: str
    dimension: int

    def __init__(self, settings: FeatureSettings) -> None:
        self.settings = settings

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return float32 vectors, (len(texts), dimension); zero rows for no texts.

        They have unit length; zeros where there is nothing to embed, NaN or infinity where the model gives such.
        """
        if not len(texts):
            return np.zeros((0, self.dimension), dtype=np.float32)
        vectors = self.vectors([readable(text, self.settings.max_tokens) for text in texts])
        with np.errstate(invalid="ignore", over="ignore"):
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32, copy=False)

    @abstractmethod
    def vectors(self, heads: Sequence[str]) -> Vectors:
        """Return float32 vectors of any length, (len(heads), dimension), of one text or more."""


def load_features(settings: FeatureSettings, device: str = "cpu") -> Features:
    """Load a model on `device` (cpu or cuda). Raises ModelError if there is none of that name or it cannot embed."""
    if settings.kind == STATIC:
        from classifiers.static_vectors import StaticVectors

        return StaticVectors(settings)
    from classifiers.encoder import CausalLM, SentenceEncoder

    return (CausalLM if settings.kind == CAUSAL_LM else SentenceEncoder)(settings, device)


def features_identity(settings: FeatureSettings) -> dict[str, Any]:
    """Return what must be equal where a scorer is trained and where it scores: settings and the model's digest, as JSON."""
    from hornbook.models import digest

    identity = {name: value for name, value in settings.identity().items() if name in FeatureSettings.model_fields}
    return {**identity, "digest": digest(settings.model)}


def settings_of_embeddings(settings: Mapping[str, Any]) -> FeatureSettings:
    """Return how an `embed` stage embedded, from the settings in its manifest."""
    return FeatureSettings.model_validate(
        {name: settings[name] for name in FeatureSettings.model_fields if name in settings}
    )


def readable(text: str, max_tokens: int) -> str:
    """Return the part of a text that a model may read, with a replacement character for half a pair of UTF-16."""
    head = excerpt(text, CHARACTERS_PER_TOKEN * max_tokens)
    try:
        head.encode()
    except UnicodeEncodeError:  # tokenizers take UTF-8 only
        return head.encode("utf-8", "replace").decode()
    return head
