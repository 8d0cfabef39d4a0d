"""Near-duplicates among short documents, in bounded memory: MinHash sketches and an index of the last `window` of them.

Similarity is the Jaccard index of two texts' sets of word shingles (Broder 1997), estimated from a MinHash signature of
SLOTS values (rensa's R-MinHash) of which one byte each is kept (b-bit MinHash, Li and König 2010): 256 bytes a document, and
a standard error of 0.025 at most. Candidates come from locality-sensitive hashing: signatures are cut into bands, and
documents that agree in a whole band lie in one chain, newest first, as in the hash chains of zlib's sliding window.

There is no transitive closure: a text is compared with the texts that were added, and who adds only what was not refused
compares with originals alone, so that a chain of small changes never grows into one large cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from hornbook.shingles import Hashes, bands_for, minhash, mixed, odd_numbers, word_shingles, words_of

SLOTS = 256
SHINGLE = 3
# Steps along each band's chain. Where thousands of documents share a band (half of each is one boiler-plate), only the
# newest are looked at, so that a row's cost stays bounded.
CHAIN = 64
FIRST_CAPACITY = 4096

Signatures = npt.NDArray[np.uint8]


def signatures_of(texts: Sequence[str], shingle: int = SHINGLE) -> Signatures:
    """Return the signatures, shape (texts, SLOTS), of the texts' sets of `shingle` successive words.

    A text of fewer words is one shingle.
    """
    return minhash(*word_shingles([words_of(text) for text in texts], shingle), SLOTS).astype(np.uint8)


class NearDuplicates:
    """The last `window` texts that were added, and which of them a text is similar to. Deterministic.

    Identical texts (up to case, spacing and punctuation) are always found; pairs at the threshold are found with RECALL
    where the estimate, of standard error 0.025, says so too. Memory: about 700 bytes for each text remembered.

    Args:
        threshold: Jaccard index of word shingles from which two texts are similar, in (0, 1].
        window: texts remembered; older ones are forgotten.
        shingle: words a shingle. Three: of a story of 150 words up to five may differ at 0.8, and a question in which
            one word is another is another question.
    """

    def __init__(self, threshold: float = 0.8, window: int = 1_000_000, shingle: int = SHINGLE) -> None:
        if not 0 < threshold <= 1 or window < 1 or shingle < 1:
            raise ValueError(f"threshold {threshold} must be in (0, 1], window {window} and shingle {shingle} positive")
        self.threshold, self.window, self.shingle = threshold, window, shingle
        self.bands, self.rows = bands_for(threshold, SLOTS)
        self.added = 0  # also the ordinal of the next text
        self._multipliers = odd_numbers(SLOTS)
        self._last: tuple[str, Signatures, Hashes] | None = None
        self._signatures: Signatures = np.empty((0, SLOTS), np.uint8)
        self._labels: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._resize(min(window, FIRST_CAPACITY))

    @property
    def nbytes(self) -> int:
        """Memory that the index takes, in bytes; constant once `window` texts were added."""
        return self._signatures.nbytes + self._labels.nbytes + self._newest.nbytes + self._earlier.nbytes

    def similar(self, text: str) -> tuple[int, float] | None:
        """Return label and estimated similarity of the most similar text remembered (the earliest of equals), or None."""
        signature, hashes = self._sketch(text)
        return self._find(signature, hashes)

    def add(self, text: str, label: int | None = None) -> None:
        """Remember a text under a label of your own, by default its ordinal among all that were added."""
        signature, hashes = self._sketch(text)
        self._add(signature, hashes, label)

    def similar_and_add(
        self, texts: Sequence[str], labels: Iterable[int | None] | None = None
    ) -> list[tuple[int, float] | None]:
        """Return `similar` of each text in turn, and add those without one, as a loop does, but a fifth faster."""
        signatures = signatures_of(texts, self.shingle)
        hashes = self._hashes(signatures)
        answers = []
        for row, label in enumerate([None] * len(texts) if labels is None else labels):
            answer = self._find(signatures[row], hashes[row])
            if answer is None:
                self._add(signatures[row], hashes[row], label)
            answers.append(answer)
        return answers

    def _sketch(self, text: str) -> tuple[Signatures, Hashes]:
        """Return signature and band hashes of one text; `similar` and `add` of the same text compute them once."""
        if self._last is None or self._last[0] != text:
            signatures = signatures_of([text], self.shingle)
            self._last = (text, signatures[0], self._hashes(signatures)[0])
        return self._last[1], self._last[2]

    def _hashes(self, signatures: Signatures) -> Hashes:
        """Return a hash of each band, shape (texts, bands + 1); the last one is of the whole signature.

        Identical texts share that one, and a chain of it holds little else: they are found however full the others are.
        """
        products = signatures.astype(np.uint64) * self._multipliers
        banded = products[:, : self.bands * self.rows].reshape(len(signatures), self.bands, self.rows).sum(axis=2)
        return mixed(np.concatenate([banded, products.sum(axis=1, keepdims=True)], axis=1))

    def _find(self, signature: Signatures, hashes: Hashes) -> tuple[int, float] | None:
        forgotten = self.added - self.window  # ordinals below
        entries = self._newest.take(self._first_of_band + (hashes >> self._shift).astype(np.int64))
        bands = self._band_numbers
        found = []
        for _ in range(CHAIN):
            alive = entries > max(0, forgotten)
            entries, bands = entries[alive], bands[alive]
            if not len(entries):
                break
            found.append(entries)
            entries = self._earlier[(entries - 1) % self._capacity, bands]
        if not found:
            return None
        candidates = np.concatenate(found) - 1
        equal = (self._signatures[candidates % self._capacity] == signature).sum(axis=1)
        most = int(equal.max())
        similarity = max(0.0, (most / SLOTS - 1 / 256) / (1 - 1 / 256))  # less the bytes that are equal by chance
        if similarity < self.threshold:
            return None
        best = int(candidates[equal == most].min())
        return int(self._labels[best % self._capacity]), similarity

    def _add(self, signature: Signatures, hashes: Hashes, label: int | None) -> None:
        if self.added == self._capacity < self.window:
            self._resize(min(self.window, 2 * self._capacity))
        slot = self.added % self._capacity
        places = self._first_of_band + (hashes >> self._shift).astype(np.int64)
        self._signatures[slot] = signature
        self._labels[slot] = self.added if label is None else label
        self._earlier[slot] = self._newest[places]
        self.added += 1
        self._newest[places] = self.added

    def _resize(self, capacity: int) -> None:
        """Make room for `capacity` texts and put those that are there into chains again.

        `_newest` and `_earlier` hold ordinals plus one, so that zero, which a fresh array holds, says none.
        """
        bits = max(1, (capacity - 1).bit_length())
        bands = self.bands + 1
        signatures = np.zeros((capacity, SLOTS), np.uint8)
        labels = np.zeros(capacity, np.int64)
        signatures[: self.added] = self._signatures
        labels[: self.added] = self._labels
        self._capacity, self._signatures, self._labels = capacity, signatures, labels
        self._shift = np.uint64(64 - bits)
        self._band_numbers = np.arange(bands)
        self._first_of_band = self._band_numbers << bits
        self._newest = np.zeros(bands << bits, np.int64)
        self._earlier = np.zeros((capacity, bands), np.int64)
        for start in range(0, self.added, FIRST_CAPACITY):
            hashes = self._hashes(signatures[start : min(start + FIRST_CAPACITY, self.added)])
            for row, places in enumerate(self._first_of_band + (hashes >> self._shift).astype(np.int64), start):
                self._earlier[row] = self._newest[places]
                self._newest[places] = row + 1
