"""The best of a run's weights: chosen by held-out loss among every so many steps, whatever was saved in between."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_run import LENGTH, open_data, open_loader, small_model, write_data

from hornbook.errors import TrainingError
from training.best import BestOfSettings, best, with_candidates
from training.checkpoint import kept, latest, load_weights
from training.loop import train
from training.metrics import read_metrics
from training.parallel import join_world, leave_world
from training.settings import LoopSettings


def test_the_best_of_a_run_that_gets_worse_is_not_its_last(tmp_path: Path) -> None:
    write_data(tmp_path)
    best_of = BestOfSettings(every=3, by="a")
    loop = LoopSettings.model_validate(
        # A rate that unlearns: the first steps warm up, the later ones are far too long.
        {"global_batch": 8, "sequence_length": LENGTH, "microbatch": 8, "precision": "fp32", "learning_rate": 0.3,
         "schedule": {"kind": "linear", "warmup_steps": 14}, "validation_rows": 4, "validate_every": 100, "keep_checkpoints": 1,
         "clip": 1e9}
    )  # fmt: skip
    settings = with_candidates(loop, best_of)
    assert (settings.checkpoint_every, settings.best_by) == (3, "a") and with_candidates(loop, None) is loop
    world, run = join_world(), tmp_path / "run"
    try:
        train(settings, small_model(), open_loader(tmp_path), open_data(tmp_path, "validation"), run, world, seed=0)
        # The same run, stopped behind a step that happens to be better than all candidates, and validated.
        broken, wishes = tmp_path / "broken", iter((False, True))
        often = settings.model_copy(update={"validate_every": 2})
        for stop in (lambda: next(wishes), lambda: False):
            loader, held_out = open_loader(tmp_path), open_data(tmp_path, "validation")
            train(often, small_model(), loader, held_out, broken, world, seed=0, stop=stop)
    finally:
        leave_world()
    rows = {row["step"]: row["validation"]["a"] for row in read_metrics(run / "metrics.jsonl") if "validation" in row}
    assert sorted(rows) == [3, 6, 9, 12, 14]
    wanted = min(rows, key=lambda step: rows[step])
    last = latest(run / "checkpoints")
    assert last is not None and last.step == 14 != wanted
    found = best(last, run / "checkpoints", best_of)
    assert found.step == wanted and found.score == pytest.approx(rows[wanted])
    losses = {
        row["step"]: row["validation"]["a"] for row in read_metrics(broken / "metrics.jsonl") if "validation" in row
    }
    assert losses[2] < losses[wanted] == rows[wanted], "choose learning rates with which it is"
    assert best(latest(broken / "checkpoints") or last, broken / "checkpoints", best_of).step == wanted
    ours, theirs = small_model(), small_model()
    load_weights(found, ours)
    load_weights(last, theirs)
    assert not all(torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert best(last, run / "checkpoints", BestOfSettings(every=1000)).step == 14  # no other step is a candidate
    (next(found.path.glob("*.safetensors"))).write_bytes(b"torn")
    assert len(kept(run / "checkpoints")) == 2
    with pytest.warns(UserWarning, match="torn"):
        assert best(last, run / "checkpoints", best_of).step == 14


def test_there_is_no_best_by_nothing(tmp_path: Path) -> None:
    write_data(tmp_path)
    values = {"global_batch": 8, "sequence_length": LENGTH, "microbatch": 8, "precision": "fp32"}
    settings = with_candidates(LoopSettings.model_validate(values), BestOfSettings())
    world = join_world()
    try:
        with pytest.raises(TrainingError, match="nothing is held out") as raised:
            train(settings, small_model(), open_loader(tmp_path), {}, tmp_path / "run", world, seed=0)
    finally:
        leave_world()
    assert "validation_share" in raised.value.cure
