"""Preference records survive the way to training, and the similarity that pairs are dropped by keeps its laws."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hornbook.chat import Message
from hornbook.dice import ngram_dice
from hornbook.preference import Preference, preference_meta, preference_of, preference_text

TEXT = st.text(alphabet="ab c\né\U0001f600", max_size=40)
SAID = (
    st.text(min_size=1, max_size=20)
    .filter(str.strip)
    .filter(lambda text: text.encode("utf-8", "ignore").decode() == text)
)


@given(TEXT, TEXT, st.integers(1, 5))
def test_dice_is_symmetric_within_0_and_1_and_1_of_equal_texts(first: str, second: str, characters: int) -> None:
    found = ngram_dice(first, second, characters)
    assert 0 <= found <= 1
    assert found == ngram_dice(second, first, characters)
    assert ngram_dice(first, first, characters) == 1
    assert ngram_dice(first, "", characters) == (not first)


@given(TEXT.filter(lambda text: len(text) > 8), st.integers(0, 7), st.integers(2, 3))
def test_a_changed_character_costs_at_most_its_own_runs(text: str, place: int, characters: int) -> None:
    runs = len(text) - characters + 1
    changed = text[:place] + "X" + text[place + 1 :]
    assert 1 - characters / runs <= ngram_dice(text, changed, characters) + 1e-9
    assert ngram_dice(text, changed, characters) < 1


@pytest.mark.parametrize(
    ("first", "second", "characters", "expected"),
    [
        ("night", "nacht", 2, 2 * 1 / 8),
        ("night", "nacht", 3, 0.0),
        ("aaaa", "aa", 2, 2 * 1 / 4),  # bags: `aa` thrice and once
        ("ab", "abc", 3, 0.0),
        ("ab", "ab", 3, 1.0),
    ],
)
def test_dice_by_hand(first: str, second: str, characters: int, expected: float) -> None:
    assert ngram_dice(first, second, characters) == pytest.approx(expected)


@given(st.lists(SAID, min_size=1, max_size=3), SAID, SAID, st.booleans())
def test_a_record_comes_back_whole(turns: list[str], chosen: str, rejected: str, system: bool) -> None:
    speakers = [("user", "assistant")[number % 2] for number in range(len(turns) - (len(turns) + 1) % 2)]
    messages = [Message(role=role, content=said) for role, said in zip(speakers, turns, strict=False)]
    preference = Preference(
        (*([Message(role="system", content="Be kind.")] if system else []), *messages), chosen, rejected
    )
    if chosen == rejected:
        with pytest.raises(ValueError, match="the same text"):
            preference_of(json.dumps(preference_meta(preference)))
        return
    assert preference_of(json.dumps(preference_meta(preference, similarity=0.5))) == preference
    shown = preference_text(preference)
    assert all(said in shown for said in (chosen, rejected, *(message["content"] for message in messages)))


GOOD: dict[str, Any] = {"prompt": [{"role": "user", "content": "Hi"}], "chosen": "Hello.", "rejected": "What?"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompt": {"text": "Hi"}}, "no preference record"),
        ({"prompt": ""}, "turn 0: empty"),
        ({"chosen": []}, "chosen: its last turn is not the assistant's"),
        ({"chosen": [{"role": "user", "content": "Hello."}]}, "chosen: its last turn is not the assistant's"),
        (
            {"rejected": [{"role": "user", "content": "Ho"}, {"role": "assistant", "content": "What?"}]},
            "not the prompt",
        ),
        ({"rejected": [{"role": "assistant", "content": ""}]}, "rejected: empty"),
        ({"prompt": []}, "last turn is not the user's"),
        ({"prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}, "last turn"),
        ({"prompt": [{"role": "tool", "content": "Hi"}]}, "turn 0: unknown role"),
        ({"prompt": [{"role": "user", "content": 5}]}, "turn 0: empty"),
        ({"chosen": " "}, "chosen: empty"),
        ({"rejected": None}, "rejected: empty"),
        ({"rejected": "Hello."}, "the same text"),
    ],
)
def test_a_bad_record_says_what_is_wrong(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        preference_of(json.dumps({**GOOD, **changed}))


def test_a_record_as_published_sets_write_it_is_taken_as_meant() -> None:
    turn = {"role": "assistant", "content": "Hello."}
    for changed in ({"prompt": "Hi"}, {"chosen": [turn]}, {"prompt": "Hi", "chosen": [*GOOD["prompt"], turn]}):
        assert preference_of(json.dumps({**GOOD, **changed})) == preference_of(json.dumps(GOOD))
