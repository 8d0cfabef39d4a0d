"""Which of a set of texts a document overlaps with: shared runs of words, looked up in an index held in memory.

A text is hit where a run of `ngram` of its words stands in the document, in order and without a gap; a text of fewer words
is hit where all of it does. Words are those of `hornbook.near_duplicates`: case, spacing and punctuation do not count, and
each character is a word in scripts written without spaces.

Memory: 24 bytes for each word of the texts (its number and, of the run that begins there, a hash, the text and the place)
and about 150 bytes for each distinct word: some 3 kB for a question of 100 words. Every worker holds an index of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from hornbook.shingles import words_of

COVER = 5
"""Words of a run that counts towards the overlap of a text that is hit. Chance puts shorter runs into long documents."""

SEED = 20090
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Numbers = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]


class OverlapIndex:
    """Texts to look for.

    Args:
        texts: the texts, in an order that breaks ties.
        ngram: words of a shared run.
        least_words: texts with fewer words are not looked for: they would be found everywhere.
    """

    def __init__(self, texts: Sequence[str], ngram: int = 13, least_words: int = 8) -> None:
        self.ngram = ngram
        self.cover = min(COVER, ngram)
        self._vocabulary: dict[bytes, int] = {}
        numbered = [self._learn(text) for text in texts]
        self.lengths = np.array([len(numbers) for numbers in numbered], dtype=np.int64)
        self.usable = self.lengths >= least_words
        self._begins = np.concatenate(([0], np.cumsum(self.lengths)))
        self._numbers = np.concatenate([*numbered, np.zeros(0, np.int32)])
        # A code for each word, so that hashes of runs are spread evenly; 0 is the word that no text has.
        self._codes = np.random.default_rng(SEED).integers(1 << 63, size=len(self._vocabulary) + 1, dtype=np.uint64)
        wanted = np.minimum(self.lengths, ngram) * self.usable
        self._tables = {
            int(length): self._table(int(length), wanted == length) for length in np.unique(wanted) if length
        }

    @property
    def memory(self) -> int:
        """Bytes that the index takes, about."""
        arrays = [self._numbers, *(array for table in self._tables.values() for array in table)]
        words = sys.getsizeof(self._vocabulary) + sum(map(sys.getsizeof, self._vocabulary))
        return sum(array.nbytes for array in arrays) + words + 32 * len(self._vocabulary)  # an int each

    def whole(self, text: int) -> bool:
        """Tell whether a text is looked for whole, since it has fewer words than a run."""
        return bool(self.lengths[text] < self.ngram)

    def find(self, document: str) -> list[tuple[int, float]]:
        """Return the texts that a document hits and how much of each it holds, most first.

        That is the share of the text's words in runs of COVER words or more (of all its words, or of `ngram`, if those are
        fewer) that the document has too, in (0, 1]; of texts with the same share the first comes first.
        """
        numbers = np.fromiter(map(self._known, words_of(document)), np.int32)
        if not numbers.any():
            return []
        hit: list[Numbers] = []
        for length, hashes in self._runs(numbers, max(self._tables, default=0)):
            if length in self._tables:
                hit.append(self._hit(self._tables[length], length, numbers, hashes))
        found = np.unique(np.concatenate(hit)) if hit else np.zeros(0, np.int32)
        if not len(found):
            return []
        shares = self._covered(found, numbers)
        order = np.argsort(-shares, kind="stable")
        return [(int(found[place]), float(shares[place])) for place in order]

    def _learn(self, text: str) -> Numbers:
        vocabulary = self._vocabulary
        return np.array([vocabulary.setdefault(word, len(vocabulary) + 1) for word in words_of(text)], dtype=np.int32)

    def _known(self, word: bytes) -> int:
        return self._vocabulary.get(word, 0)

    def _runs(self, numbers: Numbers, longest: int) -> Iterator[tuple[int, Hashes]]:
        """Yield (length, the hash of each run of so many successive words) for every length up to the longest."""
        codes = self._codes[numbers]
        hashes = np.zeros(len(codes) + 1, np.uint64)
        for length in range(1, min(longest, len(codes)) + 1):
            hashes = hashes[:-1] * _MULTIPLIER + codes[length - 1 :]
            yield length, hashes

    def _table(self, length: int, wanted: npt.NDArray[np.bool_]) -> tuple[Hashes, Numbers, npt.NDArray[np.int64]]:
        """Return the runs of `length` words in the wanted texts: their hashes, ascending, their texts and places."""
        hashes, texts, places = [], [], []
        for text in np.flatnonzero(wanted):
            begin, end = self._begins[text], self._begins[text + 1]
            *_, (_, own) = self._runs(self._numbers[begin:end], length)
            hashes.append(own)
            texts.append(np.full(len(own), text, np.int32))
            places.append(np.arange(begin, begin + len(own)))
        joined = np.concatenate(hashes)
        order = np.argsort(joined, kind="stable")
        return joined[order], np.concatenate(texts)[order], np.concatenate(places)[order]

    def _hit(
        self, table: tuple[Hashes, Numbers, npt.NDArray[np.int64]], length: int, numbers: Numbers, hashes: Hashes
    ) -> Numbers:
        """Return the texts, each once, of which the document has a run. The words are compared, not their hashes alone."""
        known, texts, places = table
        own, first = np.unique(hashes, return_index=True)
        left = np.searchsorted(known, own, side="left")
        right = np.searchsorted(known, own, side="right")
        there = np.flatnonzero(right > left)
        window = np.arange(length)
        same = self._numbers[places[left[there]][:, None] + window] == numbers[first[there][:, None] + window]
        there = there[same.all(axis=1)]
        runs = [texts[left[place] : right[place]] for place in there]
        return np.unique(np.concatenate(runs)) if runs else np.zeros(0, np.int32)

    def _covered(self, found: Numbers, numbers: Numbers) -> npt.NDArray[np.float64]:
        """Return how much of each text a document holds, see `find`."""
        of_length: dict[int, Hashes] = {}
        lengths = {int(min(self.cover, self.lengths[text])) for text in found}
        for length, hashes in self._runs(numbers, self.cover):
            if length in lengths:
                of_length[length] = np.unique(hashes)
        shares = np.zeros(len(found))
        for place, text in enumerate(found):
            own = self._numbers[self._begins[text] : self._begins[text + 1]]
            length = min(self.cover, len(own))
            *_, (_, runs) = self._runs(own, length)
            shared = np.isin(runs, of_length[length])
            covered = np.zeros(len(own) + 1, np.int64)
            covered[: len(runs)] += shared
            covered[length : length + len(runs)] -= shared
            shares[place] = (np.cumsum(covered)[: len(own)] > 0).mean()
        return shares
