"""How a model is laid over processes: attention, checkpointing, compile, sharding, in that order, per block.

FSDP2 (`fully_shard`) on every world size, one process included, so that there is one code path: gloo on CPUs, NCCL on
GPUs, bf16 compute with float32 reduction and float32 master weights.

In every mode weights, gradients and the optimizer's state are sharded between steps. The modes differ in when weights are
gathered: `full` for each block's forward pass and again for its backward one (ZeRO-3); `zero1` once, at a step's first forward
pass, to be kept until its last backward one (between ZeRO-1 and 2: as those it communicates a step's weights once, but its
gradients are sharded, too); `hybrid` as `full`, inside groups of workers that each hold a whole model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from hornbook.errors import RecipeError
from hornbook.machine import processors
from training.activation_checkpointing import checkpoint_block
from training.attention import set_attention
from training.cpu_attention import use_cpu_attention
from training.malloc import keep_freed_memory
from training.model import LanguageModel
from training.settings import LoopSettings, Precision

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


def parallelize(model: LanguageModel, world: World, settings: LoopSettings, compile_blocks: bool) -> LanguageModel:
    """Lay a model over the world, in place; parameters become sharded float32 DTensors on the world's device.

    Args:
        settings: which precision (`auto` is bf16 on a GPU and what pays on this CPU else), attention, activation
            checkpointing and sharding.
        compile_blocks: torch.compile each block.

    Raises:
        RecipeError: the workers cannot be divided into the groups of `hybrid`, or flex attention cannot be here.
    """
    model.to(world.device)
    narrow = resolve_precision(settings.precision, world.device) == "bf16"
    dtype = torch.bfloat16 if narrow else torch.float32
    set_attention(settings.attention, model.model, world.device, dtype, model.document_mask)
    if world.device.type == "cpu" and settings.attention == "auto":
        use_cpu_attention(model.model, keep=settings.activation_checkpointing == "none")
    model.compiled_loss = compile_blocks and world.device.type == "cuda"
    for block in model.blocks:
        checkpoint_block(block, settings.activation_checkpointing)
        if compile_blocks:
            block.compile()
    policy = MixedPrecisionPolicy()
    if narrow:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=True)
    mesh = _mesh(world, settings)
    on_gpu = world.device.type == "cuda"
    gather_twice = settings.sharding in ("full", "hybrid") or (settings.sharding == "auto" and on_gpu)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=gather_twice)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(model, "next_logits")
    model.kept_gathered = [model] if gather_twice else [model, *model.blocks]
    return model


def _mesh(world: World, settings: LoopSettings) -> DeviceMesh:
    """Return the processes as a row, or as rows of one replica each."""
    kind = world.device.type
    if settings.sharding != "hybrid":
        return init_device_mesh(kind, (world.size,), mesh_dim_names=("data",))
    group = settings.shard_group or int(os.environ.get("LOCAL_WORLD_SIZE", str(world.size)))
    if world.size % group:
        raise RecipeError(
            f"{world.size} workers cannot be divided into groups of {group}",
            "set loop.shard_group to a number that divides the workers, or loop.sharding to full",
        )
    return init_device_mesh(kind, (world.size // group, group), mesh_dim_names=("replica", "data"))


def begin_microbatch(model: LanguageModel, last: bool) -> None:
    """Say whether the microbatch to come is a step's last: gradients are reduced and weights put away behind that one only."""
    model.set_requires_gradient_sync(last)  # type: ignore[operator] # FSDP2's
    for module in model.kept_gathered:
        module.set_reshard_after_backward(last, recurse=False)  # type: ignore[operator]


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


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return what the blocks compute in on a device."""
    return torch.bfloat16 if resolve_precision(precision, device) == "bf16" else torch.float32
