"""The recipe `filter-helps` is the experiment that it says it is: what differs between variants is the data alone."""

from __future__ import annotations

from typing import Any

import pytest

from hornbook.recipe import Recipe, load_recipe

KINDS = {
    "unfiltered": ["pack-unfiltered"],
    "filtered": ["pack-filtered"],
    "synthetic": ["pack-filtered", "pack-textbooks"],
}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("filter-helps")


def settings(recipe: Recipe, stage: str) -> Any:
    return recipe.stages[stage].stage.settings


def packages(recipe: Recipe, stage: str) -> set[str]:
    return set(recipe.stages[stage].stage.plan.column("distribution").to_pylist())  # type: ignore[attr-defined]


def test_no_package_is_on_two_sides(recipe: Recipe) -> None:
    sides = [packages(recipe, name) for name in ("web", "popular", "ordinary", "neutral")]
    assert all(sides) and sum(map(len, sides)) == len(set.union(*sides))


def test_variants_differ_in_their_data_alone_and_are_paired_by_seed(recipe: Recipe) -> None:
    for seed in (1, 2, 3):
        trained = {name: settings(recipe, f"{name}-{seed}") for name in KINDS}
        assert all(found.seed == seed for found in trained.values())
        assert len({sum(phase.steps for phase in found.phases) for found in trained.values()}) == 1
        varying = {"phases": (), "max_epochs": 0.0, "seed": None}
        assert len({str(found.model_copy(update=varying)) for found in trained.values()}) == 1
    for name, tokens in KINDS.items():
        for seed in (1, 2, 3):
            assert recipe.stages[f"{name}-{seed}"].inputs == {"tokens": tokens, "tokenizer": ["tokenizer"]}


def test_all_are_compared_on_the_same_held_out_packages_which_nothing_trained_on(recipe: Recipe) -> None:
    models = [f"{name}-{seed}" for name in KINDS for seed in (1, 2, 3)]
    assert recipe.stages["losses"].inputs == {"models": models, "documents": ["popular", "ordinary"]}
    named = settings(recipe, "comparison").variants
    assert [model for own in named.values() for model in own] == models
    for model in models:
        assert recipe.ancestors([model]) >= {"overlap", "clean"}  # copies of held-out files left all variants alike
        assert recipe.stages["overlap"].inputs["evaluation"] == ["popular", "ordinary"]
    assert recipe.ancestors(["tokenizer"]) == {"tokenizer", "neutral"}


def test_the_filter_does_not_see_what_chooses_the_held_out_packages(recipe: Recipe) -> None:
    """Held-out: what others require. The filter: a file's own text and path."""
    assert settings(recipe, "popular").min_dependents == 6
    assert recipe.ancestors(["scores"]) == {
        "web",
        "popular",
        "ordinary",
        "overlap",
        "clean",
        "points",
        "quality",
        "scores",
    }
    users = {name for name, entry in recipe.stages.items() if any("popular" in role for role in entry.inputs.values())}
    assert users == {
        "overlap", "losses",
    }  # fmt: skip


def test_a_seed_of_its_own_is_another_draw_and_none_is_the_recipes(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from hornbook.plan import derive_seed
    from training import pretrain

    index = SimpleNamespace(vocabulary=512)
    monkeypatch.setattr(pretrain, "open_corpora", lambda *_: [SimpleNamespace(index=index)])
    context = SimpleNamespace(
        seed=17,
        artifact=None,
        input=lambda role: SimpleNamespace(local_folder=lambda name: None),
        optional_input=lambda role: None,
    )

    def seed_of(own: int | None) -> int:
        stage = recipe.stages["unfiltered-1"].stage
        changed = stage.settings.model_copy(update={"seed": own})
        return pretrain.Pretrain("model", changed, 17)._job(context).seed  # type: ignore[arg-type]

    assert len({seed_of(None), seed_of(0), seed_of(1)}) == 3
    assert seed_of(1) == seed_of(1) and seed_of(None) == derive_seed(17, "training")
