"""Pairs of answers, one wanted and one not, for preference tuning (DPO) of the model in training.

`data`: the wanted answer is the one of the chat document, or a stronger model's; the other one is written by an earlier
checkpoint of the model in training, as Phi2-mini-Chinese does. `ranked`: the model answers several times and a judge picks the
best and the worst. Pairs that are too alike teach nothing and are dropped.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from generators.checks import sure_language
from generators.documents import DocumentPromptSettings, DocumentStage
from generators.judge import grades_of, load_asking, rubric_identity
from generators.prompted import Parsed, Prompt, Refused
from generators.rubric import MEAN, Asking, NotGraded, Rubric
from generators.sentences import to_last_sentence
from hornbook.artifact import Artifact
from hornbook.chat import Message, chat_of, plain_text
from hornbook.dice import CHARACTERS, ngram_dice
from hornbook.engines.foreseen import check_sampling
from hornbook.engines.interface import EngineSettings, Reply, Sampling
from hornbook.models import short_name
from hornbook.preference import DOCUMENT_KIND, Preference, preference_meta, preference_text
from hornbook.stage import Input, StageContext, StageResult

if TYPE_CHECKING:
    from generators.prompted import Ask

DATA = "data"
MODEL = "model"  # folder within a model artifact


class PreferenceSettings(DocumentPromptSettings):
    """Settings of the kind `preferences`; one pair of each chat document."""

    mode: Literal["data", "ranked"] = Field(
        "data",
        description="data: chosen from the document or `chosen_engine`, rejected from the model. ranked: both from the "
        "model, the best and the worst of `candidates` by a judge.",
    )
    chosen_engine: EngineSettings | None = Field(
        None, description="data: a stronger model that writes the chosen answer; default: the document's own."
    )
    most_similar: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Largest similarity of the two answers, else `too-similar`: Dice coefficient of their character n-grams.",
    )
    ngram: int = Field(CHARACTERS, ge=1, le=10, description="Characters of an n-gram of that measure.")
    candidates: int = Field(4, ge=2, le=64, description="ranked: answers asked for each prompt.")
    judge: EngineSettings | None = Field(
        None, description="ranked: who grades; default: the model itself, which is a poor judge of its own words."
    )
    rubric: str | Rubric = Field("answers", description="ranked: a rubric that ships, a path, or the rubric itself.")
    score: str = Field(MEAN, description="ranked: the grade that counts, one criterion or the mean of all numbers.")
    margin: float = Field(
        1.0, ge=0, description="ranked: least difference between the best and the worst grade, else `small-margin`."
    )
    judge_sampling: Sampling = Field(Sampling(temperature=0.0, max_tokens=300), description="How the judge samples.")


@dataclass(frozen=True)
class PairPrompt(Prompt):
    """A prompt with the answer that the document gives to it."""

    answer: str = ""


class Preferences(DocumentStage):
    """Preference pairs from chat documents: a wanted answer and one of the model in training."""

    kind: ClassVar[str] = "preferences"
    document_kind: ClassVar[str] = DOCUMENT_KIND
    expected_tokens: ClassVar[int] = 150
    file_settings: ClassVar[tuple[str, ...]] = ("rubric",)
    Settings = PreferenceSettings
    settings: PreferenceSettings
    inputs: ClassVar[Mapping[str, Input]] = {**DocumentStage.inputs, "model": Input("model", optional=True)}

    @cached_property
    def asking(self) -> Asking:
        """How the judge is asked. Raises RecipeError where there is no such rubric."""
        return load_asking(self.settings.rubric, f"stages.{self.name}.rubric", "first", 300, self.folder)

    def extra_identity(self) -> dict[str, str]:
        """Return what a user's rubric file says."""
        return rubric_identity(self.settings.rubric, self.asking) if self.settings.mode == "ranked" else {}

    def check(self) -> None:
        """Refuse a rubric that cannot be read, a score that it does not give, and sampling that an engine cannot do."""
        super().check()
        settings, place = self.settings, f"stages.{self.name}"
        if settings.chosen_engine is not None and settings.mode == "data":
            check_sampling(settings.chosen_engine, settings.sampling, f"{place}.chosen_engine")
        if settings.judge is not None and settings.mode == "ranked":
            check_sampling(settings.judge, settings.judge_sampling, f"{place}.judge")
        if self.settings.mode == "ranked":
            self.asking.rubric.require_score(self.settings.score, f"stages.{self.name}.score")

    def prompt(self, row: int) -> PairPrompt:
        """Ask what the document's last answer answers."""
        source, variant = self.source(row)
        try:
            chat = chat_of(json.dumps(source.meta))
        except ValueError as error:
            raise Refused("bad-chat", str(error)) from None
        last = max(number for number, message in enumerate(chat) if message["role"] == "assistant")
        if last == 0 or chat[last - 1]["role"] != "user":
            raise Refused("bad-chat", f"turn {last}: the assistant answers nobody")
        messages = tuple({"role": turn["role"], "content": turn["content"]} for turn in chat[:last])
        seeds = {"answer": last, "variant": variant}
        return PairPrompt(messages, seeds, (source.key,), answer=chat[last]["content"].strip())

    async def write(self, prompt: Prompt, ask: Ask) -> Parsed:
        """Have the pair written, and drop it if its answers are too alike."""
        assert isinstance(prompt, PairPrompt)
        make = self._ranked if self.settings.mode == "ranked" else self._paired
        chosen, rejected, more = await make(prompt, ask)
        return self._pair(prompt, chosen, rejected, more)

    def check_text(self, prompt: Prompt, text: str) -> None:
        """Look at nothing: of a pair only the chosen answer must be good, and `write` has looked at it."""

    async def _paired(self, prompt: PairPrompt, ask: Ask) -> tuple[str, str, dict[str, Any]]:
        stronger = self.settings.chosen_engine
        if stronger is None:
            self._check_chosen(prompt, prompt.answer)  # before the model is asked for the other answer
        calls = [ask(prompt.messages)]
        if stronger is not None:
            calls.append(ask(prompt.messages, engine="chosen_engine"))
        replies = await asyncio.gather(*calls)
        rejected = self._answer(replies[0], "rejected")
        chosen = prompt.answer if stronger is None else self._answer(replies[1], "chosen")
        return chosen, rejected, {"chosen_by": DATA if stronger is None else short_name(stronger.model)}

    async def _ranked(self, prompt: PairPrompt, ask: Ask) -> tuple[str, str, dict[str, Any]]:
        """Return the best and the worst of the model's answers."""
        replies = await asyncio.gather(*(ask(prompt.messages) for _ in range(self.settings.candidates)))
        answers: dict[str, None] = {}
        failed: list[str] = []
        for reply in replies:
            try:
                answers[self._answer(reply, "candidate")] = None
            except Refused as refused:
                failed.append(refused.reason)
        graded = await asyncio.gather(*(self._grade(prompt, answer, ask) for answer in answers))
        scores = [(found, answer) for found, answer in zip(graded, answers, strict=True) if isinstance(found, float)]
        failed += [found for found in graded if isinstance(found, str)]
        if len(scores) < 2:
            why = ", ".join(sorted(set(failed))) or "all are the same"
            raise Refused("too-few-graded", f"{len(scores)} different answers of {len(replies)} have a grade: {why}")
        best, worst = max(scores, key=lambda found: found[0]), min(scores, key=lambda found: found[0])
        if best[0] - worst[0] < self.settings.margin or best is worst:
            raise Refused("small-margin", f"grades from {worst[0]:g} to {best[0]:g}")
        judge = self.settings.judge or self.settings.engine
        grades = {"chosen": best[0], "rejected": worst[0], "all": sorted(found for found, _ in scores)}
        return best[1], worst[1], {"chosen_by": short_name(judge.model), "grades": grades}

    async def _grade(self, prompt: PairPrompt, answer: str, ask: Ask) -> float | str:
        """Return an answer's grade, or the reason why there is none."""
        conversation = plain_text([*_messages(prompt), Message(role="assistant", content=answer)])
        reply = await ask(
            self.asking.messages(conversation),
            schema=self.asking.schema,
            engine="judge" if self.settings.judge else "engine",
            sampling=self.settings.judge_sampling,
        )
        try:
            return grades_of(reply, self.asking).score(self.settings.score)
        except NotGraded as error:
            return error.reason

    def _answer(self, reply: Reply, which: str) -> str:
        """Return a reply as an answer. Raises Refused as `accept` does."""
        text = reply.text.strip()
        if reply.finish_reason == "error":
            raise Refused("engine-error", f"{which}: {reply.error}")
        if reply.finish_reason == "length" and self.settings.truncated == "reject":
            raise Refused("truncated", f"{which}: cut after {reply.completion_tokens} tokens")
        if reply.finish_reason == "length" and self.settings.truncated == "trim":
            text = to_last_sentence(text)
        if not text:
            raise Refused("empty", which)
        return text

    def _check_chosen(self, prompt: PairPrompt, chosen: str) -> None:
        try:
            super().check_text(prompt, chosen)
        except Refused as refused:
            raise Refused(refused.reason, f"chosen: {refused.detail}") from None

    def language_of(self, prompt: Prompt) -> str:
        """The language of the document's own answer; where that is too short to tell, that of question and answer."""
        assert isinstance(prompt, PairPrompt), prompt
        return sure_language(prompt.answer) or sure_language(f"{prompt.messages[-1]['content']}\n{prompt.answer}")

    def _pair(self, prompt: PairPrompt, chosen: str, rejected: str, more: Mapping[str, Any]) -> Parsed:
        self._check_chosen(prompt, chosen)
        similarity = ngram_dice(chosen, rejected, self.settings.ngram)
        if similarity > self.settings.most_similar or chosen == rejected:
            raise Refused("too-similar", f"Dice of {self.settings.ngram}-grams {similarity:.3f}")
        preference = Preference(_messages(prompt), chosen, rejected)
        meta = preference_meta(preference, mode=self.settings.mode, similarity=round(similarity, 4), **more)
        return Parsed(preference_text(preference), meta)

    def run(self, context: StageContext) -> StageResult:
        """Write the pairs, with the model of the input `model` where there is one."""
        model = context.optional_input("model")
        stage = self
        if model is not None:
            settings = self.settings.model_copy(update={"engine": serving(self.settings.engine, model)})
            stage = type(self)(self.name, settings, self.seed)
            stage.folder = self.folder
        result = super(Preferences, stage).run(context)
        return StageResult({**result.metrics, "pairs": pair_figures(context.artifact)}, result.files)


def pair_figures(pairs: Artifact) -> dict[str, Any]:
    """Return what the report shows of pairs: how alike they are, and whether one could tell them by their length alone.

    `rejected_longer` near 0 or 1 means that tuning on them teaches length before it teaches anything else.
    """
    count = longer = 0
    similarity = 0.0
    characters = {"chosen": 0, "rejected": 0}
    for table in pairs.tables(columns=["meta"]):
        for meta in map(json.loads, table.column("meta").to_pylist()):
            count += 1
            similarity += meta["similarity"]
            longer += len(meta["rejected"]) > len(meta["chosen"])
            for name in characters:
                characters[name] += len(meta[name])
    if not count:
        return {}
    means = {f"mean_characters_{name}": round(total / count, 1) for name, total in characters.items()}
    return {"mean_similarity": round(similarity / count, 4), "rejected_longer": round(longer / count, 4), **means}


def serving(engine: EngineSettings, model: Artifact) -> EngineSettings:
    """Return an engine's settings with a model artifact of the recipe in place of its own model.

    Its context bounds `max_model_len`: a small model in training has a short one.
    """
    config = json.loads(model.store.read(f"{model.folder}/{MODEL}/config.json"))
    length = min(engine.max_model_len, int(config.get("max_position_embeddings", engine.max_model_len)))
    place = model.store.describe(f"{model.folder}/{MODEL}", options=True)  # a replica elsewhere sees the store only
    return engine.model_copy(update={"model": place, "max_model_len": length})


def _messages(prompt: Prompt) -> tuple[Message, ...]:
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in prompt.messages)
