"""Near-duplicates: what is found, what is not, what is forgotten, and how much memory that takes."""

import hashlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.near_duplicates import SHINGLE, SLOTS, NearDuplicates, signatures_of
from hornbook.shingles import bands_for, words_of

WORDS = [first + vowel + last for first in "bdfgh" for vowel in "aeiou" for last in "lmnprst"]


def random_text(rng: random.Random, words: int = 150) -> str:
    return " ".join(rng.choices(WORDS, k=words)).capitalize() + "."


def with_changes(rng: random.Random, text: str, changes: int) -> str:
    words = text.split()
    for place in rng.sample(range(len(words)), changes):
        words[place] = f"new{rng.randrange(10**9)}"
    return " ".join(words)


def jaccard(one: str, other: str) -> float:
    """The exact index, as a set of its own says it."""
    one_set, other_set = (
        {tuple(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1)}
        for words in (words_of(one), words_of(other))
    )
    return len(one_set & other_set) / len(one_set | other_set)


@settings(max_examples=60)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=12))
def test_an_identical_text_is_always_found(texts: list[str]) -> None:
    index = NearDuplicates()
    for text in texts:
        index.add(text)
    for text in texts:
        found = index.similar(text)
        assert found is not None
        label, similarity = found
        assert similarity == 1
        assert words_of(texts[label]) == words_of(text)
        assert label == min(at for at, other in enumerate(texts) if words_of(other) == words_of(text))


def test_case_spacing_quotes_and_punctuation_make_no_difference() -> None:
    index = NearDuplicates()
    index.add('"Come here," said the fox. It didn\'t wait.', label=77)
    assert index.similar("“COME here”  said the fox;\nit didn’t wait!") == (77, 1.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 3 + 4?", "What is 3 - 4?"),
        ("What is the capital of France?", "What is the capital of Spain?"),
        ("Why do leaves fall in autumn?", "Why do apples fall in autumn?"),
        (
            "Call my mother at six o'clock tomorrow morning, please.",
            "Call my brother at six o'clock tomorrow morning, please.",
        ),
        ("小狗跑过小山,寻找它的红球。", "小猫爬上大树,寻找它的朋友。"),
    ],
)
def test_a_question_with_another_word_is_another_question(one: str, other: str) -> None:
    index = NearDuplicates()
    index.add(one)
    assert index.similar(other) is None


def test_a_text_without_spaces_between_words_has_many() -> None:
    story = "小狗跑过小山寻找它的红球它在河边遇见一只鸭子鸭子说球在水里小狗很高兴" * 1
    index = NearDuplicates()
    index.add(story)
    assert index.similar(story.replace("很高兴", "笑了")) is not None


@pytest.mark.parametrize("words", [12, 40, 150, 600])
def test_pairs_are_told_by_their_exact_similarity(words: int) -> None:
    """The estimate's standard error is at most 0.025: beyond four of them there is no mistake, at 0.8 no bias."""
    rng = random.Random(words)
    index = NearDuplicates()
    originals = [random_text(rng, words) for _ in range(400)]
    index.similar_and_add(originals)
    for label, original in enumerate(originals):
        changed = with_changes(rng, original, rng.randint(0, max(1, words // 15)))
        exact, found = jaccard(original, changed), index.similar(changed)
        if exact >= 0.9:
            assert found is not None, exact
        if exact <= 0.7:
            assert found is None, exact
        if found is not None:
            assert found[0] == label
            assert abs(found[1] - exact) < 0.1


def test_five_words_of_a_story_may_differ() -> None:
    rng = random.Random(1)
    index = NearDuplicates()
    stories = [random_text(rng) for _ in range(100)]
    index.similar_and_add(stories)
    assert sum(index.similar(with_changes(rng, story, 3)) is not None for story in stories) >= 99
    assert sum(index.similar(with_changes(rng, story, 10)) is not None for story in stories) <= 1


def test_only_the_last_window_is_remembered() -> None:
    rng = random.Random(2)
    texts = [random_text(rng, 30) for _ in range(70)]
    index = NearDuplicates(window=25)
    for at, text in enumerate(texts):
        index.add(text, label=1000 + at)
        for earlier in range(at + 1):
            expected = (1000 + earlier, 1.0) if earlier > at - 25 else None
            assert index.similar(texts[earlier]) == expected, (at, earlier)


def test_memory_is_bounded_by_the_window() -> None:
    rng = random.Random(3)
    index = NearDuplicates(window=5000)
    held = []
    for _ in range(4):
        index.similar_and_add([random_text(rng, 20) for _ in range(2500)])
        held.append(index.nbytes)
    assert index.added == 10_000
    assert held[1] < 5000 * 1100
    assert set(held[1:]) == {held[1]}
    assert NearDuplicates().nbytes < 8_000_000  # a small corpus pays for little


def test_a_batch_says_what_a_loop_says() -> None:
    rng = random.Random(4)
    texts = [random_text(rng, 40) for _ in range(200)]
    texts += [with_changes(rng, rng.choice(texts), rng.randint(0, 6)) for _ in range(400)]
    batch, loop = NearDuplicates(window=150), NearDuplicates(window=150)
    said = []
    for text in texts:
        said.append(loop.similar(text))
        if said[-1] is None:
            loop.add(text)
    assert batch.similar_and_add(texts[:333]) + batch.similar_and_add(texts[333:]) == said
    assert 0 < sum(answer is None for answer in said) < len(said)


def test_growing_loses_nothing() -> None:
    rng = random.Random(5)
    texts = [random_text(rng, 12) for _ in range(9000)]  # over two doublings of the first room
    index = NearDuplicates(window=20_000)
    index.similar_and_add(texts)
    for label in range(0, 9000, 97):
        assert index.similar(texts[label]) == (label, 1.0)


def test_small_changes_in_a_row_do_not_make_one_cluster() -> None:
    rng = random.Random(6)
    story = random_text(rng)
    kept = []
    index = NearDuplicates()
    for step in range(60):
        if index.similar(story) is None:
            index.add(story)
            kept.append(step)
        story = with_changes(rng, story, 2)
    assert len(kept) > 8  # each original stands for the few around it


def test_boiler_plate_neither_refuses_texts_nor_hides_a_duplicate() -> None:
    rng = random.Random(7)
    frame = random_text(rng, 75)
    texts = [frame + " " + random_text(rng, 75) for _ in range(1500)]
    index = NearDuplicates()
    assert not any(index.similar_and_add(texts))
    for label in (0, 1, 700, 1499):
        assert index.similar(texts[label]) == (label, 1.0)


def test_signatures_are_the_same_on_every_machine() -> None:
    """A new version of the library that hashes otherwise would make what is kept of earlier runs worthless."""
    signatures = signatures_of(["The fox ran over the hill.", "", "Füchse jagen Hasen"])
    assert signatures.shape == (3, 256)
    assert hashlib.sha256(signatures.tobytes()).hexdigest()[:16] == "d1a0890170467683"


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_bands_find_pairs_at_the_threshold(threshold: float) -> None:
    bands, rows = bands_for(threshold, SLOTS)
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    assert bands * rows <= 256


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"threshold": 1.1}, {"window": 0}, {"shingle": 0}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        NearDuplicates(**wrong)
