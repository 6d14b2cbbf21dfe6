"""One, two and four ranks give the same values, whatever each of them holds."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from hrsa_lightning.functional import dimension_correlation_heatmap
from hrsa_lightning.metrics import (
    DimensionCorrelationHeatmap,
    LinearCKA,
    LinearCKAHeatmap,
    OrthogonalProcrustes,
    hrsa_metrics,
)
from tests.ddp_pool import DDPPool
from tests.functional.inputs import HOSTILE, pair

pytestmark = pytest.mark.ddp

Sizes = list[int]


def shard(sizes: Sizes, rank: int) -> slice:
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def labelled(hostile: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, y = HOSTILE[hostile]()
    return x, y, (y[:, 0] > y[:, 0].median()).long()


def run_collection(rank: int, world_size: int, sizes: Sizes, hostile: str) -> dict[str, float]:
    x, y, labels = labelled(hostile)
    metrics = hrsa_metrics(num_classes=2, k=(5, 10), null=19, extra=("cknna", "predictivity"))
    rows = shard(sizes, rank)
    for part in torch.arange(len(x))[rows].split(20):
        metrics.update(x[part], y[part], labels[part], x_ids=part)
    return {key: value.item() for key, value in metrics.compute().items()}


def single(hostile: str) -> dict[str, float]:
    x, y, labels = labelled(hostile)
    metrics = hrsa_metrics(num_classes=2, k=(5, 10), null=19, extra=("cknna", "predictivity"))
    metrics.update(x, y, labels, x_ids=range(len(x)))
    return {key: value.item() for key, value in metrics.compute().items()}


def check(results: list[dict[str, float]], hostile: str) -> None:
    expected = single(hostile)
    for values in results:
        assert values == pytest.approx(results[0], rel=0, abs=0, nan_ok=True)
        for key, value in expected.items():
            rel = 1e-5 if key.endswith("_null") else 1e-6
            assert values[key] == pytest.approx(value, rel=rel, abs=1e-9, nan_ok=True), key


@pytest.mark.parametrize("hostile", ["ordinary", "large_mean", "massive_rows", "duplicates"])
@pytest.mark.parametrize("sizes", [[60, 60], [119, 1], [0, 120], [120, 0]])
def test_two_ranks(ddp_pool: DDPPool, sizes: Sizes, hostile: str) -> None:
    check(ddp_pool.run(run_collection, sizes, hostile), hostile)


@pytest.mark.parametrize("sizes", [[30, 30, 30, 30], [0, 77, 43, 0], [1, 2, 117, 0]])
def test_four_ranks(ddp_pool4: DDPPool, sizes: Sizes) -> None:
    check(ddp_pool4.run(run_collection, sizes, "ordinary"), "ordinary")


def run_without_ids(rank: int, world_size: int) -> dict[str, float]:
    x, y = pair()
    metrics = hrsa_metrics(k=(5,))
    metrics.update(x[rank::world_size], y[rank::world_size])
    return {key: value.item() for key, value in metrics.compute().items()}


def test_strided_shards_without_ids(ddp_pool: DDPPool) -> None:
    x, y = pair()
    metrics = hrsa_metrics(k=(5,))
    metrics.update(x, y)
    for values in ddp_pool.run(run_without_ids):
        for key, value in metrics.compute().items():
            assert values[key] == pytest.approx(value.item(), rel=1e-6), key


def cosine(metric: Any) -> float:
    value = metric.compute()
    return float(value["procrustes_global_cosine"] if isinstance(value, dict) else value)


STREAMED = {"sums": LinearCKA, "sums of float64 products": OrthogonalProcrustes}


def streamed(name: str) -> Any:
    return STREAMED[name](**({} if name == "sums" else {"mean_cosine": False}))


def run_twice(rank: int, world_size: int, name: str) -> list[float]:
    """Compute, go on, compute again: the exchange in place must not count anything twice."""
    x, y = pair()
    metric = streamed(name)
    found = []
    for part in (slice(0, 80), slice(80, 120)):
        rows = torch.arange(120)[part][rank::world_size]
        metric.update(x[rows], y[rows], x_ids=rows)
        found.append(cosine(metric))
    metric.reset()
    rows = torch.arange(rank, 120, world_size)[:30]
    metric.update(x[rows], y[rows], x_ids=rows)
    return [*found, cosine(metric)]


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.filterwarnings("ignore::hrsa_lightning.functional.SimilarityWarning")
def test_computing_twice_counts_nothing_twice(ddp_pool: DDPPool, name: str) -> None:
    x, y = pair()
    expected = []
    for n in (80, 120, 60):
        metric = streamed(name)
        metric.update(x[:n], y[:n], x_ids=range(n))
        expected.append(cosine(metric))
    for values in ddp_pool.run(run_twice, name):
        assert values == pytest.approx(expected, rel=1e-6)


def run_heatmap(rank: int, world_size: int) -> Any:
    x, y = pair()
    metric = LinearCKAHeatmap()
    if rank == 1:
        metric.update([x, x[:, :3]], [y])
    return metric.compute()


def test_heatmap_with_a_rank_that_never_saw_a_batch(ddp_pool: DDPPool) -> None:
    x, y = pair()
    alone = LinearCKAHeatmap()
    alone.update([x, x[:, :3]], [y])
    for value in ddp_pool.run(run_heatmap):
        torch.testing.assert_close(value, alone.compute(), rtol=1e-9, atol=0)


def run_correlation_heatmap(rank: int, world_size: int, sizes: Sizes) -> Any:
    """Layers of two scales, and a second value after the first."""
    x, y = pair()
    metric = DimensionCorrelationHeatmap()
    for part in torch.arange(120)[shard(sizes, rank)].split(20):
        metric.update([x[part], 1e-20 * x[part] + 1e-19], [y[part]])
    first = metric.compute()
    metric.update([x[:10], 1e-20 * x[:10] + 1e-19], [y[:10]])
    return first, metric.compute()


@pytest.mark.parametrize("sizes", [[60, 60], [0, 120], [1, 119]])
def test_streamed_heatmap(ddp_pool: DDPPool, sizes: Sizes) -> None:
    x, y = pair()
    again = [torch.cat((v, *[v[:10]] * 2)) for v in (x, y)]
    results = ddp_pool.run(run_correlation_heatmap, sizes)
    for expected, found in ((pair(), 0), (again, 1)):
        value = dimension_correlation_heatmap([expected[0]] * 2, [expected[1]])
        for values in results:
            torch.testing.assert_close(values[found], value, rtol=0, atol=1e-7)


def test_streamed_heatmap_on_four_ranks(ddp_pool4: DDPPool) -> None:
    x, y = pair()
    value = dimension_correlation_heatmap([x] * 2, [y])
    for first, _ in ddp_pool4.run(run_correlation_heatmap, [0, 77, 43, 0]):
        torch.testing.assert_close(first, value, rtol=0, atol=1e-7)


def run_jackknife(rank: int, world_size: int, sizes: Sizes) -> dict[str, float]:
    x, y, labels = labelled("ordinary")
    metrics = hrsa_metrics(num_classes=2, k=(5,), num_jackknife_groups=4)
    rows = shard(sizes, rank)
    metrics.update(x[rows], y[rows], labels[rows])
    return {key: value.item() for key, value in metrics.compute().items()}


@pytest.mark.parametrize("sizes", [[50, 70], [0, 120]])
def test_standard_errors_do_not_depend_on_ranks(ddp_pool: DDPPool, sizes: Sizes) -> None:
    expected = run_jackknife(0, 1, [120])
    assert expected["cka_se"] > 0
    for values in ddp_pool.run(run_jackknife, sizes):
        assert values == pytest.approx(expected, rel=1e-4)


def run_peak(rank: int, world_size: int, d: int) -> tuple[int, int]:
    """Bytes that synchronizing allocates beyond the state, and those of the state."""
    metric = LinearCKA()
    x = torch.randn(32, d)
    metric.update(x, x + torch.randn(32, d))
    state = sum(v.numel() * v.element_size() for v in metric.metric_state.values())
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        metric.sync()
    allocated = [
        event.self_cpu_memory_usage
        for event in profile.events()
        if event.name in ("aten::empty", "aten::empty_strided", "aten::clone")
    ]
    metric.unsync()
    return max(allocated, default=0), state


def test_exchange_makes_no_copy_of_the_state(ddp_pool: DDPPool) -> None:
    for largest, state in ddp_pool.run(run_peak, 256):
        assert state > 4 * 256 * 256 * 8
        assert largest < state / 4


def run_subgroup(rank: int, world_size: int) -> float | None:
    x, y = pair()
    group = dist.new_group([1, 3])
    if rank not in (1, 3):
        return None
    metric = LinearCKAHeatmap(process_group=group)
    half = slice(0, 50) if rank == 1 else slice(50, 120)
    metric.update([x[half]], [y[half]])
    return metric.compute().item()


def test_a_process_group_of_some_ranks(ddp_pool4: DDPPool) -> None:
    x, y = pair()
    alone = LinearCKAHeatmap()
    alone.update([x], [y])
    results = ddp_pool4.run(run_subgroup)
    assert results[0] is results[2] is None
    assert results[1] == results[3] == pytest.approx(alone.compute().item(), rel=1e-9)
