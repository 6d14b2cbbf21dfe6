"""What ranks tell each other during an evaluation: rows, values, and whether one of them failed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hrsa_lightning.errors import HRSAError

__all__ = ["Exchange", "PeerError"]

T = TypeVar("T")


class PeerError(HRSAError):
    """Another rank failed, so that this one gives up the same evaluation."""


class Exchange:
    """Collectives of one evaluation; with one process every call returns at once.

    Args:
        world_size: Number of processes that take part; they form the default group.
        rank: This process.
        num_shards: Over how many shards the probes are spread. Smaller than `world_size` when ranks
            hold parts of one model and see the same data.
        shard: The shard of this process.
        device: Where tensors must be for the group's backend.
    """

    def __init__(
        self,
        world_size: int = 1,
        rank: int = 0,
        num_shards: int | None = None,
        shard: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.world_size = world_size
        self.rank = rank
        self.num_shards = num_shards if num_shards is not None else world_size
        self.shard = shard if shard is not None else rank
        self._device = device or torch.device("cpu")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block without collectives; when it fails on one rank, it fails on all.

        Raises:
            Exception: This rank's own error.
            PeerError: When only other ranks failed, with the first one's message.
        """
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        messages = self.all(None if own is None else f"{type(own).__name__}: {own}")
        if own is not None:
            raise own
        for rank, message in enumerate(messages):
            if message is not None:
                raise PeerError(f"rank {rank}: {message}")

    def all(self, value: T) -> list[T]:
        """Every rank's value, in rank order."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def first(self, value: T) -> T:
        """Rank 0's value."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def rows(self, shards: dict[int, Tensor], order: Sequence[int]) -> Tensor:
        """Put the batches that different ranks hold back into one matrix.

        Each rank in turn sends its rows, so that beside the result only one rank's share is in
        memory at a time.

        Args:
            shards: Batch number to its rows, for the batches of this rank.
            order: All batch numbers, in the order of the result.

        Returns:
            (all rows, features), on the device of this rank's rows or the CPU.
        """
        if self.world_size == 1:
            return torch.cat([shards[index] for index in order])
        home = next(iter(shards.values())).device if shards else torch.device("cpu")
        own = {index: tuple(rows.shape) for index, rows in shards.items()}
        dtypes = self.all(next(iter(shards.values())).dtype if shards else None)
        dtype = next(found for found in dtypes if found is not None)
        found: dict[int, Tensor] = {}
        for source, shapes in enumerate(self.all(own)):
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
