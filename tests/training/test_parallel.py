"""Every way to lay a model over workers, in real processes: the loss and gradients of one plain process."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import start, write_data
from torch.utils.flop_counter import FlopCounterMode

from hornbook.errors import RecipeError
from training.activation_checkpointing import checkpoint_block
from training.loss import IGNORED
from training.metrics import read_metrics
from training.model import LanguageModel
from training.parallel import World, begin_microbatch, join_world, leave_world, parallelize
from training.presets import build_model, model_config
from training.settings import LoopSettings

ROWS, LENGTH, WORDS, MICROBATCHES = 8, 24, 97, 2
SIZE = {
    "vocab_size": WORDS,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
}
LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (2, {"sharding": "full"}),
    (2, {"sharding": "zero1"}),
    (2, {"sharding": "full", "activation_checkpointing": "selective"}),
    (2, {"sharding": "zero1", "activation_checkpointing": "full"}),
    (4, {"sharding": "full"}),
    (4, {"sharding": "hybrid", "shard_group": 2}),
    (4, {"sharding": "hybrid", "shard_group": 1}),
]


def model() -> LanguageModel:
    config = model_config("mobilellm-125m-ls", num_key_value_heads=1, **SIZE)
    return LanguageModel(build_model(config, seed=3), eos=0)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, WORDS, (ROWS, LENGTH), generator=generator)
    targets = tokens.roll(-1, 1)
    targets[:, -1] = IGNORED
    return tokens, targets


def step(laid: LanguageModel, world: World) -> dict[str, torch.Tensor]:
    """Return the loss and all gradients, summed over this worker's rows in two microbatches and over the workers."""
    own = [tensor[world.rank :: world.size].chunk(MICROBATCHES) for tensor in batch()]
    total = torch.zeros(())
    for number, (tokens, targets) in enumerate(zip(*own, strict=True)):
        begin_microbatch(laid, number == MICROBATCHES - 1)
        loss = laid(tokens, targets)
        (loss * world.size).backward()
        total += loss.detach()
    torch.distributed.all_reduce(total)
    return {"loss": total} | {name: grad(parameter) for name, parameter in laid.named_parameters()}


def grad(parameter: torch.Tensor) -> torch.Tensor:
    found: Any = parameter.grad
    whole: torch.Tensor = found.full_tensor() if hasattr(found, "full_tensor") else found
    return whole


def work(rank: int, size: int, port: int, folder: Path) -> None:
    """Be one worker: a step in each of the layouts of this many workers."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = join_world()
    for number, (workers, changes) in enumerate(LAYOUTS):
        if workers == size:
            settings = LoopSettings.model_validate({"precision": "fp32", **changes})
            found = step(parallelize(model(), world, settings, compile_blocks=False), world)
            if rank == 0:
                torch.save(found, folder / f"{number}.pt")
    leave_world()


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each layout gave."""
    folder = tmp_path_factory.mktemp("layouts")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small_run"])
    for size in (2, 4):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        processes = [context.Process(target=work, args=(rank, size, port, folder)) for rank in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(200)
            assert process.exitcode == 0
    return folder


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """The step of one process, in plain torch."""
    plain = model()
    loss = plain(*batch())
    loss.backward()
    return {"loss": loss.detach()} | {name: grad(parameter) for name, parameter in plain.named_parameters()}


@pytest.mark.parametrize(
    "number", range(len(LAYOUTS)), ids=[f"{size}-{'-'.join(map(str, how.values()))}" for size, how in LAYOUTS]
)
def test_every_layout_gives_the_gradients_of_one_process(
    number: int, gradients: Path, expected: dict[str, torch.Tensor]
) -> None:
    found = torch.load(gradients / f"{number}.pt", weights_only=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-5 * value.norm(), name


def test_replicas_train_and_resume_like_one_group(tmp_path: Path) -> None:
    """Two replicas of one worker each, stopped after a step and gone on with as one group of two."""

    def run(name: str, **changes: Any) -> list[float]:
        folder = tmp_path / name
        if not folder.exists():
            write_data(folder)
        for process in start(folder, 2, **changes):
            process.join(200)
            assert process.exitcode == 0
        return [row["loss"] for row in read_metrics(folder / "run" / "metrics.jsonl")]

    expected = run("whole", sharding="full")
    write_data(tmp_path / "parts")
    (tmp_path / "parts" / "stop").touch()
    assert len(run("parts", sharding="hybrid", shard_group=1)) == 1
    (tmp_path / "parts" / "stop").unlink()
    assert run("parts", sharding="full") == pytest.approx(expected, rel=1e-4)


def test_groups_must_divide_the_workers() -> None:
    settings = LoopSettings.model_validate({"sharding": "hybrid", "shard_group": 2})
    world = join_world()
    try:
        with pytest.raises(RecipeError, match="3 workers cannot be divided into groups of 2"):
            parallelize(model(), World(0, 3, world.device), settings, compile_blocks=False)
    finally:
        leave_world()


@pytest.mark.parametrize("preset", ["mobilellm-125m-ls", "phi-demo-3m"])
def test_checkpointed_blocks_give_the_same_gradients_and_selective_ones_do_no_product_twice(preset: str) -> None:
    dropout = {"resid_pdrop": 0.2} if preset == "phi-demo-3m" else {"num_key_value_heads": 1}

    def step(mode: Any) -> tuple[int, list[torch.Tensor]]:
        fresh = LanguageModel(build_model(model_config(preset, **SIZE, **dropout), seed=3), eos=0)
        for block in fresh.blocks:
            checkpoint_block(block, mode)
        torch.manual_seed(4)
        with FlopCounterMode(display=False) as counter:
            fresh(*batch()).backward()
        return counter.get_total_flops(), [grad(parameter) for parameter in fresh.parameters()]

    plain, wanted = step("none")
    selective, one = step("selective")
    full, other = step("full")
    assert selective == plain < full
    for expected, *found in zip(wanted, one, other, strict=True):
        assert all(torch.equal(gradient, expected) for gradient in found)
