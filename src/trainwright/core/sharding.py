"""Ranks and shards: the only file that knows how many processes there are."""
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor import empty as empty_sharded
from torch.utils.checkpoint import checkpoint

from trainwright.core import ending
from trainwright.core.errors import UserError
from trainwright.core.held import Held

WAIT = timedelta(days=1)
"""How long ranks wait for one that works alone (on a corpus, for example); one that dies
ends the others at once."""
T = TypeVar("T")


def start() -> None:
    """Join the process group that ``torchrun`` describes; a lone process needs none."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if cuda else "gloo", timeout=WAIT)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            ending.follow(os.getppid())


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def main() -> bool:
    """Whether this process writes files and talks to the user."""
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def total(x: float) -> float:
    """The sum of ``x`` over all ranks."""
    if not dist.is_initialized():
        return x
    t = torch.tensor(float(x), dtype=torch.float64, device=device())
    dist.all_reduce(t)
    return float(t)


def summed(t: Tensor) -> Tensor:
    """The sum of a tensor of one shape over all ranks."""
    if not dist.is_initialized():
        return t
    t = t.clone()
    dist.all_reduce(t)
    return t


def every(mine: Tensor) -> Tensor:
    """The rows of all ranks, each of which has as many, in rank order; no gradient flows back."""
    if not dist.is_initialized():
        return mine
    parts = [torch.empty_like(mine) for _ in range(world())]
    dist.all_gather(parts, mine.contiguous())
    return torch.cat(parts)


def gather(thing: Any) -> list[Any]:
    """``thing`` of every rank, in rank order."""
    if not dist.is_initialized():
        return [thing]
    seen: list[Any] = [None] * world()
    dist.all_gather_object(seen, thing)
    return seen


def together(thing: Any) -> Any:
    """Rank 0's ``thing`` on every rank."""
    if not dist.is_initialized():
        return thing
    box = [thing]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def led(work: Callable[[], T]) -> T | None:
    """``work`` on rank 0 while the others wait (and get None). A mistake that it finds
    is told by every rank."""
    done, problem = None, ""
    if main():
        try:
            done = work()
        except UserError as error:
            problem = str(error)
    if problem := together(problem):
        raise UserError(problem)
    return done


def device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def shard(model: nn.Module) -> nn.Module:
    """Shard the model in place with FSDP2, on the device: each block of its longest list, then the rest."""
    mesh = init_device_mesh(device().type, (world(),))
    scalars = {p for p in model.parameters() if not p.ndim}
    whole = scalars | {p for p in model.parameters() if isinstance(p, Held)}
    for block in blocks(model):
        fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)
    # FSDP takes none: every rank has them, and their mean gradient
    for p in scalars:
        p.data = p.data.to(device())
        p.register_post_accumulate_grad_hook(_mean)  # type: ignore[no-untyped-call]
    model._within = MethodType(lambda self, fn, *args: fn(self, *args), model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "_within")
    return model


def _mean(parameter: Tensor) -> None:
    """Let a gradient be the mean of all ranks'; what was summed up before is the same on
    all of them, and stays."""
    if parameter.grad is not None:
        dist.all_reduce(parameter.grad)
        parameter.grad /= world()


@torch.no_grad()
def average(params: dict[str, Tensor], grads: dict[str, Tensor]) -> None:
    """Let the gradients of parameters that came after sharding, which every rank has whole, be the mean of
    all ranks', as those of shards are."""
    own = [g for n, g in grads.items() if params[n].ndim and not isinstance(params[n], DTensor)]
    if world() == 1 or not own:
        return
    flat = torch.cat([g.reshape(-1) for g in own])
    dist.all_reduce(flat)
    means = torch.split(flat / world(), [g.numel() for g in own])
    for g, mean in zip(own, means, strict=True):
        g.copy_(mean.view_as(g))


@torch.no_grad()
def write(model: nn.Module, params: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Copy tensors into a model's parameters, and let go of what ranks hold of each other's shards.

    Behind a pass without gradients FSDP keeps the outermost module gathered, and would go on
    with the weights of then.
    """
    for name, t in tensors.items():
        params[name].copy_(t)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def checkpoint_blocks(model: nn.Module) -> None:
    """Activation checkpointing: each block keeps its inputs only and computes the rest again in backward."""
    for block in blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def within(model: nn.Module, fn: Callable[..., Any], *args: Any) -> Any:
    """``fn(model, *args)``, which may call parts of the model on their own: their shards are
    gathered as in ``forward``."""
    inner = model.__dict__.get("_within")
    return inner(fn, *args) if inner else fn(model, *args)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model: the entries of its longest ``ModuleList``."""
    lists = [m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.ModuleDict))]
    longest = max(lists, key=len, default=None)
    return list(longest.children()) if longest is not None else []


def full(t: Tensor) -> Tensor:
    """The whole tensor of which ``t`` may be a shard."""
    return t.full_tensor() if isinstance(t, DTensor) else t


def local(t: Tensor) -> Tensor:
    """This rank's part of ``t``, for what is done entry by entry."""
    return t.to_local() if isinstance(t, DTensor) else t


def part(t: Tensor) -> tuple[Tensor, list[int]]:
    """This rank's part of ``t``, and the place in the whole at which it begins: where DTensor cuts a
    dimension, every rank but the last ones has the same share."""
    begin = [0] * t.ndim
    if not isinstance(t, DTensor):
        return t, begin
    mine, (placement,) = t.to_local(), t.placements
    if placement.is_shard():
        dim = placement.dim  # type: ignore[attr-defined]
        begin[dim] = min(rank() * -(-t.shape[dim] // world()), t.shape[dim])
    return mine, begin


def empty(shape: Sequence[int], dtype: torch.dtype, where: torch.device, other: Tensor | None) -> Tensor:
    """A tensor without values, sharded as ``other`` is, where the two have one shape: no
    rank holds all of it."""
    if isinstance(other, DTensor) and tuple(shape) == tuple(other.shape):
        return empty_sharded(shape, dtype=dtype, device_mesh=other.device_mesh, placements=other.placements)
    return torch.empty(tuple(shape), dtype=dtype, device=where)


def everywhere(work: Callable[[], T]) -> list[T]:
    """What ``work`` returns on each rank, in rank order. A file that one of them cannot write is an error of
    all of them."""
    done: tuple[T | None, OSError | None]
    try:
        done = work(), None
    except OSError as error:
        done = None, error
    told = gather(done)
    for refused in (done[1], *(e for _, e in told)):
        if refused is not None:
            raise refused
    return [made for made, _ in told]


def like(t: Tensor, other: Tensor) -> Tensor:
    """``t`` sharded as ``other`` is, where the two have one shape."""
    if isinstance(t, DTensor) or not isinstance(other, DTensor) or t.shape != other.shape:
        return t
    return distribute_tensor(t, other.device_mesh, other.placements)


def norm(tensors: list[Tensor]) -> Tensor:
    """The 2-norm of all entries of all tensors, on all ranks: a scalar."""
    if not tensors:
        return torch.zeros(())
    kinds = [[t for t in tensors if isinstance(t, DTensor) == sharded] for sharded in (True, False)]
    norms = [full(nn.utils.get_total_norm(of)) for of in kinds if of]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()
