"""Preference tuning: its loss against formula and TRL, what it starts from, pairs through packing, loading and the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import small_model
from torch.nn import functional

from training.loader import Loader, inputs_and_targets
from training.loop import train
from training.loss import IGNORED
from training.metrics import read_metrics
from training.mixture import Mixture, PhaseSettings
from training.parallel import World
from training.preference_model import PreferenceModel, row_log_probabilities
from training.settings import LoopSettings
from training.shards import ShardBuilder, TokenSource, write_shard_folder

LENGTH, PAIRS, VOCABULARY = 24, 60, 512


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pairs whose chosen answers have even ids, the rejected ones odd ids; every tenth pair is held out."""
    random = np.random.default_rng(0)
    builders = [ShardBuilder(eos=0, vocabulary=VOCABULARY, masked=True) for _ in range(2)]
    for number in range(PAIRS):
        prompt = random.integers(1, 200, 6)
        split: Any = "validation" if number % 10 == 0 else "train"
        for answer in (2 * random.integers(1, 100, 5), 2 * random.integers(1, 100, 9) + 1):
            mask = np.arange(len(prompt) + len(answer)) >= len(prompt)
            ids = np.concatenate([prompt, answer])
            builders[number % 2].add(number, number.to_bytes(16, "big"), "pairs", split, ids, mask)
    write_shard_folder(tmp_path / "data", builders)
    return tmp_path


def source(folder: Path, split: Any = "train") -> TokenSource:
    return TokenSource(folder / "data", split, LENGTH, "pairs")


def preference_model(beta: float = 0.1, length_normalised: bool = False) -> PreferenceModel:
    model = small_model().model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return PreferenceModel(model, 0, beta, length_normalised)


def run(folder: Path, world: World, model: PreferenceModel, steps: int = 6, name: str = "run", **changes: Any) -> Any:
    pairs = source(folder)
    mixture = Mixture({"pairs": len(pairs)}, [PhaseSettings(name="dpo", steps=steps)], 8, 9, 1)
    loader = Loader({"pairs": pairs}, mixture, 3)
    values = {"global_batch": 8, "sequence_length": LENGTH, "microbatch": 3, "precision": "fp32", "learning_rate": 3e-3,
              "checkpoint_every": 3, "validate_every": 3, **changes}  # fmt: skip
    settings = LoopSettings.model_validate(values)
    train(settings, model, loader, {"pairs": source(folder, "validation")}, folder / name, world, seed=0)
    return list(read_metrics(folder / name / "metrics.jsonl"))


def test_pairs_are_read_two_rows_at_a_time(folder: Path) -> None:
    pairs = source(folder)
    tokens, trained = pairs.read(np.array([3, 0]))
    assert len(pairs) == PAIRS - PAIRS // 10 and tokens.shape == (4, LENGTH + 1)
    for row in range(4):
        answer = tokens[row][trained[row]][:-1]  # the end-of-text token is trained on, too
        assert len(answer) == (5 if row % 2 == 0 else 9) and (answer % 2 == row % 2).all()
    assert (tokens[0, 1:7] == tokens[1, 1:7]).all()
    assert pairs.locate(3, 1).key == pairs.locate(3, 9).key


@pytest.mark.parametrize("length_normalised", [False, True])
def test_the_loss_is_the_formula(folder: Path, length_normalised: bool) -> None:
    model = preference_model(0.3, length_normalised).double()
    inputs, targets = (torch.from_numpy(array) for array in inputs_and_targets(*source(folder).read(np.arange(4))))
    reference = torch.randn(8, generator=torch.Generator().manual_seed(1))
    found = model(inputs, targets, reference.view(torch.int32))
    logits = model.model(
        input_ids=inputs, attention_mask=(inputs != 0).long().index_fill(1, torch.tensor([0]), 1), use_cache=False
    ).logits
    log_probabilities = torch.log_softmax(logits, -1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    counted = targets != IGNORED
    sums = torch.where(counted, log_probabilities, 0.0).sum(1)
    if length_normalised:
        sums = sums / counted.sum(1)
    margins = 0.3 * ((sums - reference)[0::2] - (sums - reference)[1::2])
    expected = torch.stack([-functional.logsigmoid(margins).sum(), (margins > 0).sum().double(), margins.sum()])
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-4)


def test_gradients_of_chunked_log_probabilities_are_those_of_whole_ones() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 7, 16, dtype=torch.float64), torch.randn(3_000, 16, dtype=torch.float64)
    targets = torch.randint(0, 3_000, (3, 7))
    targets[:, ::3] = IGNORED

    def gradients(whole: bool) -> list[torch.Tensor]:
        states, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if whole:
            losses = functional.cross_entropy((states @ head.T).flatten(0, 1), targets.flatten(), reduction="none")
            rows = -losses.view(3, 7).sum(1)
        else:
            rows = row_log_probabilities(states, head, None, targets)
        (rows * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
        return [rows.detach(), torch.as_tensor(states.grad), torch.as_tensor(head.grad)]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_a_run_begins_at_its_former_self_and_learns_what_is_preferred(folder: Path, world: World) -> None:
    rows = run(folder, world, preference_model(), steps=12)
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-5) and rows[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["loss"] < 0.6 and rows[-1]["accuracy"] == 1.0 and rows[-1]["margin"] > 0
    assert rows[-1]["validation_accuracy"]["pairs"] == 1.0 and rows[-1]["validation"]["pairs"] < 0.65


def test_a_resumed_run_keeps_the_reference_of_the_first_start(folder: Path, world: World) -> None:
    whole = run(folder, world, preference_model(), name="whole")
    run(folder, world, preference_model(), name="twice")
    last = max((folder / "twice" / "checkpoints").iterdir())
    (last / "checkpoint.json").unlink()  # as if killed before the last checkpoint was whole
    again = run(folder, world, preference_model(), name="twice")
    assert [row["loss"] for row in again] == [row["loss"] for row in whole]


def test_an_answer_beyond_the_row_counts_nothing(world: World) -> None:
    model = preference_model()
    inputs = torch.randint(1, 200, (2, 6))
    targets = torch.full((2, 6), IGNORED)
    targets[0, 3:] = 5
    sums = model(inputs, targets, torch.zeros(2, dtype=torch.int32))
    assert sums.tolist() == [0.0, 0.0, 0.0]
    sums.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
