import pytest
import torch

from hrsa_lightning.models.dropout import draw_kept


# 0.1 * 256 has a fraction, which ties decide; 0.5 * 256 has none; at 0.001 all drops come of ties.
@pytest.mark.parametrize("p", [0.1, 0.5, 0.001, 0.999])
def test_entries_are_kept_independently_with_the_asked_probability(p):
    kept = draw_kept(torch.Size([1000, 999]), p).double()
    count = kept.numel()
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    sigma = (p * (1 - p) / count) ** 0.5
    assert abs(kept.mean() - (1 - p)) < 5 * sigma
    # Pairs of neighbors, along rows, along columns and eight apart, are uncorrelated.
    centered = kept - kept.mean()
    flat = centered.flatten()
    for pair in (
        (centered[:, 1:], centered[:, :-1]),
        (centered[1:], centered[:-1]),
        (flat[8:], flat[:-8]),
    ):
        correlation = (pair[0] * pair[1]).mean() / centered.square().mean()
        assert abs(correlation) < 5 / pair[0].numel() ** 0.5
    assert not torch.equal(kept, draw_kept(torch.Size([1000, 999]), p))


def test_the_global_generator_decides():
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(draw_kept(torch.Size([5, 7, 3]), 0.5))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].shape == (5, 7, 3)
