from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifiers.cleaning import (
    CleaningSettings,
    add_final_mark,
    character_dice,
    clean,
    collapse_marks,
    collapse_space,
    drop_boilerplate,
    drop_controls,
    merge_title,
    repair_encoding,
    rules,
    tidy_space,
)

EVERYTHING = CleaningSettings(
    boilerplate="all", white_space="collapse", merge_title=True, final_mark=True, collapse_marks=True
)
PIECES = ["\n", "\r\n", "\r", "\0", "\x85", "\xa0", "\u3000", "\u00ad", "\ufeff", "\u0301", "e", "é", "Ã©", "â€œ", "ﬁ", ".", ",",
          "!?", "。", "¶", "§", "Skip to content", "Next", " ", "\t", "    ", '"', ")", "```", "中", "\ufdfa", "=", "\u0338"]  # fmt: skip
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=14).map("".join))


@given(TEXTS)
@settings(max_examples=300)
def test_a_rule_applied_to_its_own_result_changes_nothing(text):
    for name, rule in rules(EVERYTHING, title="A title"):
        once = rule(text)
        assert rule(once) == once, name
    for rule in (tidy_space, collapse_space):
        assert rule(rule(text)) == rule(text)


@given(TEXTS, st.sampled_from(["NFC", "NFKC"]), st.sampled_from(["tidy", "collapse"]))
@settings(max_examples=300)
def test_what_was_cleaned_is_in_its_normal_form_without_controls_and_not_much_longer(text, form, white_space):
    chosen = EVERYTHING.model_copy(update={"unicode": form, "white_space": white_space, "merge_title": False})
    cleaned, changed = clean(text, chosen)
    assert unicodedata.is_normalized(form, cleaned)
    assert drop_controls(cleaned) == cleaned
    assert len(cleaned) <= 18 * len(text) + 1  # U+FDFA is written with 18 letters in NFKC
    assert bool(changed) or cleaned == text


@given(TEXTS)
@settings(max_examples=100)
def test_characters_that_encode_nothing_wrongly_come_through(text):
    """What is printable, composed, on one line and no mojibake is left alone by the rules that are on by default."""
    plain = " ".join(unicodedata.normalize("NFC", drop_controls(text)).split())
    assert clean(plain, CleaningSettings(encoding=False))[0] == plain


@pytest.mark.parametrize(
    ("damaged", "meant"),
    [
        ("cafÃ© â€œau laitâ€\x9d", "café “au lait”"),
        ("schÃ¶ne GrÃ¼ÃŸe", "schöne Grüße"),
        ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет"),
        ("Ã\xa0 la carte", "à la carte"),
        ("a line in Ελληνικά\nand cafÃ©", "a line in Ελληνικά\nand café"),
    ],
)
def test_mojibake_is_repaired_by_line(damaged, meant):
    assert repair_encoding(damaged) == meant
    assert clean(damaged, CleaningSettings()) == (meant, ["encoding"])


def test_good_text_is_not_repaired():
    for text in ("L’Hôpital à Genève", "Größe: 5 µm², ±3 °C", "Ångström – naïve ½", "日本語テキスト"):
        assert repair_encoding(text) == text


def test_nul_bytes_and_line_breaks_of_other_systems():
    assert drop_controls("h\0e\0l\0l\0o\0\r\nw\x1borld\rend\u2028") == "hello\nworld\nend\n"
    assert drop_controls("\ufeffco\u00adoperate\ud800") == "cooperate"
    assert drop_controls("می\u200cخواهم") == "می\u200cخواهم"  # a joiner that Persian is written with


def test_code_keeps_its_shape_unless_collapsed():
    code = "def f(x):\n\tif x:   # why\n        return 1\n\n\nf(2)"
    assert clean(code, CleaningSettings()) == (code, [])
    assert tidy_space(f"\n\n{code}   \n\n\n\n\nend\n") == f"{code}\n\n\nend"
    assert collapse_space(" a \u00a0 b\t c \n\n\n\n d ") == "a b c\n\nd"


def test_furniture_goes_only_as_a_whole_line():
    said = "The next page is about cookies."
    page = (
        f"Skip to main content\nHeading¶\n{said}\nNext\n» Back to top\n© 2024 The Authors. All rights reserved.\n§\nEnd"
    )
    assert drop_boilerplate(page) == f"Heading\n{said}\nEnd"
    assert clean("Next", CleaningSettings())[0] == "Next"  # of what was no HTML it is not furniture
    assert clean("Next", CleaningSettings(), from_html=True) == ("", ["boilerplate"])


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        ("It is late", "It is late."),
        ("It is late,\n", "It is late."),
        ("“Is it late?”", "“Is it late?”"),
        ("(it is late)", "(it is late)."),
        ("天気がいい", "天気がいい。"),
        ("Look:\n```\nx = 1\n```", "Look:\n```\nx = 1\n```"),
        ("---", "---."),
        ("***", "***"),
    ],
)
def test_final_mark(text, ended):
    assert add_final_mark(text) == ended


def test_runs_of_marks_keep_the_last():
    assert collapse_marks("What?! Wait... 好！！！。 3.14, f(a)[0]; «x»") == "What! Wait. 好。 3.14, f(a)[0]; «x»"


def test_title_and_text_are_merged_unless_alike():
    assert character_dice("abc", "abd") == pytest.approx(2 / 3) and character_dice("", "") == 1.0
    assert merge_title("Why is the sky blue", "Light is scattered.") == "Why is the sky blue\nLight is scattered."
    assert merge_title("a question of sleep", "of sleep a question?") == "of sleep a question?"  # 0.96
    assert merge_title("Sky", "Sky and sea") == "Sky and sea"
    assert clean("Light.", EVERYTHING, title=" Why\n blue?? ")[0] == "Why blue?\nLight."


def test_every_rule_can_be_switched_off():
    off = CleaningSettings(encoding=False, controls=False, unicode="none", boilerplate="none", white_space="keep")
    text = "cafÃ©\0 \r\n\n\n\n\n e\u0301 \ufb01 Next\u00a0"
    assert clean(text, off, from_html=True, title="A title") == (text, [])
