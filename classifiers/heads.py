"""The heads: what turns a vector (or hashed n-grams) into a score. All are scikit-learn's, and functions of data and seed.

forest            random forest that tells good from bad (phi-1)              classifiers.forest
forest-regressor  random forest on the grades
logistic          logistic regression, good from bad
ridge             ridge regression on the grades (FineWeb-Edu's is linear, too)
ngrams            logistic regression on hashed n-grams, without embeddings     classifiers.ngrams
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from classifiers.forest import train_classifier, train_regressor
from classifiers.ngrams import train_ngrams

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

NGRAMS = "ngrams"
FORESTS = ("forest", "forest-regressor")
HEADS = (*FORESTS, "logistic", "ridge", NGRAMS)
TOP_GRADE = 5.0
INVERSE_PENALTY = 3.0
"""Of the logistic regression, for vectors of length 1; anything from 1 to 10 ranks within 0.01 AUC of it (docs/lab-log.md)."""


@dataclass(frozen=True)
class Examples:
    """What heads learn from: a row each of vector, hashed n-grams, label, grade (0 to 5), weight.

    Either of `vectors` and `ngrams` may be None where no head wants it; `weights` is None where all rows count alike.
    """

    vectors: np.ndarray | None
    ngrams: csr_matrix | None
    labels: np.ndarray
    grades: np.ndarray
    weights: np.ndarray | None

    def take(self, rows: np.ndarray) -> Examples:
        """Return the examples at `rows`, int (any,) or bool (rows,)."""
        chosen = (
            part[rows] if part is not None else None
            for part in (self.vectors, self.ngrams, self.labels, self.grades, self.weights)
        )
        return Examples(*chosen)  # type: ignore[arg-type]

    def features(self, kind: str) -> Any:
        """Return what a head of this kind looks at."""
        return self.ngrams if kind == NGRAMS else self.vectors


def train_head(kind: str, examples: Examples, trees: int, min_leaf: int, seed: int, out_of_bag: bool = False) -> Any:
    """Return a trained head: the same for the same examples and seed, whatever the number of processors."""
    from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV

    features, weights, targets = examples.features(kind), examples.weights, examples.grades / TOP_GRADE
    with _one_thread():
        if kind == "forest":
            return train_classifier(features, examples.labels, weights, trees, min_leaf, seed, out_of_bag)
        if kind == "forest-regressor":
            return train_regressor(features, targets, weights, trees, min_leaf, seed, out_of_bag)
        if kind == "logistic":
            logistic = LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", max_iter=1000)
            return logistic.fit(features, examples.labels, sample_weight=weights)
        if kind == "ridge":
            wide = features.astype(np.float64)
            chosen = RidgeCV(alphas=np.logspace(-3, 3, 13)).fit(wide, targets, sample_weight=weights)  # leave-one-out
            return Ridge(alpha=float(chosen.alpha_)).fit(wide, targets, sample_weight=weights)
        return train_ngrams(features, examples.labels, weights, seed)


def head_scores(kind: str, head: Any, features: Any) -> np.ndarray:
    """Return how good the rows of `features` are, float32 (rows,) in [0, 1]: the chance of being good, or the grade / 5."""
    if not features.shape[0]:
        return np.zeros(0, dtype=np.float32)
    with _one_thread():
        if kind in ("forest-regressor", "ridge"):
            return np.clip(head.predict(features), 0, 1).astype(np.float32)
        return head.predict_proba(features)[:, list(head.classes_).index(True)].astype(np.float32)


def head_type(kind: str) -> type:
    """Return the class of a head of this kind."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier

    return {
        "forest": RandomForestClassifier,
        "forest-regressor": RandomForestRegressor,
        "logistic": LogisticRegression,
        "ridge": Ridge,
        NGRAMS: SGDClassifier,
    }[kind]


def _one_thread() -> Any:
    """Return a context in which sums are made in one order: with several threads the last bit depends on their number."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)
