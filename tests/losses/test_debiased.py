import pytest
import torch

from hrsa_lightning.losses import DebiasedInfoNCELoss, InfoNCELoss, candidates
from tests.losses.reference import make_batch, slow_debiased


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
@pytest.mark.parametrize("tau_plus", [0.1, 0.6])
@pytest.mark.parametrize("scores_at_once", [2**18, 1])
def test_equals_the_formula(temperature, tau_plus, with_ids, scores_at_once, monkeypatch):
    monkeypatch.setattr(candidates, "SCORES_AT_ONCE", scores_at_once)
    queries, passages, *ids = make_batch()
    # Some positives far ahead, so that the floor of g is reached too.
    passages[:3, 0] = queries[:3] + 0.1 * passages[:3, 0]
    ids = ids if with_ids else [None, None]
    queries, passages = queries.requires_grad_(), passages.requires_grad_()
    loss = DebiasedInfoNCELoss(temperature, tau_plus)(queries, passages, *ids)
    expected = slow_debiased(queries, passages, temperature, tau_plus, *ids)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(loss, (queries, passages))
    expected_gradients = torch.autograd.grad(expected, (queries, passages))
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        scale = expected_gradient.abs().max()
        assert (gradient - expected_gradient).abs().max() < 1e-4 * scale


def test_no_false_negatives_assumed_is_infonce():
    batch = make_batch()
    torch.testing.assert_close(DebiasedInfoNCELoss(0.1, 0.0)(*batch), InfoNCELoss(0.1)(*batch))


def test_a_row_without_negatives_costs_nothing_and_has_no_nan():
    queries, passages, passage_ids, _ = make_batch()
    passages = passages.requires_grad_()
    loss = DebiasedInfoNCELoss()(queries, passages, torch.zeros_like(passage_ids))
    loss.backward()
    assert loss == 0
    assert torch.equal(passages.grad, torch.zeros_like(passages))


def test_masking_can_be_switched_off():
    queries, passages, *ids = make_batch()
    off = DebiasedInfoNCELoss(0.1, mask_duplicates=False)
    assert off(queries, passages, *ids) == off(queries, passages)
    assert off(queries, passages) != DebiasedInfoNCELoss(0.1)(queries, passages, *ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau_plus": 1.0}, r"tau_plus must be in \[0, 1\), got 1.0"),
        ({"tau_plus": -0.1}, "tau_plus"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DebiasedInfoNCELoss(**options)
