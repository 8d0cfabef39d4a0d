"""Opener collapse: the same stories written twice by the real model, once uncontrolled and once steered wave by wave.

Prints for both how common the commonest three-word opener is, how many rows are accepted, and how alike the texts are. What a
killed benchmark has written is kept in --store: the same command goes on.

    python benchmarks/openers.py --rows 400              # ten minutes on two cores
    python benchmarks/openers.py --rows 2000             # the figures of README.md, fifty minutes
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from generators.diversity import Cell, text_figures
from hornbook.artifact import Artifact
from hornbook.pipeline import run_recipe
from hornbook.recipe import check_recipe
from hornbook.store import Store

SAMPLING = {
    "temperature": 0.6,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "min_tokens": 100,
    "end_bias": 4.0,
    "max_tokens": 400,
}
"""As in the recipe `demo`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--wave-rows", type=int, default=640)
    parser.add_argument("--means", nargs="+", default=["decoding", "temperature"])
    parser.add_argument("--store", type=Path, help="folder for the corpora; default: a temporary one")
    arguments = parser.parse_args()
    store = Store(str(arguments.store or tempfile.mkdtemp(prefix="hornbook-openers-")))
    artifacts = {"uncontrolled": write(store, arguments, steer=False), "steered": write(store, arguments, steer=True)}
    cells = {name: counted(artifact) for name, artifact in artifacts.items()}
    compared = min(len(cell.sample) for cell in cells.values())
    print(f"{'':12} {'commonest opener':>34} {'accepted':>9} {'distinct-3':>11} {'compression':>12} {'near-dup.':>10}")
    for name, artifact in artifacts.items():
        print(line(name, artifact, cells[name], compared))
        for wave in artifact.manifest.metrics.get("waves", []):
            opener, share = wave["figures"]["openers"][0]
            print(f"  wave {wave['wave'] + 1}: {wave['accepted']} of {wave['planned']}, {share:.1%} {opener!r}")
    print(f"distinct-3 and compression are of {compared} texts of both")


def write(store: Store, arguments: argparse.Namespace, steer: bool) -> Artifact:
    """Write the stories; both arms have the same prompts and seeds."""
    stage: dict[str, Any] = {
        "kind": "stories",
        "rows": arguments.rows,
        "max_features": 1,
        "lengths": ["any"],
        "required_words": 0,
        "sampling": SAMPLING,
        "wave_rows": arguments.wave_rows,
        "diversity": {"steer": steer, "means": arguments.means},
        "engine": {"kind": "vllm", "model": "smollm2-135m-instruct", "max_model_len": 1024},
    }
    recipe = check_recipe({"name": "openers", "seed": 17, "stages": {"stories": stage}}, "benchmarks/openers.py")
    return run_recipe(recipe, store).artifacts["stories"]


def counted(artifact: Artifact) -> Cell:
    """Return what is counted over all documents."""
    cell = Cell()
    for table in artifact.tables(columns=["text"]):
        for text in table["text"].to_pylist():
            cell.add(text)
    return cell


def line(name: str, artifact: Artifact, cell: Cell, compared: int) -> str:
    """Return a row of the table; how alike the texts are, of as many texts as of the other arm."""
    counts, reasons = artifact.manifest.counts, artifact.manifest.reasons
    opener, share = cell.top_openers(1)[0]
    figures = text_figures(cell, compared)
    return (
        f"{name:12} {share:>8.1%} {opener!r:>25} {counts['rows'] / counts['planned']:>9.1%} "
        f"{figures['distinct_3']:>11.3f} {figures['compression_ratio']:>12.2f} "
        f"{reasons.get('near-duplicate', 0) / counts['planned']:>10.2%}"
    )


if __name__ == "__main__":
    main()
