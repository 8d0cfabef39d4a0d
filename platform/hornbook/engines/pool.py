"""Engines that outlive a stage: every generation stage of a run shares them, because each start costs 20 s and more.

The driver holds an `EnginePool`; what runs in Ray Data actors holds its `EngineHandle`. A prompt may kill the engine
that reads it. The handle then narrows the batch down with nothing else in flight, until the one prompt that kills is
alone; that one gets an error reply and everything else its text.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import sys
import time
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NoReturn

from hornbook import models
from hornbook.cluster import EXPECTED_GPUS_VARIABLE, expected_gpus
from hornbook.engines.interface import EngineSettings, Reply, Request, Sampling, failed
from hornbook.engines.replica import EngineStats, Ledger, Replica, pack_requests, unpack_replies
from hornbook.errors import ClusterError, EngineError, HornbookError

_LOG = logging.getLogger(__name__)

GROUP_OF_SUSPECTS = 4
"""Prompts retried together, after the whole batch has died twice and before each goes alone."""

_CALLS_AT_ONCE = 1000
"""Calls that one replica accepts at the same time; the engine itself decides how many sequences it decodes together."""

_SECONDS_BETWEEN_WAITING_NOTES = 30.0
_PATIENCE_WITH_THE_OTHERS = 900.0
"""Seconds after which the pool works with the replicas that are ready, counted from when the last one became so."""

_SECONDS_TO_CLOSE = 30.0
_SECONDS_TO_COUNT = 10.0
_PROBES_OF_A_DEAD_ACTOR = 5


class EnginePool:
    """The replicas of one engine, started by the first `handle()` and stopped by `close()` (or the end of the
    driver)."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self._handle: EngineHandle | None = None
        self._ready = False

    def handle(self, wait: bool = True) -> EngineHandle:
        """Return the handle for workers; the first call starts the replicas and waits until they answer.

        Args:
            wait: False for work that may turn out to need no engine: a single replica then loads its model when it is
                first asked, if ever, and the caller who asks gets the error where it cannot.

        Raises EngineError or ModelError with the cause when the engine cannot start, ClusterError when the cluster has
        too few GPUs.
        """
        if self._handle is None:
            self._handle = self._create(when="starting" if wait else "when it is needed, starting")
        # Several replicas are waited for all the same: only so it shows which of them find no place.
        if (wait or len(self._handle) > 1) and not self._ready:
            try:
                _wait_until_ready(self._handle, self.settings)
            except BaseException:
                handle, self._handle = self._handle, None
                _stop(handle, gracefully=False)
                raise
            self._ready = True
        return self._handle

    def stats(self) -> EngineStats:
        """Return what the replicas have done so far; zeros before the first `handle()`."""
        import ray

        return ray.get(self._handle.ledger.stats.remote(), timeout=_SECONDS_TO_COUNT) if self._handle else EngineStats()

    def close(self) -> None:
        """Stop the replicas and whatever processes they started."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._ready = False
            _stop(handle, gracefully=True)

    def __enter__(self) -> EnginePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _create(self, when: str) -> EngineHandle:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if self.settings.kind == "vllm":
            models.digest(self.settings.model)  # An unknown model is said here, before an actor waits for resources.
        replicas, gpus = _layout(self.settings, int(expected_gpus()))
        print(_announcement(self.settings, replicas, gpus, when), file=sys.stderr, flush=True)
        # Replicas find the ledger by name: a handle among a constructor's arguments can be lost before a restart. And it
        # lives beside the driver: on a spot node it could go, and with it the budget and every replica's way back.
        ledger_name = f"hornbook-engine-ledger-{uuid.uuid4().hex}"
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        ledger = ray.remote(Ledger).options(num_cpus=0, name=ledger_name, scheduling_strategy=here).remote()
        actor = ray.remote(Replica).options(
            num_cpus=0.5,
            num_gpus=gpus,
            max_concurrency=_CALLS_AT_ONCE,
            max_restarts=self.settings.max_restarts,
            max_task_retries=0,
        )
        return EngineHandle([actor.remote(self.settings, number, ledger_name) for number in range(replicas)], ledger)


class EngineHandle:
    """What a worker needs to reach the replicas; it can be pickled."""

    def __init__(self, replicas: list[Any], ledger: Any) -> None:
        self.ledger = ledger
        self.keep(replicas)

    async def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        """Return one reply per request, in order; keep several calls under way to keep the engine full.

        Raises EngineError when the engine refuses to work or has died more often than its settings allow.
        """
        from ray.exceptions import RayActorError

        if not requests:
            return []
        number = self._least_called()
        self._calls[number] += 1
        try:
            return unpack_replies(await self.replicas[number].generate.remote(pack_requests(requests), sampling))
        except RayActorError:
            return await self._isolate(self.replicas[number], requests, sampling, _narrowing(len(requests)))
        except HornbookError as error:
            _raise_plainly(error)
        finally:
            self._calls[number] -= 1

    def keep(self, replicas: list[Any]) -> None:
        """Use only these replicas from now on."""
        self.replicas = replicas
        self._calls = [0] * len(replicas)

    def __len__(self) -> int:
        return len(self.replicas)

    async def stats(self) -> EngineStats:
        """Return what all replicas have done so far."""
        return await self.ledger.stats.remote()

    async def _isolate(
        self, replica: Any, requests: Sequence[Request], sampling: Sampling, sizes: list[int]
    ) -> list[Reply]:
        """Find the prompts of a batch that kill the engine, in ever smaller groups, and answer all the others."""
        replies: list[Reply] = []
        size, *smaller = sizes
        for first in range(0, len(requests), size):
            group = requests[first : first + size]
            answered = await _alone(replica, group, sampling)
            if answered is not None:
                replies += answered
            elif smaller:
                replies += await self._isolate(replica, group, sampling, smaller)
            else:
                self.ledger.lost.remote()
                replies.append(failed("engine died while answering this prompt alone"))
        return replies

    def __reduce__(self) -> tuple[Any, ...]:
        return EngineHandle, (self.replicas, self.ledger)

    def _least_called(self) -> int:
        fewest = min(self._calls)
        return random.choice([number for number, calls in enumerate(self._calls) if calls == fewest])


# --- finding the prompt that kills ----------------------------------------------------------------------------------


def _narrowing(count: int) -> list[int]:
    """Return the group sizes to try one after the other: the whole batch, groups of suspects, single prompts."""
    return sorted({count, min(count, GROUP_OF_SUSPECTS), 1}, reverse=True)


async def _alone(replica: Any, group: Sequence[Request], sampling: Sampling) -> list[Reply] | None:
    """Answer `group` with nothing else in flight; None when the engine died of it."""
    from ray.exceptions import RayActorError

    while True:
        ticket = await _reserve(replica)
        try:
            packed = await replica.generate_alone.remote(ticket, pack_requests(group), sampling)
        except RayActorError:
            return None
        except HornbookError as error:
            _raise_plainly(error)
        if packed is not None:
            return unpack_replies(packed)


async def _reserve(replica: Any) -> str:
    """Wait until Ray has restarted the replica and its engine is ours. Raises EngineError when it stays dead.

    A death before the ticket is here was not this group's fault: try again.
    """
    from ray.exceptions import ActorDiedError, ActorUnavailableError

    deaths = 0
    for attempt in itertools.count():
        try:
            return await replica.reserve.remote()
        except ActorUnavailableError:
            pass
        except ActorDiedError as error:
            deaths += 1
            if deaths == _PROBES_OF_A_DEAD_ACTOR:
                raise EngineError(
                    f"the engine keeps dying, its restarts are used up: {_first_line(error)}",
                    "read the engine's log in Ray's session folder (logs/worker-*.err); if it is prompts that kill it, "
                    "raise engine.max_restarts",
                ) from None
        except HornbookError as error:
            _raise_plainly(error)
        await asyncio.sleep(min(0.1 * 2**attempt, 2.0))
    raise AssertionError("unreachable")


def _raise_plainly(error: HornbookError) -> NoReturn:
    """Raise the error that a remote call carries as itself, without Ray's wrapping around its message."""
    cause = getattr(error, "cause", error)
    raise cause from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --- starting and stopping ------------------------------------------------------------------------------------------


def _layout(settings: EngineSettings, cluster_gpus: int) -> tuple[int, int]:
    """Return the number of replicas and the GPUs of each: all that the cluster has or may get for vllm, else none."""
    if settings.kind != "vllm" or cluster_gpus == 0:
        return settings.replicas or 1, 0
    wanted = (settings.replicas or 1) * settings.tensor_parallel
    if wanted > cluster_gpus:
        raise ClusterError(
            f"the engine wants {wanted} GPUs (replicas x tensor_parallel), the cluster has {cluster_gpus}",
            "lower engine.replicas or engine.tensor_parallel, or add nodes; where they come only when asked for, set "
            f"{EXPECTED_GPUS_VARIABLE} to how many may come",
        )
    return settings.replicas or cluster_gpus // settings.tensor_parallel, settings.tensor_parallel


def _announcement(settings: EngineSettings, replicas: int, gpus: int, when: str) -> str:
    """Return the line that says what is being started: a model may take half a minute to load."""
    each = f", {gpus} GPU{'s' if gpus > 1 else ''} each" if gpus else ""
    copies = f" ({replicas} replica{'s' if replicas > 1 else ''}{each})" if replicas > 1 or gpus else ""
    return f"{when} the engine {settings.kind} with {settings.model}{copies} ..."


def _wait_until_ready(handle: EngineHandle, settings: EngineSettings) -> None:
    """Wait for the replicas; those that find no place long after another one did are given up: spot nodes may not come."""
    import ray
    from ray.exceptions import RayActorError

    waiting = {replica.ready.remote(): replica for replica in handle.replicas}
    ready: list[Any] = []
    last = time.monotonic()
    try:
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=_SECONDS_BETWEEN_WAITING_NOTES)
            ray.get(done)
            if done:
                ready += [waiting.pop(reference) for reference in done]
                last = time.monotonic()
            elif ready and time.monotonic() - last > _PATIENCE_WITH_THE_OTHERS:
                _LOG.warning("working with %d of %d engines: the cluster has no room for more", len(ready), len(handle))
                for replica in waiting.values():
                    ray.kill(replica, no_restart=True)
                handle.keep(ready)
                return
            else:
                free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
                _LOG.warning(
                    "still loading %s in %s (%d of %d engines; the cluster has free: %s)",
                    settings.model,
                    settings.kind,
                    len(waiting),
                    len(handle),
                    ", ".join(f"{amount:g} {name}" for name, amount in free.items()) or "nothing",
                )
    except HornbookError as error:
        _raise_plainly(error)
    except RayActorError as error:
        raise EngineError(
            f"the engine's process died while it loaded {settings.model!r}: {_first_line(error)}",
            "most often memory: lower engine.cpu_kv_cache_gib, max_model_len or max_num_seqs, or take a smaller model",
        ) from None


def _stop(handle: EngineHandle, gracefully: bool) -> None:
    import ray
    from ray.exceptions import RayError

    if not ray.is_initialized():
        return
    if gracefully:
        for closing in [replica.close.remote() for replica in handle.replicas]:
            try:
                ray.get(closing, timeout=_SECONDS_TO_CLOSE)
            except RayError:
                _LOG.warning("an engine replica did not close in time and is killed")
    for actor in [*handle.replicas, handle.ledger]:
        ray.kill(actor, no_restart=True)
