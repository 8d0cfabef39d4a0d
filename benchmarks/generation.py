"""Tokens/s through hornbook against plain `vllm.LLM.chat`: same model, prompts, seeds, sampling and threads, in one
run.

Both engines are loaded once and take turns, so that whatever else the machine does hits both. The steady state is what
lies between 20% and 80% of the finished prompts; the ratio is the median over the pairs. Where other machines share memory and
cache with this one, turns a minute apart differ by a tenth; what hornbook's own processes take from the engine is in the ratio of
the processor cores that vLLM's worker had in each turn's steady state.

    python benchmarks/generation.py --prompts 512 --pairs 5
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from generators.replies import ROLE
from generators.stories import Stories, StorySettings
from generators.writing import sampling_seed
from hornbook import models
from hornbook.artifact import Artifact
from hornbook.engines.interface import EngineSettings, Request, Sampling
from hornbook.engines.pool import EnginePool
from hornbook.events import Events
from hornbook.stage import StageContext
from hornbook.store import Store

STEADY = (0.2, 0.8)


@dataclass(frozen=True)
class Timing:
    """One side's run: tokens/s in the steady state and overall, processor cores of the engine's worker in the steady state, the
    tokens written and the seconds taken."""

    steady: float
    overall: float
    cores: float
    tokens: int
    seconds: float


class Side(Protocol):
    """One way to generate; `start` and `stop` are not timed."""

    name: str

    def start(self) -> None:
        """Load the engine."""

    def generate(self, requests: list[Request]) -> list[tuple[float, int]]:
        """Answer all requests; return when each finished (time.monotonic) and how many tokens it has."""

    def stop(self) -> None:
        """Free the engine."""


class PlainVLLM:
    """The reference: one call of `LLM.chat` with all prompts."""

    name = "vllm.LLM.chat"

    def __init__(self, settings: EngineSettings, sampling: Sampling) -> None:
        self.settings, self.sampling = settings, sampling
        self._llm: Any = None

    def start(self) -> None:
        """Load the engine with exactly the arguments that hornbook's own engine uses."""
        from hornbook.engines.vllm_engine import engine_arguments, set_environment

        set_environment(self.settings)
        from vllm import LLM

        self._llm = LLM(**engine_arguments(self.settings, str(models.resolve(self.settings.model).path)))

    def generate(self, requests: list[Request], texts: list[str] | None = None) -> list[tuple[float, int]]:
        """Note the time of each finish as the engine's step returns it: `chat` itself returns only at the end.

        What was written is added to `texts`.
        """
        from vllm import SamplingParams

        finished: list[tuple[float, int]] = []
        engine = self._llm.llm_engine
        step = type(engine).step

        def noting_step() -> Any:
            outputs = step(engine)
            now = time.monotonic()
            finished.extend((now, len(output.outputs[0].token_ids)) for output in outputs if output.finished)
            return outputs

        engine.step = noting_step
        parameters = [
            SamplingParams(
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                max_tokens=self.sampling.max_tokens,
                seed=request.seed,
            )
            for request in requests
        ]
        answers = self._llm.chat([list(request.messages) for request in requests], parameters, use_tqdm=False)
        if texts is not None:
            texts += [answer.outputs[0].text for answer in answers]
        return finished

    def stop(self) -> None:
        """End the engine's processes."""
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None


class ThroughStage:
    """The real stage `stories`: plan, Ray Data, engine pool, documents, parts and commits."""

    name = "hornbook stage"

    def __init__(self, settings: EngineSettings, sampling: Sampling) -> None:
        self._folder = Path(tempfile.mkdtemp())
        self._log = self._folder / "requests.log"
        self._log.touch()
        self.settings = settings.model_copy(update={"request_log": str(self._log)})
        self.sampling = sampling
        self._pool = EnginePool(self.settings)

    def start(self) -> None:
        """Start the replicas."""
        self._pool.handle()

    def generate(self, requests: list[Request]) -> list[tuple[float, int]]:
        """Run the stage on an empty artifact; watch the engine's own request log for the time of each finish."""
        store = Store(str(self._folder / uuid.uuid4().hex))
        run, rows = int(requests[0].tag.split("/")[0]), len(requests)
        stage = story_stage(run, rows, self.settings, self.sampling)
        context = StageContext(
            artifact=Artifact(store, "artifacts/stories"),
            inputs={},
            input_stages={},
            stage="stories",
            seed=run,
            run="benchmark",
            events=Events(store, "runs/benchmark"),
            stop_requested=lambda: False,
            open_engine=lambda settings, wait=True: self._pool.handle(wait),
        )
        finishes = _FinishTimes(self._log)
        stage.run(context)
        times = finishes.stop()
        columns = ["unit", "completion_tokens"]  # of every planned row, accepted or not
        replies = [row for table in context.artifact.tables(ROLE, columns=columns) for row in table.to_pylist()]
        return [(times[f"stories/{row['unit']}"], row["completion_tokens"]) for row in replies]

    def stop(self) -> None:
        """Stop the replicas and delete what was written."""
        self._pool.close()
        shutil.rmtree(self._folder)


class _WorkerTime:
    """Notes every second how much processor time vLLM's workers, of both engines, have had."""

    def __init__(self) -> None:
        self._workers = [process for process in psutil.process_iter(["name"]) if process.info["name"] == "VLLM::Worker"]
        self._noted: list[tuple[float, float]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._note, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the notes."""
        self._stopped.set()
        self._thread.join()

    def cores(self, began: float, ended: float) -> float:
        """Return how many cores the workers kept busy between two times (time.monotonic)."""
        within = [(at, spent) for at, spent in self._noted if began <= at <= ended]
        (first, before), (last, after) = within[0], within[-1]
        return (after - before) / (last - first)

    def _note(self) -> None:
        while not self._stopped.wait(1.0):
            self._noted.append((time.monotonic(), sum(sum(worker.cpu_times()[:2]) for worker in self._workers)))


class _FinishTimes:
    """Follows a request log from its present end and notes when each `done` line appears."""

    def __init__(self, log: Path) -> None:
        self._stream = log.open()
        self._stream.seek(0, os.SEEK_END)
        self._times: dict[str, float] = {}
        self._rest = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        """Return the time of each finished tag."""
        self._stopped.set()
        self._thread.join()
        self._read()
        self._stream.close()
        return self._times

    def _follow(self) -> None:
        while not self._stopped.wait(0.05):
            self._read()

    def _read(self) -> None:
        now = time.monotonic()
        *lines, self._rest = (self._rest + self._stream.read()).split("\n")  # the last one may be half written
        for line in lines:
            what, tag, _ = line.split()
            if what == "done":
                self._times[tag] = now


def story_stage(run: int, rows: int, engine: EngineSettings, sampling: Sampling) -> Stories:
    """Return the stage of one run; a reply cut at max_tokens is kept, so that every prompt counts."""
    settings = StorySettings(rows=rows, engine=engine, sampling=sampling, truncated="keep")
    return Stories("stories", settings, run)


def prompts(count: int, run: int) -> list[Request]:
    """Return the prompts and seeds that the stage plans; they differ from run to run, so that no run finds another's
    replies in a cache."""
    stage = story_stage(run, count, EngineSettings(), Sampling())
    return [Request(stage.prompt(row).messages, sampling_seed(stage, row), tag=f"{run}/{row}") for row in range(count)]


def measure(side: Side, requests: list[Request]) -> Timing:
    """Run one side once."""
    worker, began = _WorkerTime(), time.monotonic()
    finished = sorted(side.generate(requests))
    seconds = time.monotonic() - began
    worker.stop()
    assert len(finished) == len(requests), f"{side.name}: {len(finished)} of {len(requests)} finished"
    first, last = (int(len(finished) * share) - 1 for share in STEADY)
    steady_tokens = sum(tokens for _, tokens in finished[first + 1 : last + 1])
    tokens = sum(tokens for _, tokens in finished)
    steady = steady_tokens / (finished[last][0] - finished[first][0])
    return Timing(steady, tokens / seconds, worker.cores(finished[first][0], finished[last][0]), tokens, seconds)


def compare(reference: Side, ours: Side, count: int, pairs: int) -> dict[str, Any]:
    """Alternate the sides, swapping who goes first, and return the medians and the ratio of each pair."""
    timings: dict[str, list[Timing]] = {reference.name: [], ours.name: []}
    for side in (reference, ours):
        side.start()
        side.generate(prompts(min(count, 16), run=1000))
    try:
        for pair in range(pairs):
            requests = prompts(count, pair)
            for side in (reference, ours) if pair % 2 == 0 else (ours, reference):
                timings[side.name].append(measure(side, requests))
                print(f"pair {pair + 1}/{pairs} {side.name}: {timings[side.name][-1]}", flush=True)
    finally:
        reference.stop()
        ours.stop()
    ratios = {
        kind: [
            getattr(b, kind) / getattr(a, kind)
            for a, b in zip(timings[reference.name], timings[ours.name], strict=True)
        ]
        for kind in ("steady", "overall", "cores")
    }
    return {
        "prompts": count,
        "pairs": pairs,
        "tokens_per_second": {
            name: round(statistics.median(timing.steady for timing in taken), 1) for name, taken in timings.items()
        },
        "steady_ratio": round(statistics.median(ratios["steady"]), 3),
        "overall_ratio": round(statistics.median(ratios["overall"]), 3),
        "worker_cores_ratio": round(statistics.median(ratios["cores"]), 3),
        "steady_ratios": [round(ratio, 3) for ratio in ratios["steady"]],
    }


def main() -> None:
    """Parse the command line and print one JSON line at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    options = parser.parse_args()

    os.environ.setdefault(
        "RAY_worker_niceness", "0"
    )  # Or else the reference, which is no Ray worker, runs before ours.
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    settings = EngineSettings(model=options.model, max_model_len=1024)
    sampling = Sampling(max_tokens=options.max_tokens)
    ours = ThroughStage(settings, sampling)
    print(json.dumps(compare(PlainVLLM(settings, sampling), ours, options.prompts, options.pairs)))
    ray.shutdown()


if __name__ == "__main__":
    main()
