"""The forest that phi-1 filtered its code with: as a classifier of good and bad, or as a regressor on the grades."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

ENOUGH_TREES, ENOUGH_VOTES = 30, 5


def train_classifier(
    vectors: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None,
    trees: int,
    min_leaf: int,
    seed: int,
    out_of_bag: bool,
) -> RandomForestClassifier:
    """Return a random forest (Breiman, 2001) that tells good from bad; both count alike. A function of `seed`.

    Args:
        vectors: float32 (rows, dimensions).
        labels: bool (rows,).
        weights: how much each row counts, (rows,); None: all alike.
        trees: how many.
        min_leaf: fewest rows in a leaf.
        seed: of the trees' samples.
        out_of_bag: whether to keep what `take_out_of_bag` takes.
    """
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(
        n_estimators=trees,
        min_samples_leaf=min_leaf,
        class_weight="balanced",
        oob_score=out_of_bag and trees >= ENOUGH_TREES,
        random_state=seed % 2**32,
        n_jobs=1,
    )
    return _fitted(forest, vectors, labels, weights)


def train_regressor(
    vectors: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray | None,
    trees: int,
    min_leaf: int,
    seed: int,
    out_of_bag: bool,
) -> RandomForestRegressor:
    """Return a random forest that predicts `targets` in [0, 1]. A function of `seed`."""
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(
        n_estimators=trees,
        min_samples_leaf=min_leaf,
        max_features="sqrt",  # as the classifier's: all dimensions at each split would take 20 times as long
        oob_score=out_of_bag and trees >= ENOUGH_TREES,
        random_state=seed % 2**32,
        n_jobs=1,
    )
    return _fitted(forest, vectors, targets, weights)


def _fitted(forest: Any, vectors: np.ndarray, targets: np.ndarray, weights: np.ndarray | None) -> Any:
    with warnings.catch_warnings():  # rows without out-of-bag scores are left out of the figures
        warnings.filterwarnings("ignore", message="Some inputs do not have OOB scores")
        return forest.fit(vectors, targets, sample_weight=weights)


def take_out_of_bag(forest: RandomForestClassifier | RandomForestRegressor) -> np.ndarray | None:
    """Return each training row's score by the trees that did not see it, float32 (rows,), and forget them.

    A forest on storage has no use for them, and they grow with the training data. None with fewer than ENOUGH_TREES. NaN for a row
    that fewer than ENOUGH_VOTES trees did not see (scikit-learn says 0 where none did): where one class is rare these are many,
    since trees draw rows by their weights, and so draw nearly all of the rare ones.
    """
    if not forest.oob_score:
        return None
    if hasattr(forest, "oob_decision_function_"):
        scores = forest.oob_decision_function_[:, list(forest.classes_).index(True)]
        del forest.oob_decision_function_
    else:
        scores = forest.oob_prediction_
        del forest.oob_prediction_
    del forest.oob_score_
    votes = np.zeros(len(scores), dtype=np.int64)
    for drawn in forest.estimators_samples_:
        votes += np.bincount(drawn, minlength=len(scores)) == 0
    return np.where(votes >= ENOUGH_VOTES, scores, np.nan).astype(np.float32)
