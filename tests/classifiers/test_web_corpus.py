"""The recipe `web-corpus`, small: what it asks of each stage is there, and its own questions are looked for."""

from __future__ import annotations

import json
from pathlib import Path

from in_process import run_recipe_here

from hornbook.recipe import load_recipe, shipped_recipes
from hornbook.store import Store


def test_its_rules_find_their_columns_and_every_document_has_its_reason(tmp_path: Path) -> None:
    few = "stages.raw.distributions=[jinja2, click, idna, rich]"
    recipe = load_recipe("web-corpus", ["stages.raw.files=60", "stages.raw.part_rows=20", few])
    made = run_recipe_here(recipe, Store(str(tmp_path)), "private")
    assert list(made) == ["raw", "text", "language", "rules", "unique", "clean", "decent", "private"]
    figures = made["decent"].manifest.metrics
    assert figures["warnings"] == []
    counts = made["decent"].manifest.counts
    assert 10 < counts["rows"] < counts["planned"] <= 60
    assert figures["funnel"]["steps"][-1]["left"] == counts["rows"] == made["private"].manifest.counts["rows"]
    sets = made["clean"].manifest.metrics["evaluation_sets"]["beginners"]
    assert sets["planted_and_found"] >= sets["items"] == sets["findable"] == 10 and sets["documents_hit"] == 0


def test_a_document_that_holds_one_of_its_questions_or_programs_is_dropped(tmp_path: Path) -> None:
    lines = (shipped_recipes() / "web-corpus-questions.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines]
    renamed = (
        items[4]["program"].replace("on_board", "a").replace("change", "b").replace("quay", "c").replace("log", "d")
    )
    filler = "The pupils of the evening school copied what they heard and asked what they did not understand. " * 5
    texts = [filler, f"{filler}\n{items[0]['question'].upper()}\n{filler}", f'"""{filler}"""\n{renamed}']
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    raw = f"stages.raw={{kind: files, paths: [{tmp_path / 'raw.jsonl'}]}}"
    made = run_recipe_here(load_recipe("web-corpus", [raw]), Store(str(tmp_path / "store")), "clean")
    (found,) = made["clean"].tables()
    assert found["item"].to_pylist() == ["", "buses", "ferry-log"]
    assert found["method"].to_pylist() == ["", "13-gram", "syntax"]
