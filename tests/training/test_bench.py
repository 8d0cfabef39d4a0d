"""The bench runs the real loop and says what it found; freed memory is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from training.bench import fitting_microbatch, main
from training.presets import count_parameters, model_config


def test_the_bench_prints_its_figures_in_one_line() -> None:
    command = [sys.executable, "-m", "training.bench", "--steps", "4", "--sequence-length", "64", "--global-batch", "2"]
    done = subprocess.run(
        [*command, "--microbatch", "1"], capture_output=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["rows"] == "2 of 64, 1 at a time" and figures["tokens_per_second"] > 0
    speed = figures["tokens_per_second"] * figures["flops_per_token"]
    assert figures["share_of_matmul_peak"] == pytest.approx(
        speed / (1e9 * figures["matmul_gflops"]), rel=0.01, abs=1e-4
    )
    assert 0.1 < figures["peak_gib"] < 4


def test_a_microbatch_fits_the_gpu() -> None:
    for preset, gib, rows in (
        ("mobilellm-125m", 80, 32),
        ("mobilellm-350m", 80, 16),
        ("phi-1", 80, 4),
        ("phi-1", 16, 1),
    ):
        config = model_config(preset)
        assert fitting_microbatch(config, count_parameters(config), 2_048, gib * 10**9) == rows, preset


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept() -> None:
    """A buffer of 64 MiB, had again after it was freed, comes without the page faults of its 16,384 pages."""
    script = (
        "import resource, sys\n"
        "if sys.argv[1] == 'kept':\n"
        "    from training.malloc import keep_freed_memory; keep_freed_memory()\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    bytearray(b'x' * (1 << 26))\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "faults(); print(faults())\n"
    )
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", script, how], capture_output=True, check=True).stdout)
        for how in ("kept", "given back")
    )
    assert kept < 100 < 10_000 < given_back


def test_an_unknown_preset_is_said_in_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--preset", "phi-demo-3"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2 and "did you mean 'phi-demo-3m'" in capsys.readouterr().err
