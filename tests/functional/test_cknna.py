import math

import pytest
import torch
from torch import Tensor

from hrsa_lightning.functional import Reference, SimilarityWarning, cknna, linear_cka
from hrsa_lightning.metrics import CKNNA
from tests.functional.inputs import HOSTILE, pair


def published(x: Tensor, y: Tensor, k: int) -> float:
    """The formula of the code beside arXiv 2405.07987, written out, in float64, of unit rows."""
    grams = [torch.nn.functional.normalize(v.double(), dim=1) for v in (x, y)]
    grams = [rows @ rows.mT for rows in grams]
    n = len(x)
    masks = []
    for gram in grams:
        others = gram.clone().fill_diagonal_(-torch.inf)
        order = others.argsort(dim=1, descending=True, stable=True)[:, :k]
        masks.append(torch.zeros(n, n, dtype=torch.bool).scatter_(1, order, True))

    def hsic(a: int, b: int) -> Tensor:
        mask = masks[a] & masks[b]
        left, right = ((mask * grams[i]).fill_diagonal_(0) for i in (a, b))
        crossed = (left @ right).sum()
        means = left.sum() * right.sum() / ((n - 1) * (n - 2))
        return (left * right.mT).sum() + means - 2 * crossed / (n - 2)

    return (hsic(0, 1) / (hsic(0, 0) * hsic(1, 1)).sqrt()).item()


@pytest.mark.parametrize("k", [2, 10, 23])
@pytest.mark.parametrize("name", ["ordinary", "massive_dimension", "massive_rows", "tiny_scale",
                                  "fewer_samples_than_features", "different_widths"])  # fmt: skip
def test_agrees_with_the_published_formula(name: str, k: int) -> None:
    x, y = HOSTILE[name]()
    assert cknna(x, y, k).item() == pytest.approx(published(x, y, k), rel=1e-5)
    assert cknna(x, y, k, chunk_bytes=20_000).item() == pytest.approx(published(x, y, k), rel=1e-5)


def test_all_neighbors_are_debiased_cka_of_unit_rows() -> None:
    x, y = (torch.nn.functional.normalize(rows.double(), dim=1) for rows in pair(40))
    assert cknna(x, y, 39).item() == pytest.approx(linear_cka(x, y).item(), rel=1e-9)


@pytest.mark.parametrize(("a", "b"), [(1e-30, 1e30), (1e30, 1.0), (1e-38, 1e-38)])
def test_scale_changes_nothing(a: float, b: float) -> None:
    x, y = pair()
    assert cknna(a * x, b * y).item() == pytest.approx(cknna(x, y).item(), rel=1e-5)


def test_identity_collapse_and_bad_input() -> None:
    x, y = pair()
    assert cknna(x, x).item() == pytest.approx(1)
    with pytest.warns(SimilarityWarning, match="CKNNA is NaN: the rows of a representation"):
        assert math.isnan(cknna(torch.ones_like(x), y).item())
    x[0, 0] = math.nan
    with pytest.warns(SimilarityWarning, match="CKNNA is NaN: an input is not finite"):
        assert math.isnan(cknna(x, y).item())
    with pytest.raises(ValueError, match="`k` to be at least 2, got 1"):
        cknna(y, y, 1)
    with pytest.raises(ValueError, match="`k` to be below the number of samples, 120, got 120"):
        cknna(y, y, 120)


def test_the_metric_keeps_rows_and_knows_its_chance_level() -> None:
    x, y = torch.randn(2, 90, 8, generator=torch.Generator().manual_seed(0))
    metric = CKNNA()
    for rows in torch.arange(90).split(40):
        metric.update(x[rows], y[rows])
    assert metric.compute().item() == pytest.approx(cknna(x, Reference(y)).item())
    assert metric.chance()["cknna_10"] == pytest.approx(metric.compute().item(), abs=0.05)
    assert metric.identity() == {"cknna_10": 1.0}
