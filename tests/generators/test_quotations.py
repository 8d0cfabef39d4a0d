"""Quotations: names in quotation marks are none that somebody speaks."""

from __future__ import annotations

import pytest

from generators.quotations import quotations, somebody_speaks


@pytest.mark.parametrize(
    ("text", "speaks"),
    [
        ('They used a way called "markers," which were tiny things to write with.', False),
        ('The fairies were known as the "Crowns." They wore crowns of flowers.', False),
        ('He said nothing. The cat was called "Fluff".', False),
        ("Nobody says a word here.", False),
        ('"Crowns!" shouted the fairy.', True),
        ('Her mother whispered, "Home."', True),
        ('Then it was quiet. "We are too late." The door fell shut.', True),
        ("“Wir sind zu spät!” Die Tür fiel zu.", True),
        ("„Wir sind zu spät.“ Die Tür fiel zu.", True),
        ("« Il est trop tard ! » La porte se ferma.", True),
        ('He wrote "apples pears plums" on a list.', False),
    ],
)
def test_somebody_speaks_or_something_has_a_name(text: str, speaks: bool) -> None:
    assert somebody_speaks(text) is speaks


def test_a_mark_left_open_spoils_its_line_only() -> None:
    text = 'The "Frog Pond was green.\nA sign read "Swim here" and a duck "Too cold".'
    found = quotations(text)
    assert [quotation.inner for quotation in found] == ["Swim here", "Too cold"]
    assert text[found[0].start : found[0].end] == '"Swim here"'
