"""A trained scorer on storage: what turns vectors into scores, and which features the vectors must have been made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifiers.calibration import Platt
from classifiers.excerpt import excerpt
from classifiers.features import FeatureSettings, features_identity
from classifiers.head_file import load_head
from classifiers.heads import NGRAMS, head_scores
from classifiers.ngrams import hashed_ngrams
from classifiers.source_blind import SourceMaps
from hornbook.artifact import Artifact
from hornbook.errors import DataError, RecipeError

SCORER = "scorer.json"
HEAD = "head.skops"
HELD_OUT = "held_out.parquet"


@dataclass(frozen=True)
class Scorer:
    """A head, and what is done to its scores.

    Attributes:
        kind: of head, one of `classifiers.heads.HEADS`.
        features: `features_identity` of the vectors that it was trained on; empty for n-grams.
        dimension: numbers of such a vector; 0 for n-grams.
        characters: of a text that n-grams are read of.
        head: scikit-learn's.
        platt: makes chances of scores, or None.
        blind: takes the source out of scores, or None.
    """

    kind: str
    features: Mapping[str, Any]
    dimension: int
    characters: int
    head: Any
    platt: Platt | None = None
    blind: SourceMaps | None = None

    @property
    def needs_vectors(self) -> bool:
        """Tell whether it scores vectors; if not, it scores texts."""
        return self.kind != NGRAMS

    def scores(self, vectors: np.ndarray | None, sources: Sequence[str], texts: Sequence[str] = ()) -> np.ndarray:
        """Return how good documents are, float32 (rows,) in [0, 1].

        Args:
            vectors: float32 (rows, dimension); None for a scorer that needs none.
            sources: the documents' sources, (rows,).
            texts: their whole texts, (rows,); only looked at by a scorer that needs no vectors.

        Raises:
            DataError: vectors of another dimension.
        """
        if not self.needs_vectors:
            return self.finished(head_scores(self.kind, self.head, self._ngrams(texts)), sources)
        if vectors is None or vectors.shape[1] != self.dimension:
            raise DataError(
                f"the embeddings have {0 if vectors is None else vectors.shape[1]} dimensions, "
                f"the scorer was trained on {self.dimension}",
                "score with the embeddings of the model that it was trained with",
            )
        return self.finished(head_scores(self.kind, self.head, vectors), sources)

    def finished(self, scores: np.ndarray, sources: Sequence[str]) -> np.ndarray:
        """Return a head's scores as chances, and without their source, as far as the scorer does that; float32 (rows,)."""
        if self.platt is not None:
            scores = self.platt(scores)
        return self.blind.blind(scores, sources) if self.blind is not None else scores

    def _ngrams(self, texts: Sequence[str]) -> Any:
        return hashed_ngrams([excerpt(text, self.characters) for text in texts])

    def feature_settings(self) -> FeatureSettings:
        """Return the settings to embed documents with.

        Raises:
            RecipeError: the model of that name is another one by now.
        """
        known = {name: value for name, value in self.features.items() if name in FeatureSettings.model_fields}
        settings = FeatureSettings.model_validate(known)
        if features_identity(settings) != dict(self.features):
            raise RecipeError(
                f"the embedding model {settings.model} is not the one that the scorer was trained with",
                "train again (`hornbook run RECIPE --from` the quality stage), or put the former model back",
            )
        return settings


def save_scorer(scorer: Scorer, head: bytes, artifact: Artifact) -> None:
    """Write a scorer's files into an artifact's folder; the head first, so that both are there when `scorer.json` is.

    Args:
        scorer: its `head` is not looked at.
        head: it, as `classifiers.head_file.dump_head` wrote it.
        artifact: whose folder.
    """
    store, folder = artifact.store, artifact.folder
    value = {
        "head": scorer.kind,
        "features": dict(scorer.features),
        "dimension": scorer.dimension,
        "ngram_characters": scorer.characters,
        "platt": [scorer.platt.slope, scorer.platt.offset] if scorer.platt else None,
        "source_maps": scorer.blind.to_json() if scorer.blind else None,
    }
    store.write(f"{folder}/{HEAD}", head)
    store.write_json(f"{folder}/{SCORER}", value)


def load_scorer(artifact: Artifact) -> Scorer:
    """Read a scorer. Raises StoreError if its head is damaged or holds anything but a head's own types."""
    store, name = artifact.store, f"{artifact.folder}/{HEAD}"
    value = store.read_json(f"{artifact.folder}/{SCORER}")
    return Scorer(
        kind=value["head"],
        features=value["features"],
        dimension=value["dimension"],
        characters=value["ngram_characters"],
        head=load_head(store.read(name), value["head"], store.describe(name)),
        platt=Platt(*value["platt"]) if value["platt"] else None,
        blind=SourceMaps.from_json(value["source_maps"]) if value["source_maps"] else None,
    )
