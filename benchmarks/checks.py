"""What the checks after generation cost for a row, beside the time that the engine takes for it.

A row is a text of 200 tokens. Processor time of one core, the fastest of several rounds: what a row
costs, and not what else the machine did. Exit code 1 where all enabled checks together take over 0.2 ms.

    python benchmarks/checks.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

from generators.checks import (
    CheckSettings,
    NearDuplicateSieve,
    check_refusal,
    check_text,
    find_missing,
    find_refusal,
    find_repetition,
    other_language,
    sure_language,
)
from hornbook.models import resolve
from hornbook.near_duplicates import NearDuplicates, words_of

ROWS = 500
ROUNDS = 5
TOKENS = 200
MODEL = "smollm2-135m-instruct"
ENGINE_TOKENS_PER_SECOND = 300
LIMIT_MS = 0.2
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
    rows = cut([story(number) for number in range(ROWS)])
    settings, required, words = CheckSettings(), ("clock", "run", "wide"), [words_of(row) for row in rows]
    print(f"{ROWS} rows of {TOKENS} tokens, {sum(map(len, words)) / ROWS:.0f} words on average")
    checks: dict[str, Callable[[int], object]] = {
        "splitting into words": lambda row: words_of(rows[row]),
        "refusal": lambda row: find_refusal(rows[row]),
        "missing words": lambda row: find_missing(rows[row], words[row], required),
        "repetition": lambda row: find_repetition(rows[row], words[row], settings),
        "language": lambda row: other_language(rows[row], "en"),
    }
    for name, check in checks.items():
        print(f"{name}: {cost_ms(check):.4f} ms a row")

    def check_row(row: int) -> None:
        """As of a row made from a document of its own: the reply, the document's language, then the text."""
        check_refusal(rows[row], settings)
        language = sure_language(rows[(row + 1) % ROWS])
        assert language == "en"
        check_text(rows[row], settings, ("said",), language)

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
    batch = best_ms(lambda: NearDuplicates().similar_and_add(rows))
    print(f"near-duplicates, in one batch: {batch:.4f} ms a row ({share(batch)})")
    if everything > LIMIT_MS:
        raise SystemExit(1)


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
        for row in range(ROWS):
            check(row)

    return best_ms(all_rows)


def best_ms(run: Callable[[], object]) -> float:
    """Return the milliseconds of processor time a row of the fastest round."""
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return 1000 * min(times) / ROWS


def share(milliseconds: float) -> str:
    engine = 1000 * TOKENS / ENGINE_TOKENS_PER_SECOND
    return f"{milliseconds / engine:.3%} of the {engine:.0f} ms the engine takes for {TOKENS} tokens"


if __name__ == "__main__":
    main()
