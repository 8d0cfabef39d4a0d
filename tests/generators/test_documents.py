"""Documents as seeds: every document or passage is planned once, good ones only where scores say so, and none is torn."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from document_inputs import corpus, scores_of
from hypothesis import given, settings
from hypothesis import strategies as st

from generators.documents import DocumentReader, cut_passages, extract, without_markup
from generators.questions import Questions, QuestionSettings
from hornbook.documents import written_tokens
from hornbook.errors import DataError, RecipeError
from hornbook.scores import ScoreFilter
from hornbook.stage import Expected

TEXTS = [f"Document {number}. " + "It says a few words more. " * number for number in range(8)]
PIECES = ["a", "bc", ".", "! ", "\n", "\n\n", " ", '." ', "é"]
TEXT = st.lists(st.sampled_from(PIECES), max_size=120).map("".join)


def reader(folder: Path, passage_characters: int = 0, **options: object) -> DocumentReader:
    documents = corpus(folder, TEXTS)
    return DocumentReader(documents, ScoreFilter("x", documents, None), passage_characters, **options)  # type: ignore[arg-type]


def test_documents_come_in_plan_order_from_any_place(tmp_path: Path) -> None:
    found = reader(tmp_path)
    assert len(found) == len(TEXTS)
    assert [found[number].text for number in (7, 0, 3, 3, 6, 1)] == [TEXTS[number] for number in (7, 0, 3, 3, 6, 1)]
    with pytest.raises(IndexError):
        _ = found[8]


def test_every_passage_of_every_document_is_planned_once(tmp_path: Path) -> None:
    found = reader(tmp_path, passage_characters=60)
    passages = [found[number] for number in range(len(found))]
    assert len(passages) > len(TEXTS)
    joined: dict[bytes, str] = {}
    for passage in passages:
        joined[passage.key] = joined.get(passage.key, "") + passage.text
    assert list(joined.values()) == TEXTS
    assert [p.passage for p in passages if p.key == passages[-1].key] == list(range(passages[-1].passages))
    shuffled = pickle.loads(pickle.dumps(found))
    assert [shuffled[number] for number in reversed(range(len(found)))] == passages[::-1]


@pytest.mark.parametrize(
    ("threshold", "minimum", "kept"), [(0.5, None, [1, 4, 7]), (0.5, 0.8, [4]), (None, 0.1, [0, 1, 4, 7])]
)
def test_scores_choose_the_documents(
    tmp_path: Path, threshold: float | None, minimum: float | None, kept: list[int]
) -> None:
    documents = corpus(tmp_path, TEXTS)
    scores = scores_of(documents, {0: 0.25, 1: 0.5, 4: 0.875, 7: 0.75}, threshold)
    found = DocumentReader(documents, ScoreFilter("x", documents, scores, minimum))
    assert [found[number].text for number in range(len(found))] == [TEXTS[number] for number in kept]
    cut = DocumentReader(documents, ScoreFilter("x", documents, scores, minimum), 60)
    assert "".join(cut[number].text for number in range(len(cut))) == "".join(TEXTS[number] for number in kept)


def test_a_dry_run_counts_samples_and_stops_at_what_is_wanted() -> None:
    def expected(**values: Any) -> int | None:
        stage = Questions("questions", QuestionSettings(engine={"kind": "echo"}, per_document=2, **values), 0)
        return stage.expected({"documents": [Expected(rows=100)]}).rows

    assert expected() == 200 and expected(samples=4) == 800 and expected(samples=4, rows=30) == 120
    assert expected(accepted=10) == 10 and expected(accepted=1000) == 200


def test_wrong_scores_are_refused(tmp_path: Path) -> None:
    documents, others = corpus(tmp_path / "a", TEXTS), corpus(tmp_path / "b", TEXTS[1:])
    scores = scores_of(others, {1: 1.0}, None)
    with pytest.raises(RecipeError, match="scored other documents"):
        ScoreFilter("x", documents, scores)
    with pytest.raises(RecipeError, match="names no threshold"):
        ScoreFilter("x", others, scores)
    with pytest.raises(RecipeError, match="minimum_score needs scores"):
        ScoreFilter("x", documents, None, 0.5)


def test_a_kind_plans_rows_of_good_documents_only(tmp_path: Path, stage_context) -> None:  # type: ignore[no-untyped-def]
    documents = corpus(tmp_path, TEXTS)
    scores = scores_of(documents, {2: 0.9, 5: 0.9}, 0.5)
    stage = Questions("q", QuestionSettings(engine={"kind": "echo"}, per_document=2), 0)  # type: ignore[arg-type]
    assert stage.planned(stage_context(stage, documents=[documents], scores=[scores])) == 4
    worker = pickle.loads(pickle.dumps(stage))
    worker.open({})  # the driver found out where the documents lie
    assert [worker.prompt(row).parents for row in range(4)] == [
        (documents.read(documents.parts[part])["key"][2].as_py(),) for part in (0, 0, 1, 1)
    ]
    strict = Questions("q", QuestionSettings(engine={"kind": "echo"}, minimum_score=0.95), 0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"no document .* reaches the score 0\.95"):
        strict.planned(stage_context(strict, documents=[documents], scores=[scores]))


@settings(max_examples=200)
@given(text=TEXT, count=st.integers(1, 6))
def test_passages_are_the_text(text: str, count: int) -> None:
    passages = cut_passages(text, count)
    assert "".join(passages) == text and len(passages) == count
    assert all(len(passage) <= 1.5 * len(text) / count + 1 for passage in passages)


def test_passages_end_where_paragraphs_or_sentences_do() -> None:
    first, second = "One sentence. " * 6 + "Last.\n\n", "Another one. " * 6
    assert cut_passages(first + second, 2) == [first, second]
    assert all(passage.endswith(". ") for passage in cut_passages("A few words here. " * 40, 7)[:-1])
    assert all(passage.endswith(" ") for passage in cut_passages("words without end " * 40, 7)[:-1])


@settings(max_examples=200)
@given(text=TEXT, characters=st.integers(1, 60))
def test_an_extract_is_a_short_beginning(text: str, characters: int) -> None:
    found = extract(text, characters)
    assert text.strip().startswith(found)
    assert len(found) <= characters
    assert bool(found) == bool(text.strip())


def test_an_extract_ends_with_a_paragraph_or_a_sentence() -> None:
    assert extract("First. Second.\n\nThird sentence. Fourth.", 30) == "First. Second."
    assert extract('She said "no." Then she went. And', 31) == 'She said "no." Then she went.'
    assert extract('She said "no." Then she', 20) == 'She said "no."'
    assert extract("no end of a sentence at all", 10) == "no end of"


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ('<p align="center"><img src="x"></p>Text', "Text"),
        ("[![badge](u)](v) [Docs](http://x.org) here", " Docs here"),
        ("See `Requests <http://x.org>`_ and <!-- not\nthis --> that", "See Requests and  that"),
        (".. image:: http://x.org\n   :alt: x\nText", "\nText"),
        ("a < b > c, Dict<int>, x[1](2", "a < b > c, Dict<int>, x[1](2"),
        ("One.\n\n\n\nTwo.", "One.\n\nTwo."),
    ],
)
def test_markup_is_taken_away_and_text_is_not(marked: str, plain: str) -> None:
    assert without_markup(marked) == plain


@pytest.mark.parametrize(
    ("meta", "tokens"),
    [
        ("{}", 5),
        ('{"calls":[{"completion_tokens":7,"model":"m"},{"completion_tokens":2}]}', 14),
        ('{"calls":[{"model":"made before tokens were noted"}]}', 5),
        ('{"calls":3}', 5),
        ('{"calls":["a kind\'s own",{"completion_tokens":"many"}]}', 5),
    ],
)
def test_tokens_of_all_calls_are_counted_and_a_kinds_own_meta_is_no_error(meta: str, tokens: int) -> None:
    assert written_tokens(5, meta) == tokens
