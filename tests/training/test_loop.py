"""The loop in one process: guards, refusals, and a step that is AdamW's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import open_data, open_loader, small_files, small_model, write_data

from hornbook.errors import TrainingError
from training.checkpoint import latest, load_weights
from training.loader import Loader
from training.loop import train
from training.metrics import MetricsFile, json_ready, read_metrics
from training.mixture import Mixture, PhaseSettings, with_realised
from training.model import LanguageModel
from training.optimizer import Average, Guard, make_optimizer
from training.parallel import World
from training.presets import build_model, model_config
from training.schedule import ScheduleSettings
from training.settings import LoopSettings
from training.validation import Validation


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


def settings(**changes: Any) -> LoopSettings:
    values = {"global_batch": 8, "sequence_length": 64, "microbatch": 8, "validation_rows": 2, "checkpoint_every": 2}
    return LoopSettings.model_validate(values | {"precision": "fp32"} | changes)


def loader_of(folder: Path, steps: int, seed: int = 1) -> Loader:
    sources = open_data(folder)
    mixture = Mixture(
        {name: len(source) for name, source in sources.items()}, [PhaseSettings(name="p", steps=steps)], 8, 9, seed
    )
    return Loader(sources, mixture, 8)


def run(folder: Path, world: World, model: LanguageModel, loader: Loader, **changes: Any) -> None:
    train(settings(**changes), model, loader, open_data(folder, "validation"), folder / "run", world, seed=0)


def test_non_finite_steps_are_skipped_and_then_stop_the_run(folder: Path, world: World) -> None:
    model = small_model()
    torch.nn.init.constant_(model.model.lm_head.bias, float("nan"))
    before = model.model.lm_head.weight.clone()
    with pytest.raises(TrainingError, match="not finite 3 steps in a row"):
        run(folder, world, model, open_loader(folder), patience=3)
    rows = list(read_metrics(folder / "run" / "metrics.jsonl"))
    assert [(row["step"], row["loss"], row["skipped"]) for row in rows] == [(1, None, 1), (2, None, 2), (3, None, 3)]
    assert torch.equal(model.model.lm_head.weight.full_tensor(), before)


def test_a_run_goes_on_from_a_checkpoint_before_its_first_step(folder: Path, world: World) -> None:
    """All steps so far were left out: the optimizer has no state yet, and none is missed."""

    def broken() -> LanguageModel:
        model = small_model()
        torch.nn.init.constant_(model.model.lm_head.bias, float("nan"))
        return model

    for patience in (3, 5):
        with pytest.raises(TrainingError, match=f"not finite {patience} steps in a row"):
            run(folder, world, broken(), open_loader(folder), patience=patience)
    rows = list(read_metrics(folder / "run" / "metrics.jsonl"))
    assert [row["skipped"] for row in rows] == [1, 2, 3, 4, 5]


def test_a_resume_on_other_data_or_another_model_is_refused(folder: Path, world: World) -> None:
    run(folder, world, small_model(), loader_of(folder, 2))
    with pytest.raises(TrainingError, match="belongs to another data"):
        run(folder, world, small_model(), loader_of(folder, 2, seed=2))
    config = model_config(
        "phi-demo-3m", vocab_size=512, hidden_size=32, intermediate_size=64, num_attention_heads=1, num_hidden_layers=1
    )
    with pytest.raises(TrainingError, match="belongs to another model"):
        run(folder, world, LanguageModel(build_model(config, 0), 0), loader_of(folder, 2))
    for field, value in (("hidden_act", "relu"), ("num_attention_heads", 4), ("layer_norm_eps", 1e-3)):
        same_shapes = small_model().model.config
        setattr(same_shapes, field, value)
        with pytest.raises(TrainingError, match="belongs to another model"):
            run(folder, world, LanguageModel(build_model(same_shapes, 0), 0), loader_of(folder, 2))


def test_an_unwritable_checkpoint_leaves_the_one_before(folder: Path, world: World) -> None:
    run(folder, world, small_model(), loader_of(folder, 4), validate_every=99)
    (last,) = (folder / "run" / "checkpoints").glob("step-00000004-*")
    (last / "checkpoint.json").unlink()

    with small_files(), pytest.raises(TrainingError, match=r"could not be written: .*File too large"):
        run(folder, world, small_model(), loader_of(folder, 4))
    found = latest(folder / "run" / "checkpoints")
    assert found is not None and found.step == 2


def test_steps_are_those_of_plain_adamw(folder: Path, world: World) -> None:
    """Two steps against a loop written out with torch alone."""
    schedule = ScheduleSettings(kind="constant")
    model, plain = small_model(), small_model()
    for each in (model, plain):
        each.model.config.resid_pdrop = 0.0
        for module in each.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    loader = loader_of(folder, 2)
    run(folder, world, model, loader, schedule=schedule, microbatch=3)
    options = settings(schedule=schedule)
    optimizer = make_optimizer(plain, options)
    losses = []
    for step in range(2):
        ((tokens, targets),) = loader.batch(step, 0, 1).microbatches
        hidden = plain.hidden(tokens)
        loss = torch.nn.functional.cross_entropy(plain.model.lm_head(hidden).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), options.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    rows = list(read_metrics(folder / "run" / "metrics.jsonl"))
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-5)
    for (name, found), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.full_tensor(), expected, rtol=1e-3, atol=2e-4, msg=name)


def test_metrics_hold_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    for step in (1, 2, 3):
        file.append({"step": step, "attempt": 1})
    with path.open("a") as torn:
        torn.write('{"step": 4, "att')
    file = MetricsFile(path, 2)
    file.append({"step": 3, "attempt": 2})
    assert [(row["step"], row["attempt"]) for row in read_metrics(path)] == [(1, 1), (2, 1), (3, 2)]
    with small_files(path.stat().st_size + 7):  # room for a part of a row
        for step in (4, 5):
            with pytest.raises(OSError, match="File too large"):
                file.append({"step": step, "attempt": 2})
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    file.append({"step": 6, "attempt": 2})
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5, 6]


def test_figures_that_are_no_numbers_are_none_by_source_too() -> None:
    row = {"loss": float("inf"), "validation": {"web": float("nan"), "books": 2.0}}
    assert json_ready(row) == {"loss": None, "validation": {"web": None, "books": 2.0}}


def test_a_guard_leaves_out_leaps_once_it_knows_the_usual() -> None:
    guard = Guard(leap=3.0)
    assert all(guard.passes(1.0, norm) for norm in [9.0] + [1.0] * 40)  # a large first one is usual
    usual = guard.mean
    assert not guard.passes(1.0, 4 * usual) and (guard.skipped, guard.in_a_row, guard.mean) == (1, 1, usual)
    assert not guard.passes(float("nan"), 1.0) and guard.in_a_row == 2
    other = Guard(leap=3.0)
    other.restore(guard.counters())
    assert other == guard and other.passes(1.0, 1.0) and other.in_a_row == 0
    assert Guard().passes(1.0, 1e9)


def test_muon_takes_the_matrices_of_blocks_only(world: World) -> None:
    model = small_model()
    adamw, muon = make_optimizer(model, settings(optimizer="muon")).parts
    by_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    named = {name for name, parameter in model.named_parameters() if id(parameter) in by_muon}
    assert named == {name for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2}
    assert {"model.lm_head.weight", "model.model.embed_tokens.weight"}.isdisjoint(named)
    assert sum(len(group["params"]) for part in (adamw, muon) for group in part.param_groups) == len(
        list(model.parameters())
    )


def test_what_is_validated_is_what_the_stage_leaves(folder: Path, world: World) -> None:
    run(folder, world, small_model(), loader_of(folder, 4), average=0.9, learning_rate=0.05)
    found, row = latest(folder / "run" / "checkpoints"), list(read_metrics(folder / "run" / "metrics.jsonl"))[-1]
    assert found is not None
    losses = []
    for averaged in (True, False):
        left = small_model()
        load_weights(found, left, averaged)
        losses.append(Validation(open_data(folder, "validation"), 2, 8)(left, world))
    assert row["validation"] == pytest.approx(losses[0], rel=1e-5)
    assert row["validation"] != pytest.approx(losses[1], rel=1e-2)


def test_the_average_is_what_its_formula_says(folder: Path, world: World) -> None:
    model = small_model()
    average = Average(model, 0.75)
    first = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    average.update(model)
    for name, weights in average.weights.items():
        torch.testing.assert_close(weights, first[name] + 0.25)
    assert not Average(model, None).weights


def test_phases_have_schedules_of_their_own_and_their_shares_are_counted(folder: Path, world: World) -> None:
    sources = open_data(folder)
    phases = [
        PhaseSettings(name="stable", steps=6, weights={"a": 1, "b": 3}),
        PhaseSettings(
            name="decay",
            tokens={"a": 4 * 8 * 64},
            learning_rate=2e-4,
            schedule=ScheduleSettings(kind="linear", floor=0.5),
        ),
    ]
    sizes = {name: len(source) for name, source in sources.items()}
    rows_of = {name: source.row_tokens for name, source in sources.items()}
    mixture = Mixture(sizes, phases, 8, 9, 1, row_tokens=rows_of)
    run(folder, world, small_model(), Loader(sources, mixture, 8), learning_rate=1e-3, schedule={"kind": "constant"})
    rows = list(read_metrics(folder / "run" / "metrics.jsonl"))
    assert [row["lr"] for row in rows] == pytest.approx([1e-3] * 6 + [2e-4, 1e-4 * 5 / 3, 1e-4 * 4 / 3, 1e-4])
    assert [row["source_tokens"] for row in rows[-5:]] == [{"a": 2 * 64, "b": 6 * 64}] + [{"a": 8 * 64, "b": 0}] * 4
    found = [(share["phase"], share["source"], share["tokens"], share["share"], share["realised_share"])
             for share in with_realised(mixture, rows)]  # fmt: skip
    assert found == [("stable", "a", 768, 0.25, 0.25), ("stable", "b", 2304, 0.75, 0.75), ("decay", "a", 2048, 1, 1)]
