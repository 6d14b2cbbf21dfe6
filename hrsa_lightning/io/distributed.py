"""Rank, world size, gathering; without a process group, those of a single process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from hrsa_lightning.errors import HRSAError

T = TypeVar("T")


class PeerError(HRSAError):
    """Another rank failed, so that this one gives up the same evaluation."""


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


class Ranks:
    """The processes of one evaluation; with a single one every call returns at once.

    Args:
        world_size: Number of processes; they form the default group. `None` takes what
            `torch.distributed` says.
        rank: Number of this process.
        num_shards: Into how many shards the inputs are divided; the default is one for each
            process. Smaller where ranks hold parts of one model and see the same data.
        shard: The shard of this process; the default is its rank.
        device: Where tensors must be for the group's backend.
    """

    def __init__(
        self,
        world_size: int | None = None,
        rank: int | None = None,
        num_shards: int | None = None,
        shard: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        group = (dist.get_world_size(), dist.get_rank()) if is_distributed() else (1, 0)
        self.world_size = group[0] if world_size is None else world_size
        self.rank = group[1] if rank is None else rank
        self.num_shards = num_shards if num_shards is not None else self.world_size
        self.shard = shard if shard is not None else self.rank
        self._device = device or torch.device("cpu")

    @contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """Run a block without collectives; an error on one rank is raised on all.

        Raises:
            Exception: This rank's own error.
            PeerError: When only other ranks failed, with the first one's message.
        """
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        messages = self.gather_objects(None if own is None else f"{type(own).__name__}: {own}")
        if own is not None:
            raise own
        for number, message in enumerate(messages):
            if message is not None:
                raise PeerError(f"rank {number}: {message}")

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, in rank order."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's value."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather_rows(self, shards: dict[int, Tensor], order: Sequence[int]) -> Tensor:
        """Concatenate the batches of all ranks.

        Ranks send in turn, so that beside the result only one rank's share is in memory.

        Args:
            shards: Batch number to rows, for the batches of this rank.
            order: All batch numbers, in the order of the result.

        Returns:
            (all rows, features), on the device of this rank's rows or the CPU.
        """
        if self.world_size == 1:
            return torch.cat([shards[index] for index in order])
        home = next(iter(shards.values())).device if shards else torch.device("cpu")
        own = {index: tuple(rows.shape) for index, rows in shards.items()}
        dtypes = self.gather_objects(next(iter(shards.values())).dtype if shards else None)
        dtype = next(found for found in dtypes if found is not None)
        found: dict[int, Tensor] = {}
        for source, shapes in enumerate(self.gather_objects(own)):
            wanted = [index for index in shapes if index not in found]
            if not wanted:
                continue
            if source == self.rank:
                block = torch.cat([shards[index] for index in wanted]).to(self._device)
            else:
                features = shapes[wanted[0]][1:]
                total = sum(shapes[index][0] for index in wanted)
                block = torch.empty((total, *features), dtype=dtype, device=self._device)
            dist.broadcast(block, src=source)
            sizes = [shapes[index][0] for index in wanted]
            for index, part in zip(wanted, torch.split(block.to(home), sizes), strict=True):
                found[index] = part
        return torch.cat([found[index] for index in order])
