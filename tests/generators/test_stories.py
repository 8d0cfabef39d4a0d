"""Stories must hold the words that they were asked for, as many of them as the recipe says."""

from __future__ import annotations

from typing import Any

import pytest

from generators.prompted import Refused
from generators.stories import FEATURES, Stories, StorySettings


def stories(**values: Any) -> Stories:
    return Stories("stories", StorySettings(**{"rows": 1000, "engine": {"kind": "echo"}, **values}), 5)


def refused(stage: Stories, row: int, text: str) -> str:
    prompt = stage.prompt(row)
    try:
        stage.check_text(prompt, stage.parse(prompt, text).text)
    except Refused as found:
        return found.reason
    return ""


@pytest.mark.parametrize("wanted", range(4))
def test_a_story_must_hold_as_many_words_as_are_required(wanted: int) -> None:
    stage = stories(required_words=wanted)
    for row in range(5):
        seeds = stage.prompt(row).seeds
        words = [seeds["noun"], seeds["verb"], seeds["adjective"]]
        for held in range(4):
            text = "This is a tale. " + " and ".join(words[:held])
            assert refused(stage, row, text) == ("missing-words" if held < wanted else "")


def test_inflections_count_and_the_check_can_be_switched_off() -> None:
    stage = stories(required_words=3)
    row = next(row for row in range(1000) if stage.prompt(row).seeds["verb"] == "beg")
    seeds = stage.prompt(row).seeds
    assert refused(stage, row, f"{seeds['noun'].upper()}, {seeds['adjective']}. He begged.") == ""
    for wanted in (2, 3):
        careless = stories(required_words=wanted, checks={"missing_words": False})
        assert refused(careless, row, "Nothing of the kind.") == ""


def test_words_are_not_looked_for_in_other_languages() -> None:
    for wanted in (2, 3):
        stage = stories(required_words=wanted, languages=["German"])
        assert stage.prompt(0).required == () and refused(stage, 0, "Es war einmal.") == ""
        assert stage.language_of(stage.prompt(0)) == "de"
    assert stories().language_of(stories().prompt(0)) == "en"
    elvish = stories(languages=["Sindarin"])
    assert elvish.language_of(elvish.prompt(0)) == "", "the identifier does not know it"
    creole = stories(languages=["Haitian Creole"])
    assert creole.language_of(creole.prompt(0)) == "ht"


def test_a_language_that_cannot_be_checked_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    stories(languages=["german", "Haitian Creole"]).check()
    stories(languages=["Klingon"], checks={"language": False}).check()
    assert capsys.readouterr().err == ""
    stories(languages=["Germann", "Klingon"]).check()
    misspelt, unknown = capsys.readouterr().err.splitlines()
    assert "does not know 'Germann' (did you mean 'German'?)" in misspelt
    assert "does not know 'Klingon'" in unknown and "not checked" in unknown


def test_every_feature_has_a_name_of_its_own() -> None:
    assert len(set(FEATURES.values())) == len(FEATURES) == 7
    assert all(name.isalpha() for name in FEATURES)
