"""`hornbook dial` in a real browser and as a table: it shows what Python counts, and writes what it shows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from command_line import Answer
from playwright.sync_api import Page, expect
from scored_corpus import grades, scored_corpus, web
from test_dial_recipe import RECIPE

from hornbook.dial_figures import about, figures_at, nearest_step
from hornbook.dial_page import Dial
from hornbook.local_page import LocalPage
from hornbook.store import Store

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> <b>bold</b>"
OWN = 0.4321


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return Store(str(tmp_path / "store"))


@pytest.fixture
def dial(store: Store, tmp_path: Path) -> Dial:
    rows = [*web(400), ("<i>evil</i>", 0.6001, EVIL), ("<i>evil</i>", 0.55, "x" * 9000), *[("gone", 0.01, "old")] * 30]
    scored_corpus(store, rows, threshold=OWN, held_out=grades(300))
    return Dial(store, "score-scores", str(tmp_path / "mine.yaml"), lambda line: None)


@pytest.fixture
def served(dial: Dial) -> Iterator[LocalPage]:
    with dial.page() as page:
        yield page


def percent(share: float) -> str:
    return f"{100 * share:.{1 if 0 < share < 0.0995 else 0}f}%"


def shown_sources(page: Page) -> list[list[str]]:
    cells = "rows => rows.map(row => [...row.children].map(cell => cell.innerText.trim()))"
    return page.locator("#sources tbody tr").evaluate_all(cells)


def expect_figures(page: Page, dial: Dial, step: int) -> None:
    """Compare everything that the page counts with what Python counts at the same threshold."""
    found = figures_at(dial.figures, step)
    assert page.inner_text("#documents") == f"{found['kept_documents']:,}"
    assert page.inner_text("#tokens") == f"≈ {about(found['kept_tokens'])}"
    held_out = dial.figures["held_out"]
    for name, beside in (("precision", held_out["kept"][step]), ("recall", held_out["good"])):
        value, low, high = found[name]
        assert page.inner_text(f"#{name}") == percent(value)
        assert page.inner_text(f"#{name}-note").startswith(
            f"{percent(low)} to {percent(high)}; {beside} held-out grades"
        )
    for row, source in zip(shown_sources(page), found["sources"], strict=True):
        share = source["kept_documents"] / source["documents"]
        flag = "" if share >= 0.1 else "below a tenth" if share else "vanishes"
        assert row[0].replace("\n", "") == source["name"] + flag
        assert row[2:] == [
            percent(share), f"{source['kept_documents']:,}\nof {source['documents']:,}",
            f"{about(source['kept_tokens'])}\nof {about(source['tokens'])}",
        ]  # fmt: skip


def test_the_slider_moves_with_the_keyboard_and_shows_what_python_counts(
    dial: Dial, served: LocalPage, browser_page: Page
) -> None:
    page = browser_page
    page.goto(served.address)
    page.wait_for_selector("#above li")
    own = nearest_step(dial.figures, OWN)
    assert page.input_value("#number") == str(OWN)  # it begins where the stage stands
    expect_figures(page, dial, own)
    page.focus("#slider")
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    expect_figures(page, dial, own + 30)
    page.keyboard.press("Home")
    expect_figures(page, dial, 0)
    assert page.is_hidden("#flags")
    page.fill("#number", "0.6")
    page.keyboard.press("Tab")
    expect_figures(page, dial, nearest_step(dial.figures, 0.6))
    assert "gone" in page.inner_text("#flags") and page.get_attribute("#slider", "aria-valuetext") == "0.6"
    page.fill("#number", "7")
    page.keyboard.press("Tab")
    assert page.input_value("#number") == "1"
    page.click("#own")
    expect_figures(page, dial, own)


def test_documents_at_the_border_are_shown_as_text(dial: Dial, served: LocalPage, browser_page: Page) -> None:
    page = browser_page
    page.goto(f"{served.address}#0.6")
    page.wait_for_selector("#above li")
    shown = [page.locator(f"#{side} .text").all_inner_texts() for side in ("above", "below")]
    assert EVIL in shown[0]
    assert (
        page.title() == "hornbook dial: scores"
        and page.locator(".samples img, .samples b, tbody i:not(.key)").count() == 0
    )
    scores = [
        [float(score) for score in re.findall(r"score ([\d.]+)", page.inner_text(f"#{side}"))]
        for side in ("above", "below")
    ]
    assert (
        scores[0] == sorted(scores[0])
        and scores[0][0] >= 0.6 > scores[1][0]
        and scores[1] == sorted(scores[1], reverse=True)
    )
    page.fill("#number", "0.55")
    page.keyboard.press("Tab")
    long = page.locator("#above li", has_text="9,000 characters")
    long.wait_for()
    assert len(long.locator(".text").inner_text()) == 500
    long.get_by_role("button").click()
    assert long.locator(".text").inner_text() == "x" * 6000 + " […]"


def test_it_writes_into_the_recipe_what_it_shows(served: LocalPage, browser_page: Page, tmp_path: Path) -> None:
    page, path = browser_page, tmp_path / "mine.yaml"
    page.goto(f"{served.address}#0.6")
    page.wait_for_selector("#places input")
    assert page.locator("#places input").evaluate_all("boxes => boxes.map(box => box.checked)") == [True] * 4 + [False]
    page.uncheck("#places input >> nth=1")
    expect(page.locator("#diff .add")).to_have_count(4)  # with the line that names the file
    shown = page.inner_text("#diff")
    page.click("text=Write 0.6")
    expect(page.locator("#written")).to_contain_text("Written into")
    text = path.read_text()
    assert "    minimum_score: 0.6   # see the dial" in text and "# Chosen in November." in text
    assert [line for line in shown.splitlines() if line.startswith("+ ")] == [  # and nothing else
        f"+{line}" for line in text.splitlines() if line not in RECIPE.splitlines()
    ]
    page.reload()
    page.wait_for_selector("#places input")
    assert page.input_value("#number") == "0.6"
    assert "now 0.6" in page.inner_text("#places li >> nth=0") and "now the stage’s own" in page.inner_text(
        "#places li >> nth=1"
    )
    path.write_text(text + "# someone else was here\n")
    page.fill("#number", "0.7")
    page.keyboard.press("Tab")
    page.click("text=Write 0.7")
    expect(page.locator("#written")).to_contain_text("has changed since")
    assert path.read_text() == text + "# someone else was here\n"


def test_without_a_place_it_says_what_to_add(store: Store, tmp_path: Path, browser_page: Page) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE[: RECIPE.index("  # Chosen")])
    scored_corpus(store, web(50))
    with Dial(store, "score-scores", str(tmp_path / "mine.yaml"), print).page() as served:
        browser_page.goto(f"{served.address}#0.5")
        expect(browser_page.locator("#recipe-note")).to_contain_text("minimum_score: 0.5")
        assert browser_page.is_hidden("#write") and browser_page.inner_text("#precision") == "–"
        assert "chose no threshold" in browser_page.inner_text("#lead")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_page(served: LocalPage, browser_page: Page, width: int) -> None:
    browser_page.set_viewport_size({"width": width, "height": 800})
    browser_page.goto(served.address)
    browser_page.wait_for_selector("#above li")
    assert browser_page.evaluate("document.documentElement.scrollWidth") == width
    line, thumb = (browser_page.locator(place).bounding_box() or {} for place in ("#histogram .cut", "#slider"))
    at = (float(OWN) * (thumb["width"] - 16)) + thumb["x"] + 8
    assert abs(line["x"] - at) < 2  # the line stands over the slider's thumb


# --- without a browser -----------------------------------------------------------------------------------------------


def test_the_table_says_what_the_page_says(hornbook: Callable[..., Answer], dial: Dial, tmp_path: Path) -> None:
    answer = hornbook("dial", "score-scores", "--at", "0.6", "--recipe", "mine.yaml")
    assert answer.code == 0, answer.err
    found = figures_at(dial.figures, nearest_step(dial.figures, 0.6))
    assert re.search(rf"in all +{found['documents']} +{found['kept_documents']} ", answer.out)
    assert re.search(r"gone +30 +0 +0\.0% +0 +vanishes", answer.out)
    value, low, high = found["precision"]
    assert f"precision {100 * value:.0f}% ({100 * low:.0f} to {100 * high:.0f}%), on" in answer.out
    assert "the stage chose 0.4321" in answer.out and "+    minimum_score: 0.6   # see the dial" in answer.out
    assert (tmp_path / "mine.yaml").read_text() == RECIPE
    assert hornbook("dial", "score-scores", "--at", "0.6", "--recipe", "mine.yaml", "--write").code == 0
    rules = yaml.safe_load((tmp_path / "mine.yaml").read_text())["stages"]["chosen"]["rules"]
    assert [rule.get("min") for rule in rules[:3]] == [0.6, 0.6, 0.9]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score-scores", "--write"], "--write needs --at and --recipe"),
        (["files-web"], r"(?s)holds no scores.*latest/scores"),
        (["score-scores", "--recipe", "none.yaml"], "there is no recipe file none.yaml"),
        (["score-scores", "--recipe", "other.yaml"], "there is no stage 'scores'"),
        (["score-scores", "--recipe", "namesake.yaml", "--at", "0.6", "--write"],
         r"another stage .* documents stories \(stories\).* not score of documents web \(files\)"),
        (["score-scores", "--at", "-3"], "-3 is no threshold of scores.*\n.*a number from 0 to 1"),
        (["score-scores", "--recipe", "mine.yaml", "--at", "7", "--write"], "7 is no threshold"),
        (["score-scores", "--recipe", "mine.yaml", "--at", "nan", "--write"], "nan is no threshold"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    hornbook: Callable[..., Answer], dial: Dial, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "other.yaml").write_text(
        "name: other\nengine: {kind: echo}\nstages: {stories: {kind: stories, rows: 4}}\n"
    )
    (tmp_path / "namesake.yaml").write_text(RECIPE.replace("documents: web", "documents: stories").replace(
        "{kind: installed-python}", "{kind: installed-python}\n  stories: {kind: stories, rows: 4}"))  # fmt: skip
    before = {path: path.read_text() for path in tmp_path.glob("*.yaml")}
    answer = hornbook("dial", *arguments)
    assert before == {path: path.read_text() for path in tmp_path.glob("*.yaml")}
    assert answer.code in (1, 2) and re.search(said, answer.err), answer.err


def test_the_command_serves_until_ctrl_c(dial: Dial, store: Store, tmp_path: Path) -> None:
    environment = {**os.environ, "HORNBOOK_STORE": store.url, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "hornbook.cli", "dial", "score-scores", "--no-browser"]
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[0].startswith("the dial of scores: http://127.0.0.1:") and "ssh -L" in lines[1]
    process.send_signal(signal.SIGINT)
    assert (process.wait(20), process.stderr.read()) == (0, "")


ESTIMATES = {0: "0", 999.4: "999", 9999: "9,999", 12_345: "12.3k", 123_456: "123k", 1_234_567: "1.23M", 4.5e12: "4.50T"}


@pytest.mark.parametrize(("count", "text"), ESTIMATES.items())
def test_estimates_have_three_digits(count: float, text: str) -> None:
    assert about(count) == text
