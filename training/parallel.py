"""How a model is laid over processes: checkpointing, then compile, then sharding, in that order, per block.

FSDP2 (`fully_shard`) on every world size, one process included, so that there is one code path: gloo on CPUs, NCCL on
GPUs, bf16 compute with float32 reduction and float32 master weights.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from hornbook.machine import processors
from training.cpu_attention import use_cpu_attention
from training.malloc import keep_freed_memory
from training.model import LanguageModel
from training.settings import Precision

COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device


def join_world() -> World:
    """Join the process group: the one that Ray Train made, torchrun's, or one of this single process."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # before any collective, or NCCL hangs at the first
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if device.type == "cpu":
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(dist.get_world_size())))
        torch.set_num_threads(max(1, processors() // local))
        keep_freed_memory()
    return World(dist.get_rank(), dist.get_world_size(), device)


def leave_world() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def parallelize(
    model: LanguageModel, world: World, precision: Precision, compile_blocks: bool, checkpoint_blocks: bool
) -> LanguageModel:
    """Lay a model over the world, in place; parameters become sharded float32 DTensors on the world's device.

    Args:
        precision: what the blocks compute in; `auto` is bf16 on a GPU and what pays on this CPU else.
        compile_blocks: torch.compile each block.
        checkpoint_blocks: keep only the blocks' inputs and compute the rest again in the backward pass.
    """
    model.to(world.device)
    if world.device.type == "cpu":
        use_cpu_attention(model.model)
    model.compiled_loss = compile_blocks and world.device.type == "cuda"
    if checkpoint_blocks:
        model.model.gradient_checkpointing_enable({"use_reentrant": False})
    if compile_blocks:
        for block in model.blocks:
            block.compile()
    policy = MixedPrecisionPolicy()
    if resolve_precision(precision, world.device) == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=True)
    mesh = init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("data",))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=world.device.type == "cuda")
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    return model


def reshard(model: LanguageModel) -> None:
    """Put the gathered parameters away after a forward pass without a backward one; else the model still shows them."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def resolve_precision(precision: Precision, device: torch.device) -> Literal["bf16", "fp32"]:
    """Return what `auto` means on a device. On a CPU bf16 pays only where it multiplies bf16 in hardware."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
