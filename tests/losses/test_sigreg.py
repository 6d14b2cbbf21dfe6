import pytest
import torch

from hrsa_lightning.losses import SIGRegLoss
from tests.losses.reference import make_batch, slow_sigreg


def test_equals_the_formula():
    queries, *_ = make_batch()
    queries = queries.requires_grad_()
    loss_fn = SIGRegLoss(num_slices=5)
    loss = loss_fn(queries, step=3)
    directions = loss_fn._directions(queries.shape[1], 3)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(5))
    expected = slow_sigreg(queries, directions)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, queries)
    (expected_gradient,) = torch.autograd.grad(expected, queries)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_isotropic_embeddings_cost_least():
    isotropic = torch.randn(512, 32)
    shifted = isotropic + 1.0
    collapsed = torch.ones(512, 32) + 0.01 * isotropic
    low_rank = torch.randn(512, 4) @ torch.randn(4, 32)
    loss = SIGRegLoss()
    # A Gaussian sample has sqrt(2 pi) * (1 - 1 / sqrt(3)) = 1.06 on average.
    assert loss(isotropic) < 2
    assert all(loss(other) > 10 * loss(isotropic) for other in (shifted, collapsed, low_rank))


def test_directions_depend_on_seed_and_step_alone():
    embeddings, *_ = make_batch()
    first = SIGRegLoss(num_slices=4)(embeddings, step=1)
    before = torch.random.get_rng_state()
    assert SIGRegLoss(num_slices=4)(embeddings, step=1) == first
    assert SIGRegLoss(num_slices=4)(embeddings, step=2) != first
    assert SIGRegLoss(num_slices=4, seed=1)(embeddings, step=1) != first
    assert torch.equal(torch.random.get_rng_state(), before)


def test_low_precision_is_judged_in_float32():
    embeddings = make_batch()[0].bfloat16()
    expected = SIGRegLoss()(embeddings.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert SIGRegLoss().bfloat16()(embeddings) == expected


@pytest.mark.parametrize("options", [{"num_slices": 0}, {"num_knots": 1}, {"max_t": 0.0}])
def test_arguments_are_checked(options):
    with pytest.raises(ValueError, match="num_slices must be at least 1"):
        SIGRegLoss(**options)


def test_shape_is_checked():
    with pytest.raises(ValueError, match=r"embeddings must be \(B, D\), got shape \(2, 3, 4\)"):
        SIGRegLoss()(torch.ones(2, 3, 4))
