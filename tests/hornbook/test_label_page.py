"""The labelling page in a real browser: keys, saving, untrusted text, narrow and dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from annotated import annotated

from hornbook.artifact import Artifact
from hornbook.labelling import FILES, PAGE, Labelling
from hornbook.local_page import LocalPage
from hornbook.store import Store

if TYPE_CHECKING:
    from playwright.sync_api import Page

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
TEXTS = [EVIL, *(f"Document {row}.\n\tIt has {'many words, ' * 12} and <b>no</b> markup." for row in range(1, 6))]


@pytest.fixture
def labels(tmp_path: Path) -> Artifact:
    return annotated(Store(str(tmp_path / "store")), TEXTS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "grades.jsonl"


@pytest.fixture
def labelling(labels: Artifact, file: Path) -> Labelling:
    return Labelling(labels, file, "anna", show_judge=True)


@pytest.fixture
def page(labelling: Labelling) -> Iterator[LocalPage]:
    with LocalPage(PAGE, FILES, reads=labelling.reads, writes=labelling.writes) as page:
        yield page


def grades(file: Path) -> list[Any]:
    return [json.loads(line)["grade"] for line in file.read_text().splitlines()]


def count(browser_page: Page, text: str) -> None:
    """Wait until the page says so."""
    browser_page.locator("#count", has_text=text).wait_for()


def press(browser_page: Page, key: str) -> None:
    browser_page.wait_for_timeout(260)  # a key sooner than anybody can read is not taken
    browser_page.keyboard.press(key)


def test_grading_with_the_keyboard_alone(page: LocalPage, file: Path, labels: Artifact, browser_page: Page) -> None:
    browser_page.goto(page.address)
    count(browser_page, "0 of 6")
    seen = []
    for number, key in enumerate("305"):
        browser_page.locator("#place", has_text=f"Document {number + 1}").wait_for()
        seen.append(browser_page.locator("#text").text_content())
        assert "a small model" not in browser_page.locator("#controls").inner_text() or number  # nor before the first
        press(browser_page, key)
        count(browser_page, f"{number + 1} of 6")
    assert grades(file) == [3, 0, 5] and len(set(seen)) == 3
    assert "you 5, a small model" in browser_page.locator("#last").inner_text()
    press(browser_page, "u")
    count(browser_page, "2 of 6")
    assert browser_page.locator("#text").text_content() == seen[2]
    press(browser_page, "s")
    browser_page.locator("#last", has_text="Document 3 skipped").wait_for()
    press(browser_page, "ArrowLeft")
    press(browser_page, "ArrowLeft")
    browser_page.locator("#place", has_text="Document 2").wait_for()
    assert browser_page.locator('[aria-pressed="true"]').inner_text().startswith("0")
    press(browser_page, "4")
    browser_page.locator("#place", has_text="Document 4").wait_for()
    assert grades(file) == [3, 0, 5, None, None, 4]
    for number in (3, 4, 5):
        press(browser_page, "1")
        count(browser_page, f"{number} of 6")
    browser_page.locator("h1", has_text="5 graded, 1 skipped").wait_for()
    assert "kind: labels\n  inputs: {documents: web, judge: labels}" in browser_page.locator("#recipe").inner_text()
    browser_page.locator("#skipped").click()
    press(browser_page, "2")
    browser_page.locator("h1", has_text="All 6 are graded").wait_for()
    assert Labelling(labels, file, "anna").state()["graded"] == 6


def test_documents_are_text_and_nothing_else(page: LocalPage, browser_page: Page) -> None:
    browser_page.goto(page.address)
    shown = []
    for number in range(6):
        browser_page.locator("#place", has_text=f"Document {number + 1}").wait_for()
        press(browser_page, "f")
        browser_page.locator('#whole[aria-pressed="true"]').wait_for()
        shown.append(browser_page.locator("#text").text_content() or "")
        assert browser_page.locator("#text *").count() == 0
        browser_page.keyboard.press("ArrowRight")
    assert sorted(shown) == sorted(TEXTS)  # whole, to the last character
    assert browser_page.title() == "Grading labels"


def test_a_held_key_grades_one_document(page: LocalPage, file: Path, browser_page: Page) -> None:
    browser_page.goto(page.address)
    count(browser_page, "0 of 6")
    browser_page.wait_for_timeout(260)
    for _ in range(5):
        browser_page.keyboard.down("3")  # without `up` between: what a held key sends
    browser_page.keyboard.press("4")  # at once: meant for the document before
    count(browser_page, "1 of 6")
    browser_page.keyboard.press("Control+2")
    browser_page.wait_for_timeout(300)
    assert grades(file) == [3]


def test_what_cannot_be_saved_is_said_and_the_document_stays(
    page: LocalPage, labelling: Labelling, file: Path, browser_page: Page
) -> None:
    browser_page.goto(page.address)
    browser_page.locator("#place", has_text="Document 1").wait_for()
    labelling.file = Path("/dev/full")
    press(browser_page, "3")
    browser_page.locator("#error", has_text="not saved").wait_for()
    count(browser_page, "0 of 6")
    labelling.file = file
    press(browser_page, "3")
    count(browser_page, "1 of 6")
    assert browser_page.locator("#error").is_hidden()
    page.close()
    press(browser_page, "3")
    browser_page.locator("#error", has_text="what was graded is saved").wait_for()


def test_on_a_phone_in_the_dark_with_a_finger(page: LocalPage, file: Path, chromium: Any) -> None:
    context = chromium.new_context(
        viewport={"width": 360, "height": 640}, color_scheme="dark", has_touch=True, is_mobile=True
    )
    phone = context.new_page()
    phone.set_default_timeout(10_000)
    phone.goto(page.address)
    phone.locator("#place", has_text="Document 1").wait_for()
    phone.wait_for_timeout(260)
    phone.locator("#grades button").nth(4).tap()
    phone.locator("#count", has_text="1 of 6").wait_for()
    assert grades(file) == [4]
    assert phone.evaluate("document.documentElement.scrollWidth") == 360  # nothing hangs out to the side
    red, green, blue = phone.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(red, green, blue) < 60
    controls = phone.locator("#controls").bounding_box()
    assert controls["y"] > 640 / 2 and controls["y"] + controls["height"] <= 640.5  # half the screen is the document's
    context.close()
