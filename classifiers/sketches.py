"""First step of deduplication: of every document a hash of its normalised text and the hashes of its MinHash bands.

Part by part; what is written of a part is sorted by hash and cut into slices, so that the next step gathers one slice of
all parts: all documents that share a hash. 16 bytes a document and band, and 36 more a document.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from classifiers.corpus_order import CorpusOrder
from classifiers.exchange import Numbers, Records, packed
from hornbook.artifact import Artifact
from hornbook.errors import DataError
from hornbook.parts import PartContent, PartRange
from hornbook.partwork import PartMaker
from hornbook.shingles import Hashes, Offsets, band_hashes, character_shingles, minhash, word_shingles, words_of

BAND = np.dtype([("hash", "<u8"), ("row", "<u4"), ("content", "<u4")])
"""One band of a document: its hash, the document's row in the part, and 32 bits of its text's hash."""
EXACT = np.dtype([("hash", "<u8"), ("low", "<u8"), ("row", "<u4")])
"""A document's 128-bit hash of its normalised text, and its row."""
CHARACTERS_AT_ONCE = 250_000
"""Characters whose words are held at once: as lists they take ten times the text."""


@dataclass(frozen=True)
class Shingling:
    """How a text becomes a set of shingles.

    Attributes:
        unit: `words` (single characters where a script has no spaces) or `characters`.
        size: of how many units a shingle is made.
        longest: characters above which a text is compared exactly only: its words would not fit in memory.
    """

    unit: str
    size: int
    longest: int

    def sets(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], Hashes, Offsets]:
        """Return which of the texts have a set (not those without units, or too long), the hashes, where each begins.

        A text's hashes are in its order and may repeat.
        """
        short = [place for place, text in enumerate(texts) if len(text) <= self.longest]
        if self.unit == "characters":
            have = [place for place in short if texts[place].strip()]
            return np.array(have, np.int64), *character_shingles([texts[place] for place in have], self.size)
        words = {place: found for place in short if (found := words_of(texts[place]))}
        return np.array(list(words), np.int64), *word_shingles(list(words.values()), self.size)


def text_hash(text: str, at_once: int = CHARACTERS_AT_ONCE) -> bytes:
    """Return 16 bytes that exact duplicates have in common.

    They are the same text in NFC once every run of white space is one space and the ends are stripped.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    hasher = hashlib.blake2b(digest_size=16)
    if len(text) <= at_once:
        hasher.update(" ".join([*text.split(), ""]).encode("utf-8", "replace"))
    else:  # a list of all words takes twenty times the text
        words = re.finditer(r"\S+", text)
        while some := [word.group() for word in itertools.islice(words, at_once // 8 + 1)]:
            hasher.update(" ".join([*some, ""]).encode("utf-8", "replace"))
    return hasher.digest()


def text_batches(texts: Sequence[str], characters: int = CHARACTERS_AT_ONCE) -> Iterator[tuple[int, int]]:
    """Cut texts into runs of about so many characters, as (start, stop): lists of words take much more than texts."""
    start = taken = 0
    for place, text in enumerate(texts):
        if place > start and taken + len(text) > characters:
            yield start, place
            start, taken = place, 0
        taken += len(text)
    if start < len(texts):
        yield start, len(texts)


class SketchPart(PartMaker):
    """Sketches the documents of one part of the corpora: planned unit n is part number n."""

    def __init__(
        self, corpus: CorpusOrder, shingling: Shingling, bands: tuple[int, int], slices: int, scores: ScoreColumn | None
    ) -> None:
        self.corpus, self.shingling, self.bands, self.slices, self.scores = corpus, shingling, bands, slices, scores

    def make(self, part: PartRange) -> PartContent:
        """Return the files `bands` and `exact` (in slices), `keys` and `scores` (a row each)."""
        table = self.corpus.read(part.start, ["id", "key", "text"])
        self._refuse_doubled_ids(table, part.start)
        texts = table.column("text").to_pylist()
        content = np.frombuffer(b"".join(map(text_hash, texts)), "<u8").reshape(-1, 2)
        bands, compared = self._bands(texts, content[:, 0])
        exact = np.empty(len(texts), EXACT)
        exact["hash"], exact["low"], exact["row"] = content[:, 0], content[:, 1], np.arange(len(texts))
        files = {
            "bands": in_slices(bands, self.slices),
            "exact": in_slices(exact, self.slices),
            "keys": b"".join(table.column("key").to_pylist()),
        }
        if self.scores is not None:
            files["scores"] = self.scores.of(self.corpus, part.start, table.column("id")).tobytes()
        counts = {"documents": len(texts), "exactly_only": len(texts) - compared}
        return PartContent(table=None, succeeded=1, files=files, counts=counts)

    def _bands(self, texts: Sequence[str], content: Hashes) -> tuple[Records, int]:
        """Return the BAND records of a part's documents, and how many documents have any."""
        count, rows = self.bands
        found = [np.empty(0, BAND)]
        compared = 0
        for start, stop in text_batches(texts) if count else ():
            have, hashes, offsets = self.shingling.sets(texts[start:stop])
            compared += len(have)
            records = np.empty((len(have), count), BAND)
            records["hash"] = band_hashes(minhash(hashes, offsets, count * rows), count, rows)
            records["row"] = (start + have)[:, None]
            records["content"] = content[start + have].astype(np.uint32)[:, None]
            found.append(records.reshape(-1))
        return np.concatenate(found), compared

    def _refuse_doubled_ids(self, table: pa.Table, number: int) -> None:
        ids = np.sort(table.column("id").to_numpy())
        doubled = ids[1:][ids[1:] == ids[:-1]]
        if len(doubled):
            artifact = self.corpus.documents[self.corpus.inputs[number]]
            raise DataError(
                f"{artifact.store.describe(artifact.folder)}, part {self.corpus.starts[number]}: the id {doubled[0]} "
                f"belongs to several documents ({len(doubled):,} ids too many)",
                "ids are unique within an artifact: make it again with a stage that gives each document its own",
            )


class ScoreColumn:
    """A column of attributes that says which of several duplicates is best; one artifact a corpus.

    Raises:
        DataError: one of them has no such column.
    """

    def __init__(self, attributes: Sequence[Artifact], column: str) -> None:
        self.attributes, self.column = list(attributes), column
        for artifact in self.attributes:
            if column not in {entry.partition(":")[0] for entry in artifact.manifest.columns}:
                raise self._no_numbers(artifact)

    def _no_numbers(self, artifact: Artifact) -> DataError:
        columns = ", ".join(artifact.manifest.columns)
        return DataError(
            f"{artifact.store.describe(artifact.folder)} has no column {self.column!r} of numbers; it has {columns}",
            "name as `score` a column of numbers",
        )

    def of(self, corpus: CorpusOrder, number: int, ids: pa.ChunkedArray) -> npt.NDArray[np.float64]:
        """Return the scores of a part's documents; minus infinity where there is none, or no number.

        Raises:
            DataError: the column holds no numbers.
        """
        import pyarrow.compute as pc

        scores = np.full(len(ids), -np.inf)
        table = corpus.read_beside(self.attributes, number, ["id", self.column])
        if table is None:
            return scores
        try:
            values = table.column(self.column).cast(pa.float64()).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise self._no_numbers(self.attributes[corpus.inputs[number]]) from error
        place = pc.index_in(ids, table.column("id").combine_chunks())
        known = pc.is_valid(place).to_numpy()
        scores[known] = values[place.drop_null().to_numpy()]
        return np.where(np.isnan(scores), -np.inf, scores)


def slice_of(hashes: Hashes, slices: int) -> Numbers:
    """Return the slice of each hash: the same everywhere, and ascending with the hash."""
    return ((hashes >> np.uint64(32)) * np.uint64(slices) >> np.uint64(32)).astype(np.int64)


def in_slices(records: Records, slices: int) -> bytes:
    """Return a file of records sorted by their hash, in slices."""
    records = records[np.argsort(records["hash"], kind="stable")]
    return packed(records, np.searchsorted(slice_of(records["hash"], slices), np.arange(slices + 1)))
