"""From settings to an engine that is not yet started."""

from __future__ import annotations

from hornbook.engines.budget import Account
from hornbook.engines.interface import Engine, EngineSettings


def make_engine(settings: EngineSettings, account: Account | None = None) -> Engine:
    """Return the engine that `settings.kind` names; `account` is its share in a token budget."""
    if settings.kind == "echo":
        from hornbook.engines.echo_engine import EchoEngine

        return EchoEngine(settings)
    if settings.kind == "openai":
        from hornbook.engines.openai_engine import OpenAIEngine

        return OpenAIEngine(settings, account)
    from hornbook.engines.vllm_engine import VLLMEngine

    return VLLMEngine(settings)
