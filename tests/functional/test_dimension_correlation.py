import math

import pytest
import torch

from hrsa_lightning.functional import (
    SimilarityWarning,
    dimension_correlation,
    dimension_correlation_heatmap,
)
from hrsa_lightning.functional.dimension_correlation import (
    _quick_heatmap,
    correlation_from_moments,
)
from tests.functional import reference
from tests.functional.inputs import HOSTILE
from tests.functional.test_cka import moments_of

EQUAL_WIDTH = [name for name in HOSTILE if name != "different_widths"]


@pytest.mark.parametrize("name", EQUAL_WIDTH)
def test_agrees_with_the_definition(name: str) -> None:
    x, y = HOSTILE[name]()
    expected = torch.from_numpy(reference.correlations(x, y))
    result = dimension_correlation(x, y)
    torch.testing.assert_close(result.values, expected, rtol=1e-6, atol=1e-7)
    assert result.mean.item() == pytest.approx(expected.mean().item(), rel=1e-6)
    assert result.median.item() == pytest.approx(expected.quantile(0.5).item(), rel=1e-6)
    assert result.degenerate_share.item() == 0


@pytest.mark.parametrize("name", EQUAL_WIDTH)
def test_moments_agree_with_the_definition(name: str) -> None:
    x, y = HOSTILE[name]()
    expected = torch.from_numpy(reference.correlations(x, y))
    result = correlation_from_moments(moments_of(x, y, 2))
    torch.testing.assert_close(result.values, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ordinary_layers_need_no_sums_per_dimension(dtype: torch.dtype) -> None:
    x, y = (torch.cat([rows] * 7).to(dtype) + 3 for rows in HOSTILE["ordinary"]())
    x += torch.arange(len(x))[:, None] / len(x)
    expected = [[dimension_correlation(a, b).mean for b in (y, -y)] for a in (x, y, 5 * x)]
    quick = _quick_heatmap([x, y, 5 * x], [y, -y], 2**27)
    assert quick is not None
    torch.testing.assert_close(quick, torch.tensor(expected).double(), rtol=1e-6, atol=1e-7)
    for hostile in (x.double(), x * 1e-30, x + 1e5, 0 * x, x / 0):
        assert _quick_heatmap([x], [y, hostile], 2**27) is None


def test_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = HOSTILE["ordinary"]()
    values = dimension_correlation(x, y).values
    for j in range(x.shape[1]):
        expected = stats.pearsonr(x[:, j].double().numpy(), y[:, j].double().numpy()).statistic
        assert values[j].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_constant_dimensions_are_left_out_and_counted(scale: float) -> None:
    x, y = HOSTILE["ordinary"]()
    x, y = x.clone(), y.clone()
    x[:, 2], y[:, 5] = 0.1, -7.3
    x, y = scale * x, scale * y
    result = dimension_correlation(x, y)
    kept = [j for j in range(16) if j not in (2, 5)]
    assert result.values[[2, 5]].isnan().all()
    assert result.degenerate_share.item() == 2 / 16
    assert result.mean.item() == pytest.approx(result.values[kept].mean().item(), rel=1e-12)
    streamed = correlation_from_moments(moments_of(x, y, 2))
    assert streamed.degenerate_share.item() == 2 / 16


def test_quantiles_are_those_of_the_values() -> None:
    result = dimension_correlation(*HOSTILE["ordinary"]())
    levels = torch.tensor([0.05, 0.25, 0.75, 0.95], dtype=torch.float64)
    torch.testing.assert_close(result.quantiles, result.values.quantile(levels))


def test_all_constant_gives_nan_and_one_warning() -> None:
    x = torch.full((10, 3), 0.1)
    with pytest.warns(SimilarityWarning, match="every dimension is constant") as caught:
        result = dimension_correlation(x, torch.randn(10, 3))
    assert len(caught) == 1
    assert math.isnan(result.mean.item())
    assert result.degenerate_share.item() == 1


def test_non_finite_input_gives_nan_and_one_warning() -> None:
    x, y = HOSTILE["ordinary"]()
    x[0, 0] = math.nan
    with pytest.warns(SimilarityWarning, match="dimension correlation is NaN") as caught:
        assert math.isnan(dimension_correlation(x, y).mean.item())
    assert len(caught) == 1


def layers() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    x, y = HOSTILE["ordinary"]()
    return [x, x * torch.linspace(1e-3, 1e3, 16), x**2, x.roll(1, 1)], [y, y + 0.5 * x, x.relu()]


def test_every_entry_of_the_map_is_the_mean_of_its_pair() -> None:
    """The authors' formula, written out for every pair of layers."""
    xs, ys = layers()
    heatmap = dimension_correlation_heatmap(xs, ys)
    expected = [[reference.correlations(x, y).mean() for y in ys] for x in xs]
    torch.testing.assert_close(heatmap, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", EQUAL_WIDTH)
def test_maps_of_hostile_layers(name: str) -> None:
    x, y = HOSTILE[name]()
    expected = [[reference.correlations(a, b).mean() for b in (y, x)] for a in (x, y)]
    for chunk_bytes in (1, 2**27):
        found = dimension_correlation_heatmap([x, y], [y, x], chunk_bytes=chunk_bytes)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def test_a_map_of_layers_and_dimensions_of_any_size() -> None:
    """Pearson's r does not change where a dimension is scaled, by whatever float32 can hold."""
    xs, ys = layers()
    scale = torch.logspace(-28, 28, 16)
    moved = [x * scale for x in xs], [y / scale for y in ys]
    torch.testing.assert_close(
        dimension_correlation_heatmap(*moved),
        dimension_correlation_heatmap(xs, ys),
        rtol=0,
        atol=1e-6,
    )


def test_what_spoils_a_layer_of_the_map_spoils_no_other() -> None:
    xs, ys = layers()
    good = dimension_correlation_heatmap(xs, ys)
    xs[1] = xs[1].clone()
    xs[1][3, 2] = math.inf
    xs[2] = torch.full_like(xs[2], 0.1)
    with pytest.warns(SimilarityWarning, match="dimension correlation is NaN") as caught:
        heatmap = dimension_correlation_heatmap(xs, ys)
    assert len(caught) == 1
    assert heatmap[1:3].isnan().all()
    torch.testing.assert_close(heatmap[[0, 3]], good[[0, 3]], rtol=0, atol=1e-6)


def test_dimensions_without_variance_are_left_out_of_the_map() -> None:
    x, y = HOSTILE["ordinary"]()
    x, y = x.clone(), y.clone()
    x[:, 2], y[:, 5] = 0.1, -7.3
    heatmap = dimension_correlation_heatmap([x, y], [y])
    kept = [j for j in range(16) if j not in (2, 5)]
    expected = reference.correlations(x[:, kept], y[:, kept]).mean()
    assert heatmap[0].item() == pytest.approx(expected, abs=1e-7)
    assert heatmap[1].item() == pytest.approx(1, abs=1e-7)


def test_maps_need_layers_of_one_width() -> None:
    x = torch.randn(5, 4)
    with pytest.raises(
        ValueError, match=r"equal dimensions are compared, got 4 in `xs\[0\]` and 3"
    ):
        dimension_correlation_heatmap([x, x], [x, x[:, :3]])
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        dimension_correlation_heatmap([x[:1]], [x[:1]])


def test_errors() -> None:
    with pytest.raises(ValueError, match="same width, got 3 and 4"):
        dimension_correlation(torch.randn(5, 3), torch.randn(5, 4))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        dimension_correlation(torch.randn(1, 3), torch.randn(1, 3))
