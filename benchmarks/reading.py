"""Reading large compressed files: the stage `files` beside a plain loop, in megabytes per second and in memory.

A synthetic crawl of real text (READMEs and Python files of this environment, each as a page of HTML) is written as `.jsonl.gz` (one
stream, as gzip makes it), as `.warc.gz` (record by record, as archives of the web are) and as `.parquet` (in row groups of a million
rows at most, as pandas and pyarrow make them: one group, mostly), at a fourth of the size and at the whole.
Ours counts the records, cuts them into parts and then reads every part, as one worker would: two passes over the file. The plain
loop passes over it once: gzip and json for lines, fastwarc for archives, pyarrow for Parquet; nothing is counted, cut or checked.

Every run is a process of its own; the clock counts its processor's seconds, megabytes are those of the decompressed file, memory is
what the kernel calls the peak of the resident set, over that of the same process after a small file.

    python benchmarks/reading.py                        # 400 MB, a minute
    python benchmarks/reading.py --megabytes 10000      # half an hour, 3 GB of disk for a file that expands to 10 GB
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MB = 1_000_000
LONGEST_TEXT = 50_000  # characters
SMALL = 1  # MB: a file that loads whatever is loaded once
GROWTH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400, help="of the larger file, decompressed")
    parser.add_argument("--folder", type=Path, help="where the files are written, and deleted; default: temporary")
    parser.add_argument("--forms", nargs="+", choices=tuple(WRITERS), default=tuple(WRITERS))
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--files", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(SIDES[arguments.side], *arguments.files)))
        return
    with tempfile.TemporaryDirectory(prefix="hornbook-reading-", dir=arguments.folder) as folder:
        for form in arguments.forms:
            sizes = (SMALL, arguments.megabytes // GROWTH, arguments.megabytes)
            files = [WRITERS[form](Path(folder) / f"{size}.{form}", size * MB) for size in sizes]
            found = {(side, file): run(side, files[0], file) for side in ("ours", form) for file in files[1:]}
            for (side, file), result in found.items():
                name = "ours" if side == "ours" else "a plain loop"
                print(
                    f"{file.name}, {name}: {result['plain'] / MB:,.0f} MB in {file.stat().st_size / MB:,.0f} MB, "
                    f"{result['records']:,} records; "
                    + ", ".join(f"{what} {speed:,.0f} MB/s" for what, speed in result["speeds"].items())
                    + f"; peak memory {result['peak_mib']:,.0f} MiB, {result['over_mib']:,.0f} over a small file's",
                    flush=True,
                )
            ours, plain = found["ours", files[2]], found[form, files[2]]
            smaller = found["ours", files[1]]
            assert ours["records"] == plain["records"], "the sides read different records"
            print(
                f"{form}: ours / plain loop, both passes: {plain['seconds'] / ours['seconds']:.2f} x; reading alone: "
                f"{ours['speeds']['reading'] / plain['speeds']['reading']:.2f} x; {GROWTH} x the file: time per byte "
                f"{ours['seconds'] / ours['plain'] / (smaller['seconds'] / smaller['plain']):.2f}, memory "
                f"{ours['peak_mib'] / smaller['peak_mib']:.2f}",
                flush=True,
            )
            for file in files:
                file.unlink()


def run(side: str, small: Path, file: Path) -> dict[str, Any]:
    """Measure one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--files", str(small), str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(side: Callable[[str], dict[str, float]], small: str, file: str) -> dict[str, Any]:
    """Return records, bytes, megabytes per second of each pass, and memory, of this process."""
    side(small)
    before = peak_mib()
    counted = side(file)
    passes = {name: counted.pop(name) for name in ("counting", "reading") if name in counted}
    return {
        **counted,
        "seconds": sum(passes.values()),
        "speeds": {name: counted["plain"] / seconds / MB for name, seconds in passes.items()},
        "peak_mib": peak_mib(),
        "over_mib": peak_mib() - before,
    }


def peak_mib() -> float:
    """Return the kernel's own record of this process's peak resident memory."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


# --- the sides -------------------------------------------------------------------------------------------------------


def ours(file: str) -> dict[str, float]:
    """Count, cut and read a file as the stage `files` does, by one worker."""
    from classifiers.file_plan import make_plan, planned_parts
    from classifiers.files import PLAN, FilesSettings, ReadRows
    from hornbook.artifact import Artifact
    from hornbook.parts import parquet_bytes
    from hornbook.store import Store

    settings = FilesSettings(paths=(file,))
    began = time.process_time()
    plan = make_plan([file], settings)
    counted = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        artifact = Artifact(Store(folder), "artifacts/reading")
        artifact.store.write(f"{artifact.folder}/{PLAN}", parquet_bytes(plan))
        maker = ReadRows(settings, artifact)
        maker.setup()
        records = 0
        for part in planned_parts(plan):
            content = maker.make(part)
            assert content.table is not None
            records += content.table.num_rows
    read = time.process_time()
    return {
        "records": records,
        "plain": expanded_bytes(file),
        "counting": counted - began,
        "reading": read - counted,
    }


def plain_lines(file: str) -> dict[str, float]:
    """Read lines with gzip and json."""
    began, records = time.process_time(), 0
    with gzip.open(file, "rb") as lines:
        for line in lines:
            records += bool(json.loads(line)["text"])
    return {"records": records, "plain": expanded_bytes(file), "reading": time.process_time() - began}


def plain_archive(file: str) -> dict[str, float]:
    """Read pages with fastwarc."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    began, records = time.process_time(), 0
    with Path(file).open("rb") as stream:
        for record in ArchiveIterator(stream, record_types=WarcRecordType.response):
            records += bool(record.reader.read().decode("utf-8"))
    return {"records": records, "plain": expanded_bytes(file), "reading": time.process_time() - began}


def plain_columns(file: str) -> dict[str, float]:
    """Read texts with pyarrow, as it reads unless told otherwise."""
    import pyarrow.parquet as pq

    began, records = time.process_time(), 0
    for batch in pq.ParquetFile(file).iter_batches(columns=["text"]):
        records += sum(map(bool, batch.column(0).to_pylist()))
    return {"records": records, "plain": expanded_bytes(file), "reading": time.process_time() - began}


def expanded_bytes(file: str) -> int:
    """Return how many bytes a file has that the writers below wrote: they note it beside."""
    return int(Path(f"{file}.size").read_text())


# --- the files -------------------------------------------------------------------------------------------------------


def pages() -> Iterator[str]:
    """Yield pages for ever: the texts of this environment, numbered, so that no two are the same."""
    root = Path(sysconfig.get_path("purelib"))
    paths = [path for pattern in ("*.dist-info/METADATA", "*/*.py") for path in sorted(root.glob(pattern))]
    number = 0
    while True:
        for path in paths:
            text = path.read_text(encoding="utf-8", errors="replace")[:LONGEST_TEXT]
            number += 1
            yield f"<!doctype html><html><body><h1>{number}</h1><pre>{html.escape(text)}</pre></body></html>"


def write_lines(file: Path, size: int) -> Path:
    """Write one gzip stream of JSON lines."""
    written = 0
    with gzip.open(file, "wb", compresslevel=1) as out:
        for text in pages():
            line = json.dumps({"text": text}).encode() + b"\n"
            out.write(line)
            written += len(line)
            if written >= size:
                break
    Path(f"{file}.size").write_text(str(written))
    return file


def write_archive(file: Path, size: int) -> Path:
    """Write a web archive, every record compressed on its own."""
    written = 0
    with file.open("wb") as out:
        for number, text in enumerate(pages()):
            body = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{text}".encode()
            head = (
                f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://example.org/{number}\r\n"
                f"WARC-Date: 2024-05-06T07:08:09Z\r\nWARC-Record-ID: <urn:uuid:{number:032x}>\r\n"
                f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            record = head.encode() + body + b"\r\n\r\n"
            packer = zlib.compressobj(1, zlib.DEFLATED, 31)
            out.write(packer.compress(record) + packer.flush())
            written += len(record)
            if written >= size:
                break
    Path(f"{file}.size").write_text(str(written))
    return file


def write_columns(file: Path, size: int) -> Path:
    """Write Parquet, in the fewest row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("text", pa.string())])
    written, texts = 0, pages()
    with pq.ParquetWriter(file, schema) as out:
        while written < size:
            rows: list[str] = []
            waiting = 0
            while waiting < MB and written + waiting < size:
                rows.append(next(texts))
                waiting += len(rows[-1].encode())
            out.write_batch(pa.record_batch([rows], schema=schema))
            written += waiting
    Path(f"{file}.size").write_text(str(written))
    return file


WRITERS: dict[str, Callable[[Path, int], Path]] = {
    "jsonl.gz": write_lines, "warc.gz": write_archive, "parquet": write_columns,
}  # fmt: skip
SIDES: dict[str, Callable[[str], dict[str, float]]] = {
    "ours": ours, "jsonl.gz": plain_lines, "warc.gz": plain_archive, "parquet": plain_columns,
}  # fmt: skip

if __name__ == "__main__":
    main()
