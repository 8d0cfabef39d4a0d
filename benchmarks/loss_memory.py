"""Peak memory of the chunked cross entropy beside full logits, HammerLLM's head: 2,048 tokens, 105,789 words, width 2,048.

    python benchmarks/loss_memory.py [--vocabulary 105789] [--tokens 2048] [--width 2048]

Each side computes loss and gradients in a process of its own, in bf16 and in float32. Full logits are as in transformers: all of
them, then in float32 into torch's cross entropy. Counted is what the process grows by over the weights and hidden states that it
holds anyway, with the gradients that it must leave, and without.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def memory(field: str) -> int:
    """Return VmRSS or VmHWM of this process, bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def run(side: str, dtype: str, vocabulary: int, tokens: int, width: int) -> None:
    """Be one side."""
    import torch
    from torch.nn import functional

    from training.loss import chunked_cross_entropy

    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    hidden = torch.randn(tokens, width, dtype=kind, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=kind).div_(width**0.5).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,))
    functional.linear(hidden[:8], weight[:8]).sum().backward()  # what the first product loads is nobody's
    hidden.grad = weight.grad = None
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    began = time.process_time()
    if side == "chunked":
        loss = chunked_cross_entropy(hidden, weight, None, targets)
    else:
        loss = functional.cross_entropy(functional.linear(hidden, weight).float(), targets, reduction="sum")
    loss.backward()
    figures = {"peak": memory("VmHWM") - before, "seconds": time.process_time() - began, "loss": loss.item() / tokens}
    assert hidden.grad is not None and weight.grad is not None
    figures["gradients"] = hidden.grad.nbytes + weight.grad.nbytes
    print(json.dumps(figures))


def compare(dtype: str, vocabulary: int, tokens: int, width: int) -> None:
    """Run both sides and print the ratio."""
    found: dict[str, dict[str, Any]] = {}
    path = os.pathsep.join([str(ROOT / "platform"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    for side in ("chunked", "full"):
        command = [sys.executable, str(Path(__file__).resolve()), "--side", side, "--dtypes", dtype]
        command += ["--vocabulary", str(vocabulary), "--tokens", str(tokens), "--width", str(width)]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=True)
        found[side] = json.loads(done.stdout.splitlines()[-1])
        own = found[side]["peak"] - found[side]["gradients"]
        print(
            f"{dtype}, {side}: {found[side]['peak'] / 2**20:,.0f} MiB, {own / 2**20:,.0f} beside the gradients; "
            f"{found[side]['seconds']:.1f} processor seconds; loss {found[side]['loss']:.6f}"
        )
    full, chunked = found["full"], found["chunked"]
    beside = (full["peak"] - full["gradients"]) / (chunked["peak"] - chunked["gradients"])
    print(
        f"{dtype}: full logits take {full['peak'] / chunked['peak']:.1f} x, {beside:.1f} x beside the gradients",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["all", "chunked", "full"], default="all")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--vocabulary", type=int, default=105_789)
    parser.add_argument("--tokens", type=int, default=2_048)
    parser.add_argument("--width", type=int, default=2_048)
    arguments = parser.parse_args()
    for dtype in arguments.dtypes:
        sizes = arguments.vocabulary, arguments.tokens, arguments.width
        if arguments.side == "all":
            compare(dtype, *sizes)
        else:
            run(arguments.side, dtype, *sizes)


if __name__ == "__main__":
    main()
