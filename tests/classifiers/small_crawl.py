"""A small crawl by hand with something in it for every stage of the chain to find, and the recipe of the chain over it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

ITEM = (
    "A miller has seven sacks of barley and sells two of them at each market. After how many markets is there less than "
    "one whole sack left in the mill, and what is it worth?"
)
PEOPLE = (
    "The ferryman",
    "A baker",
    "My neighbour",
    "The old teacher",
    "A beekeeper",
    "The tailor's daughter",
    "Nobody",
)
DEEDS = ("mended", "carried", "painted", "forgot", "measured", "sold", "counted", "hid", "drew", "weighed")
THINGS = (
    "the red boat",
    "a basket of pears",
    "three lamps",
    "his letters",
    "the church clock",
    "a broken wheel",
    "two maps",
)
PLACES = ("by the river", "in the cold kitchen", "behind the mill", "on the first day of spring", "before anyone woke")
REASONS = (
    "because the winter had been long", "and told no one about it", "while the children were asleep",
    "so that the others could rest", "although it was much too late for that", "and wrote it down in a small book",
)  # fmt: skip
GERMAN = (
    "Der alte Müller hat am Morgen die Tür vergessen, und nun steht das Wasser in der Küche und keiner weiß warum. "
)


def sentences(rng: random.Random, count: int) -> str:
    """Return sentences of some variety."""
    chosen = [[rng.choice(part) for part in (PEOPLE, DEEDS, THINGS, PLACES, REASONS)] for _ in range(count)]
    return " ".join(" ".join(words) + "." for words in chosen)


def page(text: str) -> str:
    """Return a page with a menu around a text."""
    links = "".join(f'<li><a href="/{number}">Menu {number}</a></li>' for number in range(8))
    body = "".join(f"<p>{piece}.</p>" for piece in text.split(". ") if piece.strip())
    return f"<!doctype html><html><body><nav><ul>{links}</ul></nav><main><article>{body}</article></main></body></html>"


def crawl(documents: int, seed: int = 3) -> list[str]:
    """Return raw documents: pages and plain text, with copies, near-copies, a benchmark item, addresses and bad ones."""
    rng = random.Random(seed)
    found: list[str] = []
    for number in range(documents):
        text = sentences(rng, rng.randint(14, 30))
        match number % 12:
            case 3:
                text = found[rng.randrange(len(found))]
            case 5:
                before = text
                text = before.replace(".", ". Then it rained.", 1)
                found[rng.randrange(len(found))] = before
            case 7:
                text += f" Write to miller{number}@mill.org or call +49 30 901820{number % 90 + 10}."
            case 9:
                text = text[: len(text) // 2] + " " + ITEM + " " + text[len(text) // 2 :]
            case 10:
                text = GERMAN * 6
            case 11:
                text = "<html><body></body></html>" if number % 24 == 11 else "too short"
        found.append(page(text) if number % 2 and not text.startswith("<") else text)
    return found


def chain_recipe(folder: Path, documents: int, part_rows: int) -> dict[str, Any]:
    """Write the crawl and an evaluation set into a folder; return a recipe of the chain over them.

    Two workers are enough for what is no matter of many: each takes a second and more to start.
    """
    (folder / "crawl.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in crawl(documents)))
    (folder / "quiz.jsonl").write_text(json.dumps({"id": "mill", "question": ITEM}) + "\n")
    attributes = ["language", "rules", "unique", "clean"]
    return {
        "name": "chain",
        "seed": 7,
        "engine": {"kind": "echo"},
        "stages": {
            "raw": {"kind": "files", "paths": [str(folder / "crawl.jsonl")], "source": "crawl", "part_rows": part_rows},
            "text": {
                "kind": "extract", "inputs": {"documents": "raw"}, "extractor": "resiliparse", "min_characters": 40,
            },
            "language": {"kind": "language", "inputs": {"documents": "text"}, "keep": ["en"], "workers": 2},
            "rules": {"kind": "heuristics", "inputs": {"documents": "text"}, "workers": 2},
            "unique": {"kind": "dedup", "inputs": {"documents": "text"}, "worker_memory": 2},
            "clean": {
                "kind": "decontaminate", "inputs": {"documents": "text"},
                "evaluation_sets": [{"name": "quiz", "path": str(folder / "quiz.jsonl"), "fields": ["question"]}],
            },
            "decent": {
                "kind": "select", "inputs": {"documents": "text", "attributes": attributes},
                "rules": [
                    {"column": "language_kept", "is_true": True},
                    {"column": "kept", "is_true": True},
                    {"column": "contaminated", "is_false": True},
                    {"column": "word_count", "min": 50},
                ],
            },
            "private": {"kind": "pii", "inputs": {"documents": "decent"}, "workers": 2},
            "grades": {"kind": f"{Path(__file__).with_name('two_graders.py')}:TwoGraders", "inputs": {"documents": "private"}},
            "quality": {"kind": "quality", "head": "ngrams", "inputs": {"documents": "private", "annotations": "grades"}},
            "scores": {"kind": "score", "inputs": {"documents": "private", "scorer": "quality"}, "workers": 1},
            "corpus": {
                "kind": "select", "inputs": {"documents": "private", "attributes": "scores"}, "workers": 2,
                "rules": [{"column": "score"}],
            },
        },
    }  # fmt: skip
