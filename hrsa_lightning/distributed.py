"""Rank, world size, gathering; without a process group, those of a single process."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


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


def whole(tensor: Any) -> Any:
    """All of a tensor whose parts lie on several ranks (a `DTensor`), on the CPU.

    All ranks have to call it. Anything else is returned as it is.
    """
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def shared_out(value: Any, like: Tensor) -> Any:
    """A whole tensor distributed over ranks as `like` is; anything of another shape as it came."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


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
