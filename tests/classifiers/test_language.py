from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_corpus import raw_corpus

from classifiers.attributes import AttributePart
from classifiers.language import Language, LanguageSettings, judged
from hornbook.errors import RecipeError
from hornbook.language import known_codes
from hornbook.parts import PartRange

ENGLISH = "The sky looks blue by day because short waves of light are scattered more than long ones."
GERMAN = "Der Himmel ist am Tag blau, weil kurze Wellen des Lichts stärker gestreut werden als lange."
GERMAN_CODE = '''
def berechne_summe(werte):
    """Berechnet die Summe aller Werte in der Liste und gibt sie zurück."""
    # Zuerst wird die Summe auf null gesetzt, danach wird jeder Wert addiert.
    summe = 0
    for wert in werte:
        summe += wert
    return summe
'''


def attributes_of(folder: Path, texts, **chosen):
    raw = raw_corpus(folder, texts)
    maker = AttributePart(Language("said", LanguageSettings(**chosen), seed=1), raw)
    maker.setup()
    (part,) = raw.parts
    content = maker.make(PartRange(part.start, part.stop))
    assert content.rejects.num_rows == 0
    return content, content.table.to_pylist()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (ENGLISH, "en"),
        (GERMAN, "de"),
        ("Le ciel paraît bleu le jour, car les ondes courtes de la lumière sont plus diffusées que les longues.", "fr"),
        ("今日はとても天気がいいので、公園まで散歩に行きました。", "ja"),
        ("今天天气很好，所以我们去公园散步了。", "zh"),
        ("Небо днём кажется голубым, потому что короткие волны света рассеиваются сильнее длинных.", "ru"),
        (f"<div class='thestyle'><p>{GERMAN}</p><a href='/the/way/of/this'></a></div>", "de"),
        (GERMAN_CODE, "de"),
        (Path(textwrap.__file__).read_text(), "en"),
    ],
)
def test_languages_of_prose_markup_and_code(text, code):
    found, score = judged(text)
    assert found == code and 0.6 < score <= 1


@pytest.mark.parametrize(
    "text", ["", "\0\0\0", "12 + 3 = 15", "{}[]();", "aGVsbG8gd29ybGQ= " * 50, "\U0001ffff\ud800", "x = y\n" * 20, "ok"]
)
def test_what_cannot_be_judged_says_so(text):
    assert judged(text) == ("und", 0.0)


def test_a_second_language_lowers_the_score():
    alone, mixed = judged(ENGLISH * 4)[1], judged(ENGLISH * 4 + " " + GERMAN * 2)
    assert mixed[0] == "en" and mixed[1] < alone


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_any_text_gets_a_known_code_and_a_score(text):
    code, score = judged(text)
    assert (code == "und" and score == 0) or (code in known_codes() and 0 < score <= 1)


def test_columns_beside_the_documents_and_the_keep_list(tmp_path):
    content, rows = attributes_of(tmp_path, [ENGLISH, GERMAN, "12 + 3"], keep=("en", "und"))
    assert content.table.column_names == ["id", "key", "source", "language", "language_score", "language_kept"]
    assert [row["language"] for row in rows] == ["en", "de", "und"]
    assert [row["language_kept"] for row in rows] == [True, False, True]
    assert content.counts == {"documents in en": 1, "documents in de": 1, "documents in und": 1, "documents kept": 2}
    _, rows = attributes_of(tmp_path / "all", [ENGLISH, GERMAN, "12 + 3"])
    assert all(row["language_kept"] for row in rows)
    mixed = json.dumps([ENGLISH, GERMAN])
    _, rows = attributes_of(tmp_path / "sure", [ENGLISH, mixed, "12 + 3"], keep=("en", "de"), min_score=0.9)
    assert [row["language_kept"] for row in rows] == [True, False, False]


def test_a_keep_list_with_an_unknown_code_is_refused():
    Language("said", LanguageSettings(keep=("en", "zh", "und")), seed=1).check()
    with pytest.raises(RecipeError, match=r"said\.keep: no language 'eng'"):
        Language("said", LanguageSettings(keep=("eng",)), seed=1).check()
