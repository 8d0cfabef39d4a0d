"""How rows ask engines: with what enters their keys and lineage, many at once, and so that an engine's failure stays its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hornbook.documents import canonical_json
from hornbook.engines.interface import EngineSettings, Reply, Request, Sampling
from hornbook.engines.pool import EngineHandle
from hornbook.errors import DataError, EngineError, HornbookError
from hornbook.models import digest, short_name
from hornbook.parts import PartRange

ROWS_THAT_TELL = 8
"""Rows of a part that fail alike before the fault is no longer the rows'."""
FAILURES: Mapping[str, tuple[type[HornbookError], str]] = {
    "engine-error": (EngineError, "mend the engine's settings (its model, its endpoint)"),
    "prompt-failed": (DataError, "mend the kind's prompt()"),
    "parse-failed": (DataError, "mend the kind's parse(), write() or check_text()"),
}


@dataclass(frozen=True)
class Writer:
    """An engine that rows may ask: its handle, its settings, and what of it enters keys and lineage."""

    handle: EngineHandle
    settings: EngineSettings
    model: str
    revision: str


def writer(settings: EngineSettings, handle: EngineHandle) -> Writer:
    """Return the writer of an engine that was opened."""
    revision = digest(settings.model) if settings.kind == "vllm" else f"{settings.kind}:{settings.model}"
    return Writer(handle, settings, short_name(settings.model), revision)


@lru_cache(maxsize=4096)
def made_with(
    sampling: Sampling, schema: str = "", choices: tuple[str, ...] = (), avoid: tuple[tuple[str, float], ...] = ()
) -> str:
    """Return the JSON of all that shapes a reply beside its messages, its model and its seed."""
    constraints = {"schema": schema, "choices": list(choices), "avoid": list(avoid)}
    return canonical_json({**sampling.identity(), **{name: value for name, value in constraints.items() if value}})


class Together:
    """Gathers what the rows of a part ask at the same time into one call of each engine.

    An endpoint is asked for one row at a time: what it answered, and charged, is kept whatever becomes of the others.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, Sampling], list[tuple[Request, asyncio.Future[Reply]]]] = {}
        self._handles: dict[int, EngineHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, writer: Writer, request: Request, sampling: Sampling) -> Reply:
        """Return the reply to one row's request. Raises HornbookError: an engine that fails is never the row's fault."""
        try:
            if writer.settings.kind == "openai":
                return (await writer.handle.generate([request], sampling))[0]
            return await self._ask(writer.handle, request, sampling)
        except HornbookError:
            raise
        except Exception as error:
            raise EngineError(
                f"the engine with {writer.model!r} failed at {request.tag}: {type(error).__name__}: {error}",
                "run again, it goes on where it stood; if it fails again, read Ray's logs",
            ) from error

    async def _ask(self, handle: EngineHandle, request: Request, sampling: Sampling) -> Reply:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._handles[id(handle)] = handle
        group = self._waiting.setdefault((id(handle), sampling), [])
        group.append((request, future))
        if len(group) == 1:
            loop.call_soon(self._send, (id(handle), sampling))
        return await future

    def _send(self, group: tuple[int, Sampling]) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(group[0], group[1], self._waiting.pop(group)))
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def _answer(
        self, handle: int, sampling: Sampling, waiting: list[tuple[Request, asyncio.Future[Reply]]]
    ) -> None:
        try:
            replies = await self._handles[handle].generate([request for request, _ in waiting], sampling)
            for (_, future), reply in zip(waiting, replies, strict=True):
                if not future.done():
                    future.set_result(reply)
        except BaseException as error:
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)


def one_failure(part: PartRange, refused: Sequence[tuple[str, str] | None]) -> HornbookError | None:
    """Return what failed, where all rows of a part failed alike and not through what was written: the engine, or the kind.

    Args:
        refused: reason and detail of each row's refusal; None for a row that was not refused.
    """
    first = refused[0] if len(refused) >= ROWS_THAT_TELL else None
    if first is None or set(refused) != {first} or first[0] not in FAILURES:
        return None
    error, cure = FAILURES[first[0]]
    return error(
        f"all rows from {part.start} to {part.stop - 1} failed alike: {first[1]}",
        f"{cure} and run again: what was answered is kept",
    )
