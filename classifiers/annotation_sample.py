"""The documents that are graded: a fair share of every stratum, that is of every source and length.

A random sample would hold almost nothing but the largest source and the commonest length. This one does not, so a figure
about the whole corpus must weight its documents: each stands for as many as its stratum has per document taken from it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from classifiers.beside import TWICE, require_unique
from classifiers.strata import fair_shares
from hornbook.artifact import Artifact
from hornbook.documents import KEY_BYTES
from hornbook.errors import DataError
from hornbook.parts import PartCommit, PartRange
from hornbook.plan import derive_seed

Stratum = tuple[str, int]
"""Source, and length to a factor of four: half the number of binary digits of the text's length in bytes (UTF-8)."""

SAMPLE_SCHEMA = pa.schema(
    [
        ("input", pa.int32()),  # which of the stage's inputs
        ("start", pa.int64()),  # the document's part in it
        ("id", pa.int64()),
        ("key", pa.binary(KEY_BYTES)),
        ("source", pa.string()),
        ("weight", pa.float32()),  # documents that it stands for
    ]
)

SPARE = 10_000
"""Rows beyond the wanted ones that may be held before those are dropped that cannot be taken any more."""


def draw_sample(inputs: Sequence[Artifact], wanted: int, seed: int) -> pa.Table:
    """Return rows of SAMPLE_SCHEMA: a fair share of every stratum.

    Within a stratum the documents with the smallest seeded hash of their key are taken, so the choice depends on nothing
    but the documents. Memory: one part, `wanted` rows (twice) and a row per stratum.

    Raises:
        DataError: an id occurs twice in a part, or in the sample of an input.
    """
    sizes: Counter[Stratum] = Counter()
    nearest: dict[Stratum, list[tuple[int, tuple[int, int, int, bytes]]]] = {}
    most, held = wanted, 0
    for number, artifact in enumerate(inputs):
        for commit in artifact.parts:
            for row, key, stratum in strata_of(artifact, commit):
                sizes[stratum] += 1
                heap = nearest.setdefault(stratum, [])
                entry = (-derive_seed(seed, key.hex(), number, row), (number, commit.start, row, key))
                if len(heap) < most:
                    heapq.heappush(heap, entry)
                    held += 1
                else:
                    heapq.heappushpop(heap, entry)
            if held > 2 * wanted + len(nearest) + SPARE:
                # The largest share only shrinks while strata grow, so what lies beyond it will never be taken.
                most = max(_shares(sizes, wanted).values())
                nearest = {stratum: heapq.nlargest(most, heap) for stratum, heap in nearest.items()}
                for heap in nearest.values():
                    heapq.heapify(heap)
                held = sum(map(len, nearest.values()))
    rows = [
        (*entry, stratum[0], sizes[stratum] / share)
        for stratum, share in _shares(sizes, wanted).items()
        for _, entry in heapq.nlargest(share, nearest[stratum])
    ]
    rows.sort()
    twice = [(number, row) for (number, row), count in Counter((row[0], row[2]) for row in rows).items() if count > 1]
    for number, row in twice:
        raise DataError(f"{inputs[number].folder}: the id {row} occurs in two parts", TWICE)
    return pa.Table.from_pylist(
        [dict(zip(SAMPLE_SCHEMA.names, row, strict=True)) for row in rows], schema=SAMPLE_SCHEMA
    )


def strata_of(artifact: Artifact, commit: PartCommit) -> Iterator[tuple[int, bytes, Stratum]]:
    """Yield id, key and stratum of a part's documents; the texts are let go before the first one.

    Raises:
        DataError: an id occurs twice.
    """
    if commit.rows == 0:
        return
    table = artifact.read(commit, columns=["id", "key", "source", "text"])
    require_unique(table, f"{artifact.folder}, part {commit.start}")
    lengths = pc.binary_length(table.column("text")).to_pylist()
    table = table.select(["id", "key", "source"])
    columns = [table.column(name).to_pylist() for name in table.column_names]
    for row, key, source, length in zip(*columns, lengths, strict=True):
        yield row, key, (source, length.bit_length() // 2)


def weights(sizes: Mapping[Stratum, int], strata: Iterable[Stratum]) -> list[float]:
    """Return what each of some graded documents stands for, given their strata and how many documents those have."""
    strata = list(strata)
    graded = Counter(strata)
    return [sizes[stratum] / graded[stratum] for stratum in strata]


def sample_ranges(sample: pa.Table, part_rows: int) -> list[PartRange]:
    """Cut the sample into ranges that stay within one input: ids are unique only there."""
    inputs = sample.column("input").to_numpy()
    borders = [0, *(np.flatnonzero(np.diff(inputs)) + 1).tolist(), len(inputs)]
    return [
        PartRange(start, min(start + part_rows, stop))
        for low, stop in itertools.pairwise(borders)
        for start in range(low, stop, part_rows)
    ]


def _shares(sizes: Mapping[Stratum, int], wanted: int) -> dict[Stratum, int]:
    names = sorted(sizes)
    return dict(zip(names, fair_shares([sizes[name] for name in names], wanted), strict=True))
