"""Rank, world size, gathering; without a process group, those of a single process."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


def is_distributed() -> bool:
    """Whether a process group is initialized."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number in the default group; 0 without a group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes in the default group; 1 without a group."""
    return dist.get_world_size() if is_distributed() else 1


def gather(tensor: Tensor) -> Tensor:
    """Concatenate every rank's tensor along dimension 0, in rank order, keeping the gradient.

    The gradient of a row is the sum over ranks of what each rank's loss contributes to it. With a
    loss that each rank averages over its own rows, and gradients averaged over ranks as DDP does,
    the parameters therefore receive the gradient of the mean over all rows of all ranks.

    Args:
        tensor: `(rows, ...)`, of the same shape and dtype on every rank. All ranks must agree on
            whether it needs a gradient, since the backward pass communicates too.

    Returns:
        `(world_size * rows, ...)`; the tensor itself when there is one process.

    Example:
        >>> gather(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


def gather_on_rank_zero(tensor: Any) -> Any:
    """The full tensor of a `DTensor` on rank 0's CPU, and `None` on every other rank.

    All ranks have to call it. Ranks other than 0 only send their shard: calling it tensor by tensor
    for a whole model takes them no more memory than one shard.

    Args:
        tensor: Sharded along dimension 0 over a one-dimensional mesh, as by FSDP2; anything else is
            returned as it is, on all ranks.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    assert tensor.placements == (Shard(0),)
    group, size = tensor.device_mesh.get_group(), tensor.device_mesh.size()
    num_rows, *rest = tensor.shape
    # Shards are those of `torch.chunk`: the last ones may be shorter, or empty.
    rows = -(-num_rows // size)
    shard = tensor.to_local().detach().contiguous()
    if len(shard) < rows:
        shard = torch.cat([shard, shard.new_zeros(rows - len(shard), *rest)])
    if rank() > 0:
        dist.gather(shard, dst=0, group=group)
        return None
    full = shard.new_empty(size, rows, *rest)
    dist.gather(shard, list(full.unbind()), dst=0, group=group)
    return full.flatten(0, 1)[:num_rows].cpu()


def shard_like(value: Any, like: Tensor) -> Any:
    """This rank's shard of a full tensor, as a `DTensor` sharded as `like` is.

    Every rank copies its own rows and touches no others, so that a tensor mapped from a file is
    read once by all ranks together. Anything of another shape is returned as it is.
    """
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    assert like.placements == (Shard(0),)
    local = like.to_local()
    mesh = like.device_mesh
    start = min(len(value), mesh.get_local_rank() * -(-len(value) // mesh.size()))
    shard = value[start : start + len(local)].to(local.device, copy=True)
    return DTensor.from_local(
        shard, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        # A reduce-scatter would move half as much, but gloo's support for it is recent, and the
        # embeddings are small beside the model's own gradients.
        total = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]
