import pytest
import torch
import torch.distributed as dist

pytestmark = pytest.mark.ddp


def _sum_of_ranks(rank, world_size, offset):
    value = torch.tensor([float(rank + offset)])
    dist.all_reduce(value)
    return value.item(), world_size


def test_pool_runs_in_every_rank(ddp_pool):
    assert ddp_pool.run(_sum_of_ranks, 10) == [(21.0, 2), (21.0, 2)]
    assert ddp_pool.run(_sum_of_ranks, 0) == [(1.0, 2), (1.0, 2)]
