"""What is foretold of a run, against what it then takes; and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_run import open_loader, small_model, write_data
from transformers import AutoModelForCausalLM

from hornbook.errors import TrainingError
from training import preflight
from training.memory import MemoryModel, shape_of
from training.model import LanguageModel
from training.parallel import World
from training.preflight import look_ahead, most_checkpoints, what_fits
from training.presets import model_config
from training.settings import LoopSettings

TOLERANCE = 0.2
"""Of the memory that training adds to the process: foretold within a fifth of what is measured (here it is within 10%)."""
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def settings(**changes: Any) -> LoopSettings:
    values = {"global_batch": 8, "sequence_length": 64, "microbatch": 8, "precision": "fp32"}
    return LoopSettings.model_validate(values | changes)


def on_meta(preset: str) -> LanguageModel:
    with torch.device("meta"):
        return LanguageModel(AutoModelForCausalLM.from_config(model_config(preset)), eos=0)


def test_memory_is_as_foretold_and_a_person_can_read_it() -> None:
    command = [sys.executable, "-m", "training.preflight", "--json", "--preset", "phi-demo-3m", "--steps", "5000"]
    command += ["--global-batch", "8", "--sequence-length", "128", "--precision", "fp32"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    measured = found["measured"] - found["held"]
    assert found["foretold"] - found["held"] == pytest.approx(measured, rel=TOLERANCE)
    assert measured > 80 << 20, "too little to tell"
    step = 8 * 128 / found["tokens_per_second"]
    assert found["seconds"] == pytest.approx(5000 * step, rel=1e-6)
    lines = "\n".join(preflight.lines(found))
    for said in ("5,000 steps", "tokens/s", "memory per worker", "foretold: activations", "checkpoint", "loader"):
        assert said in lines


def test_the_formula_is_the_formula() -> None:
    """mobilellm-125m on 4 GPUs, AdamW, in bf16: what is sharded, what is whole."""
    model = on_meta("mobilellm-125m")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    block = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    root = parameters - 30 * block
    found = MemoryModel(shape_of(model), GPU)(settings(precision="bf16", global_batch=64), 4)
    assert (found.weights, found.optimizer) == (parameters, 2 * parameters)
    assert found.gradients == parameters + 4 * parameters, "two microbatches: the whole gradient is summed up"
    assert found.gathered == 2 * (root + 2 * block)
    tokens, width, inner, keys = 8 * 64, 576, 1536, 192
    least = (
        30 * tokens * 2 * (width + 2 * width + 2 * keys + 3 * inner)
    )  # a block's input, q, k, v, output, the MLP's parts
    assert least < found.activations < 3 * least


def test_checkpointing_and_smaller_microbatches_take_less() -> None:
    foretell = MemoryModel(shape_of(on_meta("phi-1-small")), CPU)
    whole = foretell(settings(), 1)
    full = foretell(settings(activation_checkpointing="full"), 1)
    assert full.activations < whole.activations / 3
    selective = foretell(settings(activation_checkpointing="selective"), 1)
    assert full.activations < selective.activations < whole.activations
    assert foretell(settings(microbatch=4), 1).activations == pytest.approx(whole.activations / 2, rel=0.01)
    assert foretell(settings(sequence_length=128), 1).activations > 2 * whole.activations


def test_what_does_not_fit_is_refused_with_what_would(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path)
    model, loader = small_model(), open_loader(tmp_path, 8)
    needed = MemoryModel(shape_of(model), CPU)(settings(), 1).total
    monkeypatch.setattr(preflight, "free_memory", lambda world: 0.8 * needed)
    with pytest.raises(TrainingError, match=r"does not fit: a worker needs") as refused:
        look_ahead(settings(), model, loader, tmp_path / "run", world, 0)
    assert "set loop.microbatch to 4" in refused.value.cure and "preflight: off" in refused.value.cure
    monkeypatch.setattr(preflight, "free_memory", lambda world: 4.0 * needed)
    found = look_ahead(settings(), model, loader, tmp_path / "run", world, 0)
    assert found.loader > 0 and found.left == found.steps == 14
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(TrainingError, match=r"checkpoints do not fit: 3 of"):
        look_ahead(settings(), model, loader, tmp_path / "run", world, 0)


def test_every_advice_fits() -> None:
    foretell = MemoryModel(shape_of(on_meta("mobilellm-125m")), GPU)
    wanted = settings(precision="bf16", microbatch=32, global_batch=256, sequence_length=1024)
    free = foretell(wanted, 1).total / 3
    advice = list(what_fits(foretell, wanted, 1, free))
    (alone,) = [line for line in advice if line.startswith("set loop.activation_checkpointing: ")]
    assert len(advice) >= 3 and advice[-1].startswith("take ")
    rows = int(advice[0].split("loop.microbatch to ")[1].split(" ")[0])
    assert foretell(wanted.model_copy(update={"microbatch": rows}), 1).total <= free
    assert foretell(wanted.model_copy(update={"microbatch": 2 * rows}), 1).total > free
    checkpointed = wanted.model_copy(update={"activation_checkpointing": alone.split(" ")[2]})
    assert foretell(checkpointed, 1).total <= free
    assert list(what_fits(foretell, wanted, 64, 1.0)) == []
    on_cpus = MemoryModel(shape_of(on_meta("mobilellm-125m")), CPU)
    little = settings(microbatch=1, activation_checkpointing="full")
    free = on_cpus(little.model_copy(update={"sharding": "full"}), 2).total
    assert any(line.startswith("set loop.sharding: full") for line in what_fits(on_cpus, little, 2, free))


@pytest.mark.parametrize(
    ("keep", "milestone", "best"), [(2, None, False), (1, 300, False), (3, 200, True), (2, 150, True)]
)
def test_all_checkpoints_that_stay_are_counted(keep: int, milestone: int | None, best: bool) -> None:
    """Against a run played through: of what is kept at every save, and the one being written."""
    loop = settings(
        checkpoint_every=100, keep_checkpoints=keep, milestone_every=milestone, best_by="mean" if best else None
    )
    there: set[int] = set()
    most = 0
    for step in range(100, 2001, 100):
        most = max(most, len(there) + 1)
        saved = sorted({*there, step})
        there = {*saved[-keep:], *(found for found in saved if milestone and found % milestone == 0)}
        there |= {100} if best else set()
    assert most_checkpoints(loop, 2000) == most
