"""The training stages from documents to an exported model, through Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import chat_documents, corpus, finish, preference_documents, python_documents

from hornbook.artifact import THRESHOLD, Artifact
from hornbook.errors import DataError, RecipeError, Stopped
from hornbook.events import Events, read_events
from hornbook.settings import validate
from hornbook.stage import Stage, StageContext
from hornbook.store import Store
from training.checkpoint import newest
from training.corpora import open_corpora
from training.dpo import Dpo
from training.metrics import read_metrics
from training.model_card import sources_of
from training.pack import Pack
from training.packed import describe, shard_index
from training.pretrain import Pretrain, require_same_words
from training.sft import Sft
from training.shards import TokenSource
from training.tokenizer import TokenizerStage, load_tokenizer

DOCUMENTS, CHATS = 60, 40
LOOP = {
    "global_batch": 4, "sequence_length": 64, "microbatch": 2, "validate_every": 5, "checkpoint_every": 5,
    "validation_rows": 4, "sample_prompts": ["import os", "def main"], "sample_every": 6, "sample_tokens": 4,
    "record": ["tensorboard"],
}  # fmt: skip
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}

pytestmark = pytest.mark.usefixtures("ray_cluster")


def no_engine(settings: Any, wait: bool = True) -> Any:
    raise AssertionError("no engine is needed here")


def stage_and_context(
    kind: type[Stage],
    store: Store,
    name: str,
    settings: dict[str, Any],
    inputs: dict[str, dict[str, Artifact]],
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Any, StageContext]:
    """Return a stage and what the pipeline would hand it."""
    context = StageContext(
        artifact=Artifact(store, f"artifacts/{name}"),
        inputs={role: list(found.values()) for role, found in inputs.items()},
        input_stages={role: list(found) for role, found in inputs.items()},
        stage=name, seed=7, run="test", events=Events(store, "runs/test"), stop_requested=stop, open_engine=no_engine,
    )  # fmt: skip
    return kind(name, validate(kind.Settings, settings, name), 7), context


def run_stage(
    kind: type[Stage],
    store: Store,
    name: str,
    settings: dict[str, Any],
    inputs: dict[str, dict[str, Artifact]],
    stop: Callable[[], bool] = lambda: False,
) -> Artifact:
    """Run one stage on finished artifacts, as the pipeline does."""
    stage, context = stage_and_context(kind, store, name, settings, inputs, stop)
    result = stage.run(context)
    finish(context.artifact, name, kind.produces, inputs, metrics=result.metrics, files=result.files)
    return context.artifact


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def web(store: Store) -> Artifact:
    return corpus(store, "web", python_documents(DOCUMENTS))


@pytest.fixture(scope="module")
def tokenizer(store: Store, web: Artifact) -> Artifact:
    return run_stage(TokenizerStage, store, "tokenizer", {"vocabulary": 1024}, {"documents": {"web": web}})


@pytest.fixture(scope="module")
def packed(store: Store, web: Artifact, tokenizer: Artifact, ray_cluster: None) -> Artifact:
    inputs = {"documents": {"web": web}, "tokenizer": {"tokenizer": tokenizer}}
    return run_stage(Pack, store, "pack-web", {"validation_share": 0.1}, inputs)


@pytest.fixture(scope="module")
def packed_chat(store: Store, tokenizer: Artifact, ray_cluster: None) -> Artifact:
    documents = chat_documents(CHATS)
    bad = chat_documents(CHATS + 2)[CHATS:]
    documents += [bad[0].__class__(**{**vars(bad[0]), "meta": {"chat": [{"role": "wizard", "content": "x"}]}})]
    documents += [
        bad[1].__class__(**{**vars(bad[1]), "meta": {"chat": [{"role": "assistant", "content": "a <|end|> b"}]}})
    ]
    inputs = {"documents": {"sums": corpus(store, "sums", documents)}, "tokenizer": {"tokenizer": tokenizer}}
    return run_stage(Pack, store, "pack-sums", {"form": "chat", "validation_share": 0.1}, inputs)


@pytest.fixture(scope="module")
def pretrained(store: Store, tokenizer: Artifact, packed: Artifact) -> Artifact:
    settings = {"model": SMALL, "phases": [{"name": "stable", "steps": 10}], "max_epochs": 50, "loop": LOOP}
    inputs = {"tokens": {"pack-web": packed}, "tokenizer": {"tokenizer": tokenizer}}
    return run_stage(Pretrain, store, "pretrain", settings, inputs)


def test_the_tokenizer_round_trips_and_names_special_tokens(tokenizer: Artifact) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer.local_folder() / "tokenizer")
    assert len(loaded) == tokenizer.manifest.metrics["entries"] == 1024
    assert loaded.convert_tokens_to_ids(["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]) == [
        0, 1, 2, 3, 4
    ]  # fmt: skip
    for text in ("\tx = 'ünïcode'\r\n\n  😀 ", "a  b", " leading"):
        assert loaded.decode(loaded(text, add_special_tokens=False).input_ids) == text
    assert loaded("hello").input_ids[0] == loaded.bos_token_id == loaded.eos_token_id == 0
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    rendered = loaded.apply_chat_template(chat, tokenize=False)
    assert rendered == "<|endoftext|><|user|>\nHi<|end|>\n<|assistant|>\nYes.<|end|>\n"


def test_packing_keeps_every_token_and_where_it_came_from(web: Artifact, tokenizer: Artifact, packed: Artifact) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer.local_folder() / "tokenizer")
    documents = {row["key"]: row for table in web.tables() for row in table.to_pylist()}
    spans = [row for table in packed.tables() for row in table.to_pylist()]
    assert {span["key"] for span in spans} == set(documents)
    assert packed.manifest.counts["rows"] == packed.manifest.counts["planned"] == DOCUMENTS
    assert {span["split"] for span in spans} == {"train", "validation"}
    source = TokenSource(packed.local_folder(), "train", 64, index=shard_index(packed))
    assert source.tokens == packed.manifest.counts["train_tokens"]
    random = np.random.default_rng(0)
    for sequence in random.integers(0, len(source), 20):
        tokens, trained = source.read(np.array([sequence]))
        assert trained.all()
        position = int(random.integers(0, 64))
        found = source.locate(int(sequence), position)
        text = documents[found.key]["text"]
        ids = [*loaded(text, add_special_tokens=False).input_ids, 0]
        assert ids[found.offset] == tokens[0, position] and found.corpus == "web"


def test_a_threshold_selects_without_losing_count(store: Store, web: Artifact, tokenizer: Artifact) -> None:
    import pyarrow as pa

    from hornbook.parts import PartContent, commit_part, same_ids

    scores = Artifact(store, "artifacts/scores")
    for part in web.parts:
        table = web.read(part, columns=["id", "key"])
        values = pa.array([float(row % 2) for row in range(table.num_rows)], pa.float32())
        content = PartContent(
            table.append_column("score", values), planned=table.column("id").to_numpy(), unit_of=same_ids
        )
        commit_part(store, scores.folder, part.range, content)
    store.write_json(f"{scores.folder}/{THRESHOLD}", {"threshold": 0.5})
    finish(scores, "quality", "attributes", {"documents": {"web": web}}, files=[THRESHOLD])
    inputs = {"documents": {"web": web}, "tokenizer": {"tokenizer": tokenizer}, "scores": {"quality": scores}}
    chosen = run_stage(Pack, store, "pack-good", {"source": "good"}, inputs)
    assert chosen.manifest.counts["rows"] == chosen.manifest.counts["below_threshold"] == DOCUMENTS / 2
    assert chosen.manifest.counts["planned"] == DOCUMENTS and describe(chosen).source == "good"
    with pytest.raises(DataError, match="no document is left"):
        run_stage(Pack, store, "pack-none", {"minimum_score": 2.0}, inputs)
    elsewhere = Artifact(store, "artifacts/scores-of-others")
    store.write_json(f"{elsewhere.folder}/{THRESHOLD}", {"threshold": 0.5})
    finish(elsewhere, "others", "attributes", {}, files=[THRESHOLD])
    with pytest.raises(RecipeError, match="others scored other documents than"):
        run_stage(Pack, store, "pack-others", {}, inputs | {"scores": {"others": elsewhere}})


def test_chat_is_trained_on_answers_only(tokenizer: Artifact, packed_chat: Artifact) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer.local_folder() / "tokenizer")
    assert packed_chat.manifest.reasons == {"bad-chat": 1, "special-token": 1}
    source = TokenSource(packed_chat.local_folder(), "train", 64, "documents", shard_index(packed_chat))
    tokens, trained = source.read(np.arange(len(source)))
    for row, mask in zip(tokens, trained, strict=True):
        said = loaded.decode(row[mask])
        assert said.startswith("It is ") and said.endswith(".<|end|>")
        assert loaded.decode(row).startswith("<|endoftext|><|user|>\nWhat is ")


def test_pretraining_leaves_a_model_that_learned(pretrained: Artifact, packed: Artifact) -> None:
    from transformers import AutoModelForCausalLM

    metrics = pretrained.manifest.metrics
    rows = list(read_metrics(pretrained.local_folder() / "metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, 11)) and metrics["steps"] == 10
    assert rows[-1]["validation"]["web"] < rows[4]["validation"]["web"]
    assert metrics["tokens"] == 10 * 4 * 64 and metrics["mixture"][0]["sequences"] == 40
    counts = packed.manifest.counts
    tokens_per_byte = counts["validation_tokens"] / counts["validation_bytes"]
    assert metrics["bits_per_byte"]["web"] == pytest.approx(metrics["validation"]["web"] / np.log(2) * tokens_per_byte)
    assert 1 < 1 / tokens_per_byte < 8
    model = AutoModelForCausalLM.from_pretrained(pretrained.local_folder() / "model")
    assert sum(parameter.numel() for parameter in model.parameters()) == metrics["parameters"]
    assert metrics["proof"]["largest"] <= metrics["proof"]["allowed"] == 1e-3
    (row,) = sources_of(pretrained)
    assert (row.phase, row.source, row.tokens, row.licences) == ("stable", "web", 10 * 4 * 64, "unknown")
    assert not any("ray-train" in name for name, _ in pretrained.store.files(pretrained.folder))


def test_a_run_says_what_it_will_take_and_shows_what_it_writes(store: Store, pretrained: Artifact) -> None:
    events = [event for event in read_events(store, "runs/test") if event.get("stage") == "pretrain"]
    (found,) = [event for event in events if event["event"] == "preflight"]
    assert found["workers"] == 2 and found["steps"] == found["left"] == 10 and found["tokens"] == 10 * 4 * 64
    checkpoint = newest(pretrained.local_folder() / "checkpoints")
    assert checkpoint is not None
    saved = sum(size for size, _ in checkpoint.files.values())
    assert found["checkpoint"] == pytest.approx(saved, rel=0.05), "weights and two moments, and the files' heads"
    told = [event for event in events if event["event"] == "samples"]
    written = list(read_metrics(pretrained.local_folder() / "samples.jsonl"))
    assert [row["step"] for row in written] == [event["step"] for event in told] == [6, 10]
    assert [sample["prompt"] for sample in written[0]["samples"]] == ["import os", "def main"]
    assert "samples.jsonl" in [entry.name for entry in pretrained.manifest.files]
    assert list((pretrained.local_folder() / "tensorboard").glob("events.*"))


def test_a_preflight_trains_a_moment_and_leaves_nothing(store: Store, tokenizer: Artifact, packed: Artifact) -> None:
    values = {"model": SMALL, "phases": [{"name": "stable", "steps": 40}], "max_epochs": 50, "loop": LOOP}
    inputs = {"tokens": {"pack-web": packed}, "tokenizer": {"tokenizer": tokenizer}}
    stage, context = stage_and_context(Pretrain, store, "tried", values, inputs)
    table = {line[0]: line for line in stage.preflight(context)}
    assert table["time"][2].startswith("40 steps, 10,240 tokens")
    assert {"speed", "memory per worker", "checkpoint", "loader"} < set(table)
    assert not list((context.artifact.local_folder() / "checkpoints").glob("*"))


def test_a_training_token_is_traced_to_its_place_in_its_document(
    store: Store, web: Artifact, tokenizer: Artifact, packed: Artifact
) -> None:
    from transformers import AutoTokenizer

    settings = {"model": SMALL, "phases": [{"name": "stable", "steps": 10}], "max_epochs": 50, "loop": LOOP}
    inputs = {"tokens": {"pack-web": packed}, "tokenizer": {"tokenizer": tokenizer}}
    stage, context = stage_and_context(Pretrain, store, "traced", settings, inputs)
    job = stage._job(context)
    sources = job.open("train")
    loaded = AutoTokenizer.from_pretrained(tokenizer.local_folder() / "tokenizer")
    texts = {row["key"]: row["text"] for table in web.tables() for row in table.to_pylist()}
    mixture = job.mixture(sources)
    random = np.random.default_rng(1)
    for step in (1, 4, 10):
        draws = mixture.batch(step - 1)
        for row in range(0, job.settings.global_batch, 3):
            position = int(random.integers(0, job.settings.sequence_length))
            tokens, _ = sources["web"].read(draws.sequence[row : row + 1])
            found = stage.locate_token(context, step, row, position)
            ids = [*loaded(texts[found.key], add_special_tokens=False).input_ids, 0]
            assert ids[found.offset] == tokens[0, position]
    for place in ((0, 0, 0), (11, 0, 0), (1, 10_000, 0), (1, 0, 10_000)):
        with pytest.raises(DataError, match="there is no position"):
            stage.locate_token(context, *place)


def test_tuning_goes_on_from_the_pretrained_model(store: Store, pretrained: Artifact, packed_chat: Artifact) -> None:
    settings = {"epochs": 2, "loop": LOOP, "workers": 1, "lora": {"rank": 2}, "best_of": {"every": 6, "by": "sums"}}
    inputs = {"model": {"pretrain": pretrained}, "tokens": {"pack-sums": packed_chat}}
    tuned = run_stage(Sft, store, "sft", settings, inputs)
    metrics = tuned.manifest.metrics
    assert metrics["best"]["step"] in (6, 12, metrics["steps"]) and metrics["proof"]["largest"] <= 1e-3
    rows = list(read_metrics(tuned.local_folder() / "metrics.jsonl"))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert (tuned.local_folder() / "model" / "tokenizer.json").exists()


def test_conversations_of_another_template_are_refused(
    store: Store, pretrained: Artifact, tokenizer: Artifact, packed_chat: Artifact, tmp_path: Path
) -> None:
    import shutil

    other = tmp_path / "tokenizer"
    shutil.copytree(tokenizer.local_folder("tokenizer"), other)
    inputs = {"model": {"pretrain": pretrained}, "tokens": {"pack-sums": packed_chat}}
    _, context = stage_and_context(Sft, store, "sft-other", {"loop": LOOP}, inputs)
    assert open_corpora(context, other, "chat")[0].name == "sums"
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|user|>", "<|user|> "))
    with pytest.raises(DataError, match="pack-sums was packed with another chat template than the model's"):
        open_corpora(context, other, "chat")


def test_training_goes_on_from_a_model_as_it_is_or_grown(
    store: Store, web: Artifact, tokenizer: Artifact, packed: Artifact, pretrained: Artifact
) -> None:
    inputs = {
        "tokens": {"pack-web": packed}, "tokenizer": {"tokenizer": tokenizer}, "model": {"pretrain": pretrained}
    }  # fmt: skip
    more = {"phases": [{"name": "more", "steps": 4}], "max_epochs": 50, "workers": 1}
    loop = LOOP | {"learning_rate": 1e-6, "precision": "fp32", "validate_every": 1}
    before = list(read_metrics(pretrained.local_folder() / "metrics.jsonl"))[-1]["validation"]["web"]
    double = {name: 2 * value for name, value in SMALL.items()}
    for name, settings in {"same": {}, "grown": {"grow": True, "model": double}}.items():
        made = run_stage(Pretrain, store, f"start-{name}", more | settings | {"loop": loop}, inputs)
        rows = list(read_metrics(made.local_folder() / "metrics.jsonl"))
        assert rows[0]["validation"]["web"] == pytest.approx(before, rel=2e-2)
    assert made.manifest.metrics["parameters"] > 2 * pretrained.manifest.metrics["parameters"]
    with pytest.raises(RecipeError, match="the model comes from pretrain with its hidden_size, "):
        run_stage(Pretrain, store, "start-refused", more | {"model": double, "loop": loop}, inputs)
    other = run_stage(TokenizerStage, store, "other", {"vocabulary": 600}, {"documents": {"web": web}})
    with pytest.raises(DataError, match=r"the model's tokenizer has .* as id"):
        require_same_words(pretrained.local_folder("model"), other.local_folder("tokenizer"))


def test_preferences_are_packed_and_learned(store: Store, tokenizer: Artifact, pretrained: Artifact) -> None:
    documents = preference_documents(30)
    bad = preference_documents(32)[30:]
    documents += [bad[0].__class__(**{**vars(bad[0]), "meta": {**bad[0].meta, "rejected": bad[0].meta["chosen"]}})]
    documents += [bad[1].__class__(**{**vars(bad[1]), "meta": {**bad[1].meta, "chosen": "a <|end|> b"}})]
    inputs = {"documents": {"sums": corpus(store, "preferences", documents)}, "tokenizer": {"tokenizer": tokenizer}}
    packed = run_stage(Pack, store, "pack-preferences", {"form": "preference", "validation_share": 0.3}, inputs)
    rejects = [row for table in packed.tables("rejects") for row in table.to_pylist()]
    assert [row["reason"] for row in rejects] == ["bad-preference", "special-token"]
    counts = packed.manifest.counts
    assert (counts["planned"], counts["succeeded"], counts["rows"]) == (32, 30, 60)
    spans = [row for table in packed.tables() for row in table.to_pylist()]
    assert [~row["id"] for row in spans[1::2]] == [row["id"] for row in spans[::2]]
    source = TokenSource(packed.local_folder(), "train", 64, "pairs", shard_index(packed))
    tokens, trained = source.read(np.array([0]))
    loaded = load_tokenizer(tokenizer.local_folder("tokenizer"))
    chosen, rejected = (loaded.decode(tokens[row][trained[row]]) for row in range(2))
    assert chosen.startswith("It is ") and rejected.startswith("I do not know ")
    settings = {"epochs": 2, "loop": {**LOOP, "learning_rate": 1e-3}, "workers": 2}
    inputs = {"model": {"pretrain": pretrained}, "tokens": {"pack-preferences": packed}}
    tuned = run_stage(Dpo, store, "dpo", settings, inputs)
    rows = list(read_metrics(tuned.local_folder() / "metrics.jsonl"))
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-2) and rows[-1]["loss"] < 0.6
    assert rows[-1]["validation_accuracy"]["sums"] > 0.5
    with pytest.raises(DataError, match="holds preference, this stage trains on chat"):
        run_stage(Sft, store, "sft-of-pairs", settings, inputs)


def test_a_stopped_run_ends_as_stopped_and_goes_on(store: Store, tokenizer: Artifact, packed: Artifact) -> None:
    settings = {"model": SMALL, "phases": [{"name": "stable", "steps": 400}], "max_epochs": 500, "loop": LOOP}
    inputs = {"tokens": {"pack-web": packed}, "tokenizer": {"tokenizer": tokenizer}}
    folder = Path(str(store.local)) / "artifacts" / "stopped"
    with pytest.raises(Stopped, match="stopped after step"):
        run_stage(Pretrain, store, "stopped", settings, inputs, stop=(folder / "metrics.jsonl").exists)
    assert list((folder / "checkpoints").glob("*/checkpoint.json"))


def test_wrong_inputs_are_refused_before_any_worker_starts(
    store: Store, tokenizer: Artifact, packed: Artifact, packed_chat: Artifact
) -> None:
    def pretrain(phase: dict[str, Any], tokens: Artifact, **settings: Any) -> None:
        inputs = {"tokens": {"pack": tokens}, "tokenizer": {"tokenizer": tokenizer}}
        values = {"model": SMALL, "phases": [{"name": "p", "steps": 5, **phase}], "loop": LOOP} | settings
        run_stage(Pretrain, store, "refused", values, inputs)

    with pytest.raises(RecipeError, match="stories, which is no source"):
        pretrain({"weights": {"stories": 1}}, packed)
    with pytest.raises(RecipeError, match="sum to nothing"):
        pretrain({"weights": {"web": 0}}, packed)
    with pytest.raises(RecipeError, match="epochs, 4 allowed"):
        pretrain({"steps": 50_000}, packed)
    with pytest.raises(DataError, match="holds chat"):
        pretrain({}, packed_chat)
    with pytest.raises(RecipeError, match="did you mean 'phi-demo-3m'"):
        Pretrain(
            "p", validate(Pretrain.Settings, {"preset": "phi-demo", "phases": [{"name": "p", "steps": 1}]}, "p"), 0
        ).check()
