from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest
from raw_corpus import raw_corpus

from classifiers.cleaning import CleaningSettings
from classifiers.extract import Extract, ExtractPart, ExtractSettings
from classifiers.main_text import MainText, NoMainText
from classifiers.markup import is_html
from hornbook.documents import content_key, document_id
from hornbook.errors import ClusterError
from hornbook.parts import PartRange, commit_part

PARAGRAPH = (
    "Light is scattered by the molecules of the air, and short waves are scattered more than long ones. "
    "This is why the sky looks blue by day, and why the sun looks red in the evening, when its light comes a long way."
)
PAGE = f"""<!DOCTYPE html><html><head><title>Sky</title><script>var hidden = 1;</script></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/login">Log in</a></li></ul></nav>
<main><h1>The sky&para;</h1><p>{PARAGRAPH}</p><p>{PARAGRAPH.replace("Light", "CafÃ© light")}</p></main>
<footer><a href="/p">Privacy policy</a></footer></body></html>"""


def nested(depth: int) -> str:
    return f"<html><body><p>{PARAGRAPH}</p>{'<div>' * depth}<p>deep</p>{'</div>' * depth}</body></html>"


def extracted(folder: Path, texts, **settings):
    """Extract in this process; return (documents by row, rejects by row, the raw documents by row, counts)."""
    raw = raw_corpus(folder, texts, part_rows=3)
    maker = ExtractPart(ExtractSettings(**settings), raw)
    maker.setup()
    documents, rejects, before, counts = {}, {}, {}, Counter()
    for part in raw.parts:
        before |= {row["id"] >> 16: row for row in raw.read(part).to_pylist()}
        content = maker.make(PartRange(part.start, part.stop))
        commit_part(raw.store, "artifacts/extracted", part.range, content)  # refuses what does not add up
        documents |= {row["id"] >> 16: row for row in content.table.to_pylist()}
        rejects |= {row["id"] >> 16: row for row in content.rejects.to_pylist()}
        counts.update(content.counts)
    maker.main_text.close()
    return documents, rejects, before, counts


@pytest.mark.parametrize("extractor", ["trafilatura", "resiliparse"])
def test_main_text_comes_out_of_html_and_lineage_goes_on(tmp_path, extractor):
    plain = "just a   note\n    indented <b>not markup</b>"
    documents, rejects, raw, _ = extracted(
        tmp_path, [(PAGE, {"url": "http://sky.example/"}), plain, (plain, {"file": "a.txt"})], extractor=extractor
    )
    assert not rejects and sorted(documents) == [0, 1, 2]
    sky = documents[0]
    assert PARAGRAPH in sky["text"] and "Café light" in sky["text"]
    for gone in ("hidden", "Log in", "Privacy", "¶", "<p>"):
        assert gone not in sky["text"]
    assert sky["id"] == document_id(0) and sky["source"] == "web" and sky["kind"] == "text"
    assert sky["key"] == content_key(sky["text"].encode()) and sky["parents"] == [raw[0]["key"]]
    meta = json.loads(sky["meta"])
    assert meta["url"] == "http://sky.example/" and meta["extracted_by"] == extractor
    assert documents[1]["text"] == plain
    assert json.loads(documents[2]["meta"]) == {"file": "a.txt", "extracted_by": "plain", "cleaned": []}
    assert documents[2]["key"] == raw[2]["key"] and documents[2]["parents"] == [raw[2]["key"]]


def test_what_is_done_is_written_down_and_counted(tmp_path):
    documents, _, _, counts = extracted(tmp_path, ["cafÃ©  \r\nau lait\0", "fine"])
    assert documents[0]["text"] == "café\nau lait"
    assert json.loads(documents[0]["meta"])["cleaned"] == ["encoding", "controls", "white_space"]
    assert counts["changed by encoding"] == 1 and counts["characters_in"] == 21 and counts["characters"] == 16


def test_no_text_too_little_and_titles(tmp_path):
    texts = ["<html><body><script>x</script></body></html>", "\0\0 \n", "tiny", ("A longer body", {"title": "Title"})]
    documents, rejects, _, _ = extracted(
        tmp_path, texts, min_characters=5, cleaning=CleaningSettings(merge_title=True, final_mark=True)
    )
    assert {row: rejects[row]["reason"] for row in rejects} == {0: "no-text", 1: "no-text"}
    assert documents[2]["text"] == "tiny."
    assert documents[3]["text"] == "Title\nA longer body."
    _, rejects, _, _ = extracted(tmp_path / "other", ["tiny"], min_characters=5)
    assert rejects[0]["reason"] == "too-short" and rejects[0]["text"] == "tiny"


def test_none_leaves_markup_and_always_extracts(tmp_path):
    documents, _, _, _ = extracted(tmp_path / "none", [PAGE], extractor="none")
    assert "<nav>" in documents[0]["text"]
    documents, _, _, _ = extracted(tmp_path / "always", [f"<p>{PARAGRAPH}</p>"], html="always")
    assert documents[0]["text"] == PARAGRAPH


@pytest.mark.parametrize("extractor", ["trafilatura", "resiliparse"])
@pytest.mark.parametrize("tag", ["div", "blockquote", "b"])
def test_html_nested_100_000_deep_neither_crashes_nor_hangs_and_the_next_document_is_fine(tmp_path, extractor, tag):
    began = time.monotonic()
    texts = [nested(100_000).replace("div", tag), PAGE]
    documents, rejects, _, _ = extracted(tmp_path, texts, extractor=extractor, seconds=0.5)
    assert PARAGRAPH in documents[1]["text"]
    if 0 in rejects:
        assert rejects[0]["reason"] in ("too-slow", "extractor-crashed", "extraction-failed") and rejects[0]["detail"]
    else:
        assert PARAGRAPH in documents[0]["text"]
    assert time.monotonic() - began < 60


def test_a_document_that_takes_too_long_is_named_and_its_process_replaced():
    main_text = MainText("resiliparse", seconds=0.3, memory_mib=1024)
    for _ in range(2):
        with pytest.raises(NoMainText, match=r"more than 0\.3 s of processor time") as raised:
            main_text(nested(100_000))
        assert raised.value.reason == "too-slow" and main_text.process is None
    assert main_text(f"<p>{PARAGRAPH}</p>") == PARAGRAPH
    process = main_text.process
    assert main_text(f"<p>{PARAGRAPH}</p>") == PARAGRAPH and main_text.process is process
    main_text.close()


def test_an_extractor_that_dies_is_a_reject_and_one_that_does_not_start_an_error():
    main_text = MainText("resiliparse", seconds=5, memory_mib=1024)
    main_text("<p>one</p>")
    os.kill(main_text.process.pid, 11)
    with pytest.raises(NoMainText, match="ended with SIGSEGV") as raised:
        main_text("<p>two</p>" * 100_000)
    assert raised.value.reason == "extractor-crashed"
    assert main_text("<p>three</p>") == "three"
    main_text.close()
    with pytest.raises(ClusterError, match="does not start") as failed:
        MainText("nonesuch", seconds=5, memory_mib=1024)("<p>one</p>")
    assert "nonesuch" in failed.value.cure


@pytest.mark.parametrize("extractor", ["trafilatura", "resiliparse"])
def test_nul_bytes_half_pairs_and_broken_markup_give_text(tmp_path, extractor):
    maker = ExtractPart(ExtractSettings(extractor=extractor), raw_corpus(tmp_path, ["unused"]))
    maker.setup()
    text, done = maker.plain(f"\0<html>\0<body><p>{PARAGRAPH}\0<p>\ud800</b></i>", {})
    assert text == PARAGRAPH and done["extracted_by"] == extractor
    maker.main_text.close()


@pytest.mark.parametrize(
    ("text", "meta", "expected"),
    [
        ("<p>x</p>", {"content_type": "text/html; charset=utf-8"}, True),
        ("<html>", {"content_type": "text/plain"}, False),
        ("<html>", {"content_type": "application/octet-stream"}, True),
        ("x", {"file": "/a/b.HTML.gz"}, True),
        ("x", {"url": "http://a.example/b.htm?c=d"}, True),
        ("x", {"file": "rows.jsonl"}, False),
        ('\ufeff<?xml version="1.0"?>\n<!-- a - b -->\n<!DOCTYPE html PUBLIC "-//W3C">', {"file": "rows.jsonl"}, True),
        ("  <HTML lang=en>", {}, True),
        ('<h1 align="center">A README</h1>', {"file": "README.md"}, False),
        ("<header>", {}, False),
        ("<!--" + "- " * 100_000, {}, False),
    ],
)
def test_what_counts_as_html(text, meta, expected):
    assert is_html(text, meta) is expected


def test_versions_are_part_of_its_identity():
    made = Extract("clean", ExtractSettings(extractor="resiliparse"), seed=1).extra_identity()
    assert sorted(made) == ["version of Unicode", "version of ftfy", "version of resiliparse"]
    bare = ExtractSettings(extractor="none", cleaning=CleaningSettings(encoding=False, unicode="none"))
    assert Extract("clean", bare, seed=1).extra_identity() == {}


def test_the_stages_run_one_after_the_other(tmp_path, ray_cluster, stage_context):
    from classifiers.language import Language, LanguageSettings

    raw = raw_corpus(tmp_path, [PAGE, "<html></html>", "Dies ist ein ganz gewöhnlicher deutscher Satz.", "1 2 3"], 2)
    clean = stage_context.finished(Extract("clean", ExtractSettings(), seed=1), documents=[raw])
    assert clean.manifest.counts["rows"] == 3 and clean.manifest.reasons == {"no-text": 1}
    assert clean.manifest.metrics["extracted_from_html"] == 1
    said = stage_context.finished(Language("said", LanguageSettings(keep=("en",)), seed=1), documents=[clean])
    rows = [row for part in said.parts for row in said.read(part).to_pylist()]
    assert [(row["language"], row["language_kept"]) for row in rows] == [("en", True), ("de", False), ("und", False)]
    assert said.manifest.metrics == {"documents_by_language": {"de": 1, "en": 1, "und": 1}, "kept": 1}
