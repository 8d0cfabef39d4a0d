from __future__ import annotations

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression

from classifiers.forest import dump_forest, forest_scores, load_forest, train_forest
from hornbook.errors import StoreError


def example(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    vectors = np.random.default_rng(seed).normal(size=(80, 16)).astype(np.float32)
    return vectors, vectors[:, 0] + 0.3 * vectors[:, 1] > 0


def test_a_forest_survives_storage_and_the_same_training_gives_the_same_bytes():
    vectors, labels = example()
    forest = train_forest(vectors, labels, trees=7, min_leaf=3, seed=2**40 + 1)
    data = dump_forest(forest)
    scores = forest_scores(load_forest(data, "here"), vectors)
    assert np.array_equal(scores, forest_scores(forest, vectors))
    assert scores.dtype == np.float32 and scores.min() >= 0 and scores.max() <= 1
    assert dump_forest(train_forest(vectors, labels, trees=7, min_leaf=3, seed=2**40 + 1)) == data
    assert dump_forest(train_forest(vectors, labels, trees=7, min_leaf=3, seed=2)) != data
    assert forest_scores(forest, vectors[:0]).shape == (0,)


def test_what_is_not_a_forest_is_refused():
    vectors, labels = example()
    for data in (b"not a zip file", skops.io.dumps(LogisticRegression().fit(vectors, labels)), skops.io.dumps(print)):
        with pytest.raises(StoreError, match=r"^forest\.skops"):
            load_forest(data, "forest.skops")
