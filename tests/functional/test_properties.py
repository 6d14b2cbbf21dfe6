"""What must hold for any data: invariances, symmetry, identity, independence."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrsa_lightning.functional import (
    dimension_correlation,
    knn_overlap,
    linear_cka,
    linear_probe_transfer,
    orthogonal_procrustes,
)
from tests.functional.inputs import pair, rotation

examples = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
seeds = st.integers(0, 10_000)
scales = st.floats(-6, 6).map(lambda e: 10.0**e)
IDS = list(range(60))


def rows(seed: int) -> tuple[Tensor, Tensor]:
    """Float64, so that the transformations of a test add no rounding of their own."""
    x, y = pair(60, 7, seed=seed)
    return x.double(), y.double()


def values(x: Tensor, y: Tensor, ids: list[int]) -> dict[str, float]:
    held_out = orthogonal_procrustes(x, y, x_ids=ids)
    in_sample = orthogonal_procrustes(x, y, "in_sample")
    return {
        "cka": linear_cka(x, y).item(),
        "cka_plain": linear_cka(x, y, debiased=False).item(),
        "knn_cosine": knn_overlap(x, y, 5, x_ids=ids).item(),
        "knn_euclidean": knn_overlap(x, y, 5, similarity="euclidean", x_ids=ids).item(),
        "held_out": held_out.residual_variance_ratio.item(),
        "held_out_cosine": held_out.mean_cosine.item(),
        "in_sample": in_sample.residual_variance_ratio.item(),
        "in_sample_cosine": in_sample.global_cosine.item(),
        "entropy": in_sample.inverse_row_entropy.item(),
        "correlation": dimension_correlation(x, y).mean.item(),
    }


def assert_same(x: Tensor, y: Tensor, moved_x: Tensor, moved_y: Tensor, names: str) -> None:
    before, after = values(x, y, IDS), values(moved_x, moved_y, IDS)
    for name in names.split():
        assert after[name] == pytest.approx(before[name], rel=1e-6, abs=1e-9), name


@examples
@given(seeds, seeds)
def test_rotating_either_side_changes_nothing(seed: int, angle: int) -> None:
    x, y = rows(seed)
    turned = x @ rotation(7, angle), y @ rotation(7, angle + 1)
    assert_same(
        x, y, *turned,
        "cka cka_plain knn_cosine knn_euclidean held_out held_out_cosine in_sample "
        "in_sample_cosine",
    )  # fmt: skip


@examples
@given(seeds, scales, scales)
def test_scaling_either_side_changes_nothing(seed: int, a: float, b: float) -> None:
    x, y = rows(seed)
    assert_same(
        x, y, a * x, b * y,
        "cka cka_plain knn_cosine knn_euclidean held_out_cosine in_sample_cosine entropy "
        "correlation",
    )  # fmt: skip


@examples
@given(seeds, scales)
def test_scaling_both_sides_changes_no_residual(seed: int, scale: float) -> None:
    x, y = rows(seed)
    assert_same(x, y, scale * x, scale * y, "held_out in_sample")


@examples
@given(seeds, seeds)
def test_translating_either_side_changes_nothing(seed: int, other: int) -> None:
    x, y = rows(seed)
    generator = torch.Generator().manual_seed(other)
    shift = 10 * torch.randn(2, 7, generator=generator, dtype=torch.float64)
    assert_same(
        x, y, x + shift[0], y + shift[1],
        "cka cka_plain knn_euclidean held_out held_out_cosine in_sample in_sample_cosine entropy "
        "correlation",
    )  # fmt: skip


@examples
@given(seeds, seeds)
def test_the_order_of_samples_changes_nothing(seed: int, other: int) -> None:
    x, y = rows(seed)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(other))
    before = values(x, y, IDS)
    with_ids = values(x[order], y[order], order.tolist())
    for name, value in before.items():
        assert with_ids[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    # Without ids the content of y decides the halves, again whatever the order.
    assert orthogonal_procrustes(x[order], y[order]).global_cosine.item() == pytest.approx(
        orthogonal_procrustes(x, y).global_cosine.item(), rel=1e-9
    )


@examples
@given(seeds)
def test_symmetry(seed: int) -> None:
    x, y = rows(seed)
    assert_same(
        x, y, y, x,
        "cka cka_plain knn_cosine knn_euclidean held_out_cosine in_sample_cosine correlation",
    )  # fmt: skip


@examples
@given(seeds, st.integers(2, 40))
def test_identity_gives_the_perfect_value(seed: int, d: int) -> None:
    x, _ = pair(60, d, seed=seed)
    assert linear_cka(x, x).item() == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, x, debiased=False).item() == pytest.approx(1, abs=1e-6)
    assert knn_overlap(x, x, 5).item() == 1
    assert dimension_correlation(x, x).mean.item() == pytest.approx(1, abs=1e-6)
    result = orthogonal_procrustes(x, x, "in_sample")
    assert result.residual_variance_ratio.item() == pytest.approx(0, abs=1e-6)
    assert result.mean_cosine.item() == pytest.approx(1, abs=1e-6)
    assert result.inverse_row_entropy.item() == pytest.approx(1, abs=1e-6)


@pytest.fixture(scope="module")
def unrelated() -> list[dict[str, float]]:
    found = []
    for seed in range(30):
        x, y = torch.randn(2, 60, 7, generator=torch.Generator().manual_seed(seed)).double()
        found.append(values(x, y, IDS))
    return found


@pytest.mark.parametrize(
    ("name", "chance"),
    [("cka", 0), ("held_out", 2), ("held_out_cosine", 0), ("correlation", 0)],
)
def test_independence_gives_the_chance_level(
    unrelated: list[dict[str, float]], name: str, chance: float
) -> None:
    sample = torch.tensor([found[name] for found in unrelated])
    spread = sample.std().item() / len(unrelated) ** 0.5
    assert sample.mean().item() == pytest.approx(chance, abs=4 * spread)


@examples
@given(seeds, scales)
def test_probe_transfer_is_carried_by_any_common_similarity_transform(
    seed: int, scale: float
) -> None:
    x, y = rows(seed)
    labels = (y[:, 0] > 0).long()
    turn: Callable[[Tensor], Tensor] = lambda v: scale * v @ rotation(7, seed) + scale  # noqa: E731
    before = linear_probe_transfer(x, y, labels, x_ids=IDS)
    after = linear_probe_transfer(turn(x), turn(y), labels, x_ids=IDS)
    for a, b in zip(after, before, strict=True):
        assert a.item() == pytest.approx(b.item(), abs=1e-9)
