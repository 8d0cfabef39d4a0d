"""Extraction, repair of encodings and language: ours beside datatrove's steps, on the HTML documentation of this machine.

Real pages only: what lies below /usr/share/doc, /usr/lib/node_modules, the Python and the Rust installation, an even sample of
each place. Each run is a process of its own; what counts is the processor time of it and of the processes that it starts,
the start of the extracting process included on both sides. datatrove gets the same settings: its Trafilatura step with
`deduplicate=False` (which would make a text depend on those before it), its FTFYFormatter with nothing but the repair of
encodings. Its language filter needs a fastText model: give one with --fasttext FILE (lid.176.ftz or .bin).

    pip install --target /tmp/datatrove --no-deps datatrove==0.10.1 loguru dill multiprocess humanize
    PYTHONPATH=/tmp/datatrove python benchmarks/extraction.py                    # a minute
    python benchmarks/extraction.py --documents 100                              # without datatrove: our side alone
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from classifiers.cleaning import CleaningSettings, clean, repair_encoding
from classifiers.language import judged
from classifiers.main_text import MainText

PLACES = {
    "/usr/share/doc": Path("/usr/share/doc"),
    "npm": Path("/usr/lib/node_modules"),
    "site-packages": Path(sysconfig.get_path("purelib")),
    "Rust": Path.home() / ".rustup" / "toolchains",
}
SMALLEST, LARGEST = 1000, 1_000_000  # bytes; smaller pages are redirections
SECONDS = 30.0
REPEATS = 5  # of what takes microseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=2, help="of each side in turns; the fastest counts")
    parser.add_argument("--fasttext", help="a fastText model for datatrove's language filter")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measure(arguments.side, Path(arguments.folder), arguments.fasttext)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), arguments)


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    """Run every side and print what it took, and whether the outputs of two sides are equal."""
    pages, places = find_pages(arguments.documents)
    size = sum(map(len, pages))
    print(f"{len(pages)} HTML pages, {size / 1e6:.1f} M characters: {places}", flush=True)
    (folder / "pages.json").write_text(json.dumps(pages))
    theirs = importlib.util.find_spec("datatrove") is not None
    if not theirs:
        print("datatrove is not installed (the command stands above): our side alone")

    def run(ours: str, other: str, what: str) -> Sequence[Any]:
        sides = [ours, *([other] if other and theirs else [])]
        found: dict[str, dict[str, Any]] = {}
        for side in sides * arguments.rounds:
            result = run_side(side, folder, arguments.fasttext)
            if side not in found or result["seconds"] < found[side]["seconds"]:
                found[side] = result
        for side, result in found.items():
            print(f"{what}, {side}: {result['rate']:,.0f} documents/s/core", flush=True)
        if len(found) == 2:
            a, b = found[ours]["outputs"], found[other]["outputs"]
            equal = sum(first == second for first, second in zip(a, b, strict=True))
            nothing = sum(not second and bool(first) for first, second in zip(a, b, strict=True))
            ratio = found[ours]["rate"] / found[other]["rate"]
            print(f"{what}: {ratio:.2f} x datatrove; outputs equal: {equal} of {len(a)}, only ours gave one: {nothing}")
        outputs: Sequence[Any] = found[ours]["outputs"]
        return outputs

    texts = [text for text in run("trafilatura", "datatrove-trafilatura", "extraction") if text]
    (folder / "texts.json").write_text(json.dumps(texts))
    damaged = [text.encode().decode("latin-1") for text in texts]
    (folder / "damaged.json").write_text(json.dumps(damaged))
    run("resiliparse", "", "extraction")
    run("clean", "", "all cleaning rules of the default")
    run("repair", "datatrove-ftfy", "repair of encodings, texts as they are")
    repaired = run("repair-damaged", "datatrove-ftfy-damaged", "repair of encodings, texts read as Latin-1")
    same = sum(before == after for before, after in zip(texts, repaired, strict=True))
    print(f"repair of encodings: {same} of {len(texts)} damaged texts are what they were")
    if not arguments.fasttext and theirs:
        print("language: datatrove's identifiers need a model; without --fasttext FILE our side alone")
    run("language", "datatrove-language" if arguments.fasttext else "", "language")


def find_pages(documents: int) -> tuple[list[str], str]:
    """Return pages, an even sample of each place, and how many came from where."""
    found = {name: sorted(path for path in place.rglob("*.htm*") if usable(path)) for name, place in PLACES.items()}
    pages: list[str] = []
    counts: list[str] = []
    left = documents
    for number, (name, paths) in enumerate(sorted(found.items(), key=lambda entry: len(entry[1]))):
        wanted = min(len(paths), left // (len(found) - number))
        chosen = [paths[index * len(paths) // wanted] for index in range(wanted)]
        pages += [path.read_text(encoding="utf-8", errors="replace") for path in chosen]
        counts.append(f"{wanted} of {len(paths)} of {name}")
        left -= wanted
    return pages, ", ".join(counts)


def usable(path: Path) -> bool:
    try:
        return path.suffix in (".html", ".htm") and path.is_file() and SMALLEST <= path.stat().st_size <= LARGEST
    except OSError:
        return False


def run_side(side: str, folder: Path, fasttext: str | None) -> dict[str, Any]:
    """Measure one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    done = subprocess.run(command + (["--fasttext", fasttext] if fasttext else []), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads((folder / f"{side}.json").read_text())
    return result


def measure(side: str, folder: Path, fasttext: str | None) -> None:
    """Write seconds, documents per second and outputs of one side."""
    source, repeats, function = SIDES[side]
    rows = json.loads((folder / f"{source}.json").read_text())
    work = function(fasttext)
    if repeats > 1:
        work(rows[:5])  # what is loaded at the first call
    began = processor_seconds()
    for _ in range(repeats):
        outputs = work(rows)
    seconds = (processor_seconds() - began) / repeats
    result = {"seconds": seconds, "rate": len(rows) / seconds, "outputs": outputs}
    (folder / f"{side}.json").write_text(json.dumps(result))


def processor_seconds() -> float:
    """Return the processor time of this process and of those that it started and that have ended."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


# --- the sides -------------------------------------------------------------------------------------------------------

Work = Callable[[Sequence[str]], list[Any]]


def our_extraction(extractor: str) -> Work:
    def work(pages: Sequence[str]) -> list[Any]:
        main_text = MainText(extractor, SECONDS, 2048)
        outputs = [main_text(page) for page in pages]
        main_text.close()
        return outputs

    return work


def their_extraction(_: str | None) -> Work:
    from datatrove.data import Document
    from datatrove.pipeline.extractors.trafilatura import Trafilatura

    def work(pages: Sequence[str]) -> list[Any]:
        step = Trafilatura(favour_precision=True, deduplicate=False, timeout=SECONDS)
        given = [Document(text=page, id=str(number)) for number, page in enumerate(pages)]
        found = {document.id: document.text for document in step.run(given)}
        wait_for_children()
        return [found.get(document.id, "") for document in given]

    return work


def wait_for_children() -> None:
    """Collect the processes that a step has ended, so that their time counts."""
    import multiprocessing

    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)


def their_repair(_: str | None) -> Work:
    from datatrove.pipeline.formatters.ftfy import FTFYFormatter

    step = FTFYFormatter(
        unescape_html=False, remove_terminal_escapes=False, fix_surrogates=False, remove_control_chars=False
    )
    return lambda texts: [step.format(text) for text in texts]


def their_language(model: str | None) -> Work:
    from datatrove.data import Document
    from datatrove.utils.lid import FT176LID
    from fasttext.FastText import _FastText

    identifier = FT176LID()
    identifier._model = _FastText(model)
    return lambda texts: [identifier.predict(Document(text=text, id=""))[0][0] for text in texts]


SIDES: dict[str, tuple[str, int, Callable[[str | None], Work]]] = {
    "trafilatura": ("pages", 1, lambda _: our_extraction("trafilatura")),
    "datatrove-trafilatura": ("pages", 1, their_extraction),
    "resiliparse": ("pages", 1, lambda _: our_extraction("resiliparse")),
    "clean": ("texts", REPEATS, lambda _: lambda texts: [clean(text, CleaningSettings(), True)[0] for text in texts]),
    "repair": ("texts", REPEATS, lambda _: lambda texts: list(map(repair_encoding, texts))),
    "datatrove-ftfy": ("texts", REPEATS, their_repair),
    "repair-damaged": ("damaged", REPEATS, lambda _: lambda texts: list(map(repair_encoding, texts))),
    "datatrove-ftfy-damaged": ("damaged", REPEATS, their_repair),
    "language": ("texts", REPEATS, lambda _: lambda texts: [judged(text)[0] for text in texts]),
    "datatrove-language": ("texts", REPEATS, their_language),
}
"""By name: which rows, how often, and what to do with them."""

if __name__ == "__main__":
    main()
