"""A context made longer between two stages: LongRoPE on weights trained without it, in training as in the exported folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import VOCABULARY, write_data
from transformers import AutoModelForCausalLM

from hornbook.artifact import Artifact
from hornbook.errors import RecipeError
from hornbook.store import Store
from training.checkpoint import latest
from training.job import Corpus, Job
from training.metrics import read_metrics
from training.mixture import PhaseSettings
from training.model import LanguageModel
from training.parallel import World
from training.presets import build_model, model_config
from training.settings import LoopSettings
from training.shards import ShardIndex

SHORT, LONG = 64, 256
SIZE = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2,
    "max_position_embeddings": SHORT, "original_max_position_embeddings": SHORT,
}  # fmt: skip
LONGER = {"max_position_embeddings": LONG, "rope_parameters": {"rope_type": "longrope", "long_factor": 3.0}}


@dataclass(frozen=True)
class Folder:
    path: Path

    def local_folder(self, inside: str = "") -> Path:
        return self.path / inside


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    write_data(tmp_path)
    folder = tmp_path / "data" / "a"
    return Corpus("a", Folder(folder), ShardIndex.read(folder))


def job(folder: Path, name: str, corpus: Corpus, length: int, steps: int = 3, **changes: Any) -> Job:
    settings = {
        "global_batch": 2,
        "microbatch": 1,
        "sequence_length": length,
        "precision": "fp32",
        "validation_rows": 0,
    }
    return Job(
        settings=LoopSettings.model_validate(settings), corpora=[corpus], rows="windows",
        phases=[PhaseSettings(name="all", steps=steps)], max_epochs=9, seed=1,
        artifact=Artifact(Store(str(folder)), name), **changes,
    )  # fmt: skip


def trained(job: Job, world: World) -> Path:
    """Train, and leave the model as its stage does."""
    job.train(world, stop=lambda: False)
    found = latest(job.folder / "checkpoints")
    assert found is not None
    job.trained_model(found).save_pretrained(job.folder / "model")
    return job.folder


def logits(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    head = model.model.get_output_embeddings()
    found: torch.Tensor = head(model.hidden(tokens))
    return found


def test_a_context_grows_in_a_second_stage_and_keeps_its_logits_when_exported(
    tmp_path: Path, corpus: Corpus, world: World
) -> None:
    overrides = {"vocab_size": VOCABULARY, **SIZE}
    first = trained(job(tmp_path, "first", corpus, SHORT, preset="phi-3-mini", overrides=overrides), world)
    second = trained(job(tmp_path, "second", corpus, LONG, start=Folder(first), overrides=LONGER), world)
    third = job(tmp_path, "third", corpus, LONG, start=Folder(second), steps=1)  # goes on as it is
    rows = list(read_metrics(trained(third, world) / "metrics.jsonl"))
    assert len(rows) == 1 and 0 < rows[0]["loss"] < 10

    exported = AutoModelForCausalLM.from_pretrained(second / "model").eval()
    config = exported.config
    assert (config.max_position_embeddings, config.original_max_position_embeddings) == (LONG, SHORT)
    assert config.rope_parameters["long_factor"] == [3.0] * 16 and config.rope_parameters["short_factor"] == [1.0] * 16
    ours = LanguageModel(third.model(), eos=0).eval()
    random = torch.Generator().manual_seed(0)
    long, short = (torch.randint(1, VOCABULARY, (1, length), generator=random) for length in (150, 40))
    long[0, 0] = short[0, 0] = 0
    with torch.no_grad():
        expected = [exported(input_ids=tokens).logits for tokens in (long, short)]
        for tokens, wanted in zip((long, short), expected, strict=True):
            torch.testing.assert_close(logits(ours, tokens), wanted, rtol=1e-5, atol=1e-6)
        packed = logits(ours, torch.cat([short, long, short], dim=1))
        torch.testing.assert_close(packed[:, :40], expected[1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(packed[:, 40:190], expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(packed[:, 190:], expected[1], rtol=1e-4, atol=1e-5)
    former = AutoModelForCausalLM.from_pretrained(first / "model")
    assert former.config.rope_parameters["rope_type"] == "default"


def test_positions_that_a_model_cannot_have_are_refused() -> None:
    size = {"vocab_size": 97, **SIZE}
    with pytest.raises(RecipeError, match="long_factor has 3 factors, the model turns 16 pairs"):
        model_config("phi-3-mini", **size, rope_parameters={"rope_type": "longrope", "long_factor": [1.0, 2.0, 3.0]})
    with pytest.raises(RecipeError, match="LongRoPE needs a long_factor"):
        model_config("phi-3-mini", **size, rope_parameters={"rope_type": "longrope"})
    with pytest.raises(RecipeError, match="a gpt_neo learns its positions"):
        model_config("tinystories-1m", rope_parameters={"rope_type": "longrope", "long_factor": 2.0})
    theta = model_config("phi-1-small", rope_parameters={"rope_theta": 50_000.0}).rope_parameters
    assert theta["rope_theta"] == 50_000.0 and theta["partial_rotary_factor"] == 0.5, "what is left open stays"


def test_rows_and_words_must_fit_the_model(tmp_path: Path, corpus: Corpus) -> None:
    fits = job(tmp_path, "fits", corpus, SHORT, preset="phi-3-mini", overrides={"vocab_size": VOCABULARY, **SIZE})
    assert fits.model().config.vocab_size == VOCABULARY
    with pytest.raises(RecipeError, match="rows of 65 tokens do not fit the model's context of 64"):
        job(tmp_path, "long", corpus, 65, preset="phi-3-mini", overrides={"vocab_size": VOCABULARY, **SIZE}).model()
    with pytest.raises(RecipeError, match="ids up to 511, the model has 448 words"):
        job(tmp_path, "words", corpus, SHORT, preset="phi-3-mini", overrides={"vocab_size": 448, **SIZE}).model()
    with pytest.raises(RecipeError, match="phi3 has no configuration field hidden_sise"):
        job(tmp_path, "field", corpus, SHORT, preset="phi-3-mini", overrides={"hidden_sise": 4}).model()
    build_model(model_config("phi-3-mini", **SIZE, vocab_size=64, pad_token_id=None), 0).save_pretrained(
        tmp_path / "old" / "model"
    )
    with pytest.raises(RecipeError, match="ids up to 511, the model has 64 words"):
        job(tmp_path, "old", corpus, SHORT, start=Folder(tmp_path / "old")).model()
