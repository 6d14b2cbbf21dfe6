"""`linear_cka` has the gradients of its definition; the other functions refuse to have none."""

import itertools

import pytest
import torch
from torch.func import grad

from hrsa_lightning import functional as F  # noqa: N812
from tests.functional.inputs import pair

FORMS = pytest.mark.parametrize(
    ("n", "d", "debiased", "standardize"),
    [
        (*size, *form)
        for size in ((12, 3), (6, 9))
        for form in itertools.product([True, False], repeat=2)
    ],
)


@FORMS
def test_gradients_are_those_of_finite_differences(
    n: int, d: int, debiased: bool, standardize: bool
) -> None:
    x, y = (rows.double().requires_grad_() for rows in pair(n, d))
    assert torch.autograd.gradcheck(
        lambda x, y: F.linear_cka(x, y, debiased, standardize=standardize), (x, y)
    )


@FORMS
def test_values_with_gradients_are_those_without(
    n: int, d: int, debiased: bool, standardize: bool
) -> None:
    x, y = pair(n, d)
    for scale in (1.0, 1e-30, 1e30):
        value = F.linear_cka(
            (scale * x).requires_grad_(), y + 100, debiased, standardize=standardize
        )
        expected = F.linear_cka(scale * x, y + 100, debiased, standardize=standardize)
        assert value.requires_grad
        assert not expected.requires_grad
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("n", [120, 24])
def test_massive_rows_cost_gradients_no_digits(n: int) -> None:
    """Debiased CKA subtracts their squares again."""
    x, y = pair(n)
    x[3] *= 1e4
    y[5:9] *= 300
    value, exact = F.linear_cka(x.requires_grad_(), y), F.linear_cka(x.double(), y.double())
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    assert torch.autograd.gradcheck(
        lambda x: F.linear_cka(x, y[:12, :3].double()),
        x[:12, :3].detach().double().requires_grad_(),
    )


def test_function_transforms_see_the_same_gradients() -> None:
    x, y = pair(30, 4)
    live = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.linear_cka(live, y), live)
    assert expected.abs().max() > 0
    torch.testing.assert_close(grad(F.linear_cka)(x, y), expected)


def test_gradients_are_off_where_the_caller_has_them_off() -> None:
    x, y = pair(30, 4)
    with torch.no_grad():
        assert not F.linear_cka(x.requires_grad_(), y).requires_grad


@pytest.mark.parametrize(
    "function",
    [
        F.knn_overlap,
        lambda x, y: F.linear_cka_heatmap([x], [y])[0, 0],
        lambda x, y: F.orthogonal_procrustes(x, y).global_cosine,
        lambda x, y: F.dimension_correlation(x, y).mean,
    ],
)
def test_other_functions_refuse_transforms_instead_of_giving_zeros(function) -> None:
    x, y = pair(30, 4)
    with pytest.raises(TypeError, match=r"without gradients of torch\.func"):
        grad(function)(x, y)
    assert not function(x.requires_grad_(), y).requires_grad
