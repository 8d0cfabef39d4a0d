"""Selection: rules over attributes equal a plain filter, every dropped document has its reason, nothing is lost."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import run_recipe_here
from small_corpora import beside, corpus

from classifiers.beside import joined
from classifiers.selection import SELECTION, Select, SelectSettings
from hornbook.artifact import THRESHOLD, Artifact
from hornbook.errors import DataError, RecipeError
from hornbook.settings import validate
from hornbook.store import Store

ROWS = [
    ("web", "a"),
    ("web", "bb"),
    ("code", "ccc"),
    ("web", "dddd"),
    ("code", "eeeee"),
    ("code", "ffffff"),
    ("web", "g"),
]


def stage(rules: list[dict[str, Any]], **more: Any) -> Select:
    made = Select("chosen", validate(SelectSettings, {"rules": rules, **more}, "stages.chosen"), seed=1)
    made.check()
    return made


def select(
    contexts: Any, rules: list[dict[str, Any]], documents: Artifact, attributes: list[Artifact], **more: Any
) -> tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]:
    """Run a selection without Ray; return its metrics, the documents that it kept and its list."""
    selecting = stage(rules, **more)
    context = contexts(selecting, documents=[documents], attributes=attributes)
    context.make_parts = lambda maker, ranges, **options: make_here(context.artifact, maker, ranges)
    metrics = selecting.run(context).metrics
    listed = "data" if selecting.produces == "attributes" else SELECTION
    kept, rows = [
        [row for table in context.artifact.tables(role) for row in table.to_pylist()] for role in ("data", listed)
    ]
    return metrics, kept, rows


def make_here(artifact: Artifact, maker: Any, ranges: Any) -> None:
    from hornbook.parts import commit_part

    maker.setup()
    for part in ranges:
        commit_part(artifact.store, artifact.folder, part, maker.make(part))


def test_every_condition_is_what_it_says(stage_context):
    store = stage_context.store
    documents = corpus(store, ROWS)
    columns = {
        "score": [0.1, 0.5, 0.9, 0.7, 0.3, 0.7, 0.2],
        "language": ["en", "en", "de", "fr", "en", "", "de"],
        "clean": [True, True, False, True, True, False, True],
        "broken": [["short"], [], ["short", "loud"], None, ["loud"], [], ["loud", "odd"]],
    }
    types = {"score": pa.float32(), "broken": pa.list_(pa.string())}
    attributes = beside(store, documents, columns, types=types)

    def kept(rule: dict[str, Any], number: int) -> str:
        stage_context.store.delete("artifacts/chosen")
        _, rows, _ = select(stage_context, [rule], documents, [attributes])
        assert len(rows) == number
        return "".join(row["text"][0] for row in rows)

    assert (
        kept({"column": "score", "min": 0.7}, 3) == "cdf"
    )  # 0.7 as float32 is below 0.7: the column's precision counts
    assert kept({"column": "score", "max": 0.3}, 3) == "aeg"
    assert kept({"column": "language", "equals": "en"}, 3) == "abe"
    assert kept({"column": "language", "in": ["de", "fr"]}, 3) == "cdg"
    assert kept({"column": "language", "not_in": ["en", "fr"]}, 3) == "cfg"
    assert kept({"column": "clean", "is_true": True}, 5) == "abdeg"
    assert kept({"column": "clean", "is_false": True}, 2) == "cf"
    assert kept({"column": "clean", "is_true": True, "sources": ["code"]}, 5) == "abdeg"
    assert kept({"column": "clean", "is_true": True, "sources": ["web"]}, 7) == "abcdefg"
    assert kept({"column": "broken", "max": 0}, 2) == "bf"  # of a list, min and max count the entries
    assert kept({"column": "broken", "min": 2}, 2) == "cg"
    assert kept({"column": "broken", "not_in": ["short", "odd"]}, 3) == "bef"  # none of them
    assert kept({"column": "broken", "in": ["short", "odd"]}, 3) == "acg"  # any of them


def test_the_first_rule_wins_and_the_funnel_adds_up(stage_context):
    store = stage_context.store
    documents = corpus(store, ROWS)
    scores = beside(store, documents, {"score": [0.1, 0.5, 0.9, 0.7, 0.3, math.nan, None]}, without=[1])
    flags = beside(store, documents, {"flag": [True, True, True, False, False, True, True]}, name="flags")
    rules = [
        {"column": "score", "min": 0.3, "name": "good"},
        {"column": "flag", "is_true": True, "sources": ["web", "nowhere"]},
    ]
    metrics, kept, listed = select(stage_context, rules, documents, [scores, flags])
    assert [row["text"] for row in kept] == ["ccc", "eeeee"]
    original = [row for table in documents.tables() for row in table.to_pylist()]
    assert kept == [original[2], original[4]]  # ids, keys and all else unchanged
    reasons = ["good", "good: no value", "", "flag is true", "", "good: no value", "good: no value"]
    assert [row["reason"] for row in listed] == reasons
    assert [row["selected"] for row in listed] == [reason == "" for reason in reasons]
    assert [row["id"] for row in listed] == [row["id"] for row in original]
    assert metrics["funnel"]["steps"] == [
        {"rule": "good: no value", "dropped": 3, "characters": 9, "left": 4},
        {"rule": "good", "dropped": 1, "characters": 1, "left": 3},
        {"rule": "flag is true", "dropped": 1, "characters": 4, "left": 2},
    ]
    assert metrics["funnel"]["sources"]["code"] == {
        "documents": 3,
        "characters": 14,
        "dropped": {"good: no value": {"documents": 1, "characters": 6}},
        "kept": {"documents": 2, "characters": 8},
    }
    assert metrics["kept"]["web"] == {"documents": 4, "kept": 0, "share": 0.0}
    assert metrics["warnings"] == ["the rule 'flag is true' is for the source 'nowhere', which no document has"]
    counts = [(part.planned, part.rows, part.empty) for part in Artifact(store, "artifacts/chosen").parts]
    assert counts == [(3, 1, 2), (3, 1, 2), (1, 0, 1)]


def test_documents_without_a_value_may_stay(stage_context):
    documents = corpus(stage_context.store, ROWS)
    scores = beside(stage_context.store, documents, {"score": [0.0] * 7}, without=[1, 6])
    rules = [{"column": "score", "min": 0.5}]
    _, kept, _ = select(stage_context, rules, documents, [scores], missing="keep")
    assert [row["text"] for row in kept] == ["bb", "g"]


def test_the_list_alone_is_attributes_of_all_documents(stage_context):
    documents = corpus(stage_context.store, ROWS)
    scores = beside(stage_context.store, documents, {"score": list(range(7))})
    rules = [{"column": "score", "min": 4}]
    metrics, rows, _ = select(stage_context, rules, documents, [scores], output="selection")
    assert [row["selected"] for row in rows] == [False] * 4 + [True] * 3
    assert {row["reason"] for row in rows} == {"", "score >= 4.0"} and "text" not in rows[0]
    assert metrics["kept"]["code"]["kept"] == 2
    assert stage(rules, output="selection").produces == "attributes" and stage(rules).produces == "documents"


def test_a_rule_without_a_condition_takes_the_threshold_of_the_scores(stage_context):
    store = stage_context.store
    documents = corpus(store, ROWS)
    store.write_json(f"artifacts/scores/{THRESHOLD}", {"threshold": 0.6})
    scores = beside(store, documents, {"score": [0.1, 0.5, 0.9, 0.7, 0.3, 0.6, 0.2]}, files=[THRESHOLD])
    _, kept, _ = select(stage_context, [{"column": "score"}], documents, [scores])
    assert [row["text"] for row in kept] == ["ccc", "dddd", "ffffff"]
    other = beside(store, documents, {"number": [1] * 7}, name="other")
    with pytest.raises(RecipeError, match="no condition, and other names no threshold"):
        select(stage_context, [{"column": "number"}], documents, [scores, other])


def test_each_of_several_corpora_is_selected_by_its_own_rows(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n')
    (tmp_path / "two.jsonl").write_text('{"text": "c"}\n{"text": "d"}\n{"text": "a"}\n{"text": "e"}\n')
    rules = [{"column": "kept", "is_true": True}]
    stages: dict[str, Any] = {"unique": {"kind": "dedup", "inputs": {"documents": ["one", "two"]}}}
    for name in ("one", "two"):
        stages[name] = {"kind": "files", "paths": [str(tmp_path / f"{name}.jsonl")], "part_rows": 2}
        inputs = {"documents": name, "attributes": "unique"}
        stages[f"of-{name}"] = {"kind": "select", "inputs": inputs, "rules": rules}
    made = run_recipe_here({"name": "both", "seed": 1, "stages": stages}, Store(str(tmp_path / "store")))
    texts = {
        name: [text for table in made[f"of-{name}"].tables() for text in table["text"].to_pylist()]
        for name in ("one", "two")
    }
    assert texts == {"one": ["a", "b", "c"], "two": ["d", "e"]}


def test_wrong_rules_are_refused_with_their_name(stage_context):
    store = stage_context.store
    documents = corpus(store, ROWS)
    first = beside(store, documents, {"score": [0.5] * 7, "language": ["en"] * 7}, name="first")
    lists = {"broken": pa.list_(pa.string())}
    second = beside(store, documents, {"score": [1] * 7, "broken": [[]] * 7}, name="second", types=lists)
    for rule, said in (
        ({"column": "scor", "min": 1}, "no attribute is called 'scor' .did you mean 'score'"),
        ({"column": "score", "min": 1}, "several inputs have the column 'score': first, second"),
        ({"column": "score", "min": 1, "input": "third"}, "'third' is no input"),
        ({"column": "language", "min": 1}, "min cannot be asked of the column 'language', which holds string"),
        ({"column": "language", "is_true": True}, "is_true cannot be asked"),
        ({"column": "score", "input": "second", "equals": "high"}, "holds int64, so it is never 'high'"),
        ({"column": "broken", "equals": "short"}, "equals cannot be asked of the column 'broken', which holds list"),
        ({"column": "broken"}, "threshold cannot be asked of the column 'broken'"),
        ({"column": "broken", "in": [7]}, "so it is never 7"),
        ({"column": "score", "input": "first", "equals": True}, "holds double, so it is never True"),
    ):
        with pytest.raises(RecipeError, match=said):
            select(stage_context, [rule], documents, [first, second])
    with pytest.raises(RecipeError, match=r"rules.0: .*several conditions \(min, max\)"):
        stage([{"column": "score", "min": 1, "max": 2}])
    with pytest.raises(RecipeError, match="two rules are called 'same'"):
        stage([{"column": "a", "min": 1, "name": "same"}, {"column": "b", "min": 1, "name": "same"}])
    with pytest.raises(RecipeError, match="there is none"):
        stage([])


def test_attributes_of_other_documents_and_doubled_ids_are_refused(stage_context):
    documents = corpus(stage_context.store, ROWS)
    others = corpus(stage_context.store, ROWS[:3], name="others")
    scores = beside(stage_context.store, others, {"score": [1.0] * 3})
    with pytest.raises(RecipeError, match="scores has attributes of other documents than web"):
        select(stage_context, [{"column": "score", "min": 1}], documents, [scores])
    keys = pa.array([bytes(16), b"x" * 16], pa.binary(16))
    table = pa.table({"id": [1, 2], "key": keys})
    with pytest.raises(DataError, match="does not hold attributes of these documents"):
        joined(table, pa.table({"id": [2, 1], "key": keys}), "attributes")
    with pytest.raises(DataError, match="the documents: the id 1 occurs 2 times"):
        joined(pa.table({"id": [1, 1], "key": keys}), table, "attributes")
    rows, known = joined(table, table.slice(1), "attributes")
    assert known.tolist() == [False, True] and rows["id"].to_pylist() == [None, 2]


def test_an_empty_corpus_gives_an_empty_artifact(stage_context):
    documents = corpus(stage_context.store, [])
    scores = beside(stage_context.store, documents, {"score": []})
    metrics, kept, _ = select(stage_context, [{"column": "score", "min": 1}], documents, [scores])
    assert kept == [] and metrics == {"funnel": {"steps": [STEP], "sources": {}}, "kept": {}, "warnings": []}


STEP = {"rule": "score >= 1.0", "dropped": 0, "characters": 0, "left": 0}

VALUE = st.one_of(st.none(), st.floats(0, 1), st.just(math.nan))
RULES = st.lists(
    st.tuples(st.sampled_from(["min", "max"]), st.floats(0, 1), st.sampled_from([(), ("web",), ("web", "code")])),
    min_size=1,
    max_size=3,
    unique_by=lambda rule: rule[:2],
)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(["web", "code"]), VALUE), max_size=12), RULES, st.booleans())
def test_a_selection_is_a_plain_filter(rows, rules, keep_missing):
    def stays(source: str, value: float | None) -> bool:
        for condition, number, sources in rules:
            if sources and source not in sources:
                continue
            if value is None or math.isnan(value):
                if not keep_missing:
                    return False
            elif value < number if condition == "min" else value > number:
                return False
        return True

    with tempfile.TemporaryDirectory() as folder:
        store = Store(str(Path(folder)))
        documents = corpus(store, [(source, f"text {number}") for number, (source, _) in enumerate(rows)], 5)
        types = {"score": pa.float64()}
        scores = beside(store, documents, {"score": [value for _, value in rows]}, types=types)
        written = [
            {"column": "score", condition: number, "sources": list(sources), "name": f"rule {place}"}
            for place, (condition, number, sources) in enumerate(rules)
        ]
        missing = "keep" if keep_missing else "drop"
        metrics, kept, _ = select(Contexts(store), written, documents, [scores], missing=missing)
    assert [row["text"] for row in kept] == [f"text {row}" for row, found in enumerate(rows) if stays(*found)]
    assert sum(source["kept"] for source in metrics["kept"].values()) == len(kept)
    assert sum(step["dropped"] for step in metrics["funnel"]["steps"]) == len(rows) - len(kept)


class Contexts:
    """As much of the fixture `stage_context` as `select` needs, on a store of its own for each example."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __call__(self, stage: Select, **inputs: Any) -> Any:
        from types import SimpleNamespace

        names = {role: [found.manifest.stage for found in artifacts] for role, artifacts in inputs.items()}
        artifact = Artifact(self.store, f"artifacts/{stage.name}")
        context = SimpleNamespace(inputs=inputs, input_stages=names, artifact=artifact)
        context.optional_input = lambda role: next(iter(inputs.get(role, ())), None)
        context.input = lambda role: inputs[role][0]
        return context
