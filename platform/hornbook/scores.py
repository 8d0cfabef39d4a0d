"""Which documents a quality score lets through: for packing, and for generators that take documents as seeds.

Scores lie beside the documents as attributes, part by part, and a scoring artifact names its own threshold in a file; so a
threshold changes without scoring again.
"""

from __future__ import annotations

import numpy as np

from hornbook.artifact import THRESHOLD, Artifact
from hornbook.errors import DataError, RecipeError
from hornbook.parts import PartCommit


class ScoreFilter:
    """Keeps the documents whose score reaches a threshold; without scores, all. Pickles: it holds no table.

    Args:
        where: the stage's name, for messages.
        documents: what was scored.
        scores: attributes of exactly these documents, with the columns `id` and `score`; or None.
        minimum_score: the threshold; None takes the one that `scores` names.

    Raises:
        RecipeError: other documents were scored, there is no threshold, or one without scores.
    """

    def __init__(
        self, where: str, documents: Artifact, scores: Artifact | None, minimum_score: float | None = None
    ) -> None:
        self.scores = scores
        self.threshold = None if scores is None else minimum_score
        if scores is None:
            if minimum_score is not None:
                raise RecipeError(f"{where}: minimum_score needs scores", "name a scoring stage as input `scores`")
            return
        scored = [reference.digest for references in scores.manifest.inputs.values() for reference in references]
        if documents.manifest.digest not in scored:
            raise RecipeError(
                f"{where}: {scores.manifest.stage} scored other documents than {documents.manifest.stage}",
                "let `documents` name the corpus that `scores` was made from",
            )
        if self.threshold is None:
            if all(entry.name != THRESHOLD for entry in scores.manifest.files):
                raise RecipeError(f"{where}: {scores.manifest.stage} names no threshold", "set minimum_score")
            self.threshold = float(scores.store.read_json(f"{scores.folder}/{THRESHOLD}")["threshold"])

    def kept(self, part: PartCommit, ids: np.ndarray) -> np.ndarray:
        """Return which documents of a part reach the threshold, bool (documents,); one without a score does not.

        Args:
            part: the documents' part.
            ids: its documents' ids, in their order.

        Raises:
            DataError: the scores have no such part.
        """
        if self.scores is None or self.threshold is None:
            return np.ones(len(ids), dtype=bool)
        scored = self.scores.parts_by_start.get(part.start)
        if scored is None:
            raise DataError(
                f"{self.scores.folder} does not score these documents", "let `documents` name the corpus it scored"
            )
        table = self.scores.read(scored, columns=["id", "score"])
        good = table.column("id").to_numpy()[table.column("score").to_numpy() >= self.threshold]
        return np.isin(ids, good)
