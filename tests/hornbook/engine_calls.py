"""Engines asked once, for the tests of engines."""

from __future__ import annotations

import asyncio
from typing import Any

from hornbook.engines.echo_engine import EchoEngine
from hornbook.engines.interface import Engine, EngineSettings, Reply, Request, Sampling


def ask(engine: Engine, requests: list[Request], sampling: Sampling | None = None) -> list[Reply]:
    """Start an engine, ask it, close it."""

    async def conversation() -> list[Reply]:
        await engine.start()
        try:
            return await engine.generate(requests, sampling or Sampling())
        finally:
            await engine.close()

    return asyncio.run(conversation())


def echo(**settings: Any) -> EchoEngine:
    return EchoEngine(EngineSettings(kind="echo", **settings))
