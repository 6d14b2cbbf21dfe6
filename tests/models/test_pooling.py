"""Pooling against loops that follow the words of the docstrings."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hrsa_lightning.models.pooling import (
    POOLINGS,
    first_pool,
    l2_normalize,
    last_pool,
    mean_pool,
    weighted_mean_pool,
)


def _naive(name: str, hidden_states: Tensor, mask: Tensor) -> Tensor:
    rows = []
    for states, row_mask in zip(hidden_states.double(), mask.tolist(), strict=True):
        kept = [states[i] for i, real in enumerate(row_mask) if real]
        weights = {
            "mean": [1.0] * len(kept),
            "weighted_mean": [float(i + 1) for i in range(len(kept))],
            "last": [0.0] * (len(kept) - 1) + [1.0],
            "first": [1.0] + [0.0] * (len(kept) - 1),
        }[name]
        total = sum(w * state for w, state in zip(weights, kept, strict=True))
        rows.append(total / sum(weights))
    return torch.stack(rows)


@pytest.fixture
def case() -> tuple[Tensor, Tensor]:
    mask = torch.tensor(
        [
            [1, 1, 1, 1, 1],
            [1, 1, 0, 0, 0],
            [0, 0, 1, 1, 0],
            [0, 0, 0, 0, 1],
            [1, 0, 1, 0, 1],
        ],
        dtype=torch.bool,
    )
    return torch.randn(5, 5, 3), mask


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.long])
def test_pooling_equals_a_loop(
    case: tuple[Tensor, Tensor], name: str, mask_dtype: torch.dtype
) -> None:
    hidden_states, mask = case
    pooled = POOLINGS[name](hidden_states, mask.to(mask_dtype))
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, _naive(name, hidden_states, mask).float())


@pytest.mark.parametrize("name", POOLINGS)
def test_what_is_masked_out_does_not_count(case: tuple[Tensor, Tensor], name: str) -> None:
    hidden_states, mask = case
    expected = POOLINGS[name](hidden_states, mask)
    spoiled = hidden_states.masked_fill(~mask.unsqueeze(2), torch.nan)
    torch.testing.assert_close(POOLINGS[name](spoiled, mask), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", POOLINGS)
def test_sixteen_bit_states_are_pooled_in_float32(case: tuple[Tensor, Tensor], name: str) -> None:
    hidden_states, mask = case[0].bfloat16(), case[1]
    pooled = POOLINGS[name](hidden_states, mask)
    torch.testing.assert_close(pooled, POOLINGS[name](hidden_states.float(), mask), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(POOLINGS[name](hidden_states, mask), pooled, rtol=0, atol=0)


@pytest.mark.parametrize("pool", [mean_pool, weighted_mean_pool, last_pool, first_pool])
def test_row_without_tokens_is_nan(pool: Callable[[Tensor, Tensor], Tensor]) -> None:
    pooled = pool(torch.randn(2, 3, 4), torch.tensor([[False] * 3, [True] * 3]))
    assert pooled[0].isnan().all()
    assert pooled[1].isfinite().all()


@pytest.mark.parametrize("name", POOLINGS)
def test_gradients_are_right(case: tuple[Tensor, Tensor], name: str) -> None:
    hidden_states, mask = case
    hidden_states.requires_grad_()
    upstream = torch.randn(5, 3)
    ours = torch.autograd.grad(POOLINGS[name](hidden_states, mask), hidden_states, upstream)[0]
    naive = _naive(name, hidden_states, mask)
    theirs = torch.autograd.grad(naive, hidden_states, upstream.double())[0]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e30])
def test_normalization_does_not_depend_on_scale(scale: float) -> None:
    rows = torch.randn(4, 6)
    expected = (rows.double() / rows.double().norm(dim=1, keepdim=True)).float()
    torch.testing.assert_close(l2_normalize(rows * scale), expected)


def test_gradient_of_normalization() -> None:
    rows = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(l2_normalize, rows)


def test_zero_row_is_nan() -> None:
    normalized = l2_normalize(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    assert normalized[0].isnan().all()
    torch.testing.assert_close(normalized[1], torch.tensor([0.6, 0.8]))
