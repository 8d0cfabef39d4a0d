"""What an engine would refuse once it runs, found in its settings before anything does."""

from __future__ import annotations

from urllib.parse import urlsplit

from hornbook.engines.interface import EngineSettings, Sampling
from hornbook.errors import RecipeError


def check_engine(settings: EngineSettings, place: str) -> None:
    """Refuse an endpoint without an address. Raises RecipeError that begins with `place`, the path of the settings."""
    if settings.kind == "openai" and (problem := _address_problem(settings.base_url)):
        raise RecipeError(
            f"{place}.base_url: {settings.base_url!r} {problem}",
            "set base_url to the endpoint, for example http://127.0.0.1:8000/v1",
        )


def check_sampling(settings: EngineSettings, sampling: Sampling, place: str) -> None:
    """Refuse sampling that the engine cannot do. Raises RecipeError that begins with `place`, the path of the engine."""
    if settings.kind != "vllm":
        return
    if problem := speculation_problem(settings, sampling):
        raise RecipeError(f"{place}: {problem[0]}", problem[1])
    if sampling.max_tokens >= settings.max_model_len:
        raise RecipeError(
            f"{place}.max_model_len: {settings.max_model_len:,} tokens are to hold a prompt and its reply, but "
            f"sampling.max_tokens alone is {sampling.max_tokens:,}",
            "raise engine.max_model_len or lower sampling.max_tokens",
        )


def speculation_problem(settings: EngineSettings, sampling: Sampling) -> tuple[str, str] | None:
    """Return the message and the cure where vLLM's speculation cannot sample so, else None."""
    if settings.speculation == "none" or not (sampling.min_p or sampling.end_bias):
        return None
    return (
        f"speculation: {settings.speculation} takes neither sampling.min_p nor sampling.end_bias (vLLM 0.32)",
        "set both to 0, or engine.speculation: none",
    )


def _address_problem(address: str) -> str:
    try:
        parts = urlsplit(address)
        whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError as error:
        return f"is no URL: {error}"
    return "" if whole else "is no http or https URL"
