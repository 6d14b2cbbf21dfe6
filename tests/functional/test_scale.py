"""Values do not depend on scale, from the smallest to the largest that a dtype holds."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrsa_lightning import functional as F  # noqa: N812
from hrsa_lightning.metrics import OrthogonalProcrustes, hrsa_metrics
from tests.functional.inputs import pair, rotation

SIZES = {"more samples than features": (120, 16), "fewer": (24, 40)}
EACH = pytest.mark.parametrize("size", SIZES)
powers = st.floats(-30, 30)
examples = settings(max_examples=25, deadline=None, derandomize=True)


def values(x: Tensor, y: Tensor, relative: float = 1.0) -> dict[str, float]:
    """Of every function; ``relative`` is the scale of x over that of y, for those it matters to."""
    ids = list(range(len(x)))
    labels = torch.arange(len(x)) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", F.SimilarityWarning)
        held_out = F.orthogonal_procrustes(x, y, x_ids=ids)
        paper = F.orthogonal_procrustes(x, y, "paper")
        spectrum = F.alignment_spectrum(x, y)
    found = {
        "cka": F.linear_cka(x, y),
        "cka_plain": F.linear_cka(x, y, debiased=False),
        "cka_standardized": F.linear_cka(x, y, standardize=True),
        "cka_with_reference": F.linear_cka(x, F.Reference(y)),
        "cka_with_gradients": F.linear_cka(x.clone().requires_grad_(), y).detach(),
        "heatmap": F.linear_cka_heatmap([x], [y])[0, 0],
        "heatmap_plain": F.linear_cka_heatmap([x], [y], debiased=False)[0, 0],
        "knn_cosine": F.knn_overlap(x, y, 5, x_ids=ids),
        "knn_euclidean": F.knn_overlap(x, y, 5, similarity="euclidean", x_ids=ids),
        "procrustes_global_cosine": held_out.global_cosine,
        "procrustes_mean_cosine": held_out.mean_cosine,
        "inverse_row_entropy": held_out.inverse_row_entropy,
        # Of r^2 |x|^2 + |y|^2 - 2 r <x, y>, the part that does not say what r is.
        "paper_global_cosine": paper.global_cosine,
        "paper_mean_cosine": paper.mean_cosine,
        "spectrum": spectrum.singular_values[1] / spectrum.singular_values[0],
        "correlation": F.dimension_correlation(x, y).mean,
        "correlation_heatmap": F.dimension_correlation_heatmap([x], [y])[0, 0],
        "probe_source": F.linear_probe_transfer(x, y, labels, x_ids=ids).source,
        "probe_ceiling": F.linear_probe_transfer(x, y, labels, x_ids=ids).ceiling,
        "standard_error": F.jackknife(F.linear_cka, x, y, x_ids=ids, num_groups=5).standard_error,
    }
    if relative == 1:
        found["procrustes_residual"] = held_out.residual_variance_ratio
        found["probe_transfer"] = F.linear_probe_transfer(x, y, labels, x_ids=ids).transfer
    return {name: value.item() for name, value in found.items()}


def streamed(x: Tensor, y: Tensor) -> dict[str, float]:
    metrics = hrsa_metrics(k=(5,))
    for rows in torch.arange(len(x)).split(50):
        metrics.update(x[rows], y[rows], x_ids=rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", F.SimilarityWarning)
        found = {name: value.item() for name, value in metrics.compute().items()}
    del found["procrustes_residual"]
    return found


def assert_same(found: dict[str, float], expected: dict[str, float]) -> None:
    for name, value in found.items():
        # A standard error is a difference of values, whose rounding it shows.
        rel = 1e-3 if name == "standard_error" else 1e-5
        assert value == pytest.approx(expected[name], rel=rel, abs=1e-7, nan_ok=True), name


@EACH
@examples
@given(powers, powers)
def test_no_scale_of_either_side_changes_a_value(size: str, a: float, b: float) -> None:
    x, y = pair(*SIZES[size])
    assert_same(values(10**a * x, 10**b * y, relative=2), values(x, y))
    assert_same(streamed(10**a * x, 10**b * y), streamed(x, y))


@EACH
@examples
@given(powers)
def test_no_scale_of_both_sides_changes_a_value(size: str, a: float) -> None:
    x, y = pair(*SIZES[size])
    found = values(10**a * x, 10**a * y)
    assert_same(found, values(x, y))
    assert found["procrustes_residual"] > 0


@EACH
@pytest.mark.parametrize("a", [-300, -200, 200, 300])
@pytest.mark.parametrize("b", [-250, 0, 250])
def test_extremes_of_float64(size: str, a: int, b: int) -> None:
    x, y = (rows.double() for rows in pair(*SIZES[size]))
    found = values(10.0**a * x, 10.0**b * y, relative=2)
    if abs(a + b) > 300:
        del found["spectrum"]  # of values that float64 cannot hold
    assert_same(found, values(x, y))
    assert_same(streamed(10.0**a * x, 10.0**b * y), streamed(x, y))


@pytest.mark.parametrize("exponent", [-149, -140, 120])
def test_subnormal_and_near_overflow_values_of_float32(exponent: int) -> None:
    """Integers, so that they survive as subnormal numbers."""
    x, y = (rows.mul(20).round() for rows in pair())
    moved = [torch.ldexp(rows, torch.tensor(exponent)) for rows in (x, y)]
    assert bool((torch.ldexp(moved[0], torch.tensor(-exponent)) == x).all()), "nothing was lost"
    assert_same(values(*moved), values(x, y))
    assert_same(streamed(*moved), streamed(x, y))


@pytest.mark.parametrize(("first", "second"), [(1e-30, 1e25), (1e25, 1e-30), (0.0, 1e-30)])
def test_batches_of_different_scales(first: float, second: float) -> None:
    x, y = pair()
    x[:50] *= first
    x[50:] *= second
    metrics = hrsa_metrics("representation")
    for rows in torch.arange(120).split(50):
        metrics.update(x[rows], y[rows], x_ids=rows)
    found = {name: value.item() for name, value in metrics.compute().items()}
    expected = F.orthogonal_procrustes(x, y, x_ids=range(120))
    assert found["procrustes_global_cosine"] == pytest.approx(expected.global_cosine.item(), 1e-5)
    correlation = F.dimension_correlation(x, y).mean.item()
    assert found["dimension_correlation"] == pytest.approx(correlation, rel=1e-5)


def hostile(
    size: str, condition: float, distance: float, massive: str, offset: float, seed: int
) -> tuple[Tensor, Tensor]:
    """A pair with a spectrum that falls by powers of ten, at a distance, massive or off center."""
    n, d = SIZES[size]
    generator = torch.Generator().manual_seed(seed)
    q, noise = rotation(d, seed), torch.randn(n, d, generator=generator, dtype=torch.float64)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(0, -condition, d) @ q
    y = x @ q + 10**distance * x.std() * noise
    if massive == "rows":
        x[2:7] *= 1e3
        y[5] *= 1e4
    elif massive == "dimension":
        x[:, 3] *= 1e4
        y[:, 5] *= 300
    directions = torch.randn(2, d, generator=generator, dtype=torch.float64)
    shifts = 10**offset * directions * torch.stack((x.std(0), y.std(0)))
    return (x + shifts[0]).float(), (y + shifts[1]).float()


@EACH
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    condition=st.floats(0, 4),
    distance=st.floats(-4, 1),
    massive=st.sampled_from(["no", "rows", "dimension"]),
    offset=st.sampled_from([-1.0, 1.0, 3.5]),
    seed=st.integers(0, 99),
)
def test_float32_gives_the_values_of_float64(
    size: str, condition: float, distance: float, massive: str, offset: float, seed: int
) -> None:
    """Functions and metrics, the latter with and without rows, on the same numbers."""
    if massive == "dimension":
        offset = min(offset, 1)  # rows would have one direction to rounding
    x, y = hostile(size, condition, distance, massive, offset, seed)
    expected = values(x.double(), y.double())
    found = values(x, y)
    for name in ("inverse_row_entropy", "standard_error", "spectrum"):
        del found[name]  # defined to the rounding of the data, a difference, a share of small ones
    assert_same(found, expected)
    for protocol in ("held_out", "in_sample", "paper"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", F.SimilarityWarning)
            exact = F.orthogonal_procrustes(x.double(), y.double(), protocol, x_ids=range(len(x)))
        for mean_cosine in (True, False):
            metric = OrthogonalProcrustes(protocol, mean_cosine=mean_cosine)
            for rows in torch.arange(len(x)).split(50):
                metric.update(x[rows], y[rows], x_ids=rows)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", F.SimilarityWarning)
                streamed = metric.compute()
            del streamed["inverse_row_entropy"]
            for (name, value), wanted in zip(
                streamed.items(), exact[: 2 + mean_cosine], strict=True
            ):
                assert value.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-7), name


def test_finite_input_is_never_called_not_finite() -> None:
    x, _ = pair()
    with pytest.warns(F.SimilarityWarning, match="has no variance"):
        assert math.isnan(F.linear_cka(torch.full_like(x, 3e38), x).item())
    with pytest.warns(F.SimilarityWarning, match="an input is not finite"):
        assert math.isnan(F.linear_cka(1e20 * (1e20 * x), x).item())


def test_halves_without_ids_do_not_depend_on_scale() -> None:
    x, y = pair()
    expected = F.orthogonal_procrustes(x, y)
    for scale in (3.0, 1e-20, 7e25):
        found = F.orthogonal_procrustes(x, scale * y)
        assert found.global_cosine.item() == pytest.approx(expected.global_cosine.item(), rel=1e-5)
        labels = torch.arange(120) % 2
        assert F.linear_probe_transfer(x, scale * y, labels).source == (
            F.linear_probe_transfer(x, y, labels).source
        )


def test_a_float64_input_has_float64_thresholds() -> None:
    """A deviation of 1e-8 of the mean is not rounding of float64, and is of float32."""
    x, y = (1e8 + rows.double() for rows in pair())
    result = F.dimension_correlation(x, y)
    assert result.degenerate_share == 0
    assert result.mean.item() == pytest.approx(
        F.dimension_correlation(x - 1e8, y - 1e8).mean.item()
    )
    x[:, 0] = (1e4 * x[:, 1] - 1e12) * 1e-9 + x[:, 1]
    entropy = F.orthogonal_procrustes(x, y, "in_sample").inverse_row_entropy
    assert math.isfinite(entropy.item()), "rank deficient to float32 only"
