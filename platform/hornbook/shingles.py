"""Texts as sets of shingles (Broder 1997) and their MinHash signatures: what near-duplicates are told by.

A shingle is a run of successive words, or of characters, and stands as a hash of 64 bits: two different ones of a pair of
texts agree by chance once in about 10^13 pairs of long texts. Everything here is a function of the text alone.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]

SEED = 42
# A pair at the threshold becomes a candidate with at least this probability; more similar pairs with a higher one.
RECALL = 0.99

# Words are runs of letters, digits and the signs that change what a sum or a formula says; all else separates them.
_WORD_BYTES = bytes(range(128, 256)) + b"abcdefghijklmnopqrstuvwxyz0123456789_+-/=<>%^"
_TO_WORDS = bytes(byte if byte in _WORD_BYTES else 32 for byte in bytes(range(256)).lower())
_SEPARATOR = re.compile(r"[^\w+\-/=<>%^]")
# Scripts that are written without spaces: each character counts as a word.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff])"
)

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def words_of(text: str) -> list[bytes]:
    """Return a text's words, case folded, without punctuation; in scripts without spaces each character is one."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).casefold()
        text = spaced(_SEPARATOR.sub(" ", text))
    return text.encode("utf-8", "replace").translate(_TO_WORDS).split()


def spaced(text: str) -> str:
    """Return a text with a space on each side of every character of a script that is written without spaces."""
    return text if text.isascii() else _UNSPACED.sub(r" \1 ", text)


def word_shingles(words: Sequence[Sequence[bytes]], shingle: int) -> tuple[Hashes, Offsets]:
    """Return the hashes of each text's runs of `shingle` words, one after the other, and where each text's begin.

    A text of fewer words is one shingle. The offsets have one entry more than there are texts: the end.
    """
    from rensa import RMinHash

    padding = [0] * shingle
    hashes = [
        found if len(found) >= shingle else [*found, *padding[len(found) :]]
        for found in RMinHash.hash_token_sets(words)
    ]
    lengths = np.fromiter(map(len, hashes), np.int64, len(hashes))
    return _rolled(np.fromiter(chain.from_iterable(hashes), np.uint64, int(lengths.sum())), lengths, shingle)


def character_shingles(texts: Sequence[str], shingle: int) -> tuple[Hashes, Offsets]:
    """Return the same of runs of `shingle` characters: case folded, white space left out."""
    units = [
        np.frombuffer("".join(text.split()).encode("utf-32-le", "replace"), np.uint32)
        for text in (unicodedata.normalize("NFC", text).casefold() for text in texts)
    ]
    padded = [np.pad(found, (0, max(0, shingle - len(found)))) for found in units]
    lengths = np.fromiter(map(len, padded), np.int64, len(padded))
    flat = np.concatenate(padded) if padded else np.empty(0, np.uint32)
    return _rolled(mixed(flat.astype(np.uint64) + np.uint64(1)), lengths, shingle)


def _rolled(flat: Hashes, lengths: Offsets, shingle: int) -> tuple[Hashes, Offsets]:
    """Hash the runs of `shingle` successive values that lie within one text, of at least so many values each."""
    count = max(0, len(flat) - shingle + 1)
    rolled = flat[:count].copy()
    for offset in range(1, shingle):
        rolled = rolled * _MULTIPLIER + flat[offset : offset + count]
    document = np.repeat(np.arange(len(lengths)), lengths)
    within = document[:count] == document[shingle - 1 :]
    return mixed(rolled[within]), np.concatenate(([0], np.cumsum(lengths - shingle + 1)))


def minhash(hashes: Hashes, offsets: Offsets, slots: int) -> npt.NDArray[np.uint32]:
    """Return the MinHash signatures (rensa's R-MinHash), shape (texts, slots), of texts' shingles."""
    from rensa import RMinHash

    texts = len(offsets) - 1
    if texts == 0:
        return np.empty((0, slots), np.uint32)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), slots, SEED)
    return np.fromiter(chain.from_iterable(matrix.to_rows()), np.uint32, slots * texts).reshape(-1, slots)


def band_hashes(signatures: npt.NDArray[np.unsignedinteger], bands: int, rows: int) -> Hashes:
    """Return a hash of each band of `rows` slots, shape (texts, bands); equal slots in other bands give other hashes."""
    products = signatures[:, : bands * rows].astype(np.uint64) * odd_numbers(bands * rows)
    return mixed(products.reshape(len(signatures), bands, rows).sum(axis=2))


def bands_for(threshold: float, slots: int) -> tuple[int, int]:
    """Return (bands, rows per band): the widest band with which pairs at `threshold` are found with RECALL."""
    for rows in range(slots // 4, 1, -1):
        agree = threshold**rows  # the probability that one band does
        if agree == 1:
            return 1, rows
        if 1 - (1 - agree) ** (slots // rows) >= RECALL:
            return math.ceil(math.log(1 - RECALL) / math.log1p(-agree)), rows
    return slots, 1


def mixed(values: Hashes) -> Hashes:
    """Spread each value's bits over all of it (the finalizer of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def odd_numbers(count: int) -> Hashes:
    """Return `count` odd numbers with well-spread bits."""
    return mixed(np.arange(1, count + 1, dtype=np.uint64) * _MULTIPLIER) | np.uint64(1)
