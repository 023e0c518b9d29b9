"""How a net computes: precision, recomputation, compilation and sharding, applied from outside.

A net knows one device. `choose` looks at the machine, `apply` wraps the net accordingly; neither
changes the names of its weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from vitkit.errors import UsageError
from vitkit.objectives.learner import Learner
from vitkit.training.config import EngineConfig
from vitkit.training.precision import Precision
from vitkit.training.trained import batch_norms
from vitkit.training.world import World, mean

# Compiling the blocks takes 10 to 40 seconds; below this many FLOPs of a whole run a CPU does not
# win them back (docs/performance.md, "Compiling").
COMPILE_FROM = 1e14

# What "selective" keeps: the results that are dear to compute again.
DEAR = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


@dataclass(frozen=True)
class Engine:
    """How a run computes; all of it is printed and recorded."""

    device: torch.device
    precision: Precision
    threads: int  # that compute, in each process
    compile: bool = False
    checkpointing: str = "none"  # or "selective" or "full"
    sharding: str = "none"  # or "ddp", "fsdp", "hybrid"
    shard_over: int = 1  # processes that share one copy of the weights
    keep: str = "none"  # where decoded images are kept: "device", "disk" or "none"
    world: World = field(default_factory=World)

    def autocast(self) -> torch.autocast:
        """The context that a forward pass runs in."""
        return self.precision.autocast(self.device)

    def record(self) -> dict[str, Any]:
        return {
            "device": str(self.device), "precision": self.precision.name,
            "precision_why": self.precision.why, "torch_threads": self.threads,
            "compile": self.compile, "checkpointing": self.checkpointing,
            "sharding": self.sharding, "shard_over": self.shard_over, "keep": self.keep,
            "processes": self.world.size,
        }  # fmt: skip

    def summary(self) -> str:
        """A line for people."""
        parts = [f"{self.device.type} in {self.precision.name} ({self.precision.why})"]
        parts.append("blocks compiled" if self.compile else "not compiled")
        if self.keep != "none":
            parts.append(f"decoded images kept on {self.keep if self.keep == 'disk' else 'it'}")
        if self.checkpointing != "none":
            parts.append(f"{self.checkpointing} checkpointing")
        if self.world.size > 1:
            over = f" over {self.shard_over}" if self.sharding == "hybrid" else ""
            parts.append(f"{self.world.size} processes with {self.sharding}{over}")
        return ", ".join(parts)


def choose_compile(wanted: EngineConfig, net: nn.Module, device: torch.device,
                   flops_of_run: float) -> bool:  # fmt: skip
    """Whether to compile the blocks; `flops_of_run` is infinite where a time is given."""
    if wanted.compile == "off":
        return False
    able = device.type == "cuda" or (device.type == "cpu" and shutil.which("g++") is not None)
    if wanted.compile == "on":
        if not able:
            needs = "a C++ compiler (g++)" if device.type == "cpu" else "CUDA or a CPU"
            raise UsageError(f"--compile on needs {needs}; leave it out")
        return True
    worth = device.type == "cuda" or flops_of_run >= COMPILE_FROM
    return able and worth and bool(transformer_blocks(net))


def shardings(wanted: EngineConfig, world: World) -> list[tuple[str, int]]:
    """(sharding, processes that share one copy of the weights): what may be taken, best first."""
    if world.size == 1:
        if wanted.sharding != "auto":
            raise UsageError(
                f"--sharding {wanted.sharding} needs several processes; add --gpus N, or start the "
                "run by torchrun"
            )
        return [("none", 1)]
    if wanted.shard_over is not None and wanted.sharding != "hybrid":
        raise UsageError("--shard-over is for --sharding hybrid; give that too, or leave it out")
    if wanted.sharding != "hybrid":
        both = [("ddp", 1), ("fsdp", world.size)]
        return [way for way in both if wanted.sharding in ("auto", way[0])]
    over = wanted.shard_over or world.local_size
    if world.size % over or over == 1:
        raise UsageError(
            f"--shard-over is {over}; with hybrid sharding of {world.size} processes it must be "
            "above 1 and divide them"
        )
    return [("hybrid", over)]


def apply(net: nn.Module, engine: Engine) -> nn.Module:
    """Make a net ready to train on the engine's device -> what to call on images.

    The net itself keeps the names of its weights. With fsdp or hybrid it may be on the meta device
    in all processes but the main one, whose weights all then hold their parts of. The order
    matters: recomputation is compiled, and what is compiled is sharded.
    """
    units = blocks_of(net)
    if engine.precision.name == "bf16":
        for block in transformer_blocks(net):
            block.register_forward_pre_hook(in_bfloat16)
    if engine.checkpointing != "none":
        for unit in units:
            unit.forward = recomputed(unit.forward, engine.checkpointing)
    if engine.compile:
        for unit in units:
            unit.forward = torch.compile(unit.forward, dynamic=False)
    if engine.device.type == "cuda":  # beside bf16, what is left in float32 may use TF32
        torch.set_float32_matmul_precision("high" if engine.precision.name == "bf16" else "highest")
    if engine.sharding in ("fsdp", "hybrid"):
        return sharded(net, engine)
    net.to(engine.device)
    if engine.sharding == "ddp":
        place = [engine.device.index] if engine.device.index is not None else None
        return DistributedDataParallel(net, device_ids=place, gradient_as_bucket_view=True)
    return net


def transformer_blocks(net: nn.Module) -> list[nn.Module]:
    """Those of a net, then those that stand beside it."""
    if isinstance(net, Learner):
        return transformer_blocks(net.net) + net.further_blocks
    return list(getattr(net, "blocks", []))


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """The parts that repeat: a ResNet's units, a Transformer's blocks; none in an EfficientNet."""
    if isinstance(net, Learner):
        return blocks_of(net.net) + net.further_blocks
    convolutional = net if hasattr(net, "stages") else getattr(net, "stem", None)
    stages = getattr(convolutional, "stages", [])
    return [unit for stage in stages for unit in stage] + transformer_blocks(net)


def in_bfloat16(block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Autocast leaves what is not a product as it comes, so the residual stream stays bfloat16."""
    return (inputs[0].bfloat16(), *inputs[1:])


def recomputed(forward: Callable[[Tensor], Tensor], kind: str) -> Callable[[Tensor], Tensor]:
    """The same function, its activations computed again in the backward pass."""
    if kind == "full":
        return partial(checkpoint, forward, use_reentrant=False)
    keep = partial(create_selective_checkpoint_contexts, dear)
    return partial(checkpoint, forward, use_reentrant=False, context_fn=keep)


def dear(context: Any, operator: Any, *inputs: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in DEAR else CheckpointPolicy.PREFER_RECOMPUTE


def sharded(net: nn.Module, engine: Engine) -> nn.Module:
    """FSDP2 by block, over all processes or within groups of them; weights from the main one."""
    weights = dict(net.state_dict()) if engine.world.main else {}
    net.to_empty(device="meta")
    mesh = mesh_of(engine)
    bf16 = engine.precision.name == "bf16"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    for block in transformer_blocks(net):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # What is not a Transformer's block (weight standardisation say) is gathered in float32.
    for unit in blocks_of(net):
        if not isinstance(unit, FSDPModule):
            fully_shard(unit, mesh=mesh)
    fully_shard(net, mesh=mesh)
    net.to_empty(device=engine.device)
    for name, tensor in net.state_dict().items():
        fill_from_main(tensor, weights.get(name))
    return net


def reshard(net: nn.Module) -> None:
    """Let go of weights that a forward pass gathered, so that the parts are what counts again."""
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def buckets_change(forward: nn.Module) -> bool:
    """Whether DDP is going to order gradients anew, in as many processes that it is of account."""
    return isinstance(forward, DistributedDataParallel) and dist.get_world_size() > 2


def batch_norm_buffers(net: nn.Module) -> list[Tensor]:
    """The running statistics of batch norms, which a forward pass changes."""
    found = [b for norm in batch_norms(net) for b in (norm.running_mean, norm.running_var)]
    return [buffer for buffer in found if buffer is not None]


@torch.no_grad()
def settle_buffers(buffers: list[Tensor], before: list[Tensor], hold: Tensor) -> None:
    """Batch norms' statistics after a step: the mean of the processes', which saw other images.

    `before` are those before the step, which stay where `hold` is 1.
    """
    if not buffers:
        return
    means = mean(torch.cat([buffer.flatten() for buffer in buffers]))
    for buffer, old, new in zip(
        buffers, before, means.split([b.numel() for b in buffers]), strict=True
    ):
        buffer.copy_(torch.where(hold > 0, old, new.view_as(buffer)))


def mesh_of(engine: Engine) -> DeviceMesh:
    if engine.sharding == "fsdp":
        return init_device_mesh(engine.device.type, (engine.world.size,), mesh_dim_names=("shard",))
    copies = engine.world.size // engine.shard_over
    return init_device_mesh(
        engine.device.type, (copies, engine.shard_over), mesh_dim_names=("replicate", "shard")
    )


@torch.no_grad()
def fill_from_main(tensor: Tensor, value: Tensor | None) -> None:
    """Put the main process's value, which it alone need have, into a tensor of all processes."""
    device = tensor.device
    if value is None:
        value = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    value = value.to(device=device, dtype=tensor.dtype).contiguous()
    if isinstance(tensor, DTensor):
        tensor.copy_(distribute_tensor(value, tensor.device_mesh, tensor.placements))
        return
    dist.broadcast(value, 0)
    tensor.copy_(value)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts, in every process; all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whole and on the CPU in the main process; nothing in the others."""
    main = not dist.is_initialized() or dist.get_rank() == 0
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())  # one after the other: no process holds all of them twice
        if main:
            found[name] = full.cpu().contiguous()
    return found


def part_like(tensor: Tensor, whole_value: Tensor) -> Tensor:
    """This process's part of a value that every process has, sharded as `tensor` is."""
    if not isinstance(tensor, DTensor):
        return whole_value
    value = whole_value.to(tensor.device)
    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)


def parts_of_a_step(forward: nn.Module, parts: int) -> Iterator[int]:
    """Numbers the parts of an accumulated batch; gradients are exchanged at the last one only."""
    for number in range(parts):
        last = number == parts - 1
        if isinstance(forward, DistributedDataParallel):
            forward.require_backward_grad_sync = last  # what its no_sync() sets
        elif isinstance(forward, FSDPModule):
            forward.set_requires_gradient_sync(last)
        yield number
