"""Decontamination: every hit names its item, sets that would find nothing are errors, and the self-test bites."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpora import corpus, finished
from test_code_similarity import OTHER, PROGRAM, RENAMED

from classifiers.decontaminate import ITEMS, Decontaminate, DecontaminateSettings, read_items
from classifiers.embed import EmbedPart, EmbedSettings
from classifiers.evaluation_sets import ItemText, items_table
from classifiers.item_finder import FindSettings, ItemFinder
from classifiers.planted import self_test
from classifiers.selection import Select, SelectSettings
from classifiers.selection_rules import Rule
from hornbook.artifact import Artifact
from hornbook.errors import DataError, HornbookError, RecipeError
from hornbook.parts import PartContent, commit_part, same_ids
from hornbook.settings import validate

# Items of our own: nobody's benchmark.
FERRY = "A ferry leaves the harbour at nine and sails six miles an hour against a current of two. When does it arrive?"
BREAD = "Mila bakes three loaves a day and gives away every fifth one; how many loaves does she keep in two weeks?"
SHORT = "Which of the two rivers is longer, then?"
CLEAN = "Bread is baked from flour and water. The ferry leaves from the old harbour, and nobody knows when it arrives."
ITEMS_OF_OURS: list[dict[str, Any]] = [
    {"id": "ferry", "text": FERRY},
    {"id": "bread", "text": BREAD},
    {"id": 3, "text": SHORT},
]


def write(folder: Path, rows: Sequence[Any], name: str = "sums.jsonl") -> dict[str, Any]:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": name.split(".")[0], "path": str(folder / name)}


def stage(*sets: dict[str, Any], **more: Any) -> Decontaminate:
    given = validate(DecontaminateSettings, {"evaluation_sets": list(sets), **more}, "stages.clean")
    made = Decontaminate("clean", given, seed=1)
    made.check()
    return made


def decontaminate(contexts: Any, cleaning: Decontaminate, texts: list[str], **inputs: Any):
    """Run the stage without Ray; return its metrics and its rows."""
    documents = inputs.pop("documents", None) or corpus(contexts.store, [("web", text) for text in texts])
    context = contexts(cleaning, documents=[documents], **inputs)

    def make_parts(maker: Any, ranges: Any, **options: Any) -> Any:
        from hornbook.partwork import _totals

        maker.setup()
        for part in ranges:
            commit_part(contexts.store, context.artifact.folder, part, maker.make(part))
        return _totals(contexts.store, context.artifact.folder)

    context.make_parts = make_parts
    metrics = cleaning.run(context).metrics
    return metrics, [row for table in context.artifact.tables() for row in table.to_pylist()]


def test_every_hit_names_its_item_and_order_is_kept(stage_context, tmp_path):
    cleaning = stage(write(tmp_path, ITEMS_OF_OURS))
    copied = " ".join(FERRY.upper().split()[2:16])
    texts = [CLEAN, f"Quiz!\n{copied}... or so.", "", f"{SHORT} {BREAD} {FERRY}", CLEAN, f"He asked: {SHORT.lower()}"]
    metrics, rows = decontaminate(stage_context, cleaning, texts)
    assert [row["contaminated"] for row in rows] == [False, True, False, True, False, True]
    assert [(row["benchmark"], row["item"], row["method"]) for row in rows] == [
        ("", "", ""),
        ("sums", "ferry", "13-gram"),
        ("", "", ""),
        ("sums", "ferry", "13-gram"),
        ("", "", ""),
        ("sums", "3", "whole"),
    ]
    assert (
        rows[1]["overlap"] == pytest.approx(14 / 22, abs=1e-6) and rows[3]["overlap"] == 1.0 and rows[0]["overlap"] == 0
    )
    assert [hit["item"] for hit in rows[3]["hits"]] == ["ferry", "bread", "3"] and rows[3]["hit_items"] == 3
    documents = [row for table in Artifact(stage_context.store, "artifacts/web").tables() for row in table.to_pylist()]
    assert [(row["id"], row["key"]) for row in rows] == [(row["id"], row["key"]) for row in documents]
    assert metrics["contaminated"] == 3 and metrics["methods"] == {"13-gram": 2, "whole": 1}
    assert metrics["kept"] == {"web": {"documents": 6, "kept": 3, "share": 0.5}}
    sums = metrics["evaluation_sets"]["sums"]
    assert sums["items"] == sums["findable"] == sums["items_hit"] == 3 and sums["documents_hit"] == 3
    assert sums["planted_and_found"] == 11  # three ways each, and a run of those that are longer
    assert json.loads(json.dumps(metrics)) == metrics


def test_cosmopedias_rule_wants_half_of_the_item(stage_context, tmp_path):
    cleaning = stage(write(tmp_path, ITEMS_OF_OURS), ngram=10, more_than=0.5)
    words = FERRY.split()
    texts = [" ".join(words[:10]) + " and no more", " ".join(words[:12]), " ".join(words[:9])]
    _, rows = decontaminate(stage_context, cleaning, texts)
    assert [row["contaminated"] for row in rows] == [False, True, False]
    assert rows[1]["method"] == "10-gram" and rows[1]["overlap"] == pytest.approx(12 / 22, abs=1e-6)


def test_sets_come_from_parquet_gzip_and_corpora_with_fields_of_any_name(stage_context, tmp_path):
    pq.write_table(
        pa.table({"task": ["a", "b"], "ask": [FERRY, BREAD], "choices": [["at ten", "at noon"], ["1", "2"]]}),
        tmp_path / "quiz.parquet",
    )
    with gzip.open(tmp_path / "sums.jsonl.gz", "wt") as file:
        file.write(
            json.dumps({"question": BREAD, "hint": None}) + "\n\n" + json.dumps({"question": SHORT, "hint": "x"})
        )
    quiz = {"name": "quiz", "path": str(tmp_path / "quiz.parquet"), "id_field": "task", "fields": ["ask", "choices"]}
    sums = {"name": "sums", "path": str(tmp_path / "sums.jsonl.gz"), "id_field": "", "fields": ["question", "hint"]}
    exam = corpus(stage_context.store, [("exam", CLEAN)], name="exam")
    cleaning = stage(quiz, sums)
    metrics, rows = decontaminate(stage_context, cleaning, [BREAD, CLEAN, FERRY], evaluation=[exam])
    assert [{(hit["benchmark"], hit["item"]) for hit in row["hits"]} for row in rows] == [
        {("quiz", "b"), ("sums", "1")},
        {("exam", "0")},
        {("quiz", "a")},
    ]
    items = read_items(Artifact(stage_context.store, "artifacts/clean")).to_pylist()
    assert ("sums", "2", "hint") in {(row["benchmark"], row["item"], row["field"]) for row in items}
    assert set(metrics["evaluation_sets"]) == {"quiz", "sums", "exam"}


def test_a_set_that_would_find_nothing_is_an_error(stage_context, tmp_path):
    good = write(tmp_path, ITEMS_OF_OURS)
    for rows, given, said in (
        ([], {}, "has no item"),
        ([{"id": 1, "text": "too short"}], {}, "none of the 1 items of the evaluation set 'bad' can be looked for"),
        ([{"id": 1, "texts": FERRY}], {}, "no item of .* has the field 'text' .did you mean 'texts'"),
        ([{"id": 1, "text": " "}, {"id": 2, "text": None}], {}, "the field 'text' is empty in all 2 items"),
        ([{"id": 1, "text": 7}], {}, "row 1: the field 'text' holds int, not text"),
        ([{"name": 1, "text": FERRY}], {}, "row 1: the item has no 'id'"),
        ([{"id": 1, "text": FERRY}, {"id": "1", "text": BREAD}], {}, "row 2: another item is called '1'"),
        ([{"id": 1, "text": FERRY}], {"fields": []}, "neither fields nor code_fields"),
        ([{"id": 1, "text": FERRY}], {"code_fields": ["text"]}, "set ast_match"),
        ([{"id": 1, "text": FERRY}], {"name": "sums"}, "two evaluation sets are called 'sums'"),
    ):
        with pytest.raises(HornbookError, match=said):
            stage(good, write(tmp_path, rows, "bad.jsonl") | given)
    for name, content, said in (
        ("bad.jsonl", b'{"id": 1}\n{"id": 2, "te', "line 2 is no JSON"),
        ("bad.jsonl", b"[1]\n", "line 1 is no JSON object"),
        ("bad.jsonl", b'{"id": 1, "text": "\xff"}\n', "line 1 is no JSON"),
        ("bad.parquet", b"PAR1 not", "is not a readable Parquet file"),
        ("bad.jsonl.gz", gzip.compress(b'{"id": 1, "text": "a"}\n')[:-9], "cannot be read"),
        ("bad.csv", b"id,text\n", "neither .jsonl, .jsonl.gz nor .parquet"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(HornbookError, match=said):
            stage({"name": "bad", "path": str(tmp_path / name)})
    latin = pa.BinaryArray.from_buffers(
        pa.binary(), 1, [None, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(b"caf\xe9")]
    )
    pq.write_table(pa.table({"id": ["1"], "text": latin.view(pa.string())}), tmp_path / "latin.parquet")
    with pytest.raises(DataError, match=r"latin\.parquet is not a readable Parquet file: .*utf-8"):
        stage({"name": "bad", "path": str(tmp_path / "latin.parquet")})
    with pytest.raises(RecipeError, match=r"there is no file nowhere\.jsonl"):
        stage({"name": "bad", "path": "nowhere.jsonl"})
    with pytest.raises(RecipeError, match="there is nothing to look for"):
        decontaminate(stage_context, stage(), [CLEAN])


def test_the_self_test_fails_where_planted_items_are_not_found():
    items = items_table([ItemText("sums", "ferry", "text", FERRY)])
    finder = ItemFinder(items, FindSettings())
    assert self_test(finder, "clean") == {"sums": 4}
    finder.words = ItemFinder(items_table([ItemText("sums", "ferry", "text", BREAD)]), FindSettings()).words  # stale
    with pytest.raises(
        DataError, match=r"planted item 'ferry' of 'sums' .text, whole. into a document and did not find it"
    ):
        self_test(finder, "clean")


ODD = [
    "ΐώ ŉ ß İı ﬁn ǰ Ω Å K é ÿ Ǆ ẞ x y",
    "水が流れる春の川で魚が跳ねた",
    "a\x00b c\u0301 d e f g h i j k l m n o\ud800 p",
]


@pytest.mark.parametrize("text", ODD)
def test_the_self_test_is_no_trap_for_odd_letters(text):
    finder = ItemFinder(
        items_table([ItemText("odd", "1", "text", text.encode("utf-8", "replace").decode())]), FindSettings()
    )
    assert self_test(finder, "clean")["odd"] >= 3


def test_code_is_found_by_its_tree_although_every_name_changed(stage_context, tmp_path):
    head, body = PROGRAM.split('"""\n', 1)
    rows = [{"id": "p/1", "prompt": head + '"""\n', "solution": body}, {"id": "p/2", "prompt": OTHER, "solution": ""}]
    given = write(tmp_path, rows, "programs.jsonl") | {"fields": [], "code_fields": ["prompt", "solution"]}
    cleaning = stage(given, ast_match=0.9)
    metrics, found = decontaminate(stage_context, cleaning, [RENAMED, CLEAN, OTHER])
    assert [(row["item"], row["method"]) for row in found] == [("p/1", "syntax"), ("", ""), ("p/2", "13-gram")]
    assert found[0]["overlap"] == 1.0
    assert metrics["evaluation_sets"]["programs"]["planted_and_found"] == 12


def test_embeddings_narrow_down_which_programs_are_compared(tmp_path):
    texts = [ItemText("programs", str(number), "code", PROGRAM) for number in range(2)]
    items = items_table(texts, {0: [1.0, 0.0], 1: [0.0, 1.0]})
    finder = ItemFinder(items, FindSettings(ast_match=0.9, embedding_distance=0.5))
    assert {hit.item for hit in finder.find(RENAMED).hits} == {"0", "1"}  # a document without a vector: all
    near = finder.find(RENAMED, np.array([0.9, 0.1], np.float32)).hits
    assert [hit.item for hit in near] == ["0"]
    assert finder.find(RENAMED, np.array([-1.0, 0.0], np.float32)).hits == []
    assert len(finder.find(RENAMED, np.array([np.nan, 0.0], np.float32)).hits) == 2


def test_embeddings_that_do_not_fit_are_refused(stage_context, tmp_path):
    store = stage_context.store
    documents = corpus(store, [("web", RENAMED), ("web", CLEAN)])
    others = corpus(store, [("web", CLEAN)], name="others")
    code = write(tmp_path, [{"id": 1, "code": PROGRAM}], "programs.jsonl") | {"fields": [], "code_fields": ["code"]}
    good = vectors(store, documents, "vectors", 384)
    for cleaning, embeddings, error, said in (
        (stage(write(tmp_path, ITEMS_OF_OURS)), good, RecipeError, "embeddings narrow down which programs"),
        (
            stage(code, ast_match=0.9),
            vectors(store, documents, "a", 4, kind="quality"),
            RecipeError,
            "is quality, not embed",
        ),
        (
            stage(code, ast_match=0.9),
            vectors(store, others, "b", 4),
            RecipeError,
            "attributes of other documents than web",
        ),
    ):
        with pytest.raises(error, match=said):
            decontaminate(stage_context, cleaning, [], documents=documents, embeddings=[embeddings])


def vectors(store, documents: Artifact, name: str, size: int, kind: str = "embed") -> Artifact:
    for part in documents.parts:
        table = documents.read(part, columns=["id", "key"])
        column = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(size * table.num_rows, np.float32)), size)
        content = PartContent(
            table.append_column("embedding", column), planned=table["id"].to_numpy(), unit_of=same_ids
        )
        commit_part(store, f"artifacts/{name}", part.range, content)
    return finished(store, name, "attributes", {"documents": [documents]}, kind=kind)


def test_an_empty_corpus_gives_an_empty_artifact(stage_context, tmp_path):
    metrics, rows = decontaminate(stage_context, stage(write(tmp_path, ITEMS_OF_OURS)), [])
    assert rows == [] and metrics["documents"] == metrics["contaminated"] == 0
    assert metrics["evaluation_sets"]["sums"]["planted_and_found"] == 11


def test_other_items_are_another_artifact_and_jobs_take_the_files_along(tmp_path):
    given = write(tmp_path, ITEMS_OF_OURS)
    before = stage(given).extra_identity()
    assert stage(given).extra_identity() == before
    write(tmp_path, ITEMS_OF_OURS[:2])
    assert stage(given).extra_identity() != before
    from hornbook.jobs import named_files

    recipe = tmp_path / "recipe.yaml"
    stages = {
        "web": {"kind": "files", "paths": [given["path"]]},
        "clean": {
            "kind": "decontaminate",
            "inputs": {"documents": "web"},
            "evaluation_sets": [given | {"path": "sums.jsonl"}],
        },
    }
    recipe.write_text(json.dumps({"name": "small", "seed": 1, "stages": stages}))
    assert named_files(recipe) == {"sums.jsonl": tmp_path / "sums.jsonl"}


def test_from_raw_documents_to_a_clean_corpus_with_ray(ray_cluster, stage_context, tmp_path):
    store = stage_context.store
    code = write(tmp_path, [{"id": 1, "code": PROGRAM}], "programs.jsonl") | {"fields": [], "code_fields": ["code"]}
    documents = corpus(store, [("web", text) for text in (CLEAN, RENAMED, OTHER, BREAD)])
    cleaning = stage(code, write(tmp_path, ITEMS_OF_OURS), ast_match=0.9, embedding_distance=1.2)
    inputs = {"documents": [documents], "embeddings": [embedded(store, documents)]}
    artifact = stage_context.finished(cleaning, **inputs)
    rows = [row for table in artifact.tables() for row in table.to_pylist()]
    assert [row["item"] for row in rows] == ["", "1", "", "bread"]
    assert [row["method"] for row in rows] == ["", "syntax", "", "13-gram"]
    assert {entry.name for entry in artifact.manifest.files} == {ITEMS}
    digest = artifact.manifest.digest
    store.delete(f"{artifact.folder}/manifest.json")
    store.delete(f"{artifact.folder}/parts/{store.names(f'{artifact.folder}/parts')[0]}")
    again = stage_context.finished(cleaning, **inputs)
    assert again.manifest.digest == digest
    rules = SelectSettings(rules=(Rule(column="contaminated", is_false=True),))
    chosen = stage_context.finished(Select("chosen", rules, seed=1), documents=[documents], attributes=[again])
    assert [text for table in chosen.tables() for text in table["text"].to_pylist()] == [CLEAN, OTHER]
    counts = chosen.manifest.counts
    assert (counts["planned"], counts["rows"], counts["empty"], counts["rejected"]) == (4, 2, 2, 0)


def embedded(store, documents: Artifact) -> Artifact:
    """Embed a corpus with the real model, in this process."""
    settings = EmbedSettings(max_tokens=64)
    maker = EmbedPart(settings, documents, on_gpu=False)
    maker.setup()
    for part in documents.parts:
        commit_part(store, "artifacts/vectors", part.range, maker.make(part.range))
    return finished(
        store, "vectors", "attributes", {"documents": [documents]}, settings=settings.identity(), kind="embed"
    )
