"""The quality forest on storage: skops in, skops out, the same bytes for the same forest, and nothing that can run code."""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from hornbook.errors import StoreError

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier

TRUSTED = ["sklearn.tree._tree.Tree"]  # compiled arrays; the one type beyond what skops trusts by itself
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can carry


def train_forest(
    vectors: np.ndarray, labels: np.ndarray, trees: int, min_leaf: int, seed: int
) -> RandomForestClassifier:
    """Return a random forest (Breiman, 2001) for `vectors` (rows, dimensions) and boolean `labels`; a function of `seed`."""
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(
        n_estimators=trees,
        min_samples_leaf=min_leaf,
        class_weight="balanced",
        random_state=seed % 2**32,
        n_jobs=1,
    )
    return forest.fit(vectors, labels)


def forest_scores(forest: RandomForestClassifier, vectors: np.ndarray) -> np.ndarray:
    """Return the probability that each row is worth keeping, float32 in [0, 1]."""
    if not len(vectors):
        return np.zeros(0, dtype=np.float32)
    return forest.predict_proba(vectors)[:, list(forest.classes_).index(True)].astype(np.float32)


def dump_forest(forest: RandomForestClassifier) -> bytes:
    """Return the forest as a skops file.

    skops names arrays and objects by their addresses in memory and stamps the time; both are replaced here by numbers in
    order of appearance, so that training again gives the same bytes and what depends on them is not made again.
    """
    import skops.io

    with zipfile.ZipFile(io.BytesIO(skops.io.dumps(forest))) as written:
        schema = written.read("schema.json").decode()
        arrays = {name: written.read(name) for name in written.namelist() if name != "schema.json"}
    numbers: dict[str, str] = {}
    schema = re.sub(
        r'("__id__": |")(\d{6,})(\.npy"|(?=[,\n}]))',
        lambda found: found[1] + numbers.setdefault(found[2], str(len(numbers) + 1)) + found[3],
        schema,
    )
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as file:
        renamed = {f"{numbers[name.removesuffix('.npy')]}.npy": data for name, data in arrays.items()}
        for name in sorted(renamed, key=lambda name: int(name.removesuffix(".npy"))):
            file.writestr(zipfile.ZipInfo(name, FIRST_DAY), renamed[name], zipfile.ZIP_DEFLATED)
        file.writestr(zipfile.ZipInfo("schema.json", FIRST_DAY), json.dumps(json.loads(schema)), zipfile.ZIP_DEFLATED)
    return sink.getvalue()


def load_forest(data: bytes, where: str) -> RandomForestClassifier:
    """Return the forest in a skops file. Raises StoreError if it holds anything but a forest's own types."""
    import skops.io
    from sklearn.ensemble import RandomForestClassifier

    cure = "delete the artifact's folder; the forest will be trained again"
    try:
        unknown = sorted(set(skops.io.get_untrusted_types(data=data)) - set(TRUSTED))
        loaded: Any = None if unknown else skops.io.loads(data, trusted=TRUSTED)
    except Exception as error:  # a damaged file fails in many ways
        raise StoreError(f"{where} is damaged: {error}", cure) from error
    if unknown or not isinstance(loaded, RandomForestClassifier):
        raise StoreError(f"{where} holds {', '.join(unknown) or type(loaded).__name__}, not just a random forest", cure)
    return loaded
