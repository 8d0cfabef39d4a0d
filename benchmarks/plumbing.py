"""How much planned rows cost without a model: plan, prompt, engine call, documents, parts, commits, through the real stage.

Two sizes are run one after the other. The driver must hold counts, not rows: its peak memory is printed, and the ratio
of the time per row, which would grow if anything held all rows.

    python benchmarks/plumbing.py                          # 20,000 and 100,000 rows, a minute
    python benchmarks/plumbing.py --rows 1000000 5000000
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SECONDS_BETWEEN_LOOKS = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=[20_000, 100_000], metavar=("SMALL", "LARGE"))
    parser.add_argument("--part-rows", type=int, default=5_000)
    parser.add_argument("--parts-in-flight", type=int, default=4)
    parser.add_argument("--store", type=Path, help="folder for the corpora, deleted afterwards; default: temporary")
    arguments = parser.parse_args()
    measure(1, arguments)  # reads the code and the libraries into the page cache: neither size pays for it
    small, large = (measure(rows, arguments) for rows in arguments.rows)
    print(f"time per row, {arguments.rows[1]:,} / {arguments.rows[0]:,} rows: {large / small:.2f}")


def measure(rows: int, arguments: argparse.Namespace) -> float:
    """Run the recipe in a process of its own, print what it took, return the stage's seconds per row."""
    folder = Path(tempfile.mkdtemp(prefix="hornbook-plumbing-", dir=arguments.store))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"name: plumbing\nengine: {{kind: echo}}\nstages:\n  stories: {{kind: stories, rows: {rows}, "
        f"part_rows: {arguments.part_rows}, parts_in_flight: {arguments.parts_in_flight}}}\n"
    )
    environment = {**os.environ, "HORNBOOK_STORE": str(folder / "store")}
    environment.pop("RAY_ADDRESS", None)
    began = time.monotonic()
    command = [sys.executable, "-m", "hornbook.cli", "run", str(recipe)]
    try:
        with psutil.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
            peak = 0
            while driver.poll() is None:
                peak = max(peak, peak_resident_bytes(driver))
                time.sleep(SECONDS_BETWEEN_LOOKS)
        if driver.returncode:
            raise SystemExit(f"the run failed with exit code {driver.returncode}")
        wall = time.monotonic() - began
        from hornbook.artifact import Artifact
        from hornbook.store import Store

        store = Store(environment["HORNBOOK_STORE"])
        (name,) = store.names("artifacts")
        manifest = Artifact(store, f"artifacts/{name}").manifest
        counts = manifest.counts
        assert counts["planned"] == counts["succeeded"] + counts["rejected"] == rows
        written = sum(size for _, size in store.files(f"artifacts/{name}"))
        if rows > 1:
            print(
                f"{rows:,} rows: {rows / manifest.seconds:,.0f} rows/s in the stage ({manifest.seconds:.1f} s), "
                f"{wall:.1f} s with start and end, driver's peak memory {peak / (1 << 20):,.0f} MiB, "
                f"{written / (1 << 20):,.0f} MiB written",
                flush=True,
            )
        return manifest.seconds / rows
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def peak_resident_bytes(process: psutil.Process) -> int:
    """Return the kernel's own record of a process's peak resident memory; 0 if it is gone."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


if __name__ == "__main__":
    main()
