"""The dial in the report: what Python counts, in tables and a chart, and nothing where there are no figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markupsafe import escape
from scored_corpus import grades, scored_corpus, web
from test_report import EVIL, Page

from hornbook.artifact import Artifact
from hornbook.charts import Ribbon, Series, line_chart
from hornbook.dial_figures import DIAL, dial_figures, figures_at, nearest_step
from hornbook.report import render_report
from hornbook.store import Store

OWN = 0.4321


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def report(store: Store, *artifacts: Artifact) -> str:
    stages = {
        found.manifest.stage: {"kind": found.manifest.kind, "group": "classifiers", "folder": found.folder, "state": "made", "seconds": 1.0}
        for found in artifacts
    }  # fmt: skip
    value = {
        "run": "r-1",
        "recipe": "r",
        "seed": 1,
        "state": "succeeded",
        "started": 1e9,
        "finished": 1e9 + 9,
        "stages": stages,
    }
    store.write_json("runs/r-1/run.json", value)
    return render_report(store, "r-1")


def test_the_report_has_the_dial_standing_still(store: Store) -> None:
    rows = [*web(400), ("<i>evil</i>", OWN, EVIL), *[("gone", 0.01, "old")] * 30]
    corpus, scored = scored_corpus(store, rows, threshold=OWN, held_out=grades(300))
    figures = dial_figures(scored, corpus, grades(300))
    store.write_json(f"{scored.folder}/{DIAL}", figures)
    text = report(store, corpus, scored)
    page = Page(text[text.index('id="dial"') - 20 : text.index("</section>", text.index('id="dial"')) + 10])
    found = figures_at(figures, nearest_step(figures, OWN))
    value, low, high = found["precision"]
    row = f"0.4321 chosen {found['kept_documents']} {100 * found['kept_documents'] / 431:.0f}%"
    assert row in page.text and f"{100 * value:.0f}% {100 * low:.0f}% to {100 * high:.0f}%" in page.text
    assert "300 held-out grades" in page.text and "hornbook dial r-1/scores" in page.text
    assert page.text.count("score 0.") == 3 and "kept ·" in page.text and "dropped ·" in page.text
    assert str(escape(EVIL)) in text and EVIL not in text
    shares = re.search(r"gone 30 ((?:[\d.]+% )+)", page.text)
    assert shares is not None and "0%" in shares[1].split()


def test_without_grades_or_a_threshold_there_are_no_columns_for_them(store: Store) -> None:
    corpus, scored = scored_corpus(store, web(100))
    store.write_json(f"{scored.folder}/{DIAL}", dial_figures(scored, corpus))
    text = report(store, corpus, scored)
    assert 'id="dial"' in text and "Precision" not in text and "At the border" not in text


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"format": 1}', b'{"format": 99}'])
def test_damaged_figures_are_left_out(store: Store, damage: bytes) -> None:
    corpus, scored = scored_corpus(store, web(20))
    store.write(f"{scored.folder}/{DIAL}", damage)
    assert 'id="dial"' not in report(store, corpus, scored)


def test_documents_that_are_gone_take_only_the_samples_with_them(store: Store) -> None:
    corpus, scored = scored_corpus(store, web(100), threshold=0.5)
    store.write_json(f"{scored.folder}/{DIAL}", dial_figures(scored, corpus))
    store.delete(corpus.folder)
    text = report(store, scored)
    assert 'id="dial"' in text and "At the border" not in text


def test_a_ribbon_lies_around_its_line() -> None:
    chart = line_chart(
        [Series("p", "c0", [(0, 50), (1, 60)])],
        ribbons=[Ribbon("c0", [(0, 40, 55), (1, 52, 71)])],
        label="", x_label="", y_label="", threshold=0.5,
    )  # fmt: skip
    corners = [
        [float(value) for value in pair.split(",")]
        for pair in re.findall(r'ribbon c0" points="([^"]+)"', chart)[0].split()
    ]
    line = [
        [float(value) for value in pair.split(",")]
        for pair in re.findall(r'class="line c0" points="([^"]+)"', chart)[0].split()
    ]
    assert len(corners) == 4 and [corner[0] for corner in corners] == [line[0][0], line[1][0], line[1][0], line[0][0]]
    assert corners[0][1] < line[0][1] < corners[3][1] and corners[1][1] < line[1][1] < corners[2][1]
    assert "threshold 0.5" in chart and max(corner[1] for corner in corners) <= 320
