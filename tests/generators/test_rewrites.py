"""Rewrites: every passage in planned forms, the form kept, no facts that the passage does not hold."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from document_inputs import corpus

from generators.prompted import Refused
from generators.rewrites import ASKS, EXAMPLES, REWRITTEN, Rewrites, RewriteSettings, shaped
from hornbook.engines.interface import Reply
from hornbook.errors import RecipeError

EXAMPLE, LEVER = EXAMPLES


def stage(folder: Path, texts: Any = (EXAMPLE,), **settings: Any) -> Rewrites:
    made = Rewrites("r", RewriteSettings(engine={"kind": "echo"}, **settings), 3)  # type: ignore[arg-type]
    made.open({"documents": [corpus(folder, texts)]})
    return made


def outcome(made: Rewrites, form: str, text: str) -> str:
    prompt = next(found for row in range(4) if (found := made.prompt(row)).seeds["form"] == form)
    try:
        made.parse(prompt, text)
    except Refused as refused:
        return refused.reason
    return "accepted"


def test_every_passage_is_planned_in_other_forms(tmp_path: Path) -> None:
    long = "".join(f"Sentence number {number} says a little about honey and bees. " for number in range(60))
    made = stage(tmp_path, [EXAMPLE, long, EXAMPLE], per_document=2, passage_characters=500)
    assert made.reader is not None
    prompts = [made.prompt(row) for row in range(2 * len(made.reader))]
    assert len(prompts) > 12
    passages = [prompt.quoted for prompt in prompts[::2]]
    assert " ".join(passages[1:-1]) == long.strip(), "nothing of the long document is left out"
    for first, second in zip(prompts[::2], prompts[1::2], strict=True):
        assert first.quoted == second.quoted in first.messages[-1]["content"]
        assert first.seeds["form"] != second.seeds["form"]
        assert first.parents == second.parents
    taken = Counter(prompt.seeds["form"] for prompt in prompts)
    assert len(taken) == 4 and max(taken.values()) - min(taken.values()) <= 1


def test_the_examples_are_what_is_asked_for(tmp_path: Path) -> None:
    for number, source in enumerate((EXAMPLE, LEVER)):
        made = stage(tmp_path / str(number), [source], per_document=4)
        for form, texts in REWRITTEN.items():
            assert outcome(made, form, texts[number]) == "accepted"


@pytest.mark.parametrize(
    ("form", "text", "reason"),
    [
        ("list", "Bees visit flowers to drink nectar. Pollen sticks to their legs.", "wrong-form"),
        ("notes", "Bees visit flowers.\nPollen sticks.\nSeeds grow.", "wrong-form"),
        ("questions", "Q: Why do bees visit flowers?\nQ: What sticks to legs?", "wrong-form"),
        ("prose", "- Bees drink nectar.\n- Pollen sticks.\n- Seeds are made.", "wrong-form"),
        ("list", "- Bees drink nectar.\n- Pollen sticks to legs.\n- Bees drink nectar.", "repeated-lines"),
        ("questions", "Q: Why?\nA: For nectar.\nQ: Why?\nA: For pollen.", "repeated-lines"),
        (
            "list",
            "- A bee drinks the nectar.\n- Pollen sticks to legs.\n- The nectar a bee drinks.\n- Seeds are made then.",
            "repeated-lines",
        ),
        (
            "questions",
            "Q: Why do bees come?\nA: For nectar in the flowers.\nQ: What is there?\nA: In the flowers, for nectar!",
            "repeated-lines",
        ),
        (
            "questions",
            "Q: Do bees drink nectar?\nA: It does.\nQ: What sticks to their legs?\nA: Yellow pollen sticks to them.",
            "repeats-question",
        ),
        (
            "questions",
            "Q: What sticks to their legs?\nA: Yellow pollen.\nQ: Why do bees drink?\nA: Why do bees drink nectar from flowers.",
            "repeats-question",
        ),
        ("prose", "Bees drink nectar from flowers.", "too-short"),
        ("prose", EXAMPLE, "copies-source"),
        ("prose", "Rockets fly to distant planets with astronauts who explore craters. " * 2, "off-source"),
        ("list", "- Bees drink nectar.\n- Pollen sticks to legs.\n- Bees visit 3,000 flowers.", "invents-numbers"),
        ("list", "- Bees drink nectar.\n- Pollen sticks to legs.\n- Flowers in Holland need bees.", "invents-names"),
    ],
)
def test_other_rewrites_are_refused(tmp_path: Path, form: str, text: str, reason: str) -> None:
    assert outcome(stage(tmp_path, per_document=4), form, text) == reason


@pytest.mark.parametrize("form", ["prose", "list", "notes", "questions"])
def test_a_rewrite_that_holds_its_own_request_is_refused(tmp_path: Path, form: Any) -> None:
    made = stage(tmp_path, forms=[form])
    prompt = made.prompt(0)
    for sentence in ASKS[form].split(". "):
        copied = f"{REWRITTEN[form][0]}\n{sentence.upper().rstrip('.').replace(' ', '  ')}: and"
        with pytest.raises(Refused, match="copies-prompt"):
            made.check_text(prompt, copied)
    made.check_text(prompt, REWRITTEN[form][0])


def test_a_request_that_the_document_itself_holds_is_no_copy(tmp_path: Path) -> None:
    text = f"  {EXAMPLE}\n\n{ASKS['prose']}\n"
    made = stage(tmp_path, [text], forms=["prose"])
    made.check_text(made.prompt(0), f"{REWRITTEN['prose'][0]} {ASKS['prose']}")


def test_a_form_is_read_in_its_variants() -> None:
    assert shaped("list", "- a b c\n- d e f\n- g h i\n- d e f\n- a b c") == "- a b c\n- d e f\n- g h i"
    assert shaped("list", "- a b c d e\n- f g h\n- i j k\n- e d c b a!\n- l m n") == "- a b c d e\n- f g h\n- i j k"
    assert shaped(
        "list", "Here is the list:\n* one small thing\n2. another of them\n3) a third one\n- Summary:\n\nThat is all."
    ).split("\n") == [
        "- one small thing",
        "- another of them",
        "- a third one",
    ]
    assert shaped("notes", "Notes:\n- **Bee**: an insect\n| honey | sweet |\nwax | from bees").count("\n") == 2
    pairs = "**Q1:** Why?\n**A1:** Because.\n\nQuestion: How so?\nAnswer: Like this.\nQ: Cut"
    assert shaped("questions", pairs) == "Q: Why?\nA: Because.\nQ: How so?\nA: Like this."


def test_more_rows_of_a_passage_than_forms_are_refused() -> None:
    settings = RewriteSettings(engine={"kind": "echo"}, per_document=3, forms=["list", "prose"])  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="there are 2 forms"):
        Rewrites("r", settings, 0).check()


def test_a_list_that_was_cut_ends_with_its_last_whole_line(tmp_path: Path) -> None:
    notes = REWRITTEN["notes"][0]
    made = stage(tmp_path, forms=["notes"], truncated="trim")
    assert made.accept(made.prompt(0), Reply(f"{notes}\nfruit | many plan", "length")).text == notes


class _Engine:
    """An engine that writes one rewrite and, as the judge, says Yes with a probability."""

    def __init__(self, rewrite: str, yes: float) -> None:
        self.rewrite, self.yes, self.asked = rewrite, yes, []  # type: ignore[var-annotated]

    async def __call__(self, messages: Any, **options: Any) -> Reply:
        self.asked.append((messages, options))
        if options.get("engine") != "judge":
            return Reply(self.rewrite, "stop")
        assert options["choices"] == ("No", "Yes")
        return Reply("Yes", "stop", choice_probabilities={"No": 1 - self.yes, "Yes": self.yes})


def test_a_judge_is_asked_whether_the_facts_are_kept(tmp_path: Path) -> None:
    made = stage(tmp_path, forms=["list"], judge={"kind": "echo"})
    rewrite = REWRITTEN["list"][0]
    sure, doubtful = _Engine(rewrite, 0.9), _Engine(rewrite, 0.2)
    parsed = asyncio.run(made.write(made.prompt(0), sure))
    assert parsed.text == rewrite and parsed.meta["facts_kept"] == 0.9
    ((message,), _) = sure.asked[1]
    assert EXAMPLE in message["content"] and rewrite in message["content"]
    with pytest.raises(Refused) as caught:
        asyncio.run(made.write(made.prompt(0), doubtful))
    assert caught.value.reason == "facts-not-kept"
    alone = _Engine(rewrite, 0.0)
    asyncio.run(stage(tmp_path / "alone", forms=["list"]).write(made.prompt(0), alone))
    assert len(alone.asked) == 1
    assert set(made.engines()) == {"engine", "judge"}
