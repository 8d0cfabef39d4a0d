"""Second step of deduplication: which documents share a text's hash, and which pairs share a band and must be compared.

One slice of hash values at a time, over all parts: a bucket (the documents with one hash) is whole in its slice, so that
what comes out does not depend on how many slices there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from classifiers.corpus_order import CorpusOrder
from classifiers.exchange import Numbers, Records, packed, read_slice
from classifiers.sketches import BAND, EXACT
from hornbook.artifact import Artifact
from hornbook.parts import PartContent, PartRange
from hornbook.partwork import PartMaker
from hornbook.shingles import Hashes

PAIR = np.dtype([("low", "<i8"), ("high", "<i8")])
"""Ordinals of two documents, the earlier one first."""
ALL_PAIRS = 16
"""Documents of different text in a bucket up to which every pair of them becomes a candidate."""
NEIGHBOURS = 8
"""In larger buckets a document is compared with the bucket's first and with so many after it."""


class CandidatePart(PartMaker):
    """Finds the exact duplicates and the candidate pairs of one slice of hashes: planned unit n is slice n."""

    def __init__(self, corpus: CorpusOrder, sketches: Artifact, slices: int, blocks: Numbers) -> None:
        self.corpus, self.sketches, self.slices, self.blocks = corpus, sketches, slices, blocks

    def make(self, part: PartRange) -> PartContent:
        """Return the files `exact` (PAIR: the first document of a text and a copy), `pairs` (PAIR, a slice for each block
        of parts, which is the later document's) and `members` (ordinals in pairs, a slice for each part)."""
        copies = exact_copies(*self._gathered(part.start, "exact", EXACT))
        pairs, skipped = candidate_pairs(*self._gathered(part.start, "bands", BAND))
        members = np.unique(np.concatenate([pairs["low"], pairs["high"]]))
        files = {
            "exact": copies.tobytes(),
            "pairs": packed(pairs, np.searchsorted(pairs["high"], self.corpus.first[self.blocks])),
            "members": packed(members, np.searchsorted(members, self.corpus.first)),
        }
        return PartContent(
            table=None, succeeded=1, files=files, counts={"copies": len(copies), "not_compared": skipped}
        )

    def _gathered(self, number: int, role: str, dtype: np.dtype) -> tuple[Records, Numbers]:
        """Return a slice's records of all parts, and the ordinals of their documents."""
        records, ordinals = [np.empty(0, dtype)], [np.empty(0, np.int64)]
        for commit in self.sketches.parts:
            found = read_slice(self.sketches, commit, role, number, self.slices, dtype)
            if len(found):
                records.append(found)
                ordinals.append(found["row"] + self.corpus.first[commit.start])
        return np.concatenate(records), np.concatenate(ordinals)


def exact_copies(records: Records, ordinals: Numbers) -> Records:
    """Return PAIR records: of every text that several documents have, the first of them with each other one."""
    order = np.lexsort((ordinals, records["low"], records["hash"]))
    high, low, ordinals = records["hash"][order], records["low"][order], ordinals[order]
    same = np.concatenate(([False], (high[1:] == high[:-1]) & (low[1:] == low[:-1])))[: len(order)]
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    return _pairs(ordinals[first[same]], ordinals[same])


def candidate_pairs(records: Records, ordinals: Numbers) -> tuple[Records, int]:
    """Return the distinct pairs of documents that share a band, by the later document, and how many were left out.

    Exact copies, which share every bucket, stand for nothing: the first one speaks for them. Buckets of up to ALL_PAIRS
    documents give all their pairs. Of larger ones (boilerplate, templates) each document is paired with the first and with
    the NEIGHBOURS after it, so that work grows with the bucket and not with its square. A similar pair is then overlooked
    where it shares no smaller bucket and no chain of compared documents joins it.
    """
    hashes, ordinals = _without_copies(records, ordinals)
    fresh = np.concatenate(([True], hashes[1:] != hashes[:-1])) if len(hashes) else np.empty(0, bool)
    starts = np.flatnonzero(fresh)
    sizes = np.diff(np.append(starts, len(hashes)))
    shared = np.repeat(sizes > 1, sizes)  # the rest, most of all, goes first
    bucket = np.repeat(np.arange(len(starts)), sizes)[shared]
    ordinals = ordinals[shared]
    size = sizes[bucket]
    found = [np.empty(0, PAIR)]
    for distance in range(1, min(ALL_PAIRS, int(size.max(initial=1)))):
        here = bucket[:-distance] == bucket[distance:]
        if distance > NEIGHBOURS:
            here &= size[:-distance] <= ALL_PAIRS
        places = np.flatnonzero(here)
        found.append(_pairs(ordinals[places], ordinals[places + distance]))
    large = size > ALL_PAIRS
    heads = np.searchsorted(bucket, bucket[large])
    place = np.flatnonzero(large)
    beyond = place - heads > NEIGHBOURS
    found.append(_pairs(ordinals[heads[beyond]], ordinals[place[beyond]]))
    compared = sum(map(len, found))
    possible = int((sizes * (sizes - 1) // 2).sum())
    return distinct_pairs(found), possible - compared


def distinct_pairs(found: Sequence[Records]) -> Records:
    """Return the distinct PAIR records of all, by the later document and then the earlier one."""
    low = np.concatenate([pairs["low"] for pairs in found])
    high = np.concatenate([pairs["high"] for pairs in found])
    order = np.lexsort((low, high))
    low, high = low[order], high[order]
    fresh = np.concatenate(([True], (low[1:] != low[:-1]) | (high[1:] != high[:-1])))[: len(low)]
    return _pairs(low[fresh], high[fresh])


def _without_copies(records: Records, ordinals: Numbers) -> tuple[Hashes, Numbers]:
    """Return hashes and ordinals sorted by both, with one document, the first, of those in a bucket with the same text."""
    order = np.lexsort((ordinals, records["content"], records["hash"]))
    hashes, content, ordinals = records["hash"][order], records["content"][order], ordinals[order]
    copy = np.concatenate(([False], (hashes[1:] == hashes[:-1]) & (content[1:] == content[:-1])))[: len(order)]
    hashes, ordinals = hashes[~copy], ordinals[~copy]
    order = np.lexsort((ordinals, hashes))
    return hashes[order], ordinals[order]


def _pairs(low: npt.NDArray[np.int64], high: npt.NDArray[np.int64]) -> Records:
    pairs = np.empty(len(low), PAIR)
    pairs["low"], pairs["high"] = low, high
    return pairs
