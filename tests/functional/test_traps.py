"""Traps that other implementations fell into, one test each."""

import math

import pytest
import torch

from hrsa_lightning.functional import (
    SimilarityWarning,
    inverse_row_entropy,
    knn_overlap,
    linear_cka,
    linear_cka_heatmap,
    linear_probe_transfer,
    orthogonal_procrustes,
)
from hrsa_lightning.functional.knn import nearest_neighbors
from tests.functional import reference
from tests.functional.inputs import pair, rotation


def test_self_neighbors_are_not_counted_on_duplicated_data() -> None:
    x = torch.randn(30, 6).repeat(2, 1)
    found = nearest_neighbors(x, (1,), "cosine", 2**20).indices[:, 0]
    assert torch.equal(found, torch.arange(60).roll(30))


def test_features_are_not_kept_with_their_graph() -> None:
    x, y = (v.requires_grad_() for v in pair())
    assert not linear_cka_heatmap([x], [y]).requires_grad
    assert not orthogonal_procrustes(x, y).global_cosine.requires_grad
    assert linear_cka(x, y).requires_grad, "the one that can be part of a loss"


def test_nan_in_is_nan_out_never_perfect_similarity() -> None:
    x, _ = pair()
    x[0, 0] = math.nan
    with pytest.warns(SimilarityWarning):
        assert math.isnan(orthogonal_procrustes(x, x).global_cosine.item())


def test_unbiased_value_is_not_clamped_at_zero() -> None:
    found = [linear_cka(*torch.randn(2, 20, 5)).item() for _ in range(30)]
    assert min(found) < 0 < max(found)


def test_scale_of_1e_minus_6_does_not_turn_identity_into_zero() -> None:
    x, y = pair()
    for scale in (1e-6, 1e6):
        assert linear_cka(scale * x, scale * x).item() == pytest.approx(1, abs=1e-6)
        assert linear_cka(scale * x, y).item() == pytest.approx(linear_cka(x, y).item(), rel=1e-6)


@pytest.mark.parametrize("n", [120, 24])
def test_a_mean_of_100_deviations_is_not_fatal_in_float32(n: int) -> None:
    x, y = pair(n)
    x, y = x + 100, y - 100
    for debiased in (True, False):
        expected = reference.cka(x, y, debiased)
        assert linear_cka(x, y, debiased).item() == pytest.approx(expected, rel=1e-6)


def test_bf16_arithmetic_would_lose_neighbors_and_is_not_used() -> None:
    torch.manual_seed(0)
    x = (1 + 0.1 * torch.randn(300, 64)).bfloat16()
    wanted = torch.from_numpy(reference.neighbors(x, 10, "cosine"))
    assert torch.equal(nearest_neighbors(x.float(), (10,), "cosine", 2**20).indices, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert knn_overlap(x, x.float()).item() == 1


def test_an_offset_loses_no_euclidean_neighbors() -> None:
    x = torch.randn(300, 32) + 100
    wanted = torch.from_numpy(reference.neighbors(x, 10, "euclidean"))
    assert torch.equal(nearest_neighbors(x, (10,), "euclidean", 2**20).indices, wanted)


def test_a_rotated_and_shifted_copy_is_not_penalized() -> None:
    x = torch.randn(300, 16)
    y = (x.double() @ rotation(16) + 3).float()
    result = orthogonal_procrustes(x, y)
    assert result.residual_variance_ratio.item() == pytest.approx(0, abs=1e-6)
    assert result.mean_cosine.item() == pytest.approx(1, abs=1e-6)


def test_row_entropy_is_refused_where_the_rotation_is_not_unique() -> None:
    """The same data against themselves: 1 with enough samples, no number with too few."""
    x = torch.randn(512, 64)
    assert orthogonal_procrustes(x, x).inverse_row_entropy.item() == pytest.approx(1, abs=1e-6)
    for n in (16, 64):
        with pytest.warns(SimilarityWarning, match=f"{n} samples must have rank d = 64"):
            value = orthogonal_procrustes(x[:n], x[:n]).inverse_row_entropy.item()
        assert math.isnan(value)


def test_row_entropy_has_its_minimum_and_maximum_the_right_way_round() -> None:
    kept, mixed = torch.eye(16).double(), rotation(16)
    assert inverse_row_entropy(kept).item() == 1
    assert inverse_row_entropy(mixed).item() < 0.5


def test_in_sample_procrustes_overfits_and_is_not_the_default() -> None:
    x, y = torch.randn(2, 64, 64)
    with pytest.warns(SimilarityWarning):
        in_sample = orthogonal_procrustes(x, y, "in_sample")
    with pytest.warns(SimilarityWarning):
        default = orthogonal_procrustes(x, y)
    assert in_sample.global_cosine.item() > 0.6
    assert abs(default.global_cosine.item()) < 0.2


def test_one_shared_massive_dimension_can_be_standardized_away() -> None:
    x, y = torch.randn(2, 400, 64)
    x[:, 0] = y[:, 0] = 400 * torch.randn(400)
    assert linear_cka(x, y).item() > 0.99
    assert linear_cka(x, y, standardize=True).item() < 0.1


def test_shuffled_rows_are_noticed() -> None:
    x, y = pair(20, 4)
    ids = list(range(20))
    with pytest.raises(ValueError, match="at row 0"):
        linear_cka(x, y, x_ids=ids, y_ids=ids[::-1])


def test_the_probe_runs_on_the_installed_scikit_learn() -> None:
    """Ours needs none: the closed form has no options that come and go."""
    x, y = pair()
    result = linear_probe_transfer(x, y, (y[:, 0] > 0).long())
    assert result.source.item() > 0.7


def test_layers_are_paired_by_their_place_in_every_metric() -> None:
    """No metric drops or realigns layers by itself: unequal depths give a rectangular heatmap."""
    x, y = pair(40, 6)
    assert linear_cka_heatmap([x, y, x], [y, x]).shape == (3, 2)
