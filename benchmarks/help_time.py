"""Wall time of `hornbook --help` beside that of an empty Python: what the imports of the command line cost.

python benchmarks/help_time.py --times 15
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=9)
    times = parser.parse_args().times
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "hornbook --help": [sys.executable, "-m", "hornbook.cli", "--help"],
        "hornbook run --help": [sys.executable, "-m", "hornbook.cli", "run", "--help"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(times):  # interleaved, so that a busy machine is busy for all of them
        for name, command in commands.items():
            began = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.monotonic() - began)
    empty = statistics.median(seconds["python -c pass"])
    for name, measured in seconds.items():
        median = statistics.median(measured)
        print(f"{name:<20} {median:6.3f} s, {median / empty:5.1f} x an empty python")


if __name__ == "__main__":
    main()
