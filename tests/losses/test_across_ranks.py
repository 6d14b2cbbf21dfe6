"""Every loss: value and gradient on several ranks are those of the whole batch in one process."""

import math

import pytest
import torch
from torch import nn

from hrsa_lightning.losses import (
    DebiasedInfoNCELoss,
    InfoNCELoss,
    MatryoshkaLoss,
    SIGRegLoss,
    candidates,
)
from tests.losses.reference import FEATURES, QUERIES, make_batch, slow_debiased, slow_infonce

pytestmark = pytest.mark.ddp


class OfQueries(nn.Module):
    """Lets a loss of one set of embeddings take a whole batch."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, queries, *_):
        return self.loss(queries, step=2)


CASES = {
    "infonce": (
        InfoNCELoss(0.1),
        lambda q, p, *ids: slow_infonce(q, p, 0.1, *ids),
    ),
    "infonce, cold": (
        InfoNCELoss(0.02),
        lambda q, p, *ids: slow_infonce(q, p, 0.02, *ids),
    ),
    "infonce, all options": (
        InfoNCELoss(
            0.3,
            symmetric=True,
            same_side_negatives=True,
            false_negative_margin=0.3,
            hardness=2.0,
        ),
        lambda q, p, *ids: slow_infonce(
            q, p, 0.3, *ids, symmetric=True, same_side=True, margin=0.3, hardness=2.0
        ),
    ),
    "infonce, joint": (
        InfoNCELoss(0.3, symmetric=True, same_side_negatives=True, joint=True),
        lambda q, p, *ids: slow_infonce(
            q, p, 0.3, *ids, symmetric=True, same_side=True, joint=True
        ),
    ),
    "debiased": (
        DebiasedInfoNCELoss(0.2, 0.1),
        lambda q, p, *ids: slow_debiased(q, p, 0.2, 0.1, *ids),
    ),
    "matryoshka": (
        MatryoshkaLoss(InfoNCELoss(0.1), [6, 2]),
        lambda q, p, *ids: sum(slow_infonce(q[:, :d], p[..., :d], 0.1, *ids) for d in (6, 2)),
    ),
    # Its formula is checked in test_sigreg; here one process is the reference.
    "sigreg": (OfQueries(SIGRegLoss(8)), OfQueries(SIGRegLoss(8))),
}


def _of_one_process(loss):
    queries, passages, *ids = make_batch()
    weight = torch.eye(FEATURES, dtype=torch.float64).requires_grad_()
    value = loss(queries.double() @ weight, passages.double() @ weight, *ids)
    value.backward()
    return value.item(), weight.grad


def _of_rank(rank, world_size, losses, scores_at_once):
    """For each loss: its value on this rank's slice, and the gradient averaged as DDP does."""
    candidates.SCORES_AT_ONCE = scores_at_once
    rows = slice(rank * QUERIES // world_size, (rank + 1) * QUERIES // world_size)
    queries, passages, *ids = (tensor[rows] for tensor in make_batch())
    results = []
    for loss in losses:
        weight = torch.eye(FEATURES).requires_grad_()
        value = loss(queries @ weight, passages @ weight, *ids)
        value.backward()
        torch.distributed.all_reduce(weight.grad)
        results.append((value.item(), (weight.grad / world_size).tolist()))
    return results


def _check(pool, scores_at_once=candidates.SCORES_AT_ONCE):
    by_rank = pool.run(_of_rank, [loss for loss, _ in CASES.values()], scores_at_once)
    for number, (name, (_, reference)) in enumerate(CASES.items()):
        expected_value, expected = _of_one_process(reference)
        mean = sum(results[number][0] for results in by_rank) / len(by_rank)
        assert math.isclose(mean, expected_value, rel_tol=1e-4), name
        for results in by_rank:
            gradient = torch.tensor(results[number][1], dtype=torch.float64)
            ratio = (gradient * expected).sum() / (expected * expected).sum()
            assert abs(ratio - 1) < 1e-4, name
            assert (gradient - expected).abs().max() < 1e-4 * expected.abs().max(), name


@pytest.mark.parametrize("scores_at_once", [1, candidates.SCORES_AT_ONCE])
def test_two_ranks(ddp_pool, scores_at_once):
    _check(ddp_pool, scores_at_once)


def test_four_ranks(ddp_pool4):
    _check(ddp_pool4)
