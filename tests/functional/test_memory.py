"""Working memory stays within the chunk budget, counted allocation by allocation."""

from collections.abc import Callable

import pytest
import torch

from hrsa_lightning import functional as F  # noqa: N812
from tests.allocations import peak_bytes

SAMPLES, FEATURES = 4096, 512
CHUNK_BYTES = 14 * 2**20
"""To the d^2 sums as the default is to those of 1,536 features."""

METRICS: dict[str, Callable[..., object]] = {
    "cka": F.linear_cka,
    "standardized cka": lambda x, y, **options: F.linear_cka(x, y, standardize=True, **options),
    "heatmap": lambda x, y, **options: F.linear_cka_heatmap([x], [y], **options),
    "procrustes in sample": lambda x, y, **options: F.orthogonal_procrustes(
        x, y, "in_sample", **options
    ),
    "procrustes held out": F.orthogonal_procrustes,
    "procrustes of the paper": lambda x, y, **options: F.orthogonal_procrustes(
        x, y, "paper", **options
    ),
    "neighbors": F.knn_overlap,
    "cknna": F.cknna,
    "predictivity": F.linear_predictivity,
    "correlation": F.dimension_correlation,
    "probe": lambda x, y, **options: F.linear_probe_transfer(x, y, x[:, :8].argmax(1), **options),
}


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, FEATURES, generator=generator)
    return x, x + torch.randn(SAMPLES, FEATURES, generator=generator)


def test_the_count_sees_a_copy() -> None:
    x, _ = inputs()
    assert peak_bytes(lambda: (x + 1) * 2) == pytest.approx(2 * x.numel() * 4, rel=0.01)


@pytest.mark.parametrize("name", METRICS)
def test_memory_above_the_inputs(name: str) -> None:
    x, y = inputs()
    copies = 2 * x.numel() * 4 if name == "standardized cka" else 0
    peak = peak_bytes(lambda: METRICS[name](x, y, chunk_bytes=CHUNK_BYTES))
    assert peak <= 1.2 * CHUNK_BYTES + copies


@pytest.mark.parametrize("name", ["cka", "neighbors"])
def test_memory_with_a_kept_reference(name: str) -> None:
    x, y = inputs()
    reference = F.Reference(y)
    for _ in range(2):
        peak = peak_bytes(lambda: METRICS[name](x, reference, chunk_bytes=CHUNK_BYTES))
        assert peak <= 1.2 * CHUNK_BYTES
