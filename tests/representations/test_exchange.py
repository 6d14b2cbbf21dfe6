import pytest
import torch

from hrsa_lightning.representations.exchange import Exchange, PeerError


def test_one_process_needs_no_group():
    exchange = Exchange()
    assert exchange.all(3) == [3]
    assert exchange.first("x") == "x"
    rows = exchange.rows({1: torch.ones(1, 2), 0: torch.zeros(2, 2)}, [0, 1])
    assert rows.tolist() == [[0, 0], [0, 0], [1, 1]]


def fail_alone():
    with Exchange().together():
        raise ValueError("mine")


def test_own_errors_pass():
    with pytest.raises(ValueError, match="mine"):
        fail_alone()


def _rows(rank, world_size, counts):
    """Batch b has counts[b] rows that all hold b; ranks hold them in turn."""
    exchange = Exchange(world_size, rank)
    shards = {
        b: torch.full((n, 3), float(b)) for b, n in enumerate(counts) if b % world_size == rank
    }
    return exchange.rows(shards, range(len(counts)))[:, 0].tolist()


@pytest.mark.ddp
@pytest.mark.parametrize("counts", [[2, 3, 1, 2, 1], [4], [1, 5]])
def test_rows_come_together_in_order(ddp_pool, counts):
    expected = [float(b) for b, n in enumerate(counts) for _ in range(n)]
    assert ddp_pool.run(_rows, counts) == [expected, expected]


def _same_share(rank, world_size):
    """Two ranks that hold parts of one model see the same shard."""
    exchange = Exchange(world_size, rank, num_shards=1, shard=0)
    return exchange.rows({0: torch.full((2, 1), float(rank))}, [0]).flatten().tolist()


@pytest.mark.ddp
def test_a_shard_that_several_ranks_hold_is_taken_once(ddp_pool):
    assert ddp_pool.run(_same_share) == [[0.0, 0.0], [0.0, 0.0]]


def _fails_on(rank, world_size, failing):
    exchange = Exchange(world_size, rank)
    try:
        with exchange.together():
            if rank in failing:
                raise ValueError(f"broken on {rank}")
    except (ValueError, PeerError) as error:
        return type(error).__name__, str(error)
    return "fine", exchange.first(rank)


@pytest.mark.ddp
def test_a_failure_on_one_rank_stops_all_and_hangs_none(ddp_pool):
    assert ddp_pool.run(_fails_on, [1]) == [
        ("PeerError", "rank 1: ValueError: broken on 1"),
        ("ValueError", "broken on 1"),
    ]
    assert ddp_pool.run(_fails_on, []) == [("fine", 0), ("fine", 0)]
