"""What does not go together in a recipe that trains is said before anything runs, not behind hours of work."""

from __future__ import annotations

import copy
import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from corpus import finish
from hypothesis import example, given
from hypothesis import strategies as st
from small_run import write_data

from hornbook.artifact import Artifact
from hornbook.errors import RecipeError
from hornbook.pipeline import _summary
from hornbook.recipe import Recipe, check_recipe, load_recipe, yaml_text, yaml_value
from hornbook.store import Store
from training.corpora import locate_token
from training.job import Corpus, Job
from training.mixture import PhaseSettings
from training.settings import LoopSettings
from training.shards import ShardIndex

STAGES: dict[str, Any] = {
    "web": {"kind": "installed-python"},
    "books": {"kind": "installed-python"},
    "tokenizer": {"kind": "tokenizer", "inputs": {"documents": ["web", "books"]}},
    "pack-web": {"kind": "pack", "inputs": {"documents": "web", "tokenizer": "tokenizer"}},
    "pack-books": {"kind": "pack", "source": "textbooks", "inputs": {"documents": "books", "tokenizer": "tokenizer"}},
    "pretrain": {
        "kind": "pretrain",
        "inputs": {"tokens": ["pack-web", "pack-books"], "tokenizer": "tokenizer"},
        "phases": [{"name": "all", "steps": 4, "weights": {"web": 1, "textbooks": 2}}],
    },
    "pack-chats": {"kind": "pack", "form": "chat", "inputs": {"documents": "web", "tokenizer": "tokenizer"}},
    "sft": {"kind": "sft", "inputs": {"model": "pretrain", "tokens": "pack-chats"}},
    "pack-pairs": {"kind": "pack", "form": "preference", "inputs": {"documents": "web", "tokenizer": "tokenizer"}},
    "dpo": {"kind": "dpo", "inputs": {"model": "sft", "tokens": "pack-pairs"}},
}


def recipe(stage: str = "pretrain", **changes: Any) -> Recipe:
    """Return the recipe with settings of one stage changed."""
    stages = copy.deepcopy(STAGES)
    stages[stage] |= changes
    return check_recipe({"name": "names", "stages": stages}, "names.yaml")


def phase(**changes: Any) -> dict[str, Any]:
    return {"phases": [{"name": "all", "steps": 4, **changes}]}


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("pretrain", phase(weights={"wbe": 1}), r"pretrain.phases\[0\].weights: no source is called 'wbe'.*'web'"),
        ("pretrain", phase(weights={"pack-web": 1}), r"no source is called 'pack-web'"),
        ("pretrain", phase(weights={"web": 1}, end_weights={"books": 1}), r"phases\[0\].end_weights: .*'books'"),
        ("pretrain", {"phases": [{"name": "all", "tokens": {"textbook": 1e6}}]}, r"phases\[0\].tokens: .*'textbooks'"),
        ("pretrain", phase(weights={"web": 0}), r"phases\[0\].weights: they sum to nothing"),
        ("pretrain", phase(weights={"web": 2, "textbooks": -1}), r"phases\[0\].weights: .* or one is no share"),
        ("pretrain", {"epoch_caps": {"wbe": 2}}, r"pretrain.epoch_caps: no source is called 'wbe'"),
        ("pretrain", {"best_of": {"by": "books"}}, r"pretrain.best_of.by: no source is called 'books'"),
        ("sft", {"loop": {"best_by": "chats"}}, r"sft.loop.best_by: no source is called 'chats' \(.*mean, web"),
        ("pack-books", {"form": "chat"}, r"pretrain.inputs.tokens: pack-books packs chat, this stage trains on text"),
        ("pack-pairs", {"form": "chat"}, r"dpo.inputs.tokens: pack-pairs packs chat, this stage trains on preference"),
        ("pack-books", {"source": "web"}, r"pack-web and pack-books are both called 'web'"),
    ],
)
def test_a_wrong_name_of_a_source_is_refused(stage: str, changes: dict[str, Any], said: str) -> None:
    recipe()
    recipe(best_of={"by": "mean"}, epoch_caps={"textbooks": 2})
    with pytest.raises(RecipeError, match=f"^names.yaml: stages.*{said}"):
        recipe(stage, **changes)


def test_a_corpus_is_another_artifact_where_it_is_called_otherwise() -> None:
    """A stage that is only renamed is reused; the corpus packed from it would keep the former name in the mixture."""
    renamed = copy.deepcopy(STAGES)
    renamed["net"] = renamed.pop("web")
    for name in ("pack-web", "pack-chats", "pack-pairs"):
        renamed[name]["inputs"]["documents"] = "net"
    renamed["tokenizer"]["inputs"]["documents"] = ["net", "books"]
    renamed["pretrain"]["phases"][0]["weights"] = {"net": 1, "textbooks": 2}
    other = check_recipe({"name": "names", "stages": renamed}, "names.yaml")
    for name, called in (("web", "web"), ("books", "textbooks")):
        assert recipe().stages[f"pack-{name}"].stage.settings.identity()["source"] == called
    assert other.stages["pack-web"].stage.settings.identity()["source"] == "net"


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("pretrain", {"model": {"hidden_sise": 64}}, r"pretrain.model: phi .*hidden_sise \(did you mean 'hidden_size'"),
        ("pretrain", {"model": {"hidden_size": "wide"}}, "pretrain.model: no such model can be made of 'phi-demo-3m'"),
        ("pretrain", {"model": {"num_attention_heads": 5}}, "num_attention_heads 5 cannot be computed"),
        (
            "pretrain",
            {"loop": {"sequence_length": 512}},
            "pretrain.loop.sequence_length: rows of 512 .* context of 256",
        ),
        ("sft", {"loop": {"sequence_length": 300}}, "sft.loop.sequence_length: rows of 300 tokens"),
        ("dpo", {"loop": {"sequence_length": 300}}, "dpo.loop.sequence_length: rows of 300 tokens"),
    ],
)
def test_a_model_that_cannot_be_is_refused_before_a_stage_begins(
    stage: str, changes: dict[str, Any], said: str
) -> None:
    for name in ("pretrain", "sft", "dpo"):
        recipe(model={"hidden_size": 64, "num_attention_heads": 2}).stages[name].stage.ready()
    longer = recipe(model={"max_position_embeddings": 512}, loop={"sequence_length": 512})
    longer.stages["pretrain"].stage.ready()
    with pytest.raises(RecipeError, match=said):
        recipe(stage, **changes).stages[stage].stage.ready()


def test_numbers_may_be_written_with_an_exponent_alone(tmp_path: Path) -> None:
    """YAML 1.1 takes `1e-4` for a text, which a model's configuration then refuses."""
    path = tmp_path / "numbers.yaml"
    path.write_text("name: numbers\nstages:\n  web: {kind: installed-python}\n")
    read = load_recipe(str(path), ["stages.web.files=1e3", "description='1e3'"])
    assert read.source["stages"]["web"]["files"] == 1000.0 and read.description == "1e3"
    path.write_text("name: numbers\ndescription: 12e3b\nseed: 1E+2\nstages:\n  web: {kind: installed-python}\n")
    assert load_recipe(str(path)).seed == 100


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.from_regex(r"[-+0-9eE._]*", fullmatch=True),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_letters), inner, max_size=3),
    )
)
@example("12e34567")
def test_what_is_written_as_yaml_is_read_as_it_was(value: Any) -> None:
    """Texts that look like numbers, too: fingerprints do."""
    assert yaml_value(yaml_text(value)) == value


def test_a_warm_up_longer_than_the_run_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    recipe(preset="mobilellm-125m", loop={"sequence_length": 256}).stages["pretrain"].stage.ready()
    assert "the warm-up takes 1,000 steps and the run 4" in capsys.readouterr().err
    recipe().stages["pretrain"].stage.ready()
    assert not capsys.readouterr().err


def test_a_traced_token_is_of_a_source_as_the_mixture_calls_it(tmp_path: Path) -> None:
    """Not as the documents' own column has it: by its name the trace finds the stage that it was packed from."""
    write_data(tmp_path)
    folder = tmp_path / "data" / "a"
    place: Any = SimpleNamespace(local_folder=lambda inside="": folder / inside)
    job = Job(
        settings=LoopSettings(global_batch=2, sequence_length=32), rows="windows", max_epochs=1, seed=1,
        corpora=[Corpus("renamed", place, ShardIndex.read(folder))], phases=[PhaseSettings(name="all", steps=1)],
        artifact=Artifact(Store(str(tmp_path)), "artifacts/trained"),
    )  # fmt: skip
    assert locate_token(job, step=1, row=0, position=5).corpus == "renamed"


def test_a_training_stage_is_summed_up_by_what_it_learned(tmp_path: Path) -> None:
    artifact = Artifact(Store(str(tmp_path)), "artifacts/trained")
    figures = {"steps": 1200, "loss": 2.5, "validation": {"web": 2.71828, "books": 3.0}}
    finish(artifact, "pretrain", "model", {}, metrics=figures)
    assert _summary(artifact) == "1,200 steps, loss 2.500, held out web 2.718, books 3.000"
