"""Last step of deduplication: what was found, beside every document. Part in, part out; nothing is deleted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from classifiers.clusters import CLUSTERED
from classifiers.corpus_order import CorpusOrder
from classifiers.exchange import Numbers, read_ranges, spilled
from classifiers.links import FACT
from hornbook.artifact import Artifact
from hornbook.documents import KEY_BYTES
from hornbook.parts import PartContent, PartRange, same_ids
from hornbook.partwork import PartMaker

DUPLICATE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),  # of the document, in its own artifact
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("duplicate", pa.string()),  # "exact" or "near", of a document that is not kept; else null
        pa.field("duplicate_of", pa.binary(KEY_BYTES)),  # key of the cluster's kept document, likewise
        pa.field("cluster", pa.int64(), nullable=False),  # ordinal of its first document, over all inputs
        pa.field("cluster_size", pa.int64(), nullable=False),
        # True Jaccard index to the most similar document that it was compared with and that is in its cluster, 1 for an
        # exact copy; null where it is alone. That one need not be the kept one.
        pa.field("similarity", pa.float64()),
        pa.field("kept", pa.bool_(), nullable=False),
    ]
)


class DecisionPart(PartMaker):
    """Writes the attributes of the documents of one part: a range is what `CorpusOrder.ranges` says."""

    kind = "dedup"

    def __init__(
        self, corpus: CorpusOrder, sketches: Artifact, facts: Artifact, clusters: Artifact, at_once: int
    ) -> None:
        self.corpus, self.sketches, self.facts, self.clusters = corpus, sketches, facts, clusters
        self.at_once = at_once

    def setup(self) -> None:
        """Look up the parts of the steps before."""
        self.commits = self.sketches.parts_by_start

    def make(self, part: PartRange) -> PartContent:
        """Return rows of DUPLICATE_SCHEMA in the documents' order."""
        number = self.corpus.number_of(part)
        table = self.corpus.read(number, ["id", "key", "source"])
        first, rows = int(self.corpus.first[number]), table.num_rows
        where = ((number, number + 1), self.corpus.parts)
        cluster, size, keeper = np.arange(first, first + rows), np.ones(rows, np.int64), np.arange(first, first + rows)
        copy_of, keeper_copy_of, similarity = keeper.copy(), keeper.copy(), np.zeros(rows)
        for facts in spilled(self.facts, "facts", *where, FACT, self.at_once):
            place = facts["ordinal"] - first
            np.minimum.at(copy_of, place, facts["copy_of"])
            np.maximum.at(similarity, place, facts["similarity"])
        for members in spilled(self.clusters, "clusters", *where, CLUSTERED, self.at_once):
            place = members["ordinal"] - first
            cluster[place], size[place] = members["first"], members["size"]
            keeper[place], keeper_copy_of[place] = members["kept"], members["kept_copy_of"]
        itself = np.arange(first, first + rows)
        kept = keeper == itself
        duplicate, keys = np.full(rows, None, object), np.full(rows, None, object)
        # Either an earlier document has the same text, or it is the kept one that has it.
        duplicate[~kept] = np.where((copy_of < itself) | (keeper_copy_of == copy_of), "exact", "near")[~kept]
        keys[~kept] = self._keys(keeper[~kept])
        columns = [
            *(table.column(name) for name in ("id", "key", "source")),
            pa.array(duplicate, pa.string()),
            pa.array(keys, pa.binary(KEY_BYTES)),
            pa.array(cluster),
            pa.array(size),
            pa.array(np.minimum(similarity, 1), mask=size == 1),
            pa.array(kept),
        ]
        found = pa.table(columns, schema=DUPLICATE_SCHEMA)
        ids = table.column("id").to_numpy()
        counts = {name: int((duplicate == name).sum()) for name in ("exact", "near")} | {"kept": int(kept.sum())}
        return PartContent(table=found, planned=ids, unit_of=same_ids, counts=counts)

    def _keys(self, ordinals: Numbers) -> list[bytes]:
        """Return the keys of documents anywhere in the corpora."""
        wanted, inverse = np.unique(ordinals, return_inverse=True)
        parts = self.corpus.part_of(wanted)
        keys: list[bytes] = []
        for number in np.unique(parts).tolist():
            rows = wanted[parts == number] - self.corpus.first[number]
            found = read_ranges(self.sketches, self.commits[number], "keys", rows, rows + 1, f"V{KEY_BYTES}")
            keys += [bytes(key) for key in found]
        return [keys[place] for place in inverse.tolist()]
