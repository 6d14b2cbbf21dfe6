import pytest
import torch

from hrsa_lightning.losses import InfoNCELoss, MatryoshkaLoss
from tests.losses.reference import make_batch, slow_infonce


def test_is_the_weighted_sum_over_cut_embeddings():
    queries, passages, *ids = make_batch()
    loss = MatryoshkaLoss(InfoNCELoss(0.1), dims=[6, 3, 1], weights=[1.0, 0.5, 2.0])
    expected = sum(
        weight * slow_infonce(queries[:, :dim], passages[..., :dim], 0.1, *ids)
        for dim, weight in [(6, 1.0), (3, 0.5), (1, 2.0)]
    )
    torch.testing.assert_close(
        loss(queries, passages, *ids).double(), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "dims must be positive"),
        (([4, 0],), "dims must be positive"),
        (([4, 2], [1.0]), "weights must be 2 as dims are, got 1"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        MatryoshkaLoss(InfoNCELoss(), *arguments)


def test_embeddings_must_be_long_enough():
    with pytest.raises(ValueError, match="dims go up to 7, but embeddings have 6 features"):
        MatryoshkaLoss(InfoNCELoss(), [7])(*make_batch())
