"""The pack stage beside the raw tokenizer: tokens per second of one processor, on the same real documents.

Documents are Python files and READMEs of this environment, read from its packages, in Parquet parts as
any corpus has them. Each side is a process of its own on one processor, the clock counts its processor seconds:

- raw: `tokenizers`' encode_batch of the texts in lists of a part, and nothing else: neither files nor shards.
- ours: parts as a worker of `pack` makes them: Parquet read, ids, end-of-text tokens, spans, digests, shard files on disk.
- datatrove: its ParquetReader and DocumentTokenizer, local shuffle off, if it is installed.

Then what each way of cutting rows (`packing` of pretrain; `documents` of tuning) makes of the same documents.

    python benchmarks/packing.py
    PYTHONPATH=FOLDER python benchmarks/packing.py          # FOLDER: pip install --target FOLDER datatrove==0.10.1
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

os.environ["TOKENIZERS_PARALLELISM"] = "false"

if TYPE_CHECKING:
    from training.shards import Rows

PART_ROWS = 256
VOCABULARY = 4096
MOST_CHARACTERS = 40_000
STRATEGIES: Sequence[tuple[str, Rows]] = (
    ("concatenate", "windows"),
    ("best-fit", "best-fit"),
    ("one a row", "documents"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](arguments.folder)))
        return
    sides = [side for side in SIDES if side != "datatrove" or importlib.util.find_spec("datatrove")]
    if "datatrove" not in sides:
        print("without datatrove: it is not installed (see --help)", flush=True)
    with tempfile.TemporaryDirectory(prefix="hornbook-packing-") as folder:
        prepare(Path(folder), arguments.documents)
        rounds = []
        for _ in range(arguments.rounds):
            found = {}
            for side in sides:
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    environment = os.environ | {"HORNBOOK_CACHE": scratch}
                    command = [sys.executable, __file__, "--side", side, "--folder", folder]
                    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
                if done.returncode:
                    raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")
                found[side] = json.loads(done.stdout.splitlines()[-1])
            rounds.append({side: figures["tokens"] / figures["seconds"] for side, figures in found.items()})
            print(json.dumps(found), flush=True)
        for side in sides:
            rate = median(each[side] for each in rounds)
            share = median(each[side] / each["raw"] for each in rounds)
            print(f"{side}: {rate:,.0f} tokens per processor second, {share:.3f} of raw", flush=True)
        print_rows(Path(folder))


def print_rows(folder: Path) -> None:
    """Print what each way of cutting rows pads, leaves out and tears apart."""
    from tokenizers import Tokenizer

    from training.shards import ShardBuilder, TokenSource, write_shard_folder

    os.environ["HORNBOOK_CACHE"] = str(folder / "cache")
    tokenizer = Tokenizer.from_file(str(folder / "store/artifacts/tokenizer/tokenizer/tokenizer.json"))
    tokenizer.encode_special_tokens = True
    builder = ShardBuilder(eos=0, vocabulary=VOCABULARY)
    lengths: list[int] = []
    for texts in (part.column("text").to_pylist() for part in parts_of(folder)):
        for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            key = len(lengths).to_bytes(16, "big")
            lengths.append(builder.add(len(lengths), key, "web", "train", np.array(encoding.ids)))
    write_shard_folder(folder / "shards", [builder])
    sizes = np.array(lengths)
    ends = np.cumsum(sizes)
    print(f"{len(sizes):,} documents, {ends[-1]:,} tokens, median {np.median(sizes):.0f}, longest {sizes.max():,}")
    print("T, rows cut as: rows, padding, tokens left out, documents that fit into a row and are cut, seconds to plan")
    for length in (256, 512, 2048, 8192):
        fitting = sizes <= length
        across = np.maximum(ends - sizes - 1, 0) // length != (ends - 2) // length
        for name, rows in STRATEGIES:
            began = time.perf_counter()
            source = TokenSource(folder / "shards", "train", length, rows)
            seconds = time.perf_counter() - began
            trained = source.row_tokens * len(source)
            cut = (across & fitting).sum() / fitting.sum() if rows == "windows" else 0.0
            print(
                f"{length}, {name}: {len(source):,}, {1 - trained / (len(source) * length):.2%}, "
                f"{1 - trained / ends[-1]:.2%}, {cut:.1%}, {seconds:.3f}",
                flush=True,
            )


def prepare(folder: Path, count: int) -> None:
    """Write a corpus and a tokenizer trained on it into a store."""
    from hornbook.artifact import Artifact, finish_artifact
    from hornbook.documents import Document, content_key, document_id, documents_table
    from hornbook.parts import PartContent, PartRange, commit_part
    from hornbook.store import Store
    from training.tokenizer import as_hugging_face, train_bpe

    store = Store(str(folder / "store"))
    corpus, tokenizer = Artifact(store, "artifacts/web"), Artifact(store, "artifacts/tokenizer")
    texts = list(real_texts(count))
    for start in range(0, len(texts), PART_ROWS):
        part = PartRange(start, min(start + PART_ROWS, len(texts)))
        documents = [
            Document(document_id(row), content_key(texts[row].encode()), texts[row], "web", "web")
            for row in range(part.start, part.stop)
        ]
        commit_part(store, corpus.folder, part, PartContent(documents_table(documents)))
    made = train_bpe(iter(texts[::5]), VOCABULARY)
    saved = folder / "store" / tokenizer.folder / "tokenizer"
    as_hugging_face(made, 2048).save_pretrained(saved)
    for artifact, produces, files in (
        (corpus, "documents", []),
        (tokenizer, "tokenizer", [f"tokenizer/{path.name}" for path in saved.iterdir()]),
    ):
        finish_artifact(
            artifact, kind="bench", stage=produces, produces=produces, fingerprint="0" * 64, seed=0, settings={},
            models={}, inputs={}, input_stages={}, metrics={}, seconds=0.0, files=files,
        )  # fmt: skip


def real_texts(count: int) -> Iterator[str]:
    """Yield installed READMEs and Python files, long ones cut."""
    installed = Path(sysconfig.get_paths()["purelib"])
    left = count
    for path in [*sorted(installed.glob("*.dist-info/METADATA")), *sorted(installed.glob("*/*.py"))]:
        text = path.read_text(errors="replace")[:MOST_CHARACTERS]
        if left and text.strip():
            left -= 1
            yield text


def raw(folder: Path) -> dict[str, float]:
    """Encode the texts, part after part, and count."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "store/artifacts/tokenizer/tokenizer/tokenizer.json"))
    tokenizer.encode_special_tokens = True
    parts = [part.column("text").to_pylist() for part in parts_of(folder)]

    def work() -> int:
        return sum(
            len(encoding) + 1 for texts in parts for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)
        )

    return timed(work)


def ours(folder: Path) -> dict[str, float]:
    """Make and commit every part as a worker does."""
    from hornbook.artifact import Artifact
    from hornbook.parts import commit_part
    from hornbook.scores import ScoreFilter
    from hornbook.store import Store
    from training.pack import PackPart, PackSettings

    store = Store(str(folder / "store"))
    documents, tokenizer = Artifact(store, "artifacts/web"), Artifact(store, "artifacts/tokenizer")
    kept = ScoreFilter("pack", documents, None, None)
    maker = PackPart(PackSettings(), documents, tokenizer, kept)
    maker.setup()
    target = f"artifacts/packed-{os.getpid()}"

    def work() -> int:
        tokens = 0
        for part in documents.parts:
            made = maker.make(part.range)
            commit_part(store, target, part.range, made)
            tokens += int(made.counts["tokens"])
        return tokens

    return timed(work)


def datatrove(folder: Path) -> dict[str, float]:
    """Run datatrove's reader and tokenizer."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    target = folder / f"datatrove-{os.getpid()}"
    executor = LocalPipelineExecutor(
        pipeline=[
            ParquetReader(str(folder / "store/artifacts/web"), glob_pattern="**/*.parquet", id_key="id"),
            DocumentTokenizer(
                output_folder=str(target / "tokens"),
                local_working_dir=str(target / "work"),
                tokenizer_name_or_path=str(folder / "store/artifacts/tokenizer/tokenizer/tokenizer.json"),
                eos_token="<|endoftext|>",
                shuffle_documents=False,
            ),
        ],
        logging_dir=str(target / "logs"),
        tasks=1,
    )

    def work() -> int:
        executor.run()
        return sum(path.stat().st_size for path in (target / "tokens").glob("*.ds")) // 2

    return timed(work)


def parts_of(folder: Path) -> Iterator[pa.Table]:
    for path in sorted((folder / "store/artifacts/web").rglob("*.parquet")):
        yield pq.read_table(path, columns=["text"])


def timed(work: Callable[[], int]) -> dict[str, float]:
    began = time.process_time()
    tokens = work()
    return {"tokens": tokens, "seconds": round(time.process_time() - began, 3)}


SIDES = {"raw": raw, "ours": ours, "datatrove": datatrove}

if __name__ == "__main__":
    main()
