"""Checks after generation: what they refuse and, as important, what they let pass."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generators.checks import CheckSettings, NearDuplicateSieve, Refused, check_answer, check_text
from generators.inflections import inflections

STORY = """Once there was a small bear who lived in a wide forest. He had a red ball, and every morning he rolled it down \
the hill to see how far it would go. One day the ball rolled into the river and floated away. The bear ran along the \
bank and called for help. A duck heard him and said, "I am sorry, but I cannot swim so fast." Then an old otter lifted \
his head, dived under the water and came up with the ball on his nose. The bear laughed and clapped his paws. "Thank \
you!" he said. "Would you like to play with me?" From then on they met at the river every day, and the duck kept the \
score. When winter came and the river froze, they built a house of snow, and the otter slid down its roof until the \
moon came out and all of them had to go home to their beds, tired and very happy indeed."""

ON = CheckSettings()


def refused(text: str, settings: CheckSettings = ON, required: tuple[str, ...] = (), language: str = "en") -> str:
    """The reason for which a text is refused, or an empty text."""
    try:
        check_text(text, settings, required, language)
    except Refused as error:
        assert error.detail
        return error.reason
    return ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Sure, here is what you asked for. Once there was a bear.", "chatter"),
        ("Certainly! I'd be happy to write one. Once there was a bear.", "chatter"),
        ("**I'm excited to share** some ideas from my latest book.", "chatter"),
        ("Here is a short story about a fox and a hen:\n\nThe fox came.", "chatter"),
        ("Here's an improved version of the section. Ice floats.", "chatter"),
        ("Great question! Ice floats since it is light.", "chatter"),
        ("Your code is already clear. Ice floats.", "chatter"),
        (f"{STORY} I hope this helps! Let me know if you want more.", "chatter"),
        (f"{STORY}\n\nIn this story, we have a bear and a duck.", "about-itself"),
        (f"{STORY}\n\nThis ending is simple.", "about-itself"),
        ("Ice floats. Here's a revised version: ice is light.", "about-itself"),
        ("Ice floats. In this essay, I will say why.", "about-itself"),
        ("Ice floats. The text should have no less than 150 words.", "about-itself"),
        ("Ice floats. In my previous message I said why.", "about-itself"),
        ("Through [insert name]'s work we learn a lot.", "placeholder"),
        ("Dear [Your Name], ice floats.", "placeholder"),
        ("So it is done:\n```python\nprint(1)", "unclosed-block"),
    ],
)
def test_talk_to_the_user_and_what_is_unfinished_are_refused(text: str, reason: str) -> None:
    assert refused(text, language="") == reason
    assert refused(text, CheckSettings(chatter=False, unfinished=False), language="") == ""


@pytest.mark.parametrize(
    "text",
    [
        "I am so happy! Today is my birthday, and the sun is out.",
        "This is a story about a bear. In this story he is small.",
        '"I\'m happy to help," said the duck. "Would you like me to swim?"',
        'Sure of himself, the bear went on. "Sure, here is the ball," he said.',
        "Here is the story of the mill: it burned down in 1860.",
        "This is just one example of a prime number. In this section, we add two of them.",
        "This is a good question for a judge, and nobody has answered it. Great questions are rare.",
        "The text of the law is short. Texts are data, and this text file holds one.",
        "See [1] and [link](https://example.org), `[name]` and rows[name].",
        "Run it:\n```python\nprint(1)\n```\nIt prints 1.",
        f"The moral of this story is clear. {STORY}",
    ],
)
def test_what_only_sounds_like_it_passes(text: str) -> None:
    assert refused(text, language="") == ""


def test_an_ordinary_story_passes() -> None:
    assert refused(STORY, required=("bear", "roll", "happy")) == ""


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I can’t assist with that request.",
        "Sorry, but as an AI language model I cannot write stories.",
        "As an AI language model, I do not have a favourite animal. Cats are nice.",
        "I cannot fulfill this request. It goes against my guidelines.",
        "I can't write a story about weapons for children.",
        "I apologize, but I cannot generate that content.",
        "Unfortunately, I am unable to provide an answer to this question.",
        "I'm an AI assistant, so I have never seen the sea.",
        "**I'm unable to help with that.** Please ask for something else.",
        "I don't have personal opinions, but many people like tea.",
        "Es tut mir leid, aber ich kann diese Geschichte nicht schreiben.",
    ],
)
def test_a_refusal_of_the_model_is_refused(text: str) -> None:
    assert refused(text, language="") == "refusal"
    assert refused(text, CheckSettings(refusal=False), language="") == ""


@pytest.mark.parametrize(
    "text",
    [
        "\"I'm sorry, but I can't help you,\" said the fox, and walked away into the woods.",
        "I can't help my mother today because I am ill, said Tom.",
        "I cannot believe how big the tree is. It is taller than our house.",
        'Tom built a robot. "As an AI, I cannot eat cake," it said.',
        "I'm sorry, but I cannot come to your party, wrote Lily in her letter. She was sad.",
        "Nobody could help the bear. He cannot fulfil his dream, thought the owl.",
        "Anna worked in a lab, as an AI researcher. She wrote down what she saw.",
        "I am sorry, as a friend must be. I cannot undo what I did, and I do not sleep well.",
        "Artificial intelligence is a field of computer science. As an example, take a chess program.",
        STORY + ' "I cannot assist with that," said the duck.',
    ],
)
def test_people_in_stories_may_say_that_they_cannot(text: str) -> None:
    assert refused(text) == ""


@pytest.mark.parametrize(
    ("word", "forms"),
    [
        ("beg", "begs begged begging"),
        ("pony", "ponies"),
        ("take", "takes took taken taking"),
        ("run", "ran runs running"),
        ("bake", "baked baking bakes"),
        ("cry", "cries cried crying"),
        ("tie", "tied tying ties"),
        ("agree", "agreed agreeing"),
        ("open", "opened opening"),
        ("play", "plays played playing"),
        ("box", "boxes boxed"),
        ("happy", "happier happiest"),
        ("big", "bigger biggest"),
        ("brave", "braver bravest"),
        ("child", "children"),
        ("leaf", "leaves"),
        ("good", "better best"),
        ("picnic", "picnics picnicking"),
        ("quiz", "quizzes"),
        ("potato", "potatoes"),
    ],
)
def test_inflections_count(word: str, forms: str) -> None:
    for form in forms.split():
        assert refused(f"Then {form} it was.", required=(word,), language="") == ""
        assert refused(f"{form.capitalize()}, it was.", required=(word.upper(),), language="") == ""


@pytest.mark.parametrize(
    ("word", "others"),
    [
        ("hop", "hope hoped hoping shop hopper"),
        ("star", "stare stared staring start"),
        ("corn", "corner"),
        ("flow", "flower"),
        ("quick", "quickly"),
        ("be", "best bed"),
        ("cat", "category cattle"),
        ("wobbly", "wobble"),
    ],
)
def test_other_words_do_not_count(word: str, others: str) -> None:
    for other in others.split():
        assert other not in inflections(word)
        assert refused(f"They saw {other} here.", required=(word,), language="") == "missing-words"


def test_words_count_within_hyphens_possessives_and_capitals() -> None:
    text = "The pony's bed was a wobbly-looking ICE-CREAM box."
    assert refused(text, required=("pony", "wobbly", "ice-cream", "cream", "Box")) == ""
    assert refused(text, required=("pony", "dog")) == "missing-words"
    assert refused("At nine o’clock it rained. 小狗跑过小山。", required=("o'clock", "小狗"), language="") == ""
    assert refused("At nine it rained. 小猫跑过小山。", required=("小狗",), language="") == "missing-words"
    assert refused(text, CheckSettings(missing_words=False), required=("dog",)) == ""


def test_a_sentence_must_stand_verbatim_but_for_spacing_and_quotes() -> None:
    sentence = 'He said, "We can\'t stay."'
    assert refused("It rained. He said,  “We\ncan’t stay.” They left.", required=(sentence,)) == ""
    assert refused('It rained. He said, "We cannot stay." They left.', required=(sentence,)) == "missing-words"
    assert refused("It rained. He said, we can't stay.", required=(sentence,)) == "missing-words"


WORD = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=6)


@settings(max_examples=200)
@given(st.lists(WORD, min_size=1, max_size=20), st.integers(3, 12), st.data())
def test_a_loop_at_the_end_is_always_found(unit: list[str], times: int, data: st.DataObject) -> None:
    times = max(times, -(-ON.loop_words // len(unit)))
    cut = data.draw(st.integers(0, len(unit) - 1))  # the token limit cuts a loop anywhere
    text = STORY + " " + " ".join(unit * times + unit[:cut])
    assert refused(text, language="") == "repetition"
    assert refused(text, CheckSettings(repetition=False), language="") == ""


@settings(max_examples=100)
@given(st.lists(WORD, min_size=5, max_size=20, unique=True), st.integers(3, 6))
def test_a_loop_before_a_proper_end_is_found(unit: list[str], times: int) -> None:
    """Where it makes up most of the text."""
    text = "Tom sang. " + " ".join(unit * times) + ". Then he went home to sleep."
    assert refused(text, language="") == "repetition"


@settings(max_examples=100)
@given(st.randoms(use_true_random=False))
def test_shuffled_words_of_an_ordinary_text_are_no_repetition(rng: random.Random) -> None:
    words = STORY.split()
    rng.shuffle(words)
    assert refused(" ".join(words), language="") in ("", "missing-words")


def test_repeated_sentences_and_lines_are_found_and_a_refrain_is_not() -> None:
    refrain = "Row, row, row your boat, said the duck."
    with_refrain = "\n".join(part + " " + refrain for part in STORY.split(". ")[:3])
    assert refused(STORY + with_refrain) == ""
    lines = [f"- The bear has a ball that is red and round.\n- Number {number} is nice." for number in range(6)]
    assert refused("\n".join(lines)) == "repetition"
    assert refused(STORY.replace(". ", ".\n") + "\n" + STORY) == "repetition"
    sections = [" ".join(random.Random(number).choices(sorted(set(STORY.split())), k=100)) for number in range(6)]
    readme = "\n".join(section + "\n\n    from letters import the_next_one\n" for section in sections)
    assert refused(readme, language="") == ""
    table = "| a | b | c |\n|---|---|---|\n" + "\n".join(f"| {row} | {row * 7} | {row * row} |" for row in range(9))
    assert refused(table + "\n|----|----|----|----|----|----|----|----|----|----|----|----|----|----|\n") == ""
    assert refused("He ran and ran and ran. " + STORY) == ""
    assert refused(STORY + ' "No, no, no!" cried the bear. Ha, ha, ha, ha!') == ""


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (STORY, "en"),
        ("Der kleine Hund lief über den Hügel und suchte seinen roten Ball. Am Abend kam er müde nach Hause.", "de"),
        ("El perrito corrió por la colina y buscó su pelota roja. Por la noche volvió a casa muy cansado.", "es"),
        ("小狗跑过小山,寻找它的红球。晚上它很累地回到了家里,和妈妈一起睡觉。它们都很高兴。", "zh"),
        ("Den lille hunden løp over bakken og lette etter den røde ballen sin. Om kvelden kom den hjem.", "nb"),
    ],
)
def test_the_language_asked_for_passes_and_others_do_not(text: str, language: str) -> None:
    assert refused(text, language=language) == ""
    assert refused(text, language="") == ""
    for other in {"en", "de", "es", "zh"} - {language}:
        assert refused(text, language=other) == "wrong-language"
        assert refused(text, CheckSettings(language=False), language=other) == ""


@pytest.mark.parametrize(
    "text",
    [
        "Tom était triste.",  # the identifier says English
        "def area(radius):\n    return 3.14 * radius ** 2",
        "42",
        "",
        STORY + " The otter said: Bonjour, mon ami, comment allez-vous aujourd'hui?",
        "bad \ud800 surrogate \x00 and \x1b controls \uffff in a text that is English all the same, as one can see",
    ],
)
def test_a_text_whose_language_is_in_doubt_passes(text: str) -> None:
    assert refused(text, language="en") == ""


@settings(max_examples=200)
@given(st.text(max_size=200), st.text(max_size=20))
def test_no_text_breaks_the_checks(text: str, required: str) -> None:
    for language in ("", "en", "xx"):
        refused(text, required=(required,), language=language)


def test_near_duplicates_of_accepted_texts_are_refused() -> None:
    sieve = NearDuplicateSieve(ON)
    assert sieve.reason == "near-duplicate"
    assert sieve.refuses(STORY, {}) == ""
    assert sieve.refuses(STORY, {}) == ""  # asking remembers nothing
    sieve.add(STORY, {})
    assert sieve.refuses(STORY.replace("small bear", "little bear"), {}).startswith("similarity 0.9")
    assert sieve.refuses(STORY.upper(), {}) == "similarity 1.00 to accepted text 0"
    assert sieve.refuses("A quite different text.", {}) == ""


@pytest.mark.parametrize(
    "answer",
    [
        "You're right, bees drink nectar.",
        "You’re absolutely right! Bees drink nectar.",
        "That's a great question. Bees drink nectar.",
        "Great question! Bees drink nectar.",
        "I'm happy to help you with this.",
        "**I'd be happy to** explain bees.",
        "I'm designed to answer questions about bees.",
        "Your answer is well written.",
    ],
)
def test_an_answer_that_begins_with_chatter_is_found(answer: str) -> None:
    with pytest.raises(Refused, match="chatter"):
        check_answer(answer, ON)
    check_answer(f"Bees drink nectar. {answer}", ON)  # at the beginning only
    check_answer(answer, CheckSettings(chatter=False))


@pytest.mark.parametrize(
    "answer",
    [
        "You are right-handed if you write with your right hand.",
        "Your answers may differ. A question has many.",
        "I am happy to see bees, said the flower.",
        "A great question of physics is what time is.",
        "Right angles have 90 degrees.",
    ],
)
def test_an_answer_that_only_looks_like_chatter_is_not(answer: str) -> None:
    check_answer(answer, ON)
