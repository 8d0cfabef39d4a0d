"""The batch of a step, read ahead in a thread: a pure function of (data, seed, step), shared out by rank.

A global batch is the same whatever the number of workers; each takes a contiguous share of its slots. Shares may differ by
one row: every rank runs the same number of microbatches (a rank that ran fewer would leave the others waiting in FSDP's
collectives), filled up with rows that count nothing, and the loss is divided by the targets of the whole global batch.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from training.loss import IGNORED
from training.mixture import Mixture
from training.shards import TokenSource

DIGEST_BITS = 48
PADDING_MULTIPLE = 64
PAIR = 2
"""Rows of a preference: the chosen answer, then the rejected one."""


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        step: 0 for the first.
        phase: name of the mixture phase.
        microbatches: (tokens, targets), int64 (rows, T), and where several conversations share a row their numbers (see
            `TokenSource.numbers`), for preferences what the former model thought of each row (see `with_references`); the
            same number on every rank.
        targets: how many targets this share holds; of preferences, how many pairs.
        tokens: how many tokens this share holds, padding left out.
        digest: sum modulo 2^48 of a hash of each row with its slot; the sum over ranks names the global batch.
        source_tokens: how many targets this share holds of each source, in the mixture's order.
    """

    step: int
    phase: str
    microbatches: list[tuple[torch.Tensor, ...]]
    targets: int
    tokens: int
    digest: int
    source_tokens: list[int]


class Loader:
    """Reads batches of a mixture.

    Args:
        sources: by name, in the mixture's order; all of one sequence length and vocabulary.
        mixture: says which rows stand where.
        microbatch: rows (or pairs) per forward pass.

    Attributes:
        references: for pairs, by source: float32 (pairs, 2), set before the first batch is asked for.
    """

    def __init__(self, sources: Mapping[str, TokenSource], mixture: Mixture, microbatch: int) -> None:
        self.sources = [sources[name] for name in mixture.sources]
        self.mixture = mixture
        self.microbatch = microbatch
        self.references: Mapping[str, np.ndarray] = {}

    def fingerprint(self) -> str:
        """Return a hash of all that decides the batches; a resume under another one is refused."""
        made_of = [self.mixture.fingerprint()]
        for source in self.sources:
            cut = () if source.over_long == "split" else (source.over_long,)
            made_of.append(repr((source.index.fingerprint(source.split), source.sequence_length, source.rows, *cut)))
        return hashlib.sha256("\n".join(made_of).encode()).hexdigest()

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Return `rank`'s share of the global batch of `step`."""
        draws = self.mixture.batch(step)
        low, high = share(len(draws.source), rank, world)
        length, each = self.sources[0].sequence_length, self.sources[0].rows_per_draw
        tokens = np.zeros((high - low, each, length + 1), dtype=np.int64)
        trained = np.zeros(tokens.shape, dtype=bool)
        reference = np.zeros((high - low, each), dtype=np.float32)
        numbered = any(source.numbered for source in self.sources)
        numbers = np.zeros((high - low, length), dtype=np.int64) if numbered else None
        source_tokens = [0] * len(self.sources)
        for number, source in enumerate(self.sources):
            rows = np.flatnonzero(draws.source[low:high] == number)
            if len(rows):
                chosen = draws.sequence[low:high][rows]
                read = source.read(chosen)
                tokens[rows], trained[rows] = (array.reshape(-1, each, length + 1) for array in read)
                source_tokens[number] = int(trained[rows, :, 1:].sum())
                if numbers is not None:
                    numbers[rows] = source.numbers(chosen)
                if self.references:
                    reference[rows] = self.references[self.mixture.sources[number]][chosen]
        digest = 0
        for row, slot in enumerate(range(low, high)):
            named = f"{slot} {draws.source[slot]} {draws.sequence[slot]}".encode()
            hashed = hashlib.blake2b(tokens[row].tobytes() + named, digest_size=DIGEST_BITS // 8).digest()
            digest += int.from_bytes(hashed, "little")
        most = -(-len(draws.source) // world)  # rows of the largest share
        inputs, targets = inputs_and_targets(*(array.reshape(-1, length + 1) for array in (tokens, trained)))
        cut = microbatches(inputs, targets, self.microbatch * each, -(-most // self.microbatch), each)
        found: list[tuple[torch.Tensor, ...]] = list(cut)
        if each == PAIR:
            found = with_references(found, reference)
        if numbers is not None:
            found = with_numbers(found, numbers)
        return Batch(
            step=step,
            phase=draws.phase,
            microbatches=found,
            targets=countable(targets, each),
            tokens=int(_used(targets).sum()),
            digest=digest % (1 << DIGEST_BITS),
            source_tokens=source_tokens,
        )

    def batches(self, first: int, last: int, rank: int, world: int) -> Prefetched:
        """Return this rank's batches of steps `first` to `last` (excluded), read ahead."""
        return Prefetched(lambda step: self.batch(step, rank, world), range(first, last))


def share(rows: int, rank: int, world: int) -> tuple[int, int]:
    """Return the slots [low, high) of a rank: contiguous, sizes differ by at most one, larger ones first."""
    each, extra = divmod(rows, world)
    low = rank * each + min(rank, extra)
    return low, low + each + (rank < extra)


def inputs_and_targets(tokens: np.ndarray, trained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut rows of T+1 tokens into int64 inputs and targets of T; a target that is not trained on is IGNORED."""
    return tokens[:, :-1], np.where(trained[:, 1:], tokens[:, 1:], IGNORED)


def microbatches(
    inputs: np.ndarray, targets: np.ndarray, rows: int, count: int, filling: int = 1
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield exactly `count` microbatches of at most `rows` rows; missing ones are `filling` rows without targets.

    Columns that nothing reads (behind the last target of every row) are cut off, to a multiple of 64.
    """
    for number in range(count):
        picked = slice(number * rows, (number + 1) * rows)
        used = _used(targets[picked])
        longest = int(used.max()) if used.size else 0
        length = min(max(-(-longest // PADDING_MULTIPLE), 1) * PADDING_MULTIPLE, inputs.shape[1])
        if not used.size:
            yield torch.zeros(filling, length, dtype=torch.int64), torch.full((filling, length), IGNORED)
            continue
        yield (
            torch.from_numpy(np.ascontiguousarray(inputs[picked, :length])),
            torch.from_numpy(np.ascontiguousarray(targets[picked, :length])),
        )


def countable(targets: np.ndarray, each: int) -> int:
    """Return what a loss is divided by: targets, or pairs that have some on both sides."""
    there = targets != IGNORED
    return int(there.any(axis=1).reshape(-1, each).all(axis=1).sum()) if each == PAIR else int(there.sum())


def with_references(cut: list[tuple[torch.Tensor, ...]], reference: np.ndarray) -> list[tuple[torch.Tensor, ...]]:
    """Append to each microbatch what the former model thought of its rows, float32 seen as int32; 0 where rows fill up."""
    flat, at, found = torch.from_numpy(reference.reshape(-1)), 0, []
    for tensors in cut:
        own = flat[at : at + len(tensors[0])]
        at += len(own)
        own = own if len(own) else torch.zeros(len(tensors[0]))
        found.append((*tensors, own.view(torch.int32)))
    return found


def with_numbers(cut: list[tuple[torch.Tensor, ...]], numbers: np.ndarray) -> list[tuple[torch.Tensor, ...]]:
    """Append to each microbatch which document of its row each input token belongs to, int64 (rows, T); 0 where rows fill up."""
    found, at = [], 0
    for tensors in cut:
        rows, length = tensors[0].shape
        own = numbers[at : at + rows, :length]
        at += len(own)
        own = own if len(own) else np.zeros((rows, length), dtype=np.int64)
        found.append((*tensors, torch.from_numpy(np.ascontiguousarray(own))))
    return found


def _used(targets: np.ndarray) -> np.ndarray:
    """Return how many leading tokens of each row its targets need: the position behind the last target."""
    if not targets.shape[1]:
        return np.zeros(len(targets), dtype=np.int64)
    there = targets != IGNORED
    return np.where(there.any(axis=1), targets.shape[1] - there[:, ::-1].argmax(axis=1), 0)


def _pinned(batch: Batch) -> Batch:
    """Return a batch in memory that a GPU copies from while it computes, if there is a GPU."""
    if not torch.cuda.is_available():
        return batch
    return replace(batch, microbatches=[tuple(tensor.pin_memory() for tensor in cut) for cut in batch.microbatches])


class Prefetched:
    """Iterates over batches that a thread reads ahead; counts the seconds that the consumer had to wait."""

    def __init__(self, read: Callable[[int], Batch], steps: Sequence[int], ahead: int = 4) -> None:
        self.waited = 0.0
        self._read, self._steps = read, steps
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        for _ in self._steps:
            began = time.perf_counter()
            batch = self._ready.get()
            self.waited += time.perf_counter() - began
            if isinstance(batch, BaseException):
                raise batch
            yield batch

    def close(self) -> None:
        """Stop reading ahead."""
        self._closed.set()
        self._thread.join(timeout=5)

    def _work(self) -> None:
        for step in self._steps:
            try:
                batch: Batch | BaseException = _pinned(self._read(step))
            except BaseException as error:  # handed to the consumer, who raises it
                batch = error
            while not self._closed.is_set():
                try:
                    self._ready.put(batch, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self._closed.is_set() or isinstance(batch, BaseException):
                return
