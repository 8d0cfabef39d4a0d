"""What checks and diversity tracking cost for a row, beside the time that the engine takes for it.

A row is a text of 200 tokens. Processor time of one core, the fastest of several rounds: what a row costs, and not what else
the machine did. Diversity is that of a steered corpus: its waves, every step that the sifter takes, and the embedding model,
loaded once; and that of a corpus in one wave, which is embedded at its end. Exit code 1 where all enabled checks of a text
take over 0.2 ms, or checks and diversity of the steered corpus together over 3% of the engine's time.

With --engine the rows are stories that the real engine writes here and now, and the engine's time is the time it took.

    python benchmarks/checks.py                           # two minutes
    python benchmarks/checks.py --rows 20000 --tokens-per-second 3000
    python benchmarks/checks.py --engine                  # three more minutes
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from generators.chatter import find_chatter, find_self_talk, plain
from generators.checks import (
    CheckSettings,
    NearDuplicateSieve,
    Refused,
    check_refusal,
    check_text,
    find_missing,
    find_refusal,
    find_repetition,
    other_language,
    sure_language,
)
from generators.diversity import EMBEDDED_TEXTS, DiversitySettings, Ends, Wave, embedding_model
from generators.steering import steer_next
from hornbook.models import resolve
from hornbook.near_duplicates import NearDuplicates
from hornbook.shingles import words_of

ROWS = 200
ROUNDS = 5
TOKENS = 200
MODEL = "smollm2-135m-instruct"
LIMIT_MS = 0.2
LIMIT_SHARE = 0.03
WAVES = (128, 256, 512, 1024)
"""Rows of a steered plan's waves with `wave_rows: 1024`; the last size again and again."""
CELLS = 8
NAMES = ["Lily", "Tom", "Anna", "Ben", "Mia", "Max", "Ella", "Sam", "Zoe", "Leo"]
THINGS = [
    "a red ball",
    "an old clock",
    "the smallest pony",
    "a wobbly chair",
    "her blue boat",
    "a box of shells",
    "the silver key",
]
PLACES = [
    "behind the barn",
    "near the wide river",
    "at the top of the hill",
    "in the quiet forest",
    "under the kitchen table",
]
DEEDS = [
    "laughed and clapped",
    "began to cry",
    "ran home at once",
    "sat down to think",
    "called for help",
    "hid it again",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="rows of the corpus whose diversity is tracked")
    parser.add_argument("--tokens-per-second", type=float, default=300, help="what the engine writes")
    parser.add_argument("--engine", action="store_true", help="let the real engine write the rows, and time it")
    arguments = parser.parse_args()
    if arguments.engine:
        rows, engine_ms = stories_of_the_engine()
    else:
        rows, engine_ms = cut([story(number) for number in range(ROWS)]), 1000 * TOKENS / arguments.tokens_per_second
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for the sifter: torch is imported later

    def share(milliseconds: float) -> str:
        return f"{milliseconds / engine_ms:.3%} of the {engine_ms:.0f} ms the engine takes for a row"

    settings, required, words = CheckSettings(), ("clock", "run", "wide"), [words_of(row) for row in rows]
    length = "" if arguments.engine else f" of {TOKENS} tokens"
    print(f"{ROWS} rows{length}, {sum(map(len, words)) / ROWS:.0f} words on average")
    checks: dict[str, Callable[[int], object]] = {
        "splitting into words": lambda row: words_of(rows[row]),
        "refusal": lambda row: find_refusal(rows[row]),
        "chatter": lambda row: find_chatter(plain(rows[row])) or find_self_talk(plain(rows[row])),
        "missing words": lambda row: find_missing(rows[row], words[row], required),
        "repetition": lambda row: find_repetition(rows[row], words[row], settings),
        "language": lambda row: other_language(rows[row], "en"),
    }
    for name, check in checks.items():
        print(f"{name}: {cost_ms(check):.4f} ms a row")

    def check_row(row: int) -> None:
        """As of a row made from a document of its own: the reply, the document's language, then the text."""
        with suppress(Refused):  # made rows pass, those of an engine need not
            check_refusal(rows[row], settings)
            check_text(rows[row], settings, ("said",), sure_language(rows[(row + 1) % ROWS]) or "en")

    everything = cost_ms(check_row)
    print(
        f"all checks of one row, languages included: {everything:.4f} ms a row ({share(everything)}; limit {LIMIT_MS} ms)"
    )

    def sieve_all() -> None:
        sieve = NearDuplicateSieve(settings)
        for row in rows:
            if not sieve.refuses(row, {}):
                sieve.add(row, {})

    sieved = best_ms(sieve_all)
    print(f"near-duplicates, apart, row by row: {sieved:.4f} ms a row ({share(sieved)})")
    print(f"checks and near-duplicates: {everything + sieved:.4f} ms a row")
    batch = best_ms(lambda: NearDuplicates().similar_and_add(rows))
    print(f"near-duplicates, in one batch: {batch:.4f} ms a row ({share(batch)})")
    tracked = track(rows, arguments.rows)
    print(f"diversity of {arguments.rows:,} rows in {CELLS} cells, one wave: {tracked['one wave']:.4f} ms a row")
    print(f"the same, steered, in waves of {', '.join(map(str, WAVES))} ...: {tracked['steered']:.4f} ms a row")
    load = spent(embedding_model)
    print(f"loading the embedding model, once: {load:.1f} s")
    embedded = track(rows, arguments.rows, embedded=EMBEDDED_TEXTS, rounds=1)
    for name, without in tracked.items():
        with_model = embedded[name] + 1000 * load / arguments.rows
        print(f"{name}: with embeddings {with_model - without:.4f} ms a row more, loading included")
        total = everything + sieved + with_model
        print(f"{name}: checks, near-duplicates and diversity together: {total:.4f} ms a row ({share(total)})")
    if everything > LIMIT_MS or total > LIMIT_SHARE * engine_ms:
        raise SystemExit(1)


def track(rows: list[str], count: int, embedded: int = 0, rounds: int = ROUNDS) -> dict[str, float]:
    """Return the milliseconds a row of what the sifter does for diversity, in one wave and steered."""

    def follow(waves: list[int], settings: DiversitySettings) -> None:
        ends, at = Ends(), 0
        steer: dict[str, Any] = {}
        for size in waves:
            wave = Wave()
            for row in range(at, at + size):
                wave.add(rows[row % len(rows)], f"cell {row % CELLS}")
            at += size
            figures = wave.figures(settings)
            if settings.steer:
                steer = steer_next(steer, wave, figures, settings, 1.0)
            ends.add(wave.whole)
        ends.figures(settings)

    sizes: list[int] = []
    while sum(sizes) < count:
        sizes.append(min(WAVES[min(len(sizes), len(WAVES) - 1)], count - sum(sizes)))
    ways = {
        "one wave": partial(follow, [count], DiversitySettings(embedded=embedded)),
        "steered": partial(follow, sizes, DiversitySettings(steer=True, embedded=embedded)),
    }
    return {name: 1000 * min(spent(way) for _ in range(rounds)) / count for name, way in ways.items()}


def stories_of_the_engine() -> tuple[list[str], float]:
    """Return stories that the real engine writes, and the milliseconds that it takes for each."""
    import torch
    from generation import PlainVLLM, prompts

    from hornbook.engines.interface import EngineSettings, Sampling

    engine = PlainVLLM(EngineSettings(model=MODEL, max_model_len=1024), Sampling(max_tokens=TOKENS))
    engine.start()
    engine.generate(prompts(16, run=1000))
    texts: list[str] = []
    requests = prompts(ROWS, run=0)
    began = time.monotonic()
    finished = engine.generate(requests, texts)
    milliseconds = 1000 * (time.monotonic() - began) / ROWS
    engine.stop()
    torch.set_num_threads(1)  # too late for OMP_NUM_THREADS
    tokens = sum(tokens for _, tokens in finished)
    print(f"the engine wrote {tokens:,} tokens, {1000 * tokens / (milliseconds * ROWS):.0f} a second")
    return texts, milliseconds


def story(number: int) -> str:
    """Return a text of over 200 tokens, the same for the same number, without loops."""
    sentences = []
    for place in range(24):
        seed = number * 7919 + place * 104729
        one, other = NAMES[seed % 10], NAMES[seed // 10 % 10]
        thing, where, deed = THINGS[seed // 3 % 7], PLACES[seed // 7 % 5], DEEDS[seed // 11 % 6]
        sentences.append(
            f"{one} found {thing} {where} in week {place}."
            if place % 3 == 0
            else f'"We must bring {thing} to {other}," said {one}.'
            if place % 3 == 1
            else f"Then number {seed % 97} of the children {deed}."
        )
    return "\n\n".join(" ".join(sentences[at : at + 4]) for at in range(0, 24, 4))


def cut(rows: list[str]) -> list[str]:
    """Cut each text to its first TOKENS tokens, those of the model that the demo generates with."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(resolve(MODEL).path / "tokenizer.json"))
    cut_rows = [encoded.ids[:TOKENS] for encoded in tokenizer.encode_batch(rows)]
    assert all(len(row) == TOKENS for row in cut_rows), "the texts are too short"
    return tokenizer.decode_batch(cut_rows)


def cost_ms(check: Callable[[int], object]) -> float:
    def all_rows() -> None:
        find_refusal.cache_clear()  # they remember texts, which in a corpus are new
        sure_language.cache_clear()
        for row in range(ROWS):
            check(row)

    return best_ms(all_rows)


def best_ms(run: Callable[[], object]) -> float:
    """Return the milliseconds of processor time a row of the fastest round."""
    return 1000 * min(spent(run) for _ in range(ROUNDS)) / ROWS


def spent(run: Callable[[], object]) -> float:
    """Return the seconds of processor time that `run` takes."""
    began = time.process_time()
    run()
    return time.process_time() - began


if __name__ == "__main__":
    main()
