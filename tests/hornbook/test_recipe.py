"""Recipes: everything wrong is found before anything runs, in one message that names the place and the cure."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hornbook.errors import RecipeError
from hornbook.recipe import check_recipe, load_recipe, recipe_names

GOOD = {
    "name": "small",
    "seed": 3,
    "engine": {"kind": "echo"},
    "stages": {
        "questions": {"kind": "questions", "inputs": {"documents": "textbooks"}},
        "stories": {"kind": "stories", "rows": 8},
        "textbooks": {"kind": "textbooks", "rows": 4, "engine": {"max_model_len": 512}},
    },
}


def write(folder: Path, value: object) -> str:
    path = folder / "recipe.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False))
    return str(path)


def changed(*path: str, value: object) -> dict[str, object]:
    copy = yaml.safe_load(yaml.safe_dump(GOOD))
    target = copy
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    return copy  # type: ignore[no-any-return]


def test_stages_come_in_an_order_that_can_run(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert list(recipe.stages) == ["stories", "textbooks", "questions"]
    assert recipe.ancestors(["questions"]) == {"questions", "textbooks"}
    assert recipe.descendants("textbooks") == {"questions", "textbooks"}
    assert recipe.stages["stories"].group == "generators"


def test_the_recipe_s_engine_is_the_default_of_every_stage(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    engine = recipe.stages["textbooks"].stage.settings.engine
    assert (engine.kind, engine.max_model_len) == ("echo", 512)


def test_overrides_are_yaml(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, GOOD), ["stages.stories.rows=20", "seed=9", "stages.stories.sampling.stop=[END, '.']"]
    )
    assert recipe.seed == 9
    assert recipe.stages["stories"].stage.settings.rows == 20
    assert recipe.stages["stories"].stage.settings.sampling.stop == ("END", ".")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (changed("sed", value=1), r"sed: no such setting \(did you mean 'seed'\?\)"),
        (
            changed("stages", "stories", "rwos", value=5),
            r"stages\.stories\.rwos: no such setting \(did you mean 'rows'\?\)",
        ),
        (changed("stages", "stories", "sampling", value={"temprature": 1}), r"sampling\.temprature: .*'temperature'"),
        (changed("stages", "stories", "rows", value="many"), r"stages\.stories\.rows: .*integer.*got 'many'"),
        (changed("stages", "stories", "rows", value=-1), r"stages\.stories\.rows: .*greater than or equal to 1"),
        (changed("stages", "stories", "rows", value=10**15), "distinct prompts"),
        (changed("stages", "stories", "engine", value="echo"), r"stages\.stories\.engine: .*got 'echo'"),
        (changed("stages", "stories", "inputs", value={"documents": 5}), r"inputs\.documents: the name of a stage"),
        (changed("stages", "stories", "kind", value="storys"), r"no stage kind 'storys' \(did you mean 'stories'\?\)"),
        (changed("stages", "stories", value={"rows": 3}), r"stages\.stories\.kind: this setting is required"),
        (changed("stages", "questions", "inputs", value={}), r"inputs\.documents: questions needs this input"),
        (
            changed("stages", "questions", "inputs", value={"documents": "textbook"}),
            r"no stage 'textbook'.*'textbooks'",
        ),
        (
            changed("stages", "questions", "inputs", value={"docs": "textbooks"}),
            r"inputs\.docs: questions has no such input",
        ),
        (changed("stages", "questions", "inputs", value={"documents": ["textbooks", "stories"]}), "takes one stage"),
        (
            changed("stages", "questions", "inputs", value={"documents": "questions"}),
            "in a circle: questions -> questions",
        ),
        (changed("stages", value={}), "stages: "),
        (
            "name: x\nstages:\n  a: {kind: stories}\n  b: {kind: stories}\n  a: {kind: textbooks}\n",
            r"stages\.a is there twice, in lines 3 and 5",
        ),
        ("name: x\nstages:\n  a: {kind: stories, rows: 4, rows: 5}\n", r"stages\.a\.rows is there twice"),
        ("name: [unclosed", "is not YAML"),
        ("- a list", "is not a recipe"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(write(tmp_path, value))
    assert caught.value.exit_code == 2
    assert "recipe.yaml" in str(caught.value)


def test_a_missing_input_is_not_to_be_had_of_the_stage_itself() -> None:
    with pytest.raises(RecipeError, match="questions needs this input") as caught:
        check_recipe(changed("stages", "questions", "inputs", value={}), "test")
    assert "textbooks" in caught.value.cure and "questions" not in caught.value.cure


def test_one_value_stands_for_a_list_of_one() -> None:
    one = check_recipe(changed("stages", "stories", "ages", value="5-6"), "test").stages["stories"].stage.settings
    assert (
        one
        == check_recipe(changed("stages", "stories", "ages", value=["5-6"]), "test").stages["stories"].stage.settings
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.storys.rows=3", r"no stage 'storys' \(did you mean 'stories'\?\)"),
        ("rows", "is not key=value"),
        ("stages.stories.rows=[1", "the value is not YAML"),
        ("seed.x=1", "holds a value"),
    ],
)
def test_wrong_overrides_are_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, GOOD), [override])


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'dmeo' \(did you mean 'demo'\?\)"):
        load_recipe("dmeo")
    with pytest.raises(RecipeError, match="no recipe file"):
        load_recipe("./nowhere.yaml")


@pytest.mark.parametrize("name", sorted(recipe_names()))
def test_every_shipped_recipe_is_right(name: str) -> None:
    assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"phases": []}, "stages.pretrain.phases: needs at least 1, got 0"),
        ({"phases": [{"name": "a", "steps": 0}]}, "stages.pretrain.phases.0: phase 'a' needs steps, at least 1, or tokens per source"),
        ({"best_of": 5}, "stages.pretrain.best_of: takes settings of its own (every, by), got 5"),
        ({"preset": "none/config.json"}, "stages.pretrain: preset: none/config.json cannot be read"),
    ],
)  # fmt: skip
def test_wrong_settings_are_said_once_and_in_a_person_s_words(settings: dict[str, object], said: str) -> None:
    stages = {"pretrain": {"kind": "pretrain", "phases": [{"name": "a", "steps": 1}], **settings}}
    with pytest.raises(RecipeError) as raised:
        check_recipe({"name": "small", "stages": stages}, "small.yaml")
    assert raised.value.message.startswith(f"small.yaml: {said}") and "\n" not in raised.value.message
