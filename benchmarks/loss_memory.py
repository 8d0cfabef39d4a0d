"""Peak memory of the chunked cross entropy beside full logits, HammerLLM's head: 2,048 tokens, 105,789 words, width 2,048.

    python benchmarks/loss_memory.py [--vocabulary 105789] [--tokens 2048] [--width 2048]

Each side computes loss and gradients in bf16, in a process of its own. Full logits are as in transformers: all of them, then in
float32 into torch's cross entropy. Counted is what the process grows by over the weights and hidden states it holds anyway, the
gradients it must leave included (and those alone, for the share that is the loss's own).
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
sys.path[:1] = [str(ROOT), str(ROOT / "platform")]  # in place of this folder, where `training` is another file


def memory(field: str) -> int:
    """Return VmRSS or VmHWM of this process, bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def run(side: str, vocabulary: int, tokens: int, width: int) -> None:
    """Be one side."""
    import torch
    from torch.nn import functional

    from training.loss import chunked_cross_entropy

    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(vocabulary, width, dtype=torch.bfloat16) / width**0.5).requires_grad_()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["all", "chunked", "full"], default="all")
    parser.add_argument("--vocabulary", type=int, default=105_789)
    parser.add_argument("--tokens", type=int, default=2_048)
    parser.add_argument("--width", type=int, default=2_048)
    arguments = parser.parse_args()
    sizes = arguments.vocabulary, arguments.tokens, arguments.width
    if arguments.side != "all":
        run(arguments.side, *sizes)
        return
    found: dict[str, dict[str, Any]] = {}
    path = os.pathsep.join([str(ROOT / "platform"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    for side in ("chunked", "full"):
        command = [sys.executable, str(Path(__file__).resolve()), "--side", side]
        command += ["--vocabulary", str(sizes[0]), "--tokens", str(sizes[1]), "--width", str(sizes[2])]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=True)
        found[side] = json.loads(done.stdout.splitlines()[-1])
        own = found[side]["peak"] - found[side]["gradients"]
        print(
            f"{side}: {found[side]['peak'] / 2**20:,.0f} MiB, {own / 2**20:,.0f} beside the gradients; "
            f"{found[side]['seconds']:.1f} processor seconds; loss {found[side]['loss']:.6f}"
        )
    peaks, gradients = (found["full"][name] / found["chunked"][name] for name in ("peak", "gradients"))
    assert gradients == 1.0
    own = [found[side]["peak"] - found[side]["gradients"] for side in ("full", "chunked")]
    print(f"full logits take {peaks:.1f} x the memory, {own[0] / own[1]:.1f} x beside the gradients")


if __name__ == "__main__":
    main()
