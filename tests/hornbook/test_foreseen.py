"""What an engine would refuse once it runs is found when the recipe is checked."""

from __future__ import annotations

from typing import Any

import pytest

from hornbook.errors import RecipeError
from hornbook.recipe import check_recipe

ADDRESS = "http://127.0.0.1:8000/v1"
FAST = {"kind": "vllm", "speculation": "ngram"}


def check(**stories: Any) -> None:
    check_recipe({"name": "small", "stages": {"stories": {"kind": "stories", "rows": 8, **stories}}}, "small.yaml")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": {"kind": "openai"}}, "stages.stories.engine.base_url: '' is no http or https URL"),
        ({"engine": {"kind": "openai", "base_url": "127.0.0.1:8000"}}, "engine.base_url: '127.0.0.1:8000' is no"),
        ({"engine": {"kind": "openai", "base_url": "http:///v1"}}, "engine.base_url: 'http:///v1' is no http"),
        ({"engine": {"kind": "openai", "base_url": "ftp://host/v1"}}, "engine.base_url: 'ftp://host/v1' is no http"),
        (
            {"engine": {"kind": "openai", "base_url": "http://host:port/v1"}},
            "base_url: 'http://host:port/v1' is no URL",
        ),
        ({"engines": [{"engine": {"kind": "openai"}}]}, "stages.stories.engines.0.base_url"),
        (
            {"engine": FAST, "sampling": {"min_p": 0.1}},
            "stories.engine: speculation: ngram takes neither sampling.min_p",
        ),
        ({"engine": FAST, "sampling": {"end_bias": 2}}, "takes neither sampling.min_p nor sampling.end_bias"),
        ({"engines": [{"engine": FAST, "sampling": {"min_p": 0.1}}]}, "stages.stories.engines.0: speculation: ngram"),
        ({"engine": {"max_model_len": 400}}, "engine.max_model_len: 400 tokens are to hold a prompt and its reply"),
        ({"sampling": {"max_tokens": 5000}}, "sampling.max_tokens alone is 5,000"),
        ({"accepted": 9}, "stages.stories.accepted: 9 rows can never be accepted: rows x samples, 8, are the most"),
        ({"accepted": 17, "samples": 2}, "rows x samples, 16, are the most"),
    ],
)
def test_what_can_never_work_is_refused_at_the_check(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check(**settings)
    assert caught.value.message.startswith("small.yaml: stages.stories.")
    assert said in caught.value.message and caught.value.cure


@pytest.mark.parametrize(
    "settings",
    [
        {"engine": {"kind": "openai", "base_url": ADDRESS}},
        {"engines": [{"engine": {"kind": "openai", "base_url": "https://example.org"}}]},
        {"engine": {"kind": "echo", "max_model_len": 64, "speculation": "ngram"}, "sampling": {"min_p": 0.1}},
        {"engine": FAST, "sampling": {"top_p": 0.9}},
        {"engine": {"max_model_len": 401}},
        {"accepted": 16, "samples": 2},
        {"rows": None, "accepted": 400},
    ],
)
def test_what_may_work_passes_the_check(settings: dict[str, Any]) -> None:
    check(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": {"max_model_len": 256}}, "stages.judged.engine.max_model_len: 256 tokens"),
        ({"engine": {"kind": "openai"}}, "stages.judged.engine.base_url"),
        ({"engine": FAST, "sampling": {"min_p": 0.1}}, "stages.judged.engine: speculation: ngram"),
    ],
)
def test_a_judge_is_checked_as_a_writer_is(settings: dict[str, Any], said: str) -> None:
    stages = {
        "stories": {"kind": "stories", "rows": 8, "engine": {"kind": "echo"}},
        "judged": {"kind": "judge", "inputs": {"documents": "stories"}, **settings},
    }
    with pytest.raises(RecipeError) as caught:
        check_recipe({"name": "small", "stages": stages}, "small.yaml")
    assert said in caught.value.message
