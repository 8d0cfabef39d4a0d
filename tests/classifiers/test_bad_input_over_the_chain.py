"""Bad input from end to end: what is broken, hostile, doubled or not there, through every stage of the chain that reads text.

How each reader meets broken files is in `test_broken_files`; what models and scorers do, in their own tests.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from file_reading import read_documents
from finished_artifact import finish
from in_process import finished, run_recipe_here
from small_crawl import ITEM, sentences

from classifiers.decontaminate import Decontaminate, DecontaminateSettings
from classifiers.dedup import Dedup, DedupSettings
from classifiers.extract import Extract, ExtractSettings
from classifiers.files import Files, FilesSettings
from classifiers.heuristics import CODE, PROSE, Heuristics, HeuristicsSettings, rule_values
from classifiers.item_finder import ItemFinder
from classifiers.language import Language, LanguageSettings, judged
from classifiers.personal_data import TYPES, replaced
from classifiers.pii import Pii, PiiSettings
from hornbook.artifact import Artifact
from hornbook.documents import Document, documents_table
from hornbook.errors import DataError
from hornbook.parts import PartContent, PartRange, commit_part, parquet_bytes
from hornbook.stage import Stage
from hornbook.store import Store

GIB = 1 << 30


def decontaminate(folder: Path) -> Decontaminate:
    (folder / "quiz.jsonl").write_text(json.dumps({"id": "mill", "text": ITEM}) + "\n")
    settings = DecontaminateSettings(evaluation_sets=({"name": "quiz", "path": str(folder / "quiz.jsonl")},))  # type: ignore[arg-type]
    return Decontaminate("clean", settings, seed=1)


STAGES: dict[str, Callable[[Path], Stage]] = {
    "extract": lambda folder: Extract("text", ExtractSettings(), seed=1),
    "language": lambda folder: Language("language", LanguageSettings(), seed=1),
    "heuristics": lambda folder: Heuristics("rules", HeuristicsSettings(rules=("prose", "code")), seed=1),
    "dedup": lambda folder: Dedup("unique", DedupSettings(), seed=1),
    "decontaminate": decontaminate,
    "pii": lambda folder: Pii("private", PiiSettings(), seed=1),
}
"""The stages that read texts; `select` and what trains and scores have tests of their own for the same."""


def corpus(store: Store, *parts: PartContent) -> Artifact:
    """Return a finished corpus of parts of ten planned units each."""
    artifact = Artifact(store, "artifacts/corpus")
    for number, content in enumerate(parts):
        commit_part(store, artifact.folder, PartRange(10 * number, 10 * number + 10), content)
    finish(artifact, "documents", kind="files")
    return artifact


def document(identifier: int, text: str) -> Document:
    return Document(id=identifier, key=b"k" * 16, text=text, source="s", kind="web")


@pytest.mark.parametrize("kind", STAGES)
def test_a_corpus_without_parts_and_one_of_empty_parts(tmp_path: Path, kind: str) -> None:
    store = Store(str(tmp_path / "store"))
    hollow = PartContent(table=documents_table([]), empty=10)
    for number, parts in enumerate(((), (hollow, hollow))):
        documents = corpus(Store(str(tmp_path / f"store{number}")), *parts)
        if kind == "dedup":
            with pytest.raises(DataError, match="there are no documents"):
                finished(STAGES[kind](tmp_path), documents.store, documents=[documents])
            continue
        made = finished(STAGES[kind](tmp_path), documents.store, documents=[documents])
        assert made.manifest.counts.get("rows", 0) == 0 and len(made.parts) == len(parts)
        assert json.loads(json.dumps(made.manifest.metrics)) == made.manifest.metrics
    few = PartContent(table=documents_table([document(13 << 16, "one text that is left")]), empty=9)
    made = finished(STAGES[kind](tmp_path), store, documents=[corpus(store, hollow, few, hollow)])
    assert [part.rows for part in made.parts] == [0, 1, 0]


@pytest.mark.parametrize("kind", STAGES)
def test_doubled_ids_are_named_and_nothing_is_written(tmp_path: Path, kind: str) -> None:
    store = Store(str(tmp_path / "store"))
    table = documents_table([document(5, "one text"), document(5, "and another one")])
    doubled = PartContent(table=None, succeeded=10, files={"data": parquet_bytes(table)})
    with pytest.raises(DataError, match=r"artifacts/corpus, part 0: the id 5 (occurs 2 times|belongs to several)"):
        finished(STAGES[kind](tmp_path), store, documents=[corpus(store, doubled)])
    assert not [name for name, _ in store.files(f"artifacts/{STAGES[kind](tmp_path).name}") if "data/" in name]


HOSTILE = {
    "pages nested deeply": "<div>" * 100_000 + "text" + "</div>" * 100_000,
    "brackets": "(" * 100_000 + ")" * 100_000,
    "signs before a number": "x = " + "-" * 200_000 + "1",
    "a list in a function": "def f():\n    return " + "[" * 100_000,
    "blocks in blocks": "".join(" " * depth + "if x:\n" for depth in range(1000)),
    "a sum of very many": "x = " + "1 + " * 100_000 + "1",
    "attributes of attributes": "x = a" + ".a" * 200_000,
    "branches without end": "def f(x):\n    if x: pass\n" + "    elif x: pass\n" * 20_000,
    "NUL bytes": "\0" * 1_000_000,
    "one word of a megabyte": "a" * 1_000_000,
    "quotes": '"""' * 300_000,
    "mail addresses that are none": "a@" * 300_000,
    "numbers": "1-" * 500_000,
    "comments that are not closed": "/*" * 300_000,
    "encoded lines": ("B" * 64 + "\n") * 10_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_neither_crash_nor_hang_what_reads_them(name: str) -> None:
    from classifiers.evaluation_sets import CODE as PROGRAM
    from classifiers.evaluation_sets import ItemText, items_table

    text = HOSTILE[name]
    program = (
        "def count(rows):\n    n = 0\n    for row in rows:\n        if row:\n            n += row\n    return n\n" * 2
    )
    items = [ItemText("quiz", "mill", "question", ITEM), ItemText("quiz", "count", PROGRAM, program)]
    settings = DecontaminateSettings(ast_match=0.9)
    finder = ItemFinder(items_table(items), settings)
    began = time.process_time()
    judged(text)
    rule_values(text, [*PROSE, *CODE])
    replaced(text, TYPES, False)
    finder.find(text, None)
    assert time.process_time() - began < 5


# --- files -----------------------------------------------------------------------------------------------------------


def read(stage_context: Any, path: Path, **options: Any) -> tuple[list[str], list[tuple[str, str]]]:
    made = Files("corpus", FilesSettings(paths=(str(path),), **options), seed=1)
    documents, rejects = read_documents(stage_context(made), made, workers=2)
    return [documents[unit]["text"] for unit in sorted(documents)], [
        (rejects[unit]["reason"], rejects[unit]["detail"]) for unit in sorted(rejects)
    ]


def overlapping_zip(members: int, content: bytes) -> bytes:
    """Return a zip in which every member's entry leads to the same bytes, so that it expands to `members` times them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(content) + packer.flush()
    crc = zlib.crc32(content)
    sizes = struct.pack("<LLL", crc, len(packed), len(content))
    data = b"PK\3\4" + struct.pack("<HHHHH", 20, 0, 8, 0, 0) + sizes + struct.pack("<HH", 5, 0) + b"a.txt" + packed
    entry = b"PK\1\2" + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 0) + sizes
    entry += struct.pack("<HHHHHLL", 5, 0, 0, 0, 0, 0, 0) + b"a.txt"
    end = b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, members, members, len(entry) * members, len(data), 0)
    return data + entry * members + end


def test_a_zip_whose_members_share_their_bytes_is_refused(tmp_path: Path, stage_context: Any) -> None:
    content = b"the same line again and again\n" * 1000
    (tmp_path / "one.zip").write_bytes(overlapping_zip(1, content))
    assert len(read(stage_context, tmp_path / "one.zip")[0]) == 1000
    (tmp_path / "bomb.zip").write_bytes(overlapping_zip(500, content))
    texts, rejects = read(stage_context, tmp_path / "bomb.zip")
    assert not texts and [reason for reason, _ in rejects] == ["not-zip"] and "overlap" in rejects[0][1]


def test_a_zip_is_read_no_further_than_a_compressed_file_may_be(tmp_path: Path, stage_context: Any) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "abcd":
            archive.writestr(f"{name}.txt", f"{name} line\n" * 10_000)
    (tmp_path / "many.zip").write_bytes(sink.getvalue())
    for part_rows in (3000, 50_000):
        texts, rejects = read(stage_context, tmp_path / "many.zip", max_file_bytes=170_000, part_rows=part_rows)
        assert [reason for reason, _ in rejects] == ["too-large"] and "c.txt" in rejects[0][1]
        assert texts == ["a line"] * 10_000 + ["b line"] * 10_000


def test_a_line_of_a_gigabyte_is_one_reject_in_bounded_memory(tmp_path: Path) -> None:
    """Plain and packed. The packed one is a small file: a thousand gzip members, one after the other."""
    block = b"x" * (1 << 20)
    with (tmp_path / "plain.jsonl").open("wb") as file:
        file.write(b'{"text": "good"}\n{"text": "')
        for _ in range(GIB // len(block)):
            file.write(block)
        file.write(b'"}\n{"text": "good"}\n')
    packed = [gzip.compress(piece) for piece in (b'{"text": "good"}\n{"text": "', block, b'"}\n{"text": "good"}\n')]
    (tmp_path / "packed.jsonl.gz").write_bytes(packed[0] + packed[1] * (GIB // len(block)) + packed[2])
    done = subprocess_of(LONG_LINES, *(str(path) for path in sorted(tmp_path.iterdir())))
    *found, megabytes = done.splitlines()
    assert found == ["['good', 'too-long', 'good']"] * 2 and int(megabytes) < 40, done


def subprocess_of(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


LONG_LINES = """
import sys
from pathlib import Path
from classifiers.file_plan import make_plan
from classifiers.file_records import stream_records
from classifiers.files import FilesSettings
from classifiers.records import Bad
settings = FilesSettings(paths=sys.argv[1:])
# Not ru_maxrss: a child begins with its parent's.
peak = lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
before = 0
for name in sys.argv[1:]:
    make_plan([name], settings)
    found = [record.read() for record in stream_records(name, settings)]
    print([entry.reason if isinstance(entry, Bad) else entry for entry in found])
    before = before or peak()
print(peak() - before)
"""


def test_a_crawl_of_the_good_and_the_bad_comes_through_with_every_reject_counted(tmp_path: Path) -> None:
    """Every file that is bad in its own way lies among good ones; planned = kept + rejected at every stage."""
    rng = random.Random(8)
    raw = tmp_path / "raw"
    raw.mkdir()
    good = [sentences(rng, 12) for _ in range(40)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in good)
    packed = gzip.compress("".join(json.dumps({"text": sentences(rng, 400)}) + "\n" for _ in range(60)).encode())
    with_nul = json.dumps({"text": f"a {chr(0)} between. {sentences(rng, 12)}"})
    files = {
        "a.jsonl": (lines + '{"text": broken\n' + '{"other": 1}\n' + with_nul + "\n").encode(),
        "torn.jsonl.gz": packed[: len(packed) // 2],
        "bomb.txt.gz": gzip.compress(b"x" * 3_000_000),
        "program.txt": Path(sys.executable).resolve().read_bytes()[:200_000],
        "latin.txt": "the caf\xe9 by the river was closed\n".encode("latin-1"),
        "wide.txt": "what is this\n".encode("utf-16"),
        "deep.html": b"<html><body>" + b"<div>" * 100_000 + b"deep" + b"</div>" * 100_000,
        "empty.html": b"",
        "page.html": f"<!doctype html><html><body><p>{sentences(rng, 14)}</p></body></html>".encode(),
        "nothing.jsonl": b"",
    }
    for name, content in files.items():
        (raw / name).write_bytes(content)
    recipe = {
        "name": "bad", "seed": 1,
        "stages": {
            "raw": {"kind": "files", "paths": [str(raw)], "max_bytes": 2_000_000, "part_rows": 20},
            "text": {"kind": "extract", "inputs": {"documents": "raw"}, "extractor": "resiliparse", "seconds": 3},
            "rules": {"kind": "heuristics", "inputs": {"documents": "text"}, "rules": ["prose", "code"]},
            "unique": {"kind": "dedup", "inputs": {"documents": "text"}},
            "chosen": {
                "kind": "select", "inputs": {"documents": "text", "attributes": ["rules", "unique"]},
                "rules": [{"column": "kept", "is_true": True}, {"column": "word_count", "min": 50}],
            },
            "corpus": {"kind": "pii", "inputs": {"documents": "chosen"}},
        },
    }  # fmt: skip
    made = run_recipe_here(recipe, Store(str(tmp_path / "store")))
    for artifact in made.values():
        counts = artifact.manifest.counts
        assert counts["planned"] == counts["succeeded"] + counts["rejected"]
    assert made["raw"].manifest.reasons == {
        "binary": 2, "empty": 1, "encoding": 1, "no-text": 1, "not-json": 1, "nul-bytes": 1, "too-long": 1,
        "unreadable-rest": 1,
    }  # fmt: skip
    texts = {text for table in made["corpus"].tables(columns=["text"]) for text in table["text"].to_pylist()}
    assert set(good) <= texts and len(texts) > len(good) + 5
