"""A user's own kind: a short class in their own file, named by the recipe; with lineage, resume and clear errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from generators.prompted import PromptedStage
from generators.stories import Stories
from generators.textbooks import Textbooks
from hornbook import partwork
from hornbook.artifact import Artifact
from hornbook.describe import describe_kind
from hornbook.errors import ClusterError, RecipeError
from hornbook.jobs import code_digest, staged_code
from hornbook.pipeline import plan_recipe, run_recipe
from hornbook.recipe import Recipe, check_recipe, load_recipe
from hornbook.store import Store
from hornbook.trace import trace_document

KIND = '''
from functools import cached_property
from typing import ClassVar

from pydantic import Field

from generators.prompted import Parsed, Prompt, PromptedStage, PromptSettings, Refused
from hornbook.plan import Combinations, derive_seed

THINGS = ("a clock", "the wind", "a mirror", "snow")


class RiddleSettings(PromptSettings):
    """Settings of riddles."""

    tones: tuple[str, ...] = Field(("short", "funny"), description="How they sound.")


class Riddles(PromptedStage):
    """Riddles about things."""

    kind: ClassVar[str] = "riddles"
    Settings = RiddleSettings
    settings: RiddleSettings

    @cached_property
    def combinations(self) -> Combinations:
        return Combinations((len(THINGS), len(self.settings.tones)), derive_seed(self.seed, self.kind))

    def prompt(self, row: int) -> Prompt:
        thing, tone = self.combinations[row]
        seeds = {"thing": THINGS[thing], "tone": self.settings.tones[tone]}
        return Prompt(self.ask(**seeds), seeds)

    def parse(self, prompt: Prompt, text: str) -> Parsed:
        if len(text) % 5 == 0:
            raise Refused("unlucky", "a multiple of five")
        return Parsed(text, {"thing": prompt.seeds["thing"]})
'''
TEMPLATE = "Write a {{ tone }} riddle about {{ thing }}."


def riddles(folder: Path, kind: str = KIND, template: str = TEMPLATE, **settings: Any) -> Recipe:
    (folder / "riddles.py").write_text(kind)
    (folder / "riddles.jinja").write_text(template)
    stage = {"kind": "riddles.py:Riddles", "rows": 8, "part_rows": 2, "engine": {"kind": "echo"}, **settings}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "own", "stages": {"riddles": stage}}))
    return load_recipe(str(folder / "recipe.yaml"))


def make(store: Store, recipe: Recipe) -> Artifact:
    return run_recipe(recipe, store, say=lambda line: None).artifacts["riddles"]


def rows(artifact: Artifact, role: str = "data") -> list[dict[str, Any]]:
    return [row for table in artifact.tables(role) for row in table.to_pylist()]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_it_has_a_plan_rejects_lineage_and_a_fingerprint(tmp_path: Path, store: Store, ray_cluster: None) -> None:
    artifact = make(store, riddles(tmp_path))
    counts = artifact.manifest.counts
    assert counts["planned"] == 8 == counts["succeeded"] + counts["rejected"]
    assert set(artifact.manifest.reasons) <= {"unlucky"}
    documents = rows(artifact)
    assert {json.loads(row["meta"])["thing"] for row in documents} <= {"a clock", "the wind", "a mirror", "snow"}
    traced = "\n".join(trace_document(store, documents[0]["key"].hex()))
    assert json.loads(documents[0]["made_by"]["prompt"])[0]["content"] in traced
    assert plan_recipe(riddles(tmp_path), store)["riddles"].complete
    assert not plan_recipe(riddles(tmp_path, template=TEMPLATE + " Be brief."), store)["riddles"].complete
    assert not plan_recipe(riddles(tmp_path, kind=KIND.replace("snow", "ice")), store)["riddles"].complete
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert plan_recipe(riddles(elsewhere), store)["riddles"].complete, "the folder is no part of what it means"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"template": "A riddle about {{ think }}."}, "the prompt riddles names think, which the kind does not give"),
        ({"template": "A riddle about {{ thing."}, "cannot be rendered"),
        ({"kind": KIND.replace("return Prompt(self.ask(**seeds), seeds)", "return 1 / 0")}, "ZeroDivisionError"),
        ({"kind": KIND.replace("return Prompt(self.ask(**seeds), seeds)", "return 'a riddle'")}, "not a Prompt"),
        ({"kind": "import nothing_like_it"}, "riddles.py cannot be imported: ModuleNotFoundError"),
        ({"kind": "def broken(:"}, "riddles.py cannot be imported: SyntaxError"),
        ({"kind": KIND.replace("class Riddles", "class Puzzles")}, "riddles.py has no class Riddles"),
        ({"kind": "class Riddles: pass"}, "riddles.py:Riddles is no stage"),
        ({"tones": 3}, "stages.riddles.tones"),
        ({"kind": KIND.replace("def prompt", "def prompts")}, "abstract"),
        ({"rows": 9}, "9 asked, but there are 8 distinct prompts"),
        ({"kind": "raise SystemExit"}, "riddles.py cannot be imported: SystemExit"),
        ({"kind": KIND.replace("return Prompt(self.ask(**seeds), seeds)", "raise SystemExit(3)")}, "SystemExit: 3"),
        ({"kind": KIND.replace("class Riddles(", "class Ridles(")}, "no class Riddles (did you mean 'Ridles'?)"),
        ({"kind": KIND.replace('"riddles"', '"a/b"')}, "the class Riddles of riddles.py has kind = 'a/b'"),
        ({"kind": KIND.replace('"riddles"', '"my riddles!"')}, "has kind = 'my riddles!'"),
        ({"kind": KIND.replace('"riddles"', "7")}, "has kind = 7"),
        (
            {"kind": KIND.replace("Settings = RiddleSettings", "Settings = dict")},
            "has Settings = <class 'dict'>, not a model",
        ),
        (
            {
                "kind": KIND.replace("(PromptSettings)", "(BaseModel)").replace(
                    "from pydantic", "from pydantic import BaseModel\nfrom pydantic"
                )
            },
            "RiddleSettings'>, not a model",
        ),
        (
            {
                "kind": KIND.replace("(PromptSettings)", "(Settings, extra='ignore')").replace(
                    "from pydantic", "from hornbook.settings import Settings\nfrom pydantic", 1
                )
            },
            "the class Riddles of riddles.py has Settings = RiddleSettings, not a subclass of",
        ),
        (
            {"kind": KIND.replace("return Combinations(", "return 8 or (")},
            "combinations of the class Riddles of riddles.py is 8, not a hornbook.plan.Combinations",
        ),
        (
            {"kind": KIND.replace("return Combinations(", "return self.nothing or (")},
            "combinations of the kind 'riddles' fails: AttributeError",
        ),
        (
            {
                "kind": KIND.replace(
                    "return Prompt(self.ask(**seeds), seeds)", "return Prompt(self.ask(**seeds), seeds, schema='{')"
                )
            },
            "schema",
        ),
        (
            {
                "kind": KIND.replace(
                    "return Prompt(self.ask(**seeds), seeds)",
                    "return Prompt(self.ask(**seeds), seeds, schema='{\"type\": 5}')",
                )
            },
            "JSON Schema",
        ),
        (
            {
                "kind": KIND.replace(
                    "return Prompt(self.ask(**seeds), seeds)",
                    "return Prompt(self.ask(**seeds), seeds, required='word')",
                )
            },
            "required is 'word', not a tuple of words",
        ),
    ],
)
def test_a_malformed_kind_is_found_before_anything_runs(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        riddles(tmp_path, **changed)
    assert said in caught.value.message


def test_a_missing_file_or_template_is_named(tmp_path: Path) -> None:
    riddles(tmp_path)
    (tmp_path / "riddles.jinja").unlink()
    with pytest.raises(RecipeError, match=r"has no prompt riddles\.jinja"):
        load_recipe(str(tmp_path / "recipe.yaml"))
    (tmp_path / "riddles.py").unlink()
    with pytest.raises(RecipeError, match=r"there is no file riddles\.py"):
        load_recipe(str(tmp_path / "recipe.yaml"))


def test_what_fails_in_one_row_is_a_reject(tmp_path: Path, store: Store, ray_cluster: None) -> None:
    broken = KIND.replace('raise Refused("unlucky", "a multiple of five")', "return len(text)").replace(
        'seeds = {"thing"', 'assert row != 5, "no luck"\n        seeds = {"thing"'
    )
    broken = broken.replace("if len(text) % 5 == 0:", 'if prompt.seeds["thing"] == "snow":')
    artifact = make(store, riddles(tmp_path, kind=broken))
    assert artifact.manifest.reasons["prompt-failed"] == 1
    assert artifact.manifest.reasons["parse-failed"] in (1, 2)
    details = {row["reason"]: row["detail"] for row in rows(artifact, "rejects")}
    assert details["prompt-failed"] == "AssertionError: no luck (riddles.py:32)"
    assert "not a Parsed" in details["parse-failed"]


ODD = """
    def prompt(self, row):
        seeds, ask = {"row": row}, ({"role": "user", "content": f"Row {row}."},)
        if row == 22:
            raise SystemExit("no prompt")
        return [
            Prompt(ask, seeds), "a riddle", (ask, seeds), Prompt("a riddle", seeds), Prompt(({"role": "user"},), seeds),
            Prompt(ask, None), Prompt(ask, {"set": {1}}), Prompt(ask, seeds, parents=("key",)), Prompt(ask, seeds, (b"short",)),
            Prompt(ask, seeds, schema={}), Prompt(({"role": "user", "content": chr(0xD83D)},), seeds),
        ][row] if row <= 10 else Prompt(ask, seeds)

    def parse(self, prompt, text):
        row = prompt.seeds["row"]
        if row == 18:
            raise Refused(5, ValueError("no riddle"))
        if row == 20:
            raise SystemExit("no answer")
        if row == 21:
            raise type("Away", (BaseException,), {})("gone")
        if row == 23:
            next(iter(()))
        return {
            11: text, 12: Parsed(text, None), 13: Parsed(text, {"set": {1}}), 14: Parsed(""), 15: Parsed(b"bytes"),
            16: Parsed(text + chr(0xD83D)), 17: Parsed(text, {1: chr(0xD83D)}),
        }.get(row, Parsed(text))
"""
ODD_KIND = KIND[: KIND.index("    @cached_property")] + ODD
SLOW = "    slow_parse = True\n"  # parses in a thread


@pytest.mark.parametrize("slow", ["", SLOW])
def test_whatever_a_kind_does_for_a_row_is_a_reject_that_says_what(
    tmp_path: Path, store: Store, ray_cluster: None, slow: str
) -> None:
    kind = ODD_KIND + slow
    artifact = make(store, riddles(tmp_path, kind=kind, rows=24, part_rows=24, checks={"near_duplicates": False}))
    assert artifact.manifest.counts["planned"] == 24
    assert [row["id"] >> 16 for row in rows(artifact)] == [0, 19]
    reasons = {row["id"]: (row["reason"], row["detail"]) for row in rows(artifact, "rejects")}
    expected = dict.fromkeys((*range(1, 11), 22), "prompt-failed")
    expected |= dict.fromkeys((*range(11, 18), 20, 21, 23), "parse-failed")
    assert {row: reason for row, (reason, _) in reasons.items()} == expected | {14: "empty", 18: "5"}
    assert "SystemExit: no answer (riddles.py" in reasons[20][1] and "Away: gone" in reasons[21][1]
    assert "SystemExit: no prompt" in reasons[22][1] and "StopIteration" in reasons[23][1]
    assert "seeds cannot be kept as JSON" in reasons[6][1] and "not a tuple of keys" in reasons[8][1]
    assert reasons[18][1] == "no riddle"


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("def open(self, inputs): 1 / 0", r"open\(\) of the kind 'riddles' fails: ZeroDivisionError.*riddles\.py:\d+"),
        ("def open(self, inputs): raise SystemExit(3)", r"open\(\) of the kind 'riddles' fails: SystemExit: 3"),
        ("def sieves(self): return 7", r"sieves\(\) of the kind 'riddles' fails: TypeError"),
        ("def sieves(self): return [object()]", r"the sieve object of the kind 'riddles' fails: AttributeError"),
        ("def learn(self, accepted): return [row['nothing'] for row in accepted]", r"learn\(\) .* KeyError: 'nothing'"),
        ("def learn(self, accepted): return {'words': {1, 2}}", r"learn\(\) .* TypeError.*JSON"),
    ],
)
def test_what_fails_for_the_whole_stage_is_an_error_that_names_the_method(
    tmp_path: Path, store: Store, ray_cluster: None, method: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        make(store, riddles(tmp_path, kind=f"{KIND}\n    {method}\n", rows=4))


def test_a_worker_that_keeps_dying_is_one_message(
    tmp_path: Path,
    store: Store,
    ray_cluster: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(partwork, "WORKER_RETRIES", 0)
    kind = KIND.replace("if len(text) % 5 == 0:", "import os\n        os._exit(3)\n        if text:")
    with pytest.raises(ClusterError) as caught:
        make(store, riddles(tmp_path, kind=kind))
    error = caught.value
    assert (
        "riddles: a worker process, which works for the kind 'riddles', died of the same part 1 times" in error.message
    )
    assert "rows 0-1, 2-3, 4-5, 6-7; Ray says: " in error.message and "\n" not in error.message
    assert "memory" in error.cure and "run again" in error.cure
    assert error.__suppress_context__ and not caplog.records


@pytest.mark.parametrize(
    ("template", "said"),
    [("About {{ text.", "is no template"), ("About {{ txet }}.", "names txet, which the kind does not give")],
)
def test_a_template_about_documents_is_checked_before_they_are_made(tmp_path: Path, template: str, said: str) -> None:
    kind = """
from generators.documents import DocumentPromptSettings, DocumentStage
from generators.prompted import Prompt


class Riddles(DocumentStage):
    kind = "riddles"
    Settings = DocumentPromptSettings

    def prompt(self, row):
        source, variant = self.source(row)
        seeds = {"variant": variant}
        return Prompt(self.ask(text=source.text), seeds, (source.key,))
"""
    (tmp_path / "riddles.py").write_text(kind)
    (tmp_path / "riddles.jinja").write_text(template)
    stages = {
        "stories": {"kind": "stories", "rows": 8, "engine": {"kind": "echo"}},
        "riddles": {"kind": "riddles.py:Riddles", "inputs": {"documents": "stories"}, "engine": {"kind": "echo"}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "own", "stages": stages}))
    with pytest.raises(RecipeError, match=said):
        load_recipe(str(tmp_path / "recipe.yaml"))


def test_the_documents_example_is_right(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "generators.md").read_text(encoding="utf-8")
    (python,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    several, stages = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    source = {"name": "several", "engine": {"kind": "echo"}, **yaml.safe_load(several)}
    several_stage = check_recipe(source, "docs/generators.md").stages["stories"].stage
    assert isinstance(several_stage, PromptedStage) and several_stage.learns
    (template,) = re.findall(r"`riddles.jinja`: `(.*?)`", page)
    (tmp_path / "riddles.py").write_text(python)
    (tmp_path / "riddles.jinja").write_text(template)
    (tmp_path / "recipe.yaml").write_text(stages)
    stage = load_recipe(str(tmp_path / "recipe.yaml")).stages["riddles"].stage
    assert isinstance(stage, PromptedStage)
    asked = {stage.prompt(row).messages[0]["content"] for row in range(8)}
    assert len(asked) == 8
    assert "Write a funny riddle about the wind." in asked


def test_the_documents_say_how_many_prompts_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "generators.md").read_text(encoding="utf-8")
    for kind, stage in (("stories", Stories), ("textbooks", Textbooks)):
        settings = stage.Settings(rows=1)
        assert re.search(rf"\| \[`{kind}`\]\(.*\| {len(stage(kind, settings, 0).combinations):,} \|", page)


def test_a_job_takes_the_file_and_its_template_along(tmp_path: Path) -> None:
    riddles(tmp_path)
    with staged_code(tmp_path / "recipe.yaml") as (folder, recipe):
        first = code_digest(folder)
        found = load_recipe(str(folder / recipe)).stages["riddles"].stage
        assert isinstance(found, PromptedStage) and "riddle about" in found.prompt(0).messages[0]["content"]
    riddles(tmp_path, template=TEMPLATE + " Be brief.")
    with staged_code(tmp_path / "recipe.yaml") as (folder, _):
        assert code_digest(folder) != first, "another template is another job"
    absolute = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    absolute["stages"]["riddles"]["kind"] = f"{tmp_path}/riddles.py:Riddles"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(absolute))
    with pytest.raises(RecipeError, match="a job cannot take along"), staged_code(tmp_path / "recipe.yaml"):
        pass


def test_its_settings_are_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    riddles(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "How they sound." in describe_kind("riddles.py:Riddles")
    riddles(tmp_path, kind=KIND.replace('    """Riddles about things."""\n', ""))
    assert "no description" in describe_kind("riddles.py:Riddles")
