"""What rows cost: every engine's tokens are counted apart, each at its own price, and only when they are bought."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from document_inputs import corpus
from judge_endpoint import JudgeEndpoint

from generators.judge import Judge, JudgeSettings
from generators.rewrites import EXAMPLES, REWRITTEN, Rewrites, RewriteSettings
from hornbook.inspection import describe_artifact

pytestmark = pytest.mark.usefixtures("ray_cluster")

CHEAP = {"price_per_million_prompt_tokens": 1_000, "price_per_million_completion_tokens": 2_000}
DEAR = {"price_per_million_prompt_tokens": 10_000, "price_per_million_completion_tokens": 30_000}
"""A reply of these endpoints, 7 tokens read and 3 written, costs 0.013 and 0.16."""


@pytest.fixture
def endpoint() -> Iterator[JudgeEndpoint]:
    """Rewrites the example as the kind itself does, and as a judge says Yes."""

    def answer(question: str) -> tuple[int, str, str]:
        return 200, REWRITTEN["list"][0] if "Rewrite this text" in question else "Yes", "stop"

    made = JudgeEndpoint(answer)
    yield made
    made.close()


def rewrites(name: str, engine: dict[str, Any], judge: dict[str, Any], **settings: Any) -> Rewrites:
    values = {"engine": engine, "judge": judge, "forms": ["list"], "checks": {"near_duplicates": False}, **settings}
    return Rewrites(name, RewriteSettings.model_validate(values), 3)


def test_a_writer_and_a_judge_are_paid_each_at_its_own_price_and_once(
    stage_context: Any, tmp_path: Path, endpoint: JudgeEndpoint
) -> None:
    documents = corpus(tmp_path / "documents", [EXAMPLES[0]] * 4)
    writer, judge = {**endpoint.engine, **CHEAP, "model": "writer"}, {**endpoint.engine, **DEAR}
    both = stage_context.finished(rewrites("rewrites-both", writer, judge), documents=[documents])
    counts = both.manifest.counts
    assert (counts["rows"], counts["money"]) == (4, pytest.approx(4 * (0.013 + 0.16)))
    assert {name: count for name, count in counts.items() if ":engine" in name or ":judge" in name} == pytest.approx({
        "prompt_tokens:engine": 28, "completion_tokens:engine": 12, "money:engine": 0.052,
        "prompt_tokens:judge": 28, "completion_tokens:judge": 12, "money:judge": 0.64,
    })  # fmt: skip
    shown = [line.split() for line in describe_artifact(both, 0)]
    assert ["money", "0.69"] in shown and ["money:engine", "0.052"] in shown
    # another judge is asked anew; the writer's replies are taken over, and were paid for
    asked = len(endpoint.asked)
    other = {**judge, "model": "other", **CHEAP}
    again = stage_context.finished(rewrites("rewrites-again", writer, other), documents=[documents]).manifest.counts
    assert (len(endpoint.asked) - asked, again["money"]) == (4, pytest.approx(4 * 0.013))
    assert "money:engine" not in again


def test_grades_cost_what_the_judge_asks(stage_context: Any, tmp_path: Path, endpoint: JudgeEndpoint) -> None:
    documents = corpus(tmp_path / "documents", ["One text.", "Another text."])
    endpoint.answer = lambda question: (200, '{"reason": "it teaches", "value": 4}', "stop")
    stage = Judge("judge", JudgeSettings.model_validate({"engine": {**endpoint.engine, **DEAR}, "rubric": {
        "name": "worth", "instruction": "How much does it teach?",
        "criteria": [{"name": "value", "question": "How much?", "minimum": 1, "maximum": 5}],
    }}), 3)  # fmt: skip
    counts = stage_context.finished(stage, documents=[documents]).manifest.counts
    assert (counts["money"], counts["prompt_tokens"]) == (pytest.approx(2 * 0.16), 14)
