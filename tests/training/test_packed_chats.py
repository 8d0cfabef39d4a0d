"""Conversations that share a row: the loss and gradients of rows of their own, also where every turn ends a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from finished_artifact import finish
from in_process import context_of
from small_run import small_model

from hornbook.artifact import Artifact
from hornbook.errors import RecipeError
from hornbook.stage import StageResult
from hornbook.store import Store
from training.best_fit import OverLong
from training.loader import Loader
from training.loop import train
from training.metrics import read_metrics
from training.mixture import Mixture, PhaseSettings
from training.over_long import report_over_long
from training.parallel import World
from training.settings import LoopSettings
from training.sft import Sft, SftSettings
from training.shards import Rows, ShardBuilder, TokenSource, write_shard_folder

LENGTH, CHATS, EOS, VOCABULARY = 64, 40, 0, 512


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HORNBOOK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Conversations of two to four turns; the end-of-text token ends every turn, as ChatML's does. One is too long."""
    random = np.random.default_rng(0)
    builder = ShardBuilder(EOS, VOCABULARY, masked=True)
    for number in range(CHATS):
        split: Any = "validation" if number % 10 == 1 else "train"
        ids: list[int] = []
        trained: list[bool] = []
        for turn in range(2 if number else 40):
            said = random.integers(1, VOCABULARY, random.integers(2, 9)).tolist()
            ids += [*said, EOS]
            trained += [turn % 2 == 1] * (len(said) + 1)
        builder.add(number, number.to_bytes(16, "big"), "chats", split, np.array(ids), np.array(trained))
    write_shard_folder(tmp_path / "data", [builder])
    return tmp_path


def opened(folder: Path, rows: Rows, over_long: OverLong = "cut", split: Any = "train") -> TokenSource:
    return TokenSource(folder / "data", split, LENGTH, rows, over_long=over_long)


def loader_of(source: TokenSource, batch: int, steps: int = 1) -> Loader:
    mixture = Mixture({"chats": len(source)}, [PhaseSettings(name="sft", steps=steps)], batch, 9, seed=1)
    return Loader({"chats": source}, mixture, microbatch=4)


def loss_and_gradients(source: TokenSource, masked: bool) -> tuple[float, int, dict[str, torch.Tensor]]:
    """Return the summed loss over all rows, its targets, and the gradients, in float64."""
    model = small_model().double().eval()
    model.document_mask = masked
    batch = loader_of(source, len(source)).batch(0, 0, 1)
    total = sum(model(*tensors) for tensors in batch.microbatches)
    assert isinstance(total, torch.Tensor)
    total.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return total.item(), batch.targets, found


def test_packed_conversations_learn_what_they_would_learn_alone(folder: Path) -> None:
    alone, packed = opened(folder, "documents"), opened(folder, "best-fit")
    assert len(packed) < len(alone) / 2
    one, counted, gradients = loss_and_gradients(alone, masked=False)
    other, recounted, regained = loss_and_gradients(packed, masked=True)
    assert counted == recounted and other == pytest.approx(one, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(regained[name], gradient, rtol=1e-4, atol=1e-6)
    by_ends_of_text = small_model().double().eval()
    batch = loader_of(packed, len(packed)).batch(0, 0, 1)
    torn = sum(float(by_ends_of_text(tokens, targets)) for tokens, targets, _ in batch.microbatches)
    assert abs(torn - one) > 1e-3  # end-of-text tokens alone would keep the turns of one conversation apart


def test_any_number_of_workers_gets_the_numbers_of_its_rows(folder: Path) -> None:
    loader = loader_of(opened(folder, "best-fit"), batch=7)
    whole = [row for tensors in loader.batch(0, 0, 1).microbatches for row in tensors[2].tolist()]
    for world in (2, 3):
        parts = [loader.batch(0, rank, world) for rank in range(world)]
        rows = [
            numbers.tolist()
            for part in parts
            for tensors in part.microbatches
            for numbers, targets in zip(tensors[2], tensors[1], strict=True)
            if bool((targets >= 0).any())
        ]
        assert rows == whole


@pytest.mark.parametrize("rows", ["documents", "best-fit"])
def test_conversations_beyond_the_row_are_cut_or_dropped(folder: Path, rows: Rows) -> None:
    cut, dropped = opened(folder, rows, "cut"), opened(folder, rows, "drop")

    def keys(source: TokenSource) -> set[int]:
        found = set()
        for row in range(len(source)):
            for position in range(LENGTH):
                try:
                    found.add(source.locate(row, position).document)
                except IndexError:
                    break
        return found

    assert keys(cut) - keys(dropped) == {0} and len(keys(dropped)) == CHATS - 5
    assert cut.longer().column("id").to_pylist() == [0]


@pytest.mark.parametrize("then", ["cut", "drop", "reject"])
def test_conversations_that_are_too_long_are_counted_and_rejects_listed(folder: Path, then: str) -> None:
    stage = Sft("sft", SftSettings.model_validate({"over_long": then}), seed=1)
    context = context_of(stage, Store(str(folder / "store")))
    source = opened(folder, "documents", "cut" if then == "cut" else "drop")
    result = report_over_long(context, StageResult({"loss": 1.0}, ["m"]), {"chats": source}, then)
    assert result.metrics == {"loss": 1.0, "over_long": {"conversations": 1, "then": then}}
    assert list(result.files) == (["m", "rejects.parquet"] if then == "reject" else ["m"])
    if then == "reject":
        with context.artifact.store.open_input(f"{context.artifact.folder}/rejects.parquet") as file:
            (row,) = pq.read_table(file).to_pylist()
        assert row["id"] == 0 and row["reason"] == "over-long" and "a row of chats has 64" in row["detail"]


def test_a_batch_without_a_target_is_a_step_and_no_nan(tmp_path: Path, world: World) -> None:
    builder = ShardBuilder(EOS, VOCABULARY, masked=True)
    for number in range(8):  # the only answer lies beyond the row
        ids = np.arange(1, 100)
        builder.add(number, number.to_bytes(16, "big"), "chats", "train", ids, ids > 90)
    write_shard_folder(tmp_path / "data", [builder])
    for rows in ("documents", "best-fit"):
        loader = loader_of(opened(tmp_path, rows), 4, steps=2)
        values = {"global_batch": 4, "sequence_length": LENGTH, "precision": "fp32"}
        train(LoopSettings.model_validate(values), small_model(), loader, {}, tmp_path / rows, world, seed=0)
        found = list(read_metrics(tmp_path / rows / "metrics.jsonl"))
        assert [(row["loss"], row["skipped"]) for row in found] == [(0.0, 0)] * 2


def test_the_setting_reaches_the_rows_and_the_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training import tuning
    from training.job import Corpus
    from training.shards import ShardIndex

    class Here:
        def local_folder(self, inside: str = "") -> Path:
            return folder / "data" / inside

    monkeypatch.setattr(
        tuning, "open_corpora", lambda *rest: [Corpus("chats", Here(), ShardIndex.read(folder / "data"))]
    )
    store = Store(str(folder / "store"))
    model = Artifact(store, "artifacts/model")
    finish(model, "model", kind="pretrain")
    steps = {}
    for packing in ("none", "best-fit"):
        values = {"packing": packing, "epochs": 4, "loop": {"global_batch": 4, "sequence_length": LENGTH}}
        stage = Sft("sft", SftSettings.model_validate(values), seed=1)
        job = stage._job(context_of(stage, store, model=[model], tokens=[model]))
        assert job.document_mask == (packing == "best-fit")
        steps[packing] = job.steps
    assert steps["none"] == CHATS - 4 and steps["best-fit"] < steps["none"] / 2
    values = {"epochs": 1, "loop": {"global_batch": 99, "sequence_length": LENGTH}}
    stage = Sft("sft", SftSettings.model_validate(values), seed=1)
    with pytest.raises(RecipeError, match="1 epochs of 36 rows are not even 1 steps of 99 rows") as raised:
        stage._job(context_of(stage, store, model=[model], tokens=[model]))
    assert "loop.global_batch to 36 or less" in raised.value.cure
