"""Collectives of the ranks that share a metric."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor


class Exchange:
    """Collectives of one process group."""

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.group = group
        self.device = device
        self.size = dist.get_world_size(group)

    def add(self, value: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        dist.all_reduce(value, group=self.group)
        return value

    def largest(self, values: Sequence[int]) -> list[int]:
        """Elementwise maximum over ranks."""
        packed = torch.tensor(values, dtype=torch.int64, device=self.device)
        return cast(list[int], self.largest_values(packed).tolist())

    def largest_values(self, value: Tensor) -> Tensor:
        """Elementwise maximum over ranks, in a copy."""
        found = value.clone()
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.group)
        return found

    def gather_rows(self, batches: list[Tensor]) -> Tensor:
        """Rows of all ranks in rank order; ranks may hold different numbers of them, or none."""
        rows = sum(batch.shape[0] for batch in batches)
        first = batches[0] if batches else torch.zeros(0, 0)
        matrix = int(first.ndim == 2 and bool(batches))
        width = first.shape[1] if matrix else 0
        kinds = (torch.float32, torch.float64, torch.int64)
        kind = kinds.index(first.dtype) if batches and first.dtype in kinds else 0
        matrix, width, kind = self.largest([matrix, width, kind])
        counts = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        rank = dist.get_rank(self.group)
        counts[rank] = rows
        sizes = cast(list[int], self.add(counts).tolist())
        shape = (sum(sizes), width) if matrix else (sum(sizes),)
        result = torch.empty(shape, dtype=kinds[kind], device=self.device)
        for source, part in enumerate(torch.split(result, sizes)):
            if part.shape[0] == 0:
                continue
            if source == rank:
                torch.cat([batch.to(result.dtype) for batch in batches], out=part)
            origin = source if self.group is None else dist.get_global_rank(self.group, source)
            dist.broadcast(part, src=origin, group=self.group)
        return result
