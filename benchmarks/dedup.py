"""Deduplication of a corpus: the stage `dedup` against datasketch's MinHashLSH and datatrove's MinHash pipeline.

Real text of this environment (Python files, READMEs, licences and other prose of the installed packages) cut to documents
of a few hundred words; a tenth are copies of an earlier one with some words changed. All sides read the same Parquet parts,
take the same words, 5-grams, bands and rows, and each runs in a process of its own on one processor: ours with its
intermediate files and attributes on disk, datatrove with its signatures, buckets and clusters on disk, datasketch in memory.
The clock counts the processor's seconds, reading included.

What each side drops is held against the true Jaccard index: recall counts planted pairs of at least the threshold of which
both are in one cluster (datasketch: one finds the other), precision the dropped documents that are truly so similar to
another of their cluster (datasketch: to one that they found).

    python benchmarks/dedup.py                                   # 8,000 documents, then growth from 2,000 to 32,000
    python benchmarks/dedup.py --documents 0 --stories 0 --growth 5000     # growth alone: 5,000, 20,000 and 80,000
    PYTHONPATH=FOLDER python benchmarks/dedup.py                 # FOLDER: pip install --target FOLDER datatrove==0.10.1
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hornbook.shingles import bands_for, words_of

THRESHOLD, SHINGLE, SLOTS = 0.8, 5, 256
BANDS, ROWS = bands_for(THRESHOLD, SLOTS)
PART_ROWS = 1000
WORDS = (60, 400)  # of a document
PLANTED = 0.1
MOST_CHANGES = 0.06  # of a copy's words
GROWTH = (1, 4, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=8000, help="documents that all sides get; 0: none")
    parser.add_argument("--growth", type=int, default=2000, help="documents of the smallest of ours alone; 0: none")
    parser.add_argument("--stories", type=int, default=500, help="templated stories; 0: none")
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(SIDES[arguments.side], arguments.folder)))
        return
    sides = [side for side in SIDES if side != "datatrove" or importlib.util.find_spec("datatrove")]
    if "datatrove" not in sides:
        print("without datatrove: it is not installed (see --help)", flush=True)
    with tempfile.TemporaryDirectory(prefix="hornbook-dedup-") as folder:
        if arguments.documents:
            texts, pairs = real_documents(arguments.documents)
            found = compare(Path(folder) / "real", sides, texts, pairs)
            others = [found[side] for side in sides if side != "ours"]
            faster = found["ours"]["per_second"] / max(side["per_second"] for side in others)
            print(f"ours / the faster of the others: {faster:.1f} x documents per processor second", flush=True)
        if arguments.stories:
            print("\ntemplated stories, of which no two are as similar as the threshold:", flush=True)
            compare(Path(folder) / "stories", sides, templated(arguments.stories), [])
        if arguments.growth:
            print("\ngrowth, ours alone:", flush=True)
            steps = []
            for times in GROWTH:
                texts, pairs = real_documents(times * arguments.growth)
                steps.append(compare(Path(folder) / f"times{times}", ["ours"], texts, pairs)["ours"])
            slower = [steps[0]["per_second"] / step["per_second"] for step in steps]
            memory = [step["peak_mib"] for step in steps]
            print(
                "time per document against the smallest: "
                + ", ".join(f"{times} x: {ratio:.2f}" for times, ratio in zip(GROWTH, slower, strict=True))
                + "; peak MiB: "
                + ", ".join(f"{peak:,.0f}" for peak in memory)
            )


def compare(
    folder: Path, sides: Sequence[str], texts: Sequence[str], pairs: Sequence[tuple[int, int, float]]
) -> dict[str, Any]:
    """Write the documents, measure each side in a process of its own, print and return what came out."""
    write_corpus(folder / "store", texts)
    found = {}
    for side in sides:
        command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")
        found[side] = json.loads(done.stdout.splitlines()[-1])
        found[side] |= judged(texts, pairs, found[side])
        entry = found[side]
        print(
            f"{side}, {len(texts):,} documents: {entry['per_second']:,.0f} per processor second "
            f"({1000 / entry['per_second']:.3f} ms each), peak {entry['peak_mib']:,.0f} MiB "
            f"({entry['peak_mib'] - entry['empty_mib']:,.0f} more than with the libraries loaded); "
            f"{entry['dropped']:,} dropped, of which {entry['wrong']:,} wrongly: precision {entry['precision']:.4f}; "
            f"of {entry['planted']:,} planted pairs at {THRESHOLD} or above {entry['recall']:.4f} found",
            flush=True,
        )
    shutil.rmtree(folder)
    return found


def measure(side: Callable[[Path], Callable[[], tuple[Clusters, Clusters]]], folder: Path) -> dict[str, Any]:
    """Return documents per processor second, memory, and what was found, of this process."""
    work = side(folder)
    empty, began = peak_mib(), time.process_time()
    clusters, seen = work()
    seconds = time.process_time() - began
    rows = sum(part.num_rows for part in map(pq.ParquetFile, parquet_parts(folder)) for part in [part.metadata])
    return {
        "per_second": rows / seconds,
        "peak_mib": peak_mib(),
        "empty_mib": empty,
        "clusters": clusters,
        "seen": seen,
    }


# --- sides ------------------------------------------------------------------------------------------------------------

Clusters = list[list[int]]
"""Groups of documents by number: of each, `seen` lists those that it may be held against, `clusters` those it is one with."""


def ours(folder: Path) -> Callable[[], tuple[Clusters, Clusters]]:
    from classifiers.dedup import Dedup, DedupSettings
    from hornbook.artifact import Artifact
    from hornbook.events import Events
    from hornbook.parts import PartRange, commit_part, missing_ranges
    from hornbook.partwork import PartMaker, Totals, _totals, keep_memory_small
    from hornbook.stage import StageContext
    from hornbook.store import Store

    class InProcess(StageContext):
        """What a worker does, in this process: no Ray, whose processes would blur the figures."""

        def make_parts(self, maker: PartMaker, ranges: Iterable[PartRange], **options: Any) -> Totals:
            maker.setup()
            for part in missing_ranges(self.artifact.store, self.artifact.folder, ranges):
                commit_part(self.artifact.store, self.artifact.folder, part, maker.make(part))
            return _totals(self.artifact.store, self.artifact.folder)

    store = Store(str(folder / "store"))
    settings = DedupSettings(threshold=THRESHOLD, shingle=SHINGLE, permutations=SLOTS, largest_loss=1, worker_memory=64)
    stage = Dedup("dedup", settings, seed=1)
    context = InProcess(
        artifact=Artifact(store, "artifacts/dedup"),
        inputs={"documents": [Artifact(store, "artifacts/corpus")]},
        input_stages={"documents": ["corpus"]},
        stage="dedup",
        seed=1,
        run="benchmark",
        events=Events(store, "runs/benchmark"),
        stop_requested=lambda: False,
        open_engine=lambda settings, wait=True: None,  # type: ignore[arg-type]
    )
    import rensa  # noqa: F401
    from scipy.sparse import csgraph  # noqa: F401

    def work() -> tuple[Clusters, Clusters]:
        keep_memory_small()
        stage.run(context)
        groups: dict[int, list[int]] = {}
        first = 0
        for table in context.artifact.tables(columns=["cluster", "cluster_size"]):
            clusters, sizes = (table.column(name).to_numpy() for name in ("cluster", "cluster_size"))
            for row in np.flatnonzero(sizes > 1).tolist():
                groups.setdefault(int(clusters[row]), []).append(first + row)
            first += table.num_rows
        found = sorted(groups.values())
        return found, found

    return work


def datasketch(folder: Path) -> Callable[[], tuple[Clusters, Clusters]]:
    from datasketch import MinHash, MinHashLSH

    def work() -> tuple[Clusters, Clusters]:
        index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
        seen: Clusters = []
        for number, text in enumerate(read_texts(folder)):
            words = words_of(text)
            sketch = MinHash(num_perm=BANDS * ROWS)
            grams = [b" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))]
            sketch.update_batch(grams)
            earlier = index.query(sketch)
            if earlier:  # the plain way: the first one is kept, later ones are dropped
                seen.append([*sorted(earlier), number])
            else:
                index.insert(number, sketch, check_duplication=False)
        return seen, seen

    return work


def datatrove(folder: Path) -> Callable[[], tuple[Clusters, Clusters]]:
    import logging

    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.logging import logger
    from datatrove.utils.text import TextNormConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    logger.remove()
    logging.disable(logging.CRITICAL)

    class SameWords(WordTokenizer):
        """Our words, so that all sides compare the same shingles; its own normalisation is off, which is quicker."""

        def word_tokenize(self, text: str) -> list[str]:
            return [word.decode("utf-8", "replace") for word in words_of(text)]

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    off = dict.fromkeys(
        ("lowercase", "norm_whitespace", "remove_punctuation", "norm_unicode_diacritics", "norm_numbers"), False
    )
    config = minhash.MinhashConfig(
        n_grams=SHINGLE,
        num_buckets=BANDS,
        hashes_per_bucket=ROWS,
        norm_config=TextNormConfig(**off),
        hash_config=HashConfig(precision=64, hash_fc="xxhash"),
    )
    signatures, buckets, clusters = (str(folder / name) for name in ("signatures", "buckets", "clusters"))

    def work() -> tuple[Clusters, Clusters]:
        parts = parquet_parts(folder)
        firsts = [0]
        for rank, part in enumerate(parts):
            texts = pq.read_table(part, columns=["text"]).column("text").to_pylist()
            firsts.append(firsts[-1] + len(texts))
            documents = (Document(text=text, id=str(number)) for number, text in enumerate(texts))
            step = minhash.MinhashDedupSignature(signatures, config, language=SameWords())
            step.run(documents, rank, len(parts))
        for bucket in range(BANDS):
            minhash.MinhashDedupBuckets(signatures, buckets, config=config, lines_to_buffer=-1).run(None, bucket, BANDS)
        minhash.MinhashDedupCluster(buckets, clusters, config, save_cluster_id=True, lines_to_buffer=-1).run(None, 0, 1)
        groups: dict[int, list[int]] = {}
        for rank, first in enumerate(firsts[:-1]):
            file = Path(clusters) / f"{rank:06d}.clusters"
            if file.exists():
                for row, cluster in np.fromfile(file, "<u4").reshape(-1, 2).tolist():
                    groups.setdefault(cluster, []).append(first + row)
        found = sorted(map(sorted, groups.values()))
        return found, found

    return work


SIDES = {"ours": ours, "datasketch": datasketch, "datatrove": datatrove}


# --- documents and truth ----------------------------------------------------------------------------------------------


def real_documents(wanted: int) -> tuple[list[str], list[tuple[int, int, float]]]:
    """Return documents of the environment, and of planted pairs the numbers and the true Jaccard index."""
    rng = random.Random(7)
    texts: list[str] = []
    pairs = []
    pieces = environment_pieces()
    while len(texts) < wanted:
        if texts and rng.random() < PLANTED:
            original = rng.randrange(len(texts))
            words = texts[original].split()
            for _ in range(rng.randint(1, max(1, int(MOST_CHANGES * len(words))))):
                words[rng.randrange(len(words))] = f"word{rng.randrange(10**6)}"
            texts.append(" ".join(words))
            pairs.append((original, len(texts) - 1, similarity(texts[original], texts[-1])))
        else:
            piece = next(pieces, None)
            if piece is None:
                raise SystemExit(f"this environment has text for {len(texts):,} documents only")
            texts.append(piece)
    return texts, pairs


def environment_pieces() -> Iterator[str]:
    """Yield text of installed files, cut between lines to documents of WORDS words; files in a fixed, mixed order."""
    roots = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib")]
    files = sorted(
        {file for root in roots for ending in ("py", "md", "rst", "txt") for file in root.rglob(f"*.{ending}")}
    )
    files += sorted(roots[1].glob("*.dist-info/METADATA"))
    random.Random(11).shuffle(files)
    rng = random.Random(13)
    for file in files:
        lines: list[str] = []
        count, size = 0, rng.randint(*WORDS)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        for line in text[:200_000].splitlines():
            words = len(words_of(line))
            lines.append(line)
            count += words
            if count >= size:
                if count <= 2 * WORDS[1]:
                    yield "\n".join(lines)
                lines, count, size = [], 0, rng.randint(*WORDS)


def templated(wanted: int) -> list[str]:
    """Return stories of one template, each with a name, a place and a thing that no other has."""
    frame = (
        "One day {0} went to the {1} with a small {2} . The sun was warm and a bird sang in the tall old tree . It was "
        "such a good day that nobody wanted to go home , and they all ran and laughed until the evening came . Then "
        "mother called everyone to eat , and there was bread and milk and a little cake for each of them ."
    )
    return [frame.format(f"name{number}", f"place{number}", f"thing{number}") for number in range(wanted)]


def write_corpus(store: Path, texts: Sequence[str]) -> None:
    from hornbook.artifact import Artifact, finish_artifact
    from hornbook.documents import Document, content_key, document_id, documents_table
    from hornbook.parts import PartContent, commit_part, planned_ranges
    from hornbook.store import Store

    artifact = Artifact(Store(str(store)), "artifacts/corpus")
    for part in planned_ranges(len(texts), PART_ROWS):
        documents = [
            Document(id=document_id(row), key=content_key(str(row).encode()), text=texts[row], source="web", kind="web")
            for row in range(part.start, part.stop)
        ]
        commit_part(artifact.store, artifact.folder, part, PartContent(table=documents_table(documents)))
    nothing: dict[str, Any] = {"settings": {}, "models": {}, "inputs": {}, "input_stages": {}, "metrics": {}}
    named: dict[str, Any] = {"kind": "files", "stage": "corpus", "produces": "documents", "fingerprint": "0" * 64}
    finish_artifact(artifact, **named, **nothing, seed=0, seconds=0.0)


def parquet_parts(folder: Path) -> list[Path]:
    return sorted((folder / "store" / "artifacts" / "corpus" / "data").glob("*.parquet"))


def read_texts(folder: Path) -> Iterator[str]:
    for part in parquet_parts(folder):
        yield from pq.read_table(part, columns=["text"]).column("text").to_pylist()


def judged(texts: Sequence[str], pairs: Sequence[tuple[int, int, float]], found: dict[str, Any]) -> dict[str, Any]:
    """Return recall of the planted pairs and precision of the dropped documents, by the true Jaccard index."""
    group_of: dict[int, int] = {}
    root: dict[int, int] = {}

    def top(group: int) -> int:
        while root[group] != group:
            group = root[group]
        return group

    for number, group in enumerate(found["clusters"]):  # datasketch's groups overlap: what one finds is one with it
        root[number] = number
        for document in group:
            if document in group_of:
                root[top(group_of[document])] = top(number)
            group_of[document] = number
    wanted = [(low, high) for low, high, exact in pairs if exact >= THRESHOLD]
    hits = sum(
        low in group_of and high in group_of and top(group_of[low]) == top(group_of[high]) for low, high in wanted
    )
    dropped = wrong = 0
    overlapping = len({document for group in found["seen"] for document in group}) < sum(map(len, found["seen"]))
    for group in found["seen"]:
        losers = group[-1:] if overlapping else group[1:]
        dropped += len(losers)
        for document in losers:
            others = itertools.islice((other for other in group if other != document), 2000)
            wrong += not any(similarity(texts[document], texts[other]) >= THRESHOLD for other in others)
    return {
        "planted": len(wanted),
        "recall": hits / len(wanted) if wanted else float("nan"),
        "dropped": dropped,
        "wrong": wrong,
        "precision": 1 - wrong / dropped if dropped else float("nan"),
    }


def similarity(one: str, other: str) -> float:
    """Return the true Jaccard index of two documents' shingles; 1 where they say the same up to white space."""
    if one.split() == other.split():
        return 1.0
    first, second = (
        {tuple(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))}
        for words in (words_of(one), words_of(other))
    )
    return len(first & second) / len(first | second)


def peak_mib() -> float:
    """Return this process's peak; getrusage would count what its parent held when it was started."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
