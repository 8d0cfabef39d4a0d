"""What a threshold on scores would do, at every threshold at once: counted when the scores are made, so that a dial can turn.

Documents and bytes are counted by source between neighbouring thresholds; everything that a threshold keeps is then a sum. With
them go a few documents of each interval, to read at the border, and what held-out grades say of each threshold. All of it is one
JSON value of some hundred kilobytes, whatever the size of the corpus.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from hornbook.artifact import THRESHOLD, Artifact
from hornbook.errors import DataError
from hornbook.parts import PartCommit
from hornbook.plan import derive_seed
from hornbook.precision_recall import precision_recall
from hornbook.token_estimate import PARTS, TokensOf, bytes_per_token, embedded_tokens

DIAL = "dial.json"
"""File beside a scoring artifact's parts. Not one of the artifact's files: nobody downstream reads it, so it is no content."""
HELD_OUT = "held_out.parquet"
"""File of a trained scorer: graded documents that its training never saw."""
FORMAT = 1
STEPS = 400
NAMED_SOURCES = 40
"""Sources with figures of their own: the largest. The rest are counted together."""
SURVEYED_SOURCES = 10_000
"""Sources that are held in mind while looking for the largest."""
REFERENCES = 4
"""Documents of each interval that can be shown."""

FEW = 0.1
"""A source that keeps less than this share of its documents is pointed out."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def dial_figures(
    scored: Artifact,
    documents: Artifact,
    held_out: pa.Table | None = None,
    tokens_of: TokensOf | None = None,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Return the dial's figures as a JSON value; see `figures_at` for what they mean at one threshold.

    `documents` and `bytes` have a list for each of `sources`, with a number for each of `thresholds`: what lies from that
    threshold up to the next (the last: from it on). `references` has, for each threshold, documents of the same interval as
    [start of the part, id, key, source's place, score]. One part at a time is in memory.

    Args:
        scored: columns id, key, source, score and, if it has it, bytes (of each document's text); finished or not.
        documents: what was scored, part for part.
        held_out: graded documents that training never saw (see `precision_recall`), if there are any.
        tokens_of: counts tokens; default: the embedded model's tokenizer.
        threshold: the stage's own choice, which becomes one of the thresholds; default: what its `threshold.json` says.

    Raises:
        DataError: the scores are not of these documents.
    """
    if threshold is None:
        threshold = own_threshold(scored)
    tokens_of = tokens_of or embedded_tokens()
    low, high, names, others = _survey(scored)
    thresholds = _thresholds(low, high, threshold)
    count = _Count(names, np.asarray(thresholds, dtype=np.float32), bool(others))
    known = documents.parts_by_start
    parts = [part for part in scored.parts if part.rows]
    sized = bool(parts) and "bytes" in _column_names(scored, parts[0])
    for part in parts:
        if part.start not in known:
            raise DataError(
                f"{scored.folder} holds scores of other documents than {documents.folder}",
                "let `documents` name the corpus that was scored",
            )
        count.add(
            part, _read(scored, part, None if sized else documents.read(known[part.start], columns=["id", "text"]))
        )
    sources = [*names, *([f"{others} other sources"] if others else [])]
    ratios = bytes_per_token(documents, sources, count.parts_to_read(), priorities, tokens_of)
    return {
        "format": FORMAT,
        "thresholds": thresholds,
        "chosen": threshold,
        "sources": [
            {
                "name": name,
                "folded": bool(others) and index == len(names),
                "bytes_per_token": round(ratio.value, 4),
                "error": round(ratio.error, 4) if math.isfinite(ratio.error) else None,
                "measured": ratio.documents,
            }
            for index, (name, ratio) in enumerate(zip(sources, ratios, strict=True))
        ],
        "tokenizer": tokens_of.name if tokens_of else "",
        "documents": count.documents.tolist(),
        "bytes": count.bytes.astype(np.int64).tolist(),
        "unscored": count.unscored,
        "references": count.references(),
        "held_out": precision_recall(held_out, thresholds) if held_out is not None and held_out.num_rows else None,
    }  # fmt: skip


def write_dial(scored: Artifact, documents: Artifact, scorer: Artifact | None) -> None:
    """Leave the dial's figures beside scores: `dial.json` in their folder (see DIAL), with the scorer's held-out grades."""
    figures = dial_figures(scored, documents, held_out_grades(scorer) if scorer else None)
    scored.store.write_json(f"{scored.folder}/{DIAL}", figures)


def held_out_grades(scorer: Artifact) -> pa.Table | None:
    """Return the graded documents that a scorer's training never saw, if it left them."""
    import pyarrow.parquet as pq

    name = f"{scorer.folder}/{HELD_OUT}"
    if not scorer.store.exists(name):
        return None
    with scorer.store.open_input(name) as file:
        return pq.read_table(file)


def figures_at(figures: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return what the threshold number `step` keeps: documents, bytes and tokens (estimated), in all and by source.

    `sources` are in order of size (tokens); `precision` and `recall` are [value, low, high], or None.
    """
    rows = []
    for source, documents, sizes in zip(figures["sources"], figures["documents"], figures["bytes"], strict=True):
        ratio = source["bytes_per_token"]
        rows.append({
            "name": source["name"],
            "documents": sum(documents), "kept_documents": sum(documents[step:]),
            "tokens": sum(sizes) / ratio, "kept_tokens": sum(sizes[step:]) / ratio,
        })  # fmt: skip
    sums = {key: sum(row[key] for row in rows) for key in ("documents", "kept_documents", "tokens", "kept_tokens")}
    held_out = figures["held_out"]
    return {
        "threshold": figures["thresholds"][step],
        **sums,
        "sources": sorted(rows, key=lambda row: (-row["tokens"], row["name"])),
        "precision": held_out["precision"][step] if held_out else None,
        "recall": held_out["recall"][step] if held_out else None,
    }


def nearest_step(figures: Mapping[str, Any], threshold: float) -> int:
    """Return the number of the threshold that is nearest."""
    return int(np.argmin(np.abs(np.array(figures["thresholds"]) - threshold)))


def about(count: float) -> str:
    """Write an estimated count with three digits: 4,520 or 1.23M."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if count >= limit:
            scaled = count / (1e3 if unit == "k" else limit)
            return f"{scaled:.{max(0, 2 - len(str(int(scaled))) + 1)}f}{unit}"
    return f"{count:,.0f}"


def own_threshold(scored: Artifact) -> float | None:
    """Return the threshold that a scoring stage chose, if it did."""
    name = f"{scored.folder}/{THRESHOLD}"
    return float(scored.store.read_json(name)["threshold"]) if scored.store.exists(name) else None


def priorities(keys: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """Return a number for each key (16 bytes), the same wherever it occurs and like a random one: the smallest are a sample.

    The mixing is that of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
    """
    array = pc.cast(keys, pa.binary(16)).combine_chunks()
    halves = np.frombuffer(array.buffers()[1] or b"", dtype="<u8").reshape(-1, 2)[array.offset :][: len(array)]
    mixed = halves[:, 0] * np.uint64(0x9E3779B97F4A7C15) + halves[:, 1]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


class _Count:
    """Sums by source and interval, and the sampled documents, over the parts seen so far."""

    def __init__(self, names: Sequence[str], thresholds: npt.NDArray[np.float32], others: bool) -> None:
        self.place = {name: index for index, name in enumerate(names)}
        self.thresholds = thresholds
        shape = (len(names) + others, len(thresholds))
        self.documents = np.zeros(shape, dtype=np.int64)
        self.bytes = np.zeros(shape, dtype=np.float64)  # exact below 2^53
        self.unscored = 0
        self.parts: dict[int, list[tuple[int, int]]] = {}
        self.seen = _References()

    def add(self, part: PartCommit, table: pa.Table) -> None:
        scores = table.column("score").to_numpy().astype(np.float32)
        finite = np.isfinite(scores)
        self.unscored += int((~finite).sum())
        if not finite.all():
            table, scores = table.filter(pa.array(finite)), scores[finite]
        bins = np.maximum(np.searchsorted(self.thresholds, scores, side="right") - 1, 0)
        coded = table.column("source").combine_chunks().dictionary_encode()
        last = len(self.documents) - 1
        places = np.array([self.place.get(name, last) for name in coded.dictionary.to_pylist()], dtype=np.int64)
        sources = places[coded.indices.to_numpy()] if len(places) else np.zeros(0, dtype=np.int64)
        cells, size = sources * len(self.thresholds) + bins, self.documents.size
        self.documents += np.bincount(cells, minlength=size).reshape(self.documents.shape)
        self.bytes += np.bincount(cells, table.column("bytes").to_numpy(), size).reshape(self.bytes.shape)
        rank = derive_seed("dial", part.start)
        for source in np.unique(sources).tolist():  # parts of lowest rank: a random choice that sources have in common
            self.parts[source] = sorted([*self.parts.get(source, []), (rank, part.start)])[:PARTS]
        self.seen.add(part.start, table, bins, sources, scores)

    def parts_to_read(self) -> dict[int, list[int]]:
        """Return the parts in which to measure, and which sources in each."""
        wanted: dict[int, list[int]] = {}
        for source, ranked in self.parts.items():
            for _, start in ranked:
                wanted.setdefault(start, []).append(source)
        return wanted

    def references(self) -> list[list[list[Any]]]:
        """Return the sampled documents of each interval."""
        return self.seen.lists(len(self.thresholds))


class _References:
    """The documents with the smallest priorities of each interval."""

    def __init__(self) -> None:
        self.rows: pa.Table | None = None

    def add(self, start: int, table: pa.Table, bins: Ints, sources: Ints, scores: npt.NDArray[np.float32]) -> None:
        found = pa.table({
            "bin": bins, "priority": priorities(table.column("key")), "start": np.full(len(bins), start, dtype=np.int64),
            "id": table.column("id"), "key": table.column("key"), "source": sources, "score": scores,
        })  # fmt: skip
        found = found.take(_first_of_each(bins, found.column("priority").to_numpy()))
        if self.rows is not None:
            found = pa.concat_tables([self.rows, found])
            found = found.take(_first_of_each(found.column("bin").to_numpy(), found.column("priority").to_numpy()))
        self.rows = found

    def lists(self, bins: int) -> list[list[list[Any]]]:
        lists: list[list[list[Any]]] = [[] for _ in range(bins)]
        for row in self.rows.to_pylist() if self.rows is not None else ():
            score = round(row["score"], 6)
            lists[row["bin"]].append([row["start"], row["id"], row["key"].hex(), row["source"], score])
        return lists


def _first_of_each(groups: Ints, order: npt.NDArray[np.uint64]) -> pa.Array:
    """Return the rows with the REFERENCES smallest `order` of each group."""
    rows = np.lexsort((order, groups))
    ordered = groups[rows]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    within = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))
    return pa.array(rows[within < REFERENCES])


def _survey(scored: Artifact) -> tuple[float, float, list[str], int]:
    """Return the lowest and highest score, the largest sources' names, and how many sources there are beside them."""
    low, high, counts, forgotten = math.inf, -math.inf, Counter[str](), 0
    for table in scored.tables(columns=["source", "score"]):
        scores = table.column("score").to_numpy()
        scores = scores[np.isfinite(scores)]
        if len(scores):
            low, high = min(low, float(scores.min())), max(high, float(scores.max()))
        for entry in pc.value_counts(table.column("source")).to_pylist():
            counts[entry["values"]] += entry["counts"]
        if (
            len(counts) > SURVEYED_SOURCES
        ):  # as in lossy counting: what is small now is small in the end, or a little short
            forgotten += len(counts) - SURVEYED_SOURCES // 2
            counts = Counter(dict(counts.most_common(SURVEYED_SOURCES // 2)))
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    fold = len(ordered) > NAMED_SOURCES or forgotten > 0
    named = ordered[: NAMED_SOURCES - 1] if fold else ordered
    return (low, high, named, len(ordered) - len(named) + forgotten)


def _thresholds(low: float, high: float, own: float | None) -> list[float]:
    """Return steps over [0, 1], or over whole numbers around scores that lie elsewhere, with the stage's own among them."""
    low, high = (0.0, 1.0) if low > high or (low >= 0 and high <= 1) else (math.floor(low), math.ceil(high))
    high = max(high, low + 1)
    steps = [round(low + (high - low) * step / STEPS, 6) for step in range(STEPS + 1)]
    by_value = {float(np.float32(step)): step for step in steps}
    if own is not None:  # exactly as the stage has it, in place of a step that is the same among scores
        by_value[float(np.float32(own))] = own
    return [by_value[value] for value in sorted(by_value)]


def _read(scored: Artifact, part: PartCommit, texts: pa.Table | None) -> pa.Table:
    """Return a part of the scores; with `texts` (id and text), the sizes of those, which older scores do not have."""
    columns = ["id", "key", "source", "score"]
    if texts is None:
        return scored.read(part, columns=[*columns, "bytes"])
    table = scored.read(part, columns=columns)
    place = pc.index_in(table.column("id"), texts.column("id").combine_chunks())
    sizes = pc.fill_null(pc.binary_length(texts.column("text")).take(place), 0)
    return table.append_column("bytes", pc.cast(sizes, pa.int64()))


def _column_names(artifact: Artifact, part: PartCommit) -> list[str]:
    import pyarrow.parquet as pq

    with artifact.store.open_input(f"{artifact.folder}/{part.file('data').name}") as file:
        return list(pq.read_schema(file).names)
