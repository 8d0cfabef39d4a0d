"""Bytes that a worker receives in a training step, by world size and way of sharding, beside what theory asks for.

    python benchmarks/communication.py [--preset phi-demo-3m] [--microbatches 2] [--no-speed]

One and two workers are real processes over gloo; four and eight are one process in a group that exchanges nothing (torch's
fake backend): collectives are counted where torch issues them, at what a ring moves, and do not depend on what arrives.
With two real workers the loopback device's counter is read, too: what gloo really sends. Then tokens per second with one
worker and with two on this machine, in turns.

Theory, received by a worker, for P parameters (B of them in blocks, R around them), M microbatches, N workers, c bytes a number
computed in and 4 a reduced one:

    full     ((2 M B + R) c + 4 P) (N - 1) / N
    zero1    (c + 4) P (N - 1) / N
    hybrid   as full with the group's size for N, and 8 P / group (1 - group / N) for the replicas' sums
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from workers import run_workers

REAL, SIMULATED = (1, 2), (4, 8)
ROWS, LENGTH = 1, 32  # of a microbatch: what is communicated does not depend on them
GROUP = 2
STEPS = 3
LOOPBACK = Path("/sys/class/net/lo/statistics/rx_bytes")


def bytes_received(operation: str, arguments: Any) -> int:
    """Return what a worker receives in one collective, done as a ring does it; 0 for what is none."""
    import torch

    def size(value: Any) -> int:
        tensors = value if isinstance(value, list | tuple) else [value]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, torch.Tensor))

    group = next((found for found in map(_group_size, arguments) if found), 1)
    share = (group - 1) / group
    if operation == "c10d::_allgather_base_":
        return round(size(arguments[0]) * share)
    if operation == "c10d::_reduce_scatter_base_":
        return round(size(arguments[1]) * share)
    if operation in ("c10d::allreduce_", "_c10d_functional::all_reduce"):
        return round(2 * size(arguments[0]) * share)
    if operation.startswith(("c10d::", "_c10d_functional::")) and "wait" not in operation:
        raise SystemExit(f"{operation} is not counted yet")
    return 0


def _group_size(argument: Any) -> int:
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import GroupName, _resolve_process_group

    if isinstance(argument, torch.ScriptObject):
        try:
            return dist.ProcessGroup.unbox(argument).size()
        except RuntimeError:  # another object, such as the operation that reduces
            return 0
    if isinstance(argument, str) and argument.isdigit():
        return _resolve_process_group(GroupName(argument)).size()
    return 0


def count(arguments: argparse.Namespace) -> dict[str, Any]:
    """Be one worker: a few steps in each mode and precision; return received bytes and what theory asks for."""
    import torch
    import torch.distributed as dist
    from torch.utils._python_dispatch import TorchDispatchMode

    from training.model import LanguageModel
    from training.parallel import World, begin_microbatch, join_world, leave_world, parallelize
    from training.presets import build_model, model_config
    from training.settings import LoopSettings

    class Counter(TorchDispatchMode):
        received = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.received += bytes_received(func._schema.name, args)
            return func(*args, **(kwargs or {}))

    if arguments.simulated:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", rank=0, world_size=arguments.world, store=FakeStore())
        world = World(0, arguments.world, torch.device("cpu"))
    else:
        world = join_world()
    torch.set_num_threads(1)  # nothing here is about speed
    found: dict[str, Any] = {}
    for sharding in ("full", "zero1", "hybrid"):
        if sharding == "hybrid" and world.size % GROUP:
            continue
        for precision, width in (("fp32", 4), ("bf16", 2)):
            settings = LoopSettings.model_validate(
                {"sharding": sharding, "precision": precision, "shard_group": GROUP if sharding == "hybrid" else None}
            )
            model = LanguageModel(build_model(model_config(arguments.preset), seed=0), eos=0)
            whole = sum(parameter.numel() for parameter in model.parameters())
            blocks = sum(parameter.numel() for parameter in model.blocks.parameters())
            parallelize(model, world, settings, compile_blocks=False)
            tokens = torch.randint(1, 100, (ROWS, LENGTH))
            sent: list[int] = []
            for _ in range(1 if arguments.simulated else STEPS):
                before = int(LOOPBACK.read_text()) if LOOPBACK.exists() else 0
                with Counter() as counter:
                    for number in range(arguments.microbatches):
                        begin_microbatch(model, number == arguments.microbatches - 1)
                        model(tokens, tokens).backward()
                dist.barrier()
                sent.append(((int(LOOPBACK.read_text()) if LOOPBACK.exists() else 0) - before) // world.size)
                model.zero_grad()
            found[f"{sharding} {precision}"] = {
                "measured": counter.received,
                "theory": theory(sharding, blocks, whole, arguments.microbatches, world.size, width),
                "loopback": min(sent),
            }
    leave_world()
    return found


def theory(sharding: str, blocks: int, whole: int, microbatches: int, world: int, width: int) -> float:
    """Return the bytes that a worker has to receive in a step; see above."""
    group = GROUP if sharding == "hybrid" else world
    passes = whole if sharding == "zero1" else 2 * microbatches * blocks + (whole - blocks)
    inside = (passes * width + 4 * whole) * (group - 1) / group
    return inside + 8 * whole / group * (1 - group / world)


def compare(arguments: argparse.Namespace) -> None:
    """Print measured bytes beside theory for every world, then the speeds."""
    print("workers  mode         received a step and worker     theory  ratio  on the loopback device")
    script = [sys.executable, str(Path(__file__).resolve()), "--preset", arguments.preset]
    script += ["--microbatches", str(arguments.microbatches)]
    for world in REAL + SIMULATED:
        simulated = world in SIMULATED
        command = [*script, "--world", str(world), *(["--simulated"] if simulated else [])]
        for mode, figures in run_workers(command, 1 if simulated else world).items():
            measured, wanted = figures["measured"] / 1e6, figures["theory"] / 1e6
            ratio = f"{measured / wanted:.4f}" if wanted else "   -  "
            loopback = f"{figures['loopback'] / 1e6:9.2f} MB" if world == 2 else ""
            print(f"{world:7}  {mode:12} {measured:12.2f} MB {wanted:19.2f} MB  {ratio}  {loopback}")
    if arguments.no_speed:
        return
    bench = [sys.executable, "-m", "training.bench", "--preset", arguments.preset, "--steps", str(arguments.steps)]
    ratios = []
    for _ in range(arguments.rounds):
        one, two = (run_workers(bench, workers)["tokens_per_second"] for workers in (1, 2))
        ratios.append(two / one)
        print(f"tokens a second: {one:.0f} with one worker, {two:.0f} with two, ratio {two / one:.2f}")
    print(f"median ratio {median(ratios):.2f}")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="phi-demo-3m")
    parser.add_argument("--microbatches", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--world", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--simulated", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.world:
        print(json.dumps(count(arguments)))
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
