"""Some documents of every source of a corpus, drawn and scored by workers: what the source-blind maps are made of.

Two steps of parts. The first reads keys and sources only and names of each part of the corpus the documents with the smallest
seeded hash of their key; the driver keeps the smallest of each source. The second embeds and scores those. Annotated documents
are left out where a source has enough others: a forest has learned most of them by heart, and scores them further apart.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from classifiers.annotated_parts import read_table
from classifiers.found_rows import FoundRows
from classifiers.grouping import rows_by
from classifiers.scorer import load_scorer
from hornbook.artifact import Artifact
from hornbook.errors import DataError
from hornbook.parts import PartContent, PartRange, parquet_bytes
from hornbook.partwork import PartMaker
from hornbook.plan import derive_seed

CANDIDATES, COUNTS, SCORES = "candidates", "counts", "scores"
"""Roles of the files."""
LAST = 1 << 62
"""Above every halved hash: annotated documents are drawn last."""
ENOUGH = 20
"""Documents of a source up to which annotated ones are taken, too."""


class CandidatesPart(PartMaker):
    """Counts the sources of one part of a corpus and names the documents of it that may be in the sample."""

    kind = "quality"

    def __init__(self, documents: Artifact, graded: str, most: int, seed: int) -> None:
        self.documents = documents
        self.graded = graded
        self.most = most
        self.seed = seed

    def setup(self) -> None:
        """Read which documents are annotated."""
        self.annotated = set(read_table(self.documents.store, self.graded).column("key").to_pylist())

    def make(self, part: PartRange) -> PartContent:
        """Return files: candidates (part, id, key, source, hash), at most `most` of each source; counts (source, documents)."""
        rows = self.documents.read(self.documents.parts[part.start], columns=["id", "key", "source"])
        groups = rows_by(rows.column("source").to_pylist())
        keys = rows.column("key").to_pylist()
        hashes = np.array(
            [derive_seed(self.seed, key.hex()) // 2 + (LAST if key in self.annotated else 0) for key in keys], np.int64
        )
        chosen = [own[np.argsort(hashes[own], kind="stable")[: self.most]] for own in groups.values()]
        places = np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *chosen]))
        table = rows.take(pa.array(places)).append_column("hash", pa.array(hashes[places]))
        table = table.append_column("part", pa.array(np.full(len(places), part.start), pa.int64()))
        counts = pa.table(
            {
                "source": pa.array(list(groups), pa.string()),
                "documents": pa.array(map(len, groups.values()), pa.int64()),
            }
        )
        return PartContent(
            table=None, succeeded=1, files={CANDIDATES: parquet_bytes(table), COUNTS: parquet_bytes(counts)}
        )


def draw_sample(candidates: Artifact, most: int) -> pa.Table:
    """Return the sample in the corpus' order: part, id, key, source, weight (documents of its source / those in the sample).

    Memory: `most` documents of each source.
    """
    counts: dict[str, int] = {}
    kept: dict[str, pa.Table] = {}
    for table in candidates.tables(COUNTS):
        for source, documents in zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True):
            counts[source] = counts.get(source, 0) + documents
    for table in candidates.tables(CANDIDATES):
        for source, rows in rows_by(table.column("source").to_pylist()).items():
            own = table.take(pa.array(rows))
            if source in kept:
                own = pa.concat_tables([kept[source], own])
            kept[source] = own.take(pa.array(np.argsort(own.column("hash").to_numpy(), kind="stable")[:most]))
    pieces = []
    for source, own in kept.items():
        others = int((own.column("hash").to_numpy() < LAST).sum())
        own = own.slice(0, max(others, ENOUGH))
        pieces.append(own.append_column("weight", pa.array(np.full(len(own), counts[source] / len(own)))))
    return pa.concat_tables(pieces).sort_by([("part", "ascending"), ("id", "ascending")])


class SampleScoresPart(PartMaker):
    """Scores the sampled documents of one part of the corpus."""

    kind = "quality"

    def __init__(self, rows: FoundRows, trained: Artifact, sample: str, num_cpus: float, on_gpu: bool) -> None:
        self.rows = rows
        self.trained = trained
        self.sample = sample
        self.num_cpus = 1.0 if on_gpu else num_cpus
        self.num_gpus = 1.0 if on_gpu else 0.0

    def setup(self) -> None:
        """Load the sample, the scorer and its embedding model."""
        self.chosen = read_table(self.trained.store, self.sample)
        self.parts = self.chosen.column("part").to_numpy()
        self.scorer = load_scorer(self.trained)
        self.rows.set_up("cuda" if self.num_gpus else "cpu")

    def make(self, part: PartRange) -> PartContent:
        """Return a file: source, weight and score of the sampled documents that can be scored."""
        wanted = self.chosen.filter(pa.array(self.parts == part.start)).select(["id", "key", "weight"])
        if not wanted.num_rows:
            return PartContent(table=None, succeeded=1)
        rows, vectors, _ = self.rows.read(part.start, wanted)
        sources = rows.column("source").to_pylist()
        scores = self.scorer.scores(vectors, sources, rows.column("text").to_pylist())
        table = rows.select(["source", "weight"]).append_column("score", pa.array(scores, pa.float32()))
        return PartContent(table=None, succeeded=1, files={SCORES: parquet_bytes(table)})


def sample_scores(scored: Artifact) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Return scores, sources and weights of the sample, (rows,) each. Raises DataError if none could be scored."""
    tables = list(scored.tables(SCORES))
    if not sum(map(len, tables)):
        raise DataError(
            "no document of the sample for the source-blind maps can be scored", "look at the rejects of the embeddings"
        )
    table = pa.concat_tables(tables)
    return table.column("score").to_numpy(), table.column("source").to_pylist(), table.column("weight").to_numpy()
