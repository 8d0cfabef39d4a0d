"""The rules for prose and for code beside datatrove's filters, on real text of this environment, in one process.

Prose is the READMEs of installed packages and the longer docstrings of the standard library; code is installed Python files.
Ours computes all values of all rules; datatrove's filters (Gopher quality and repetition, C4, FineWeb) stop at the first rule
that a document breaks. They run in two ways: with their own words (spaCy) and with our words and sentences, where decisions at
the same limits can be compared rule by rule. Blocks of documents go through the sides in turns; the clock counts the processor's
seconds.

    pip install --target FOLDER datatrove==0.10.1 spacy==3.8.18
    python benchmarks/heuristics.py --datatrove FOLDER

The folder comes last on the path, so that it replaces nothing that is installed; without it our side runs alone.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import random
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from classifiers import prose_rules, repetition_rules
from classifiers.heuristics import C4, CODE, FINEWEB, PROSE, Rule, broken_rules, default_limits, rule_values
from classifiers.text_view import TextView

BLOCK = 50
SHORTEST = 200  # characters of a docstring
EXPLAINED = 5  # kinds of differences shown of each filter

GROUPS: dict[str, Sequence[Rule]] = {
    "Gopher repetition": [rule for rule in PROSE if rule.function.__module__ == repetition_rules.__name__],
    "Gopher quality": [
        rule for rule in PROSE if "Gopher" in rule.paper and rule.function.__module__ == prose_rules.__name__
    ],
    "C4": [rule for rule in PROSE if rule.paper == C4],
    "FineWeb": [rule for rule in PROSE if rule.paper == FINEWEB],
}

Judge = Callable[[str], str]
"""Returns the reason for which a text is dropped, or "" where it is kept."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datatrove", type=Path, help="the folder with datatrove and spaCy; without it: ours alone")
    parser.add_argument("--documents", type=int, default=1000, help="documents of prose and of code, at most")
    arguments = parser.parse_args()
    shuffle = random.Random(0).shuffle
    prose, code = list(readmes_and_docstrings()), list(python_files())
    shuffle(prose)
    shuffle(code)
    prose, code = prose[: arguments.documents], code[: arguments.documents]

    sides: dict[str, Callable[[str], Any]] = {"ours, all rules": lambda text: ours(text, PROSE)}
    own: dict[str, Judge] = {}
    shared: dict[str, Judge] = {}
    if arguments.datatrove is None:
        print("no --datatrove FOLDER: ours alone; --help says how to get it")
    else:
        sys.path.append(str(arguments.datatrove.resolve()))
        own, shared = filters(their_words=True), filters(their_words=False)
        sides["datatrove, its words"] = lambda text: [judge(text) for judge in own.values()]
        sides["datatrove, our words"] = lambda text: [judge(text) for judge in shared.values()]
        sides["datatrove, its words, a dropped document skips the rest"] = lambda text: any(map_lazily(own, text))
        sides["datatrove, our words, a dropped document skips the rest"] = lambda text: any(map_lazily(shared, text))
    for name, texts in (("prose", prose), ("code", code)):
        print(
            f"\n{name}: {len(texts):,} documents, {sum(map(len, texts)) / len(texts):,.0f} characters each on average"
        )
        if name == "code":
            sides = {"ours, rules for prose": sides["ours, all rules"], **sides}
            sides["ours, all rules"] = lambda text: ours(text, CODE)
            sides["ours, rules for code"] = sides.pop("ours, all rules")
        seconds = measure(sides, texts)
        first = next(iter(seconds))
        for side, took in seconds.items():
            rate, speed = len(texts) / took, sum(map(len, texts)) / took / 1e6
            print(
                f"  {side}: {rate:,.0f} documents/s/core, {speed:.1f} MB/s; ours / this {took / seconds[first]:.2f} x"
            )
        for filter_name, rules in GROUPS.items() if own else ():
            compare(filter_name, rules, texts, own[filter_name], shared[filter_name])


def ours(text: str, rules: Sequence[Rule]) -> list[str]:
    """Return the rules that a text breaks at the papers' limits."""
    return broken_rules(rule_values(text, rules), default_limits(rules))


def map_lazily(judges: dict[str, Judge], text: str) -> Iterator[str]:
    return (judge(text) for judge in judges.values())


def measure(sides: dict[str, Callable[[str], Any]], texts: Sequence[str]) -> dict[str, float]:
    """Return each side's processor seconds, after a warm-up; blocks go through the sides in turns."""
    seconds = dict.fromkeys(sides, 0.0)
    for side in sides.values():
        side(texts[0])
    for start in range(0, len(texts), BLOCK):
        for name, side in sides.items():
            began = time.process_time()
            for text in texts[start : start + BLOCK]:
                side(text)
            seconds[name] += time.process_time() - began
    return seconds


def compare(name: str, rules: Sequence[Rule], texts: Sequence[str], own: Judge, shared: Judge) -> None:
    """Print how many documents both sides keep or both drop, and the reasons where they differ."""
    broken = [ours(text, rules) for text in texts]
    print(f"  {name}: dropped by ours {sum(map(bool, broken)):,}")
    for words, judge in (("our words", shared), ("its words", own)):
        reasons = [judge(text) for text in texts]
        differ = Counter(
            f"{reason or 'kept'} / {', '.join(found) or 'kept'}"
            for reason, found in zip(reasons, broken, strict=True)
            if bool(reason) != bool(found)
        )
        equal = 1 - differ.total() / len(texts)
        print(f"    dropped by datatrove with {words} {sum(map(bool, reasons)):,}, equal decisions {equal:.1%}")
        for pair, count in differ.most_common(EXPLAINED):
            print(f"      datatrove / ours: {pair}: {count}")


def filters(their_words: bool) -> dict[str, Judge]:
    """Return datatrove's filters at our limits; with our words and sentences in place of spaCy's on demand."""
    from datatrove.pipeline.filters import (
        c4_filters,
        fineweb_quality_filter,
        gopher_quality_filter,
        gopher_repetition_filter,
    )

    modules = (gopher_repetition_filter, gopher_quality_filter, fineweb_quality_filter)
    patched = [(module, "split_into_words", our_words) for module in modules]
    patched.append((c4_filters, "split_into_sentences", our_sentences))
    original = [(module, name, getattr(module, name)) for module, name, _ in patched]
    chosen = original if their_words else patched
    highest = next(rule.highest for rule in PROSE if rule.function is prose_rules.repeated_line_characters)
    made = {
        "Gopher repetition": gopher_repetition_filter.GopherRepetitionFilter(),
        "Gopher quality": gopher_quality_filter.GopherQualityFilter(),
        "C4": c4_filters.C4QualityFilter(),
        "FineWeb": fineweb_quality_filter.FineWebQualityFilter(char_duplicates_ratio=highest),
    }
    return {name: judge(found, chosen, original) for name, found in made.items()}


def judge(found: Any, chosen: Sequence[Any], original: Sequence[Any]) -> Judge:
    from datatrove.data import Document

    def dropped(text: str) -> str:
        for module, name, function in chosen:
            setattr(module, name, function)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # means of no words
                answer = found.filter(Document(text=text, id="0"))
        except ZeroDivisionError:  # a text without words or lines
            return "error"
        finally:
            for module, name, function in original:
                setattr(module, name, function)
        return "" if answer is True else str(answer[1]) if isinstance(answer, tuple) else "dropped"

    return dropped


def our_words(text: str, language: str) -> list[str]:
    return TextView(text).words


def our_sentences(text: str, language: str) -> list[str]:
    return prose_rules._INNER_END.split(text)


def readmes_and_docstrings() -> Iterator[str]:
    """Yield the long descriptions of installed packages, and the docstrings of the standard library, longer ones."""
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata
        if "Description" in metadata and len(metadata["Description"]) >= SHORTEST:
            yield metadata["Description"]
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found = ast.get_docstring(node)
                if found and len(found) >= SHORTEST:
                    yield found


def python_files() -> Iterator[str]:
    for file in sorted(Path(sysconfig.get_path("purelib")).glob("*/**/*.py"))[::20]:
        text = file.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield text


if __name__ == "__main__":
    main()
