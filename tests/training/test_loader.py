"""Batches by (step, rank, world): the same rows for any number of workers, the same number of microbatches for each."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import GLOBAL_BATCH, STEPS, open_loader, write_data

from training.best_fit import OverLong
from training.loader import DIGEST_BITS, Loader, microbatches, share
from training.loss import IGNORED
from training.shards import TokenSource


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_data(path)
    return path


@pytest.mark.parametrize("world", [1, 2, 3, 5, 11])
def test_any_number_of_workers_reads_the_same_batches_in_the_same_order(folder: Path, world: int) -> None:
    loader = open_loader(folder, microbatch=3)
    for step in range(STEPS):
        whole = loader.batch(step, 0, 1)
        shares = [loader.batch(step, rank, world) for rank in range(world)]
        rows = [
            tokens[row].tolist()
            for part in shares
            for tokens, targets in part.microbatches
            for row in range(len(tokens))
            if (targets[row] != IGNORED).any()
        ]
        assert rows == [row for tokens, _ in whole.microbatches for row in tokens.tolist()]
        assert len(rows) == GLOBAL_BATCH
        assert len({len(part.microbatches) for part in shares}) == 1
        assert sum(part.targets for part in shares) == whole.targets == GLOBAL_BATCH * 64
        assert sum(part.digest for part in shares) % (1 << DIGEST_BITS) == whole.digest


def test_shares_are_even() -> None:
    assert [share(32, rank, 3) for rank in range(3)] == [(0, 11), (11, 22), (22, 32)]
    for world in range(1, 40):
        bounds = [share(32, rank, world) for rank in range(world)]
        assert bounds[0][0] == 0 and bounds[-1][1] == 32
        assert all(left[1] == right[0] for left, right in pairwise(bounds))


def test_reading_ahead_gives_the_same_batches_and_the_first_error(folder: Path) -> None:
    loader = open_loader(folder)
    ahead = loader.batches(3, 9, 0, 2)
    steps = []
    for batch in ahead:
        steps.append(batch.step)
        assert batch.digest == loader.batch(batch.step, 0, 2).digest
    assert steps == [3, 4, 5, 6, 7, 8]
    ahead.close()
    beyond = loader.batches(STEPS - 1, STEPS + 1, 0, 1)
    with pytest.raises(IndexError):
        list(beyond)


def test_other_data_or_another_order_has_another_fingerprint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = open_loader(folder).fingerprint()
    assert fingerprint == open_loader(folder, microbatch=5).fingerprint()  # speed only
    write_data(tmp_path)
    assert fingerprint == open_loader(tmp_path).fingerprint()
    loader = open_loader(tmp_path)
    loader.mixture.seed += 1
    assert fingerprint != loader.fingerprint()
    monkeypatch.setenv("HORNBOOK_CACHE", str(tmp_path / "cache"))
    found = []
    ways: tuple[OverLong, ...] = ("split", "cut", "drop")
    for over_long in ways:  # the same numbers of rows would not make them the same rows
        sources = {
            name: TokenSource(tmp_path / "data" / name, "train", 64, "best-fit", over_long=over_long) for name in "ab"
        }
        found.append(Loader(sources, open_loader(tmp_path).mixture, 2).fingerprint())
    assert len({fingerprint, *found}) == 4


def test_columns_behind_the_last_target_are_cut() -> None:
    inputs = np.ones((3, 256), dtype=np.int64)
    targets = np.full((3, 256), IGNORED)
    targets[0, 10] = targets[1, 70] = targets[2, 5] = 1
    (first, first_targets), (second, _), (third, third_targets) = microbatches(inputs, targets, 2, 3)
    assert first.shape == (2, 128) and second.shape == (1, 64) and third.shape == (1, 64)
    assert first_targets[1, 70] == 1 and bool((third_targets == IGNORED).all()) and first.dtype == torch.int64
