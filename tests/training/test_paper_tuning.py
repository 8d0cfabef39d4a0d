"""Tuning as papers did it, where a recipe leaves it open."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from hornbook.stage import Expected
from training.sft import Sft, SftSettings


def stage(**settings: Any) -> Sft:
    return Sft("sft", SftSettings.model_validate(settings), seed=0)


def test_what_a_recipe_leaves_open_is_as_in_the_papers_tuning() -> None:
    tuned = stage(paper="phi-1", loop={"learning_rate": 3e-4, "microbatch": 2}).settings
    assert tuned.best_of is not None and (tuned.steps, tuned.best_of.every) == (6_000, 1_000)
    loop = tuned.loop
    assert (loop.learning_rate, loop.microbatch, loop.global_batch, loop.weight_decay) == (3e-4, 2, 256, 0.01)
    assert (loop.schedule.kind, loop.schedule.warmup_steps, loop.schedule.floor) == ("linear", 50, 0.0)
    assert stage(paper="phi-1", epochs=2).settings.steps is None, "the recipe says how long"
    calls = stage(paper="phonelm-calls").settings
    assert calls.lora is not None and (calls.lora.rank, calls.lora.alpha) == (8, 16)
    assert calls.loop.learning_rate == 1.41e-5 and stage(paper="phonelm").settings.loop.learning_rate == 2e-5
    assert stage(paper="phi2-zh").settings.loop.global_batch == 64
    assert stage(epochs=2).settings == SftSettings(epochs=2)
    with pytest.raises(ValidationError):
        stage(paper="phi-9")


def test_steps_stand_in_place_of_epochs() -> None:
    expected = {"tokens": [Expected(rows=160)]}
    assert stage(steps=5).expected(expected).rows == 5
    assert stage(epochs=2).expected(expected).rows == 20
