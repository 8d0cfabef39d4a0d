"""What each engine setting brings on this machine, against compile with prefix caching in plan order: tokens/s, by kind of
prompt.

Each row of the table is one engine beside the reference engine; both are loaded once, answer the same prompts with the same
seeds in turns, and begin each turn with an empty prefix cache. Prompts come as a stage sends them: parts of 16 rows, all in
flight. Both engines have all cores; the one whose turn it is not sleeps. `textbooks` prompts (110 tokens) share 49 tokens with
those for the same audience, `questions` (490) some 240 tokens of examples with those asked the same way.

    python benchmarks/engine_settings.py --only eager "no prefix cache" --json figures.json

Rows are appended to the JSON file, so that the table can be made in several calls; without --only all rows are run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pydoc_data.topics
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from generators.documents import SourceDocument
from generators.prompted import PromptedStage
from generators.questions import Questions, QuestionSettings
from generators.textbooks import Textbooks, TextbookSettings
from generators.writing import sampling_seed
from hornbook.engines.interface import EngineSettings, Request, Sampling
from hornbook.engines.vllm_engine import VLLMEngine
from hornbook.errors import HornbookError

WARM_UP = 16
REFERENCE: dict[str, Any] = {
    "compile": True,
    "prefix_caching": True,
    "prefix_order": False,
    "kv_block_tokens": 128,
    "max_model_len": 1024,
}
"""Compile with prefix caching in plan order, in vLLM's own blocks."""
ROWS: dict[str, dict[str, Any]] = {
    "reference again": {},
    "eager": {"compile": False},
    "no prefix cache": {"prefix_caching": False},
    "prefix order": {"prefix_order": True},
    "blocks of 32": {"kv_block_tokens": 32},
    "blocks of 32, prefix order": {"kv_block_tokens": 32, "prefix_order": True},
    "ngram speculation": {"speculation": "ngram"},
    "suffix speculation": {"speculation": "suffix"},
    "steps of 4096": {"max_num_batched_tokens": 4096},
    "32 at once": {"max_num_seqs": 32},
    "128 at once": {"max_num_seqs": 128},
    "256 at once": {"max_num_seqs": 256},
    "openings avoided": {},
}
AVOIDED = tuple(
    (words, -2.0)
    for words in ["In", "The", "Once", "When", "One", "Imagine", "Let us", "In the", "The world", "This is"]
)
"""What the requests of the row "openings avoided" carry: the engine is the reference's own."""
OF_THE_REFERENCE_ENGINE = ("prefix order", "openings avoided")
MAX_TOKENS = {"questions": 60, "textbooks": 100}
PART = 16


def stages(run: int) -> dict[str, PromptedStage]:
    """Return the kinds, with another plan for each run."""
    topics = [text for text in pydoc_data.topics.topics.values() if len(text) > 400]
    questions = Questions("questions", QuestionSettings(per_document=1), run)

    def source(row: int) -> tuple[SourceDocument, int]:
        return SourceDocument(topics[(row + 37 * run) % len(topics)], b"", {}, {}), 0

    questions.source = source  # type: ignore[method-assign] # Python's own reference, instead of an artifact
    return {"textbooks": Textbooks("textbooks", TextbookSettings(rows=10_000), run), "questions": questions}


def prompts(kind: str, count: int, run: int) -> list[Request]:
    """Return the first rows of a plan."""
    stage = stages(run)[kind]
    return [Request(stage.prompt(row).messages, sampling_seed(stage, row), tag=f"{kind}/{row}") for row in range(count)]


class Rate(NamedTuple):
    """Tokens per second of the clock, and per processor-second: the latter holds on a machine that does other things, too."""

    clock: float
    processor: float


async def measure(engine: VLLMEngine, settings: EngineSettings, kind: str, requests: list[Request]) -> Rate:
    """Answer all requests from an empty cache."""
    assert engine._engine is not None
    engine.settings = settings  # the order of prompts needs no engine of its own
    await engine._engine.reset_prefix_cache()
    sampling = Sampling(temperature=0.8, max_tokens=MAX_TOKENS[kind])
    began, spent = time.monotonic(), processor_seconds()
    parts = [engine.generate(requests[first : first + PART], sampling) for first in range(0, len(requests), PART)]
    replies = [reply for part in await asyncio.gather(*parts) for reply in part]
    seconds, spent = time.monotonic() - began, processor_seconds() - spent
    assert not any(reply.error for reply in replies), next(reply.error for reply in replies if reply.error)
    tokens = sum(reply.completion_tokens for reply in replies)
    return Rate(tokens / seconds, tokens / spent)


def processor_seconds() -> float:
    """Return what this process and all below it have spent; an engine that sleeps adds next to nothing."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


async def started(settings: EngineSettings) -> tuple[VLLMEngine, float]:
    """Return a running engine, warm, and the seconds that it took to start."""
    engine = VLLMEngine(settings)
    began = time.monotonic()
    await engine.start()
    seconds = time.monotonic() - began
    for kind in MAX_TOKENS:
        await measure(engine, settings, kind, prompts(kind, WARM_UP, run=1000))
    return engine, seconds


async def compare(
    name: str, reference: VLLMEngine, kinds: list[str], count: int, pairs: int
) -> AsyncIterator[dict[str, Any]]:
    """Run one row beside the reference; give its figures for each kind when they are there."""
    plain, changed = EngineSettings(**REFERENCE), EngineSettings(**{**REFERENCE, **ROWS[name]})
    ours, seconds = (reference, 0.0) if name in OF_THE_REFERENCE_ENGINE else await started(changed)
    sides = {"reference": (reference, plain), "ours": (ours, changed)}
    try:
        for kind in kinds:
            rates: dict[str, list[Rate]] = {"reference": [], "ours": []}
            for pair in range(pairs):
                requests = prompts(kind, max(count, changed.max_num_seqs), pair)
                for side in sides if pair % 2 == 0 else reversed(sides):
                    avoid = AVOIDED if (name, side) == ("openings avoided", "ours") else ()
                    asked = [replace(request, avoid=avoid) for request in requests]
                    rates[side].append(await measure(*sides[side], kind, asked))
            both = list(zip(rates["reference"], rates["ours"], strict=True))
            figures = {
                "reference": round(statistics.median(rate.clock for rate in rates["reference"]), 1),
                "ours": round(statistics.median(rate.clock for rate in rates["ours"]), 1),
                "ratio": round(statistics.median(b.clock / a.clock for a, b in both), 3),
                "ratio_per_processor_second": round(statistics.median(b.processor / a.processor for a, b in both), 3),
                "pairs": [[*a, *b] for a, b in both],
            }
            yield {"name": name, "start_seconds": round(seconds, 1), kind: figures}
    finally:
        if ours is not reference:
            await ours.close()


async def run(names: list[str], kinds: list[str], count: int, pairs: int, seconds_to_begin: float, file: Path) -> None:
    """Compare the named rows, one after the other, and append each to the file; begin none after so many seconds."""
    began = time.monotonic()
    reference, seconds = await started(EngineSettings(**REFERENCE))
    print(f"the reference started in {seconds:.0f} s", flush=True)
    try:
        for name in names:
            if time.monotonic() - began > seconds_to_begin:
                print(f"no time is left for {name!r}", flush=True)
                continue
            with file.open("a") as stream:
                try:
                    async for row in compare(name, reference, kinds, count, pairs):
                        print(row, flush=True)
                        stream.write(json.dumps(row) + "\n")
                        stream.flush()
                except HornbookError as error:
                    print(f"{name}: {error}", flush=True)
                    stream.write(json.dumps({"name": name, "error": str(error)}) + "\n")
    finally:
        await reference.close()


def table(file: Path) -> str:
    """Return the rows of the file as Markdown; of what was measured twice the last figure counts."""
    rows: dict[str, dict[str, Any]] = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["name"], {}).update(row)
    lines = [
        "| setting | "
        + " | ".join(f"{kind}: tokens/s | ratio | per processor-second" for kind in MAX_TOKENS)
        + " | start |",
        "|---|" + "---|" * (3 * len(MAX_TOKENS) + 1),
    ]
    for name, row in rows.items():
        cells = []
        for kind in MAX_TOKENS:
            found = row.get(kind)
            if found:
                cells.append(f"{found['ours']:.0f} against {found['reference']:.0f}")
                cells += [f"{found[ratio]:.2f}" for ratio in ("ratio", "ratio_per_processor_second")]
            else:
                cells += ["", "", ""]
        start = row["error"].splitlines()[0] if "error" in row else f"{row['start_seconds']:.0f} s"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {start} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument(
        "--eager", action="store_true", help="neither side compiled: a quick look, engines start sooner"
    )
    parser.add_argument("--kinds", nargs="*", default=list(MAX_TOKENS), choices=list(MAX_TOKENS))
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no row after so many seconds")
    parser.add_argument("--json", type=Path, default=Path("engine_settings.json"))
    options = parser.parse_args()
    asyncio.run(run(options.only, options.kinds, options.prompts, options.pairs, options.seconds, options.json))
    print(table(options.json))


if __name__ == "__main__":
    main()
