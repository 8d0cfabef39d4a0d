"""What a person sees of a run while it goes on: figures, recorders, samples, a profile; and that none of it changes the run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import VOCABULARY, open_data, open_loader, small_model, write_data

from training.archive import file_digest
from training.checkpoint import latest, load_weights
from training.loop import train
from training.metrics import read_metrics
from training.parallel import World
from training.recorders import Recorders
from training.samples import Prompts, read_prompts
from training.settings import LoopSettings

STEPS = 14
PROMPTS = ["w7 w8", "w150 w20 w33 w4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0").save_pretrained(folder)
    return read_prompts(PROMPTS, folder, chat=False)


class Killed(Exception):
    pass


def run(data: Path, folder: Path, world: World, prompts: Prompts | None = None, kill: int = 0, **changes: Any) -> Any:
    """Train the small run; `kill` ends it behind that step as a kill would, without a checkpoint."""
    values = {"global_batch": 8, "sequence_length": 64, "microbatch": 8, "validation_rows": 4, "checkpoint_every": 4}
    settings = LoopSettings.model_validate(values | {"precision": "fp32", "validate_every": 5} | changes)

    def progress(row: dict[str, Any]) -> None:
        if row["step"] == kill:
            raise Killed

    held_out = open_data(data, "validation")
    train(
        settings, small_model(), open_loader(data), held_out, folder, world, 0, progress=progress,
        bytes_per_token={"a": 2.0}, prompts=prompts,
    )  # fmt: skip


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return list(read_metrics(folder / "metrics.jsonl"))


@pytest.fixture(scope="module")
def plain(data: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    run(data, folder, world)
    return folder


@pytest.fixture(scope="module")
def watched(data: Path, world: World, prompts: Prompts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with everything on, killed behind step 11 and begun again."""
    folder = tmp_path_factory.mktemp("watched")
    on: dict[str, Any] = {"record": ["tensorboard"], "sample_every": 3, "sample_tokens": 6}
    on |= {"profile": {"from": 2, "steps": 2}}
    with pytest.raises(Killed):
        run(data, folder, world, prompts, kill=11, **on)
    run(data, folder, world, prompts, **on)
    return folder


def test_a_row_says_how_good_and_how_fast(plain: Path) -> None:
    rows = rows_of(plain)
    for row in rows:
        assert 0 < row["mfu"] < 1.5 and row["memory_bytes"] > 50 << 20 and row["tokens_per_second"] > 0
    validated = [row for row in rows if "validation" in row]
    assert [row["step"] for row in validated] == [5, 10, 14]
    for row in validated:
        assert row["perplexity"] == pytest.approx({name: math.exp(loss) for name, loss in row["validation"].items()})
        assert row["bits_per_byte"] == pytest.approx({"a": row["validation"]["a"] / math.log(2) / 2.0})
    left = [row["eta_seconds"] for row in rows]
    seconds = [row["seconds"] for row in rows]
    assert left[-1] == 0 and left[6] == pytest.approx(7 * sum(seconds[1:7]) / 6)


def test_watching_changes_no_bit_of_the_run(plain: Path, watched: Path) -> None:
    kept = ("step", "loss", "grad_norm", "lr", "validation", "batch_digest")
    assert [[row.get(key) for key in kept] for row in rows_of(plain)] == [
        [row.get(key) for key in kept] for row in rows_of(watched)
    ]
    weights = []
    for folder in (plain, watched):
        found = latest(folder / "checkpoints")
        assert found is not None and found.step == STEPS
        model = small_model()
        load_weights(found, model)
        weights.append(model.state_dict())
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_samples_are_what_the_model_writes_greedily(watched: Path, prompts: Prompts) -> None:
    written = list(read_metrics(watched / "samples.jsonl"))
    assert [row["step"] for row in written] == [3, 6, 9, 12, 14], "each once, over a kill and a resume"
    found = latest(watched / "checkpoints")
    assert found is not None
    model = small_model()
    load_weights(found, model)
    for ids, sample in zip(prompts.ids, written[-1]["samples"], strict=True):
        whole = model.model.eval().generate(
            torch.tensor([list(ids)]), max_new_tokens=6, do_sample=False, eos_token_id=0, pad_token_id=0
        )
        expected = prompts.tokenizer.decode(whole[0, len(ids) :], skip_special_tokens=True)
        assert sample["text"] == expected and expected


def test_tensorboard_holds_each_step_once_after_a_kill(watched: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(watched / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    rows = rows_of(watched)
    for tag, key in (("train/loss", "loss"), ("train/lr", "lr"), ("train/grad_norm", "grad_norm")):
        assert [(event.step, event.value) for event in board.Scalars(tag)] == [
            (row["step"], pytest.approx(row[key], rel=1e-6)) for row in rows
        ]
    for source in "ab":
        assert [event.step for event in board.Scalars(f"validation/{source}")] == [5, 10, 14]
    assert {"speed/tokens_per_second", "speed/mfu", "speed/memory_bytes", "perplexity/a"} <= set(
        board.Tags()["scalars"]
    )
    texts = board.Tensors("samples/0/text_summary")
    assert [event.step for event in texts] == [3, 6, 9, 12, 14]
    last = list(read_metrics(watched / "samples.jsonl"))[-1]["samples"][0]
    assert texts[-1].tensor_proto.string_val[0].decode().strip() == last["prompt"] + last["text"]


def test_a_profile_leaves_a_trace_and_a_table(watched: Path) -> None:
    events = json.loads((watched / "profile" / "trace.json").read_text())["traceEvents"]
    assert any(event.get("name") == "aten::mm" for event in events)
    assert "Self CPU" in (watched / "profile" / "operations.txt").read_text()


def test_a_recorder_that_fails_warns_and_the_run_goes_on(data: Path, world: World, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("no folder")
    with pytest.warns(UserWarning, match=r"nothing more is recorded in tensorboard: .*metrics.jsonl goes on"):
        run(data, tmp_path, world, record=["tensorboard"])
    assert [row["loss"] for row in rows_of(tmp_path)] == [row["loss"] for row in rows_of(plain)]


def test_wandb_keeps_an_offline_run_and_doubles_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    sample = {"prompt": "Once", "text": " upon a time"}
    for first, last in ((0, 3), (2, 5)):  # killed after step 3, gone on from the checkpoint of step 2
        recorders = Recorders(["wandb"], tmp_path, first, "run")
        for step in range(first + 1, last + 1):
            recorders.row(
                {"step": step, "loss": 4.0 / step, "mfu": 0.25, "validation": {"web": 3.0}, "phase": "stable"}
            )
            recorders.texts(step, [sample])
        recorders.close()
    deadline = time.monotonic() + 30
    while len(history := offline_history(tmp_path / "wandb")) < 5 and time.monotonic() < deadline:
        time.sleep(0.1)  # a process of wandb's own writes the last of it
    assert [row["_step"] for row in history] == [1, 2, 3, 4, 5]
    assert [row["train/loss"] for row in history] == [4.0 / step for step in range(1, 6)]
    assert all(row["speed/mfu"] == 0.25 and row["validation/web"] == 3.0 and "samples/_type" in row for row in history)


def offline_history(folder: Path) -> list[dict[str, Any]]:
    """Return the steps of all offline runs below a folder, as `wandb sync` would send them."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for file in sorted(folder.rglob("*.wandb")):
        for data in log_records(file.read_bytes()[7:]):
            record: Any = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def log_records(log: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format, which a file of wandb is behind its seven first bytes."""
    block, head, whole = 32768, 7, b""
    at = 0
    while at + head <= len(log):
        left = block - (at + head) % block  # blocks count from the file's beginning
        if left < head:
            at += left
            continue
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        whole += log[at + head : at + head + length]
        at += head + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield whole
            whole = b""


def test_files_named_here_are_the_ones_that_last(watched: Path) -> None:
    """An archive copies what `RECORDED` names; a recorder that wrote elsewhere would be lost with its machine."""
    from training.archive import RECORDED

    made = {path.name for path in watched.iterdir()} - {"metrics.jsonl", "samples.jsonl", "checkpoints"}
    assert made == {"tensorboard", "profile"} and made <= set(RECORDED)
    assert file_digest(watched / "samples.jsonl")
