import pytest
import torch

from hrsa_lightning.io.distributed import PeerError, Ranks, gather, rank, world_size


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


def test_one_process_needs_no_group():
    ranks = Ranks()
    assert ranks.gather_objects(3) == [3]
    assert ranks.broadcast("x") == "x"
    rows = ranks.gather_rows({1: torch.ones(1, 2), 0: torch.zeros(2, 2)}, [0, 1])
    assert rows.tolist() == [[0, 0], [0, 0], [1, 1]]


def fail_alone():
    with Ranks().raise_on_all_ranks():
        raise ValueError("mine")


def test_own_errors_pass():
    with pytest.raises(ValueError, match="mine"):
        fail_alone()


def _rows(rank, world_size, counts):
    """Batch b has counts[b] rows that all hold b; ranks hold them in turn."""
    ranks = Ranks(world_size, rank)
    shards = {
        b: torch.full((n, 3), float(b)) for b, n in enumerate(counts) if b % world_size == rank
    }
    return ranks.gather_rows(shards, range(len(counts)))[:, 0].tolist()


@pytest.mark.ddp
@pytest.mark.parametrize("counts", [[2, 3, 1, 2, 1], [4], [1, 5]])
def test_rows_come_together_in_order(ddp_pool, counts):
    expected = [float(b) for b, n in enumerate(counts) for _ in range(n)]
    assert ddp_pool.run(_rows, counts) == [expected, expected]


def _same_share(rank, world_size):
    """Two ranks that hold parts of one model see the same shard."""
    ranks = Ranks(world_size, rank, num_shards=1, shard=0)
    return ranks.gather_rows({0: torch.full((2, 1), float(rank))}, [0]).flatten().tolist()


@pytest.mark.ddp
def test_a_shard_that_several_ranks_hold_is_taken_once(ddp_pool):
    assert ddp_pool.run(_same_share) == [[0.0, 0.0], [0.0, 0.0]]


def _fails_on(rank, world_size, failing):
    ranks = Ranks(world_size, rank)
    try:
        with ranks.raise_on_all_ranks():
            if rank in failing:
                raise ValueError(f"broken on {rank}")
    except (ValueError, PeerError) as error:
        return type(error).__name__, str(error)
    return "fine", ranks.broadcast(rank)


@pytest.mark.ddp
def test_a_failure_on_one_rank_stops_all_and_hangs_none(ddp_pool):
    assert ddp_pool.run(_fails_on, [1]) == [
        ("PeerError", "rank 1: ValueError: broken on 1"),
        ("ValueError", "broken on 1"),
    ]
    assert ddp_pool.run(_fails_on, []) == [("fine", 0), ("fine", 0)]
