"""Third step of deduplication: the true Jaccard index of every candidate pair, from whole sets of shingles.

A signature only estimates it: templated stories agree in far more bands than they share text. First the sets of the
documents in pairs are written, part by part; then the pairs are compared block by block, the sets of both sides read in a
bounded number of bytes at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from classifiers.candidates import PAIR, distinct_pairs
from classifiers.corpus_order import CorpusOrder
from classifiers.exchange import Numbers, Records, read_ranges, read_slices
from classifiers.sketches import Shingling, text_batches
from hornbook.artifact import Artifact
from hornbook.parts import PartContent, PartRange
from hornbook.partwork import PartMaker
from hornbook.shingles import Hashes, Offsets

EDGE = np.dtype([("low", "<i8"), ("high", "<i8"), ("similarity", "<f8")])
"""Two near-duplicates and their true Jaccard index."""


class SetPart(PartMaker):
    """Writes the sets of shingles of those documents of a part that are in a pair: planned unit n is part number n."""

    def __init__(self, corpus: CorpusOrder, candidates: Artifact, shingling: Shingling) -> None:
        self.corpus, self.candidates, self.shingling = corpus, candidates, shingling

    def make(self, part: PartRange) -> PartContent:
        """Return the files `index` (where the set of each row of the part begins, and the end) and `sets` (sorted hashes)."""
        number, parts = part.start, self.corpus.parts
        slices = read_slices(self.candidates, self.candidates.parts, "members", number, parts, np.int64)
        rows = np.unique(np.concatenate([np.empty(0, np.int64), *slices])) - self.corpus.first[number]
        lengths = np.zeros(int(self.corpus.first[number + 1] - self.corpus.first[number]), np.int64)
        sets: list[Hashes] = [np.empty(0, np.uint64)]
        if len(rows):
            texts = self.corpus.read(number, ["text"]).column("text").take(rows).to_pylist()
            for start, stop in text_batches(texts):
                found = list(unique_sets(*self.shingling.sets(texts[start:stop])[1:]))
                lengths[rows[start:stop]] = [len(entry) for entry in found]
                sets += found
        index = np.concatenate(([0], np.cumsum(lengths)))
        files = {"index": index.tobytes(), "sets": np.concatenate(sets).tobytes()}
        return PartContent(table=None, succeeded=1, files=files)


class EdgePart(PartMaker):
    """Compares the pairs whose later document is in one block of parts: planned unit n is block n."""

    def __init__(
        self, corpus: CorpusOrder, candidates: Artifact, sets: Artifact, blocks: int, threshold: float, memory: int
    ) -> None:
        self.corpus, self.candidates, self.sets = corpus, candidates, sets
        self.blocks, self.threshold, self.memory = blocks, threshold, memory

    def setup(self) -> None:
        """Look at what sets there are."""
        self.reader = SetReader(self.corpus, self.sets)

    def make(self, part: PartRange) -> PartContent:
        """Return the file `edges`: EDGE records of the pairs at the threshold or above, by the later document."""
        slices = read_slices(self.candidates, self.candidates.parts, "pairs", part.start, self.blocks, PAIR)
        pairs = distinct_pairs([np.empty(0, PAIR), *slices])
        edges = np.concatenate([np.empty(0, EDGE), *verified(pairs, self.reader, self.threshold, self.memory)])
        edges.sort(order=["high", "low"])
        counts = {"candidates": len(pairs), "verified": len(edges)}
        return PartContent(table=None, succeeded=1, files={"edges": edges.tobytes()}, counts=counts)


class SetReader:
    """Reads sets of shingles by their documents' ordinals (distinct, ascending), from whichever parts hold them."""

    def __init__(self, corpus: CorpusOrder, sets: Artifact) -> None:
        self.corpus, self.sets = corpus, sets
        self.commits = sets.parts_by_start

    def places(self, ordinals: Numbers) -> tuple[Numbers, Numbers]:
        """Return where each document's set begins and ends in its part's file."""
        starts, stops = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for number, low, high in self._by_part(ordinals):
            rows = ordinals[low:high] - self.corpus.first[number]
            # Two bounds a row; where rows follow each other, one's end is the next one's begin and is read once.
            wanted = np.union1d(rows, rows + 1)
            found = read_ranges(self.sets, self.commits[number], "index", wanted, wanted + 1, np.int64)
            starts.append(found[np.searchsorted(wanted, rows)])
            stops.append(found[np.searchsorted(wanted, rows + 1)])
        return np.concatenate(starts), np.concatenate(stops)

    def read(self, ordinals: Numbers, starts: Numbers, stops: Numbers) -> list[Hashes]:
        """Return the sets that lie at these places."""
        found: list[Hashes] = []
        for number, low, high in self._by_part(ordinals):
            flat = read_ranges(self.sets, self.commits[number], "sets", starts[low:high], stops[low:high], np.uint64)
            found += np.split(flat, np.cumsum(stops[low:high] - starts[low:high])[:-1])
        return found

    def _by_part(self, ordinals: Numbers) -> Iterator[tuple[int, int, int]]:
        """Yield the numbers of the parts that hold the ordinals, and which of the ordinals each holds."""
        parts = self.corpus.part_of(ordinals)
        bounds = [*np.flatnonzero(np.diff(parts, prepend=-1)).tolist(), len(parts)]
        for low, high in itertools.pairwise(bounds):
            yield int(parts[low]), low, high


def verified(pairs: Records, reader: SetReader, threshold: float, memory: int) -> Iterator[Records]:
    """Yield EDGE records of the pairs that are truly as similar as the threshold.

    Args:
        pairs: distinct, by the later document.
        memory: about the bytes of sets held at a time: half for the later documents', half for the earlier ones'.
    """
    highs, of_high = np.unique(pairs["high"], return_inverse=True)
    lows, of_low = np.unique(pairs["low"], return_inverse=True)
    high_places, low_places = reader.places(highs), reader.places(lows)
    high_sizes, low_sizes = high_places[1] - high_places[0], low_places[1] - low_places[0]
    smaller = np.minimum(high_sizes[of_high], low_sizes[of_low])
    larger = np.maximum(high_sizes[of_high], low_sizes[of_low])
    possible = (smaller > 0) & (
        smaller >= threshold * larger * (1 - 1e-9)
    )  # no intersection is larger than the smaller set
    of_high, of_low = of_high[possible], of_low[possible]
    for high_start, high_stop in _chunks(high_sizes, memory // 2):
        in_high = np.flatnonzero((of_high >= high_start) & (of_high < high_stop))
        if not len(in_high):
            continue
        wanted = np.unique(of_high[in_high])
        own = dict(zip(wanted.tolist(), reader.read(highs[wanted], *(p[wanted] for p in high_places)), strict=True))
        needed = np.unique(of_low[in_high])
        for start, stop in _chunks(low_sizes[needed], memory // 2):
            chosen = needed[start:stop]
            others = reader.read(lows[chosen], *(place[chosen] for place in low_places))
            here = in_high[np.isin(of_low[in_high], chosen)]
            similarities = np.array(
                [
                    jaccard(own[high], others[place])
                    for high, place in zip(
                        of_high[here].tolist(), np.searchsorted(chosen, of_low[here]).tolist(), strict=True
                    )
                ],
                np.float64,
            )
            kept = similarities >= threshold
            edges = np.empty(int(kept.sum()), EDGE)
            edges["low"], edges["high"] = lows[of_low[here[kept]]], highs[of_high[here[kept]]]
            edges["similarity"] = similarities[kept]
            yield edges


def unique_sets(hashes: Hashes, offsets: Offsets) -> Iterator[Hashes]:
    """Yield each text's set: its distinct hashes, sorted."""
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        found = np.sort(hashes[start:stop])
        yield found[np.concatenate(([True], found[1:] != found[:-1]))]


def jaccard(one: Hashes, other: Hashes) -> float:
    """Return the Jaccard index of two sets, each sorted and not empty."""
    both = np.sort(np.concatenate([one, other]))
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (len(both) - shared)


def _chunks(sizes: npt.NDArray[np.int64], memory: int) -> Iterator[tuple[int, int]]:
    """Cut sets of so many hashes into runs of at most `memory` bytes, or of one set, as (start, stop)."""
    start, taken = 0, 0
    for place, size in enumerate((8 * sizes).tolist()):
        if taken and taken + size > memory:
            yield start, place
            start, taken = place, 0
        taken += size
    if start < len(sizes):
        yield start, len(sizes)
