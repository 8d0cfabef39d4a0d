"""The judge's call: a rubric, a document, and one token of an LLM that becomes a score.

Classifiers annotate with it and generators grade their own output with it. A grade is not read from free text: the model
may only answer with one of the rubric's choices, and the score is the expectation under their probabilities, so that even
a small model that always prefers the same digit still orders documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hornbook.engines.interface import Reply, Request, Sampling
from hornbook.errors import RecipeError

if TYPE_CHECKING:
    from hornbook.engines.pool import EngineHandle

GRADES = ("0", "1", "2", "3", "4", "5")
CONTENT_FREE = ("", "N/A", "[...]")
ONE_TOKEN = Sampling(temperature=0.0, max_tokens=1)


@dataclass(frozen=True)
class Rubric:
    """How a judge is asked.

    Attributes:
        name: for logs and columns.
        template: Jinja text; a line `--- role` starts a message, the rest is its content. Rendered with `document`.
        choices: the answers, each one token of the judge.
        scores: what each answer is worth, in the same order; by default the numbers that the answers are.
    """

    name: str
    template: str
    choices: tuple[str, ...] = GRADES
    scores: tuple[float, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return (Rubric, (self.name, self.template, self.choices, self.scores))

    def score(self, choice: str) -> float:
        """Return what an answer is worth."""
        return self.scores[self.choices.index(choice)] if self.scores else float(choice)

    @cached_property
    def _compiled(self) -> Any:
        from jinja2 import StrictUndefined, TemplateError
        from jinja2.sandbox import SandboxedEnvironment

        try:
            return SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
                self.template
            )
        except TemplateError as error:
            raise RecipeError(f"rubric {self.name}: {error}", "mend the template's Jinja") from error

    def messages(self, document: str) -> tuple[dict[str, str], ...]:
        """Return the chat messages that ask for a grade of `document`; its own text cannot start a message."""
        mark = "\x00"  # stands for the document until the messages are split
        messages: list[dict[str, str]] = []
        for line in self._compiled.render(document=mark).split("\n"):
            if line.startswith("--- "):
                messages.append({"role": line[4:].strip(), "content": ""})
            elif messages:
                messages[-1]["content"] += line + "\n"
            elif line.strip():
                raise RecipeError(f"rubric {self.name}: text before the first message", "begin with a line `--- user`")
        return tuple(
            {"role": message["role"], "content": message["content"].strip().replace(mark, document)}
            for message in messages
        )

    def request(self, document: str, tag: str = "") -> Request:
        """Return the request whose reply `grade` reads. No randomness: the answer is one token, greedy."""
        return Request(self.messages(document), seed=0, choices=self.choices, tag=tag)


@dataclass(frozen=True)
class Grade:
    """What a judge said: `score` (expectation of the choices' scores), the likeliest `choice`; or why there is neither."""

    score: float
    choice: str
    reason: str = ""
    detail: str = ""


def grade(reply: Reply, rubric: Rubric, prior: Mapping[str, float] | None = None) -> Grade:
    """Turn a reply into a grade.

    Args:
        prior: the judge's probabilities of the choices without a document. Each probability is divided by its prior and
            all are normalised again: contextual calibration (Zhao et al., "Calibrate Before Use", 2021), because a small
            model's favourite digit says more about the prompt than about the document.

    Returns:
        A Grade; `reason` is `judge_error` (the engine failed) or `unparsable` (no choice in the text, or no finite
        probabilities of the choices), else empty.
    """
    if reply.finish_reason == "error":
        return Grade(float("nan"), "", "judge_error", reply.error)
    if reply.choice_probabilities:
        weights = {
            choice: reply.choice_probabilities[choice] / max((prior or {}).get(choice, 1.0), 1e-6)
            for choice in rubric.choices
        }
        total = sum(weights.values())
        if not 0 < total < float("inf"):
            return Grade(float("nan"), "", "unparsable", f"the choices' probabilities add up to {total}")
        score = sum(rubric.score(choice) * weight for choice, weight in weights.items()) / total
        return Grade(score, max(rubric.choices, key=lambda choice: weights[choice]))
    answer = reply.text.strip()
    for choice in rubric.choices:
        if answer == choice or answer.startswith((f"{choice} ", f"{choice}\n", f"{choice}.", f"{choice}/")):
            return Grade(rubric.score(choice), choice)
    return Grade(float("nan"), "", "unparsable", f"the judge said {reply.text[:200]!r}, not one of {rubric.choices}")


async def content_free_prior(engine: EngineHandle, rubric: Rubric) -> dict[str, float]:
    """Return the mean probability of each choice for documents without content; empty if the engine cannot tell."""
    replies = await engine.generate([rubric.request(text) for text in CONTENT_FREE], ONE_TOKEN)
    known = [reply.choice_probabilities for reply in replies if reply.choice_probabilities]
    return {choice: sum(found[choice] for found in known) / len(known) for choice in rubric.choices} if known else {}
