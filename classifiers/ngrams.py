"""The feature of last resort: hashed n-grams of words and characters, read by a linear model.

What fastText's classifier is (Joulin et al., 1607.01759), without its embedding layer: with two classes, averaged embeddings
and a linear layer over them are a linear model of the n-grams. It needs no embedding model, and a processor scores more
than a thousand documents a second with it. A head over embeddings that does no better has learned nothing but words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import SGDClassifier

WORD_SLOTS = 2**17
CHARACTER_SLOTS = 2**17
PASSES = 20
PENALTY = 1e-4


def hashed_ngrams(texts: Sequence[str]) -> csr_matrix:
    """Return a float32 row of hashed n-grams for each text, (len(texts), WORD_SLOTS + CHARACTER_SLOTS).

    One and two successive words, and four characters within a word; the rows of each kind have length 1 (0 without any).
    """
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import HashingVectorizer

    if not texts:
        return csr_matrix((0, WORD_SLOTS + CHARACTER_SLOTS), dtype=np.float32)
    words = HashingVectorizer(ngram_range=(1, 2), n_features=WORD_SLOTS, dtype=np.float32, token_pattern=r"\w+|[^\w\s]")
    characters = HashingVectorizer(analyzer="char_wb", ngram_range=(4, 4), n_features=CHARACTER_SLOTS, dtype=np.float32)
    return hstack([words.transform(texts), characters.transform(texts)], format="csr", dtype=np.float32)


def train_ngrams(ngrams: csr_matrix, labels: np.ndarray, weights: np.ndarray | None, seed: int) -> SGDClassifier:
    """Return a logistic regression on rows of `hashed_ngrams`, by averaged stochastic gradient descent."""
    from sklearn.linear_model import SGDClassifier

    model = SGDClassifier(
        loss="log_loss",
        alpha=PENALTY,
        average=True,
        class_weight="balanced",
        max_iter=PASSES,
        tol=None,
        random_state=seed % 2**32,
    )
    return model.fit(ngrams, labels, sample_weight=weights)
