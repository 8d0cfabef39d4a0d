"""Preference pairs: a wanted answer and one of the model in training, none too alike, with their lineage."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from document_inputs import finished

from generators.preferences import PairPrompt, Preferences, serving
from generators.prompted import Parsed, Refused
from hornbook.artifact import Artifact
from hornbook.chat import Message, chat_meta, plain_text
from hornbook.documents import Document, content_key, document_id, documents_table, planned_row
from hornbook.engines.interface import EngineSettings, Reply
from hornbook.errors import RecipeError
from hornbook.parts import PartContent, PartRange, commit_part
from hornbook.preference import preference_of
from hornbook.recipe import check_recipe
from hornbook.settings import validate
from hornbook.store import Store
from training.mixture import Mixture, PhaseSettings
from training.schedule import ScheduleSettings, learning_rate_share

ROOT = Path(__file__).parents[2]
ECHO = {"kind": "echo"}


def turn(role: str, content: str) -> Message:
    return Message(role=role, content=content)


CHATS = [
    [turn("system", "Be brief."), turn("user", "What floats?"), turn("assistant", "Ice floats on water.")],
    [
        turn("user", "Who digs?"),
        turn("assistant", "A mole."),
        turn("user", "Where?"),
        turn("assistant", "Under the lawn, in the dark."),
    ],
    [turn("assistant", "Hello, how can I help?")],
    [turn("user", "What is two plus two?"), turn("assistant", "It is four.")],
]


def chats(store: Store, found: Sequence[Any] = CHATS) -> Artifact:
    artifact = Artifact(store, "artifacts/chats")
    documents = [
        Document(document_id(row), content_key(str(chat).encode()), plain_text(chat), "c", "chat", meta=chat_meta(chat))
        for row, chat in enumerate(found)
    ]
    part = PartRange(0, len(documents))
    commit_part(store, artifact.folder, part, PartContent(documents_table(documents)))
    return finished(artifact, "chats", "documents")


def preferences(folder: Path | None = None, **settings: Any) -> Preferences:
    made = Preferences("pairs", validate(Preferences.Settings, {"engine": ECHO, **settings}, "pairs"), 3)
    if folder is not None:
        made.open({"documents": [chats(Store(str(folder)))]})
    made.check()
    return made


class Asked:
    """Answers calls of a row by what a test says, and remembers them."""

    def __init__(self, **answers: Callable[[int], Reply]) -> None:
        self.answers = answers
        self.calls: list[tuple[str, Any]] = []

    async def __call__(self, messages: Any, *, engine: str = "engine", **options: Any) -> Reply:
        number = sum(name == engine for name, _ in self.calls)
        self.calls.append((engine, messages))
        return self.answers[engine](number)


def says(*texts: str) -> Callable[[int], Reply]:
    return lambda number: Reply(texts[number % len(texts)], "stop")


def outcome(stage: Preferences, row: int, asked: Asked) -> Parsed | str:
    """What becomes of a row: the pair, or the reason why there is none."""
    try:
        return asyncio.run(stage.write(stage.prompt(row), asked))
    except Refused as refused:
        return refused.reason


# --- what is asked ------------------------------------------------------------------------------------------------------


def test_the_model_is_asked_what_the_last_answer_answers(tmp_path: Path) -> None:
    stage = preferences(tmp_path)
    first, second = stage.prompt(0), stage.prompt(1)
    assert first.messages == tuple(CHATS[0][:2]) and first.answer == "Ice floats on water."
    assert second.messages == tuple(CHATS[1][:3]) and second.answer == "Under the lawn, in the dark."
    assert first.parents == (content_key(str(CHATS[0]).encode()),)
    with pytest.raises(Refused) as caught:
        stage.prompt(2)
    assert caught.value.reason == "bad-chat"


# --- pairs from data ----------------------------------------------------------------------------------------------------


def test_chosen_is_the_documents_answer_and_rejected_the_models(tmp_path: Path) -> None:
    parsed = outcome(preferences(tmp_path), 0, asked := Asked(engine=says("Stones and birds.")))
    assert isinstance(parsed, Parsed)
    found = preference_of(json.dumps(dict(parsed.meta)))
    assert (found.prompt, found.chosen, found.rejected) == (
        tuple(CHATS[0][:2]),
        "Ice floats on water.",
        "Stones and birds.",
    )
    assert parsed.meta["chosen_by"] == "data" and 0 <= parsed.meta["similarity"] <= 0.9
    assert "Ice floats on water." in parsed.text and "Stones and birds." in parsed.text
    assert len(asked.calls) == 1


def test_a_stronger_model_may_write_the_chosen_answer(tmp_path: Path) -> None:
    stage = preferences(tmp_path, chosen_engine={**ECHO, "model": "teacher"})
    assert set(stage.engines()) == {"engine", "chosen_engine"}
    parsed = outcome(stage, 0, Asked(engine=says("Stones."), chosen_engine=says("Wood and ice float.")))
    assert isinstance(parsed, Parsed)
    assert (parsed.meta["chosen"], parsed.meta["rejected"]) == ("Wood and ice float.", "Stones.")
    assert parsed.meta["chosen_by"] == "teacher"


@pytest.mark.parametrize(
    ("reply", "settings", "reason"),
    [
        (Reply("Ice floats on water.", "stop"), {}, "too-similar"),
        (Reply("Ice floats on water!", "stop"), {}, "too-similar"),
        (Reply("Ice floats on water!", "stop"), {"most_similar": 1}, ""),
        (Reply("Ice floats on water.", "stop"), {"most_similar": 1}, "too-similar"),
        (Reply("Ice swims.", "stop"), {"most_similar": 0}, "too-similar"),
        (Reply(" ", "stop"), {}, "empty"),
        (Reply("", "error", error="it broke"), {}, "engine-error"),
        (Reply("Stones. And bi", "length"), {}, "truncated"),
        (Reply("Stones. And bi", "length"), {"truncated": "trim"}, ""),
        (Reply("stones stones " * 60, "stop"), {}, ""),  # a loop is what a rejected answer may well be
        (Reply("As an AI language model, I cannot float.", "stop"), {}, ""),
    ],
)
def test_what_becomes_of_a_rejected_answer(tmp_path: Path, reply: Reply, settings: Any, reason: str) -> None:
    found = outcome(preferences(tmp_path, **settings), 0, Asked(engine=lambda number: reply))
    assert found == reason if reason else isinstance(found, Parsed)


def test_a_chosen_answer_must_be_good(tmp_path: Path) -> None:
    stage = preferences(tmp_path, chosen_engine=ECHO)
    refusal = Asked(engine=says("Stones."), chosen_engine=says("As an AI language model, I cannot float."))
    assert outcome(stage, 0, refusal) == "refusal"
    loop = Asked(engine=says("Stones."), chosen_engine=says("It floats and it floats " * 40))
    assert outcome(stage, 0, loop) == "repetition"


# --- ranked pairs -------------------------------------------------------------------------------------------------------


def graded(*grades: int | str) -> Callable[[int], Reply]:
    """A judge's answers: the same grade for each criterion, or a text as it is."""
    return says(
        *(
            grade if isinstance(grade, str) else json.dumps({"reason": "r", "correct": grade, "helpful": grade, "clear": grade})
            for grade in grades
        )
    )  # fmt: skip


ANSWERS = ("Boats.", "Stones.", "Dry wood floats.", "The moon.")


@pytest.mark.parametrize(
    ("answers", "grades", "settings", "expected"),
    [
        (ANSWERS, (3, 1, 5, 2), {}, ("Dry wood floats.", "Stones.")),
        (ANSWERS, (3, 3, 3, 3), {}, "small-margin"),
        (ANSWERS, (3, 3, 3, 3), {"margin": 0}, "small-margin"),
        (ANSWERS, (3, 2, 3, 2), {"margin": 1.5}, "small-margin"),
        (ANSWERS, (4, "five of five", 6, 1), {"margin": 0}, ("Boats.", "The moon.")),
        (ANSWERS, ("bad", "bad", "bad", 1), {}, "too-few-graded"),
        (("Boats.",), (4,), {}, "too-few-graded"),
        (("Boats.", "Boats!", "Boats.", "Boats!"), (4, 1), {"most_similar": 0.5}, "too-similar"),
    ],
)
def test_the_best_and_the_worst_make_a_pair(
    tmp_path: Path, answers: Any, grades: Any, settings: Any, expected: Any
) -> None:
    stage = preferences(tmp_path, mode="ranked", judge={**ECHO, "model": "judge"}, **settings)
    asked = Asked(engine=says(*answers), judge=graded(*grades))
    found = outcome(stage, 0, asked)
    if isinstance(expected, str):
        assert found == expected
        return
    assert isinstance(found, Parsed)
    assert (found.meta["chosen"], found.meta["rejected"]) == expected
    assert found.meta["grades"]["chosen"] == found.meta["grades"]["all"][-1]
    judged = [messages[-1]["content"] for name, messages in asked.calls if name == "judge"]
    assert all("User: What floats?" in text for text in judged) and len(judged) == len(set(answers))


def test_without_a_judge_the_model_grades_itself(tmp_path: Path) -> None:
    stage = preferences(tmp_path, mode="ranked", candidates=2)
    replies = [Reply("Boats.", "stop"), Reply("Stones.", "stop"), graded(5)(0), graded(1)(0)]
    parsed = outcome(stage, 0, Asked(engine=lambda number: replies[number]))
    assert isinstance(parsed, Parsed) and parsed.meta["chosen"] == "Boats."


def test_a_wrong_rubric_is_found_before_anything_runs() -> None:
    with pytest.raises(RecipeError, match=r"stages\.pairs\.rubric: there is no rubric 'answer'"):
        preferences(mode="ranked", rubric="answer")
    with pytest.raises(RecipeError, match="did you mean 'clear'"):
        preferences(mode="ranked", score="clar")
    preferences(rubric="answer")  # nobody judges


# --- the stage ----------------------------------------------------------------------------------------------------------


def test_pairs_have_lineage_and_the_model_of_the_recipe_writes_the_rejected_answer(ray_cluster, stage_context):
    store = stage_context.store
    documents = chats(store)
    model = Artifact(store, "artifacts/sft")
    store.write(f"{model.folder}/model/config.json", b'{"max_position_embeddings": 128}')
    finished(model, "sft", "model", files=["model/config.json"])
    made = stage_context.finished(preferences(), documents=[documents], model=[model])
    counts = made.manifest.counts
    assert counts["planned"] == len(CHATS) == counts["succeeded"] + counts["rejected"]
    assert made.manifest.reasons == {"bad-chat": 1}
    keys = {content_key(str(chat).encode()) for chat in CHATS}
    for row in (row for table in made.tables() for row in table.to_pylist()):
        assert row["kind"] == "preference" and set(row["parents"]) < keys
        assert row["made_by"]["model"] == "sft"
        assert preference_of(row["meta"]).rejected in row["text"]
    assert made.manifest.inputs["model"][0].digest == model.manifest.digest
    figures = made.manifest.metrics["pairs"]
    assert figures["rejected_longer"] == 1 and figures["mean_characters_chosen"] < figures["mean_characters_rejected"]
    served = serving(EngineSettings(max_model_len=1024), model)
    assert (served.max_model_len, served.model) == (128, store.describe(f"{model.folder}/model"))
    assert serving(EngineSettings(max_model_len=64), model).max_model_len == 64


def test_several_calls_of_a_row_are_kept_for_the_next_run(ray_cluster, stage_context):
    stage = preferences(mode="ranked", candidates=3, judge={**ECHO, "model": "judge"}, margin=0)
    made = stage_context.finished(stage, documents=[chats(stage_context.store)])
    digest = made.manifest.digest
    kept = [row for table in made.tables("replies") for row in table.to_pylist()]
    assert len(kept) == 3 * 2 * 3, "three prompts, three answers and three gradings of each"
    pairs = [json.loads(row["meta"]) for table in made.tables() for row in table.to_pylist()]
    assert pairs and all(pair["grades"]["chosen"] > pair["grades"]["rejected"] for pair in pairs)
    accepted = {planned_row(row["id"]) for table in made.tables() for row in table.to_pylist()}
    written = [row["completion_tokens"] for row in kept if row["unit"] in accepted]
    assert made.manifest.counts["tokens"] == sum(written), "of all six calls of a row"
    made.store.delete(made.folder)
    assert stage_context.finished(stage, documents=[chats(stage_context.store)]).manifest.digest == digest


def test_a_pair_prompt_keeps_the_answer_out_of_the_seeds(tmp_path: Path) -> None:
    prompt = preferences(tmp_path).prompt(3)
    assert isinstance(prompt, PairPrompt) and "four" not in json.dumps(dict(prompt.seeds))


# --- an earlier model -----------------------------------------------------------------------------------------------------


def test_the_examples_of_the_page_are_right_in_the_demo() -> None:
    page = (ROOT / "docs" / "generators" / "preferences.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    assert [list(block) for block in blocks] == [["pairs", "ranked"], ["early", "pairs"]]
    for stages in blocks:
        demo = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text(encoding="utf-8"))
        recipe = check_recipe({**demo, "stages": {**demo["stages"], **stages}}, "preferences.md")
        assert isinstance(recipe.stages["pairs"].stage, Preferences)
    assert list(recipe.stages).index("early") < list(recipe.stages).index("pairs")


def test_what_the_page_says_of_a_shorter_stage_holds() -> None:
    """Which batches and learning rates it shares with a longer one; all else of a step follows from seed and step."""

    def rates(kind: Any, steps: int) -> list[float]:
        schedule = ScheduleSettings(kind=kind, warmup_steps=5)
        return [learning_rate_share(schedule, step, steps) for step in range(steps)]

    assert rates("constant", 90)[:30] == rates("constant", 30)
    assert rates("cosine", 90)[:30] != rates("cosine", 30)
    assert rates("wsd", 90)[:72] == rates("constant", 72), "its decay takes the last fifth"

    def batches(sizes: dict[str, int], *phases: tuple[int, dict[str, float]]) -> list[list[tuple[int, int]]]:
        settings = [PhaseSettings(name="x", steps=steps, weights=weights) for steps, weights in phases]
        mixture = Mixture(sizes, settings, 16, 10, 3)
        drawn = [mixture.batch(step) for step in range(mixture.steps)]
        return [list(zip(draws.source.tolist(), draws.sequence.tolist(), strict=True)) for draws in drawn]

    assert batches({"a": 101}, (18, {}))[:6] == batches({"a": 101}, (6, {})), "one source, over several epochs"
    two, stable, decay = {"a": 101, "b": 57}, {"a": 0.7, "b": 0.3}, {"a": 0.2, "b": 0.8}
    assert batches(two, (9, stable), (4, decay))[:9] == batches(two, (9, stable)), "a whole phase"
    assert batches(two, (9, stable))[:5] != batches(two, (5, stable)), "the planned counts are others"
