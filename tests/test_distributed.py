import pytest
import torch

from hrsa_lightning.distributed import gather, rank, world_size


def test_one_process_without_a_group():
    rows = torch.randn(3, 2, requires_grad=True)
    assert (rank(), world_size()) == (0, 1)
    assert gather(rows) is rows


def _gather_and_weigh(rank_, world_size_, dtype):
    """Each rank weighs the gathered rows by weights of its own; returns what it saw."""
    rows = torch.full((2, 3), float(rank_), dtype=dtype).requires_grad_()
    gathered = gather(rows)
    weights = torch.arange(2.0 * world_size_, dtype=dtype)[:, None] + 100 * rank_
    (gathered * weights).sum().backward()
    # As lists: a tensor would go back through a shared-memory handle.
    return rank(), world_size(), gathered.tolist(), rows.grad.tolist()


@pytest.mark.ddp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_in_rank_order_and_gradients_summed_over_ranks(ddp_pool, dtype):
    for number, (own_rank, size, gathered, gradient) in enumerate(
        ddp_pool.run(_gather_and_weigh, dtype)
    ):
        assert (own_rank, size) == (number, 2)
        assert gathered == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
        # Row i of rank r is row 2r + i of all: weight (2r + i) on rank 0 and 100 more on rank 1.
        assert gradient == [[2 * (2 * number + i) + 100.0] * 3 for i in range(2)]


def _gather_integers(rank_, world_size_):
    # A slice with a stride: what is sent must be contiguous.
    column = torch.arange(6).view(3, 2)[:, 1] + 10 * rank_
    return gather(column).tolist()


@pytest.mark.ddp
def test_integers_and_strided_views(ddp_pool):
    assert ddp_pool.run(_gather_integers) == [[1, 3, 5, 11, 13, 15]] * 2


def _gather_without_gradient(rank_, world_size_):
    with torch.no_grad():
        gathered = gather(torch.ones(1, requires_grad=True))
    return gathered.requires_grad


@pytest.mark.ddp
def test_no_grad(ddp_pool):
    assert ddp_pool.run(_gather_without_gradient) == [False, False]
