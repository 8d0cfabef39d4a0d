"""The chain from raw documents to a selected corpus at 1, 4 and 16 times the input: time per document, and memory, of every stage.

Real text of this environment: READMEs and Python files of installed packages, HTML of installed documentation. The documents are
dealt to sixteen groups of equal lengths and kinds, so that more of them are no other ones. Each size is one `hornbook run` in a
process of its own, on a Ray of its own; the processes below it are looked at ten times a second, and what they took belongs to the
stage that ran then. Processor time is that of all of them (driver, workers, extracting processes and Ray's own); memory is the peak
of the driver's resident set in the stage, and that of the largest worker.

To start workers takes seconds whatever the size, so that a document's share of the whole falls. What must not grow is the work: the
processor time that workers (and what they start) take for their parts, which they note themselves, and the driver's. All on one
processor, unless said: two threads of one core slow each other down, and small inputs keep fewer of them busy than large ones. Each
of further documents, between 4 x and 16 x, must take as long as those between 1 x and 4 x.

    python benchmarks/chain.py                             # 150, 600 and 2,400 documents
    python benchmarks/chain.py --documents 1000            # 1,000, 4,000 and 16,000
    python benchmarks/chain.py --documents 1000 --scores   # with a scorer, trained on grades of the echo engine, too
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from hornbook import partwork
from hornbook.artifact import Artifact
from hornbook.events import read_events
from hornbook.pipeline import run_recipe
from hornbook.recipe import load_recipe
from hornbook.store import Store

GROWTH = (1, 4, 16)
SECONDS_BETWEEN_LOOKS = 0.1
KINDS = {  # of documents: where they lie, and how many of sixteen are of it
    "python": ((Path(sysconfig.get_path("purelib")),), "**/*.py", 6),
    "readme": ((Path(sysconfig.get_path("purelib")),), "*.dist-info/METADATA", 1),
    "html": (
        (Path("/usr/share/doc"), Path("/usr/lib/node_modules"), Path.home() / ".rustup" / "toolchains"), "**/*.html", 9,
    ),
}  # fmt: skip
SMALLEST, LARGEST = 500, 200_000  # bytes of a file
MIB = 1 << 20
QUESTION = "Which of the two clocks on the tower was slow on the day on which the baker married, and by how many minutes was it?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=150, help="of the smallest size")
    parser.add_argument("--processors", type=int, default=1, help="on more, workers are in each other's way: see above")
    parser.add_argument("--part-rows", type=int, default=100)
    parser.add_argument("--scores", action="store_true", help="also train a scorer and score all documents")
    parser.add_argument(
        "--folder", type=Path, help="where input and store are written, and deleted; default: temporary"
    )
    parser.add_argument("--recipe", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.recipe:
        partwork._Worker = TimedWorker  # type: ignore[misc]
        run_recipe(load_recipe(arguments.recipe), Store(os.environ["HORNBOOK_STORE"]))
        return
    with tempfile.TemporaryDirectory(prefix="hornbook-chain-", dir=arguments.folder) as name:
        folder = Path(name)
        rows = real_documents(GROWTH[-1] * arguments.documents)
        kinds = {kind: sum(row["kind"] == kind for row in rows) for kind in KINDS}
        characters = sum(len(row["text"]) for row in rows) / 1e6
        counted = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        print(f"{len(rows):,} documents of {characters:.0f} M characters: {counted}", flush=True)
        (folder / "quiz.jsonl").write_text(json.dumps({"id": "clock", "question": QUESTION}) + "\n")
        each = len(rows) // GROWTH[-1]
        run(folder / "warm", rows[: arguments.part_rows], folder, arguments)  # loads code into the page cache
        sizes = [run(folder / f"times{times}", rows[: times * each], folder, arguments) for times in GROWTH]
    print_growth([each * times for times in GROWTH], sizes)


# --- one run -----------------------------------------------------------------------------------------------------------


class TimedWorker(partwork._Worker):
    """Notes what its parts take: a line of the artifact's folder and processor seconds for each."""

    def __call__(self, batch: Any) -> Any:
        """Make a part."""
        began = self.processor()
        made = super().__call__(batch)
        with open(os.environ["CHAIN_LOG"], "a") as log:
            log.write(f"{self.folder} {self.processor() - began}\n")
        return made

    def processor(self) -> float:
        """Return the processor time of this process and of those that it started, Ray's threads included."""
        here = psutil.Process()
        return sum(sum(process.cpu_times()[:2]) for process in (here, *here.children(recursive=True)))


@dataclass
class Spent:
    """What a stage took: seconds by the clock, processor seconds of all its processes and of its work alone (its parts, and
    the driver's), peaks of memory in bytes; and how many documents it was given.
    """

    seconds: float = 0.0
    processor: float = 0.0
    work: float = 0.0
    driver: int = 0
    worker: int = 0
    documents: int = 0


@dataclass
class Look:
    """What was seen of one process at one moment."""

    time: float
    pid: int
    processor: float
    resident: int
    role: str


@dataclass
class Watch:
    """Looks at a process and all below it until told to stop."""

    driver: psutil.Popen
    looks: list[Look] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        while not self.stopped.wait(SECONDS_BETWEEN_LOOKS):
            now = time.time()
            try:
                found = [self.driver, *self.driver.children(recursive=True)]
            except psutil.Error:
                continue
            for process in found:
                try:
                    with process.oneshot():
                        used = process.cpu_times()
                        role = "driver" if process.pid == self.driver.pid else role_of(process.cmdline())
                        looked = Look(now, process.pid, used.user + used.system, process.memory_info().rss, role)
                    self.looks.append(looked)
                except psutil.Error:
                    continue


def role_of(command: Sequence[str]) -> str:
    """Tell what a process below the driver is: a worker (or what one started), or Ray's own."""
    title = " ".join(command)
    if title.startswith("ray::"):
        return "worker" if "MapWorker" in title else "ray"
    return "worker" if "main_text_child" in title else "ray"


def run(folder: Path, rows: Sequence[dict[str, str]], shared: Path, arguments: argparse.Namespace) -> dict[str, Spent]:
    """Run the chain over documents in a store of its own; return what each stage took."""
    folder.mkdir()
    (folder / "raw.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    (folder / "chain.yaml").write_text(yaml.safe_dump(recipe(folder, shared, arguments), sort_keys=False))
    environment = {**os.environ, "HORNBOOK_STORE": str(folder / "store"), "CHAIN_LOG": str(folder / "parts.txt")}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, __file__, "--recipe", str(folder / "chain.yaml")]
    with (folder / "said.txt").open("wb") as said:
        driver = psutil.Popen(command, env=environment, stdout=said, stderr=said)
        driver.cpu_affinity(sorted(os.sched_getaffinity(0))[: arguments.processors])  # before it starts Ray
        watch = Watch(driver)
        watcher = threading.Thread(target=watch)
        watcher.start()
        driver.wait()
        watch.stopped.set()
        watcher.join()
    if driver.returncode:
        raise SystemExit(f"the run failed:\n{(folder / 'said.txt').read_text()[-3000:]}")
    parts: dict[str, float] = {}
    for line in (folder / "parts.txt").read_text().splitlines():
        artifact, seconds = line.split()
        parts[artifact] = parts.get(artifact, 0.0) + float(seconds)
    return spent(Store(environment["HORNBOOK_STORE"]), watch.looks, parts)


def recipe(folder: Path, shared: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the chain of docs/classifiers.md over the input in a folder."""
    attributes = ["language", "rules", "unique", "clean"]
    stages: dict[str, Any] = {
        "raw": {"kind": "files", "paths": [str(folder / "raw.jsonl")], "part_rows": arguments.part_rows},
        "text": {"kind": "extract", "inputs": {"documents": "raw"}, "extractor": "resiliparse"},
        "language": {"kind": "language", "inputs": {"documents": "text"}, "keep": ["en", "und"]},
        "rules": {"kind": "heuristics", "inputs": {"documents": "text"}, "rules": ["prose", "code"]},
        "unique": {"kind": "dedup", "inputs": {"documents": "text"}, "largest_loss": 1, "allow_large_clusters": True},
        "clean": {
            "kind": "decontaminate", "inputs": {"documents": "text"},
            "evaluation_sets": [{"name": "quiz", "path": str(shared / "quiz.jsonl"), "fields": ["question"]}],
        },
        "decent": {
            "kind": "select", "inputs": {"documents": "text", "attributes": attributes},
            "rules": [{"column": "language_kept", "is_true": True}, {"column": "kept", "is_true": True}],
        },
        "private": {"kind": "pii", "inputs": {"documents": "decent"}},
    }  # fmt: skip
    if arguments.scores:
        stages |= {
            "grades": {"kind": "annotate", "inputs": {"documents": "private"}, "sample": 60},
            "quality": {"kind": "quality", "inputs": {"documents": "private", "annotations": "grades"}},
            "scores": {"kind": "score", "inputs": {"documents": "private", "scorer": "quality"}},
        }
    return {"name": "chain", "engine": {"kind": "echo"}, "stages": stages}


def spent(store: Store, looks: Sequence[Look], parts: dict[str, float]) -> dict[str, Spent]:
    """Add up what was seen of processes, by the stage that ran at that moment, and what workers noted of its parts."""
    (name,) = store.names("runs")
    folders = {stage: entry["folder"] for stage, entry in store.read_json(f"runs/{name}/run.json")["stages"].items()}
    found: dict[str, Spent] = {}
    spans: list[tuple[str, float, float]] = []
    began = 0.0
    for event in read_events(store, f"runs/{name}"):
        if event["event"] == "stage-start":
            began = event["time"]
        if event["event"] == "stage-end":
            spans.append((event["stage"], began, event["time"]))
            inside = sum(seconds for folder, seconds in parts.items() if folder.startswith(folders[event["stage"]]))
            documents = int(event["counts"].get("planned", 0))
            found[event["stage"]] = Spent(event["time"] - began, work=inside, documents=documents)
    before: dict[int, float] = {}
    for look in looks:
        stage = next((stage for stage, start, end in spans if start <= look.time <= end), None)
        if stage is not None:
            entry = found[stage]
            used = look.processor - before.get(look.pid, 0.0)
            entry.processor += used
            entry.work += used if look.role == "driver" else 0
            if look.role in ("driver", "worker"):
                setattr(entry, look.role, max(getattr(entry, look.role), look.resident))
        before[look.pid] = look.processor
    for artifact in (Artifact(store, f"artifacts/{name}") for name in store.names("artifacts")):
        counts = artifact.manifest.counts
        assert counts["planned"] == counts["succeeded"] + counts["rejected"]
    return found


def print_growth(documents: Sequence[int], sizes: Sequence[dict[str, Spent]]) -> None:
    """Print a line per stage and size, then what further documents take."""
    print(
        "stage         given  clock s  processor s   work s   ms each    a core and s  driver MiB  worker MiB   "
        "(ms each, documents a core: of the work)"
    )
    for stage in sizes[0]:
        taken = [size[stage] for size in sizes]
        for entry in taken:
            print(
                f"{stage:10} {entry.documents:8,} {entry.seconds:8.1f} {entry.processor:12.1f} {entry.work:8.2f} "
                f"{1000 * entry.work / entry.documents:9.2f} {entry.documents / entry.work:15,.0f} "
                f"{entry.driver / MIB:11,.0f} {entry.worker / MIB:11,.0f}"
            )
        if taken[-1].documents > 2 * taken[0].documents:
            print(f"{'':10} {growth(taken)}", flush=True)
    whole = [
        Spent(
            sum(entry.seconds for entry in size.values()),
            sum(entry.processor for entry in size.values()),
            sum(entry.work for entry in size.values()),
            max(entry.driver for entry in size.values()),
            max(entry.worker for entry in size.values()),
            count,
        )
        for count, size in zip(documents, sizes, strict=True)
    ]
    for entry in whole:
        print(
            f"all stages, {entry.documents:,} documents: {entry.seconds:,.0f} s, {entry.processor:,.0f} s of processors, work "
            f"{1000 * entry.work / entry.documents:.2f} ms each; peaks: driver {entry.driver / MIB:,.0f} MiB, largest worker "
            f"{entry.worker / MIB:,.0f} MiB"
        )
    print(f"all stages: {growth(whole)}")


def growth(taken: Sequence[Spent]) -> str:
    """Return how time and memory grow: the work for each of further documents, and peaks of the largest size over the smallest."""
    further = [
        (after.work - before.work) / (after.documents - before.documents) for before, after in itertools.pairwise(taken)
    ]
    return (
        f"16 x / 1 x: work per document {taken[-1].work / taken[-1].documents / (taken[0].work / taken[0].documents):.2f}; each of "
        f"further documents {1000 * further[0]:.2f}, {1000 * further[1]:.2f} ms: {further[1] / further[0]:.2f}; driver's memory "
        f"{taken[-1].driver / taken[0].driver:.2f}, worker's {taken[-1].worker / max(taken[0].worker, 1):.2f}"
    )


# --- the documents -----------------------------------------------------------------------------------------------------


def real_documents(wanted: int) -> list[dict[str, str]]:
    """Return documents of each kind in groups of equal kinds and lengths: any number of groups is a sample of all."""
    shares = sum(share for _, _, share in KINDS.values())
    found: list[list[dict[str, str]]] = [[] for _ in range(GROWTH[-1])]
    for kind, (places, pattern, share) in KINDS.items():
        paths = sorted(path for place in places for path in usable(place, pattern))
        count = min(len(paths), wanted * share // shares) // GROWTH[-1] * GROWTH[-1]
        chosen = sorted(paths[number * len(paths) // count] for number in range(count))
        for number, path in enumerate(sorted(chosen, key=lambda path: path.stat().st_size)):
            turn, place = divmod(number, GROWTH[-1])  # there and back, or the last group had the largest of each turn
            text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
            found[place if turn % 2 else GROWTH[-1] - 1 - place].append({"kind": kind, "text": text})
    return [row for group in found for row in group]


def usable(place: Path, pattern: str) -> Iterator[Path]:
    """Yield the files of a place that are of a usual size."""
    for path in place.glob(pattern):
        try:
            if path.is_file() and SMALLEST <= path.stat().st_size <= LARGEST:
                yield path
        except OSError:
            continue


if __name__ == "__main__":
    main()
