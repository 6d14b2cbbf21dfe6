import math

import numpy as np
import pytest
import scipy
import torch

from hrsa_lightning.functional import (
    SimilarityWarning,
    inverse_row_entropy,
    orthogonal_procrustes,
    random_rotation_inverse_row_entropy,
)
from hrsa_lightning.functional._inputs import split_halves
from hrsa_lightning.functional.procrustes import alignment_spectrum
from tests.functional import reference
from tests.functional.inputs import HOSTILE, pair, rotation

FULL_RANK = ["ordinary", "large_mean", "tiny_scale", "huge_scale", "massive_dimension",
             "massive_rows", "duplicates"]  # fmt: skip


def check(x: torch.Tensor, y: torch.Tensor, protocol: str, rel: float = 1e-6) -> None:
    result = orthogonal_procrustes(x, y, protocol, return_rotation=True)  # type: ignore[arg-type]
    judged = split_halves(y, None)
    if protocol == "held_out":
        fit, judge = (x[~judged], y[~judged]), (x[judged], y[judged])
    else:
        fit, judge = (x, y), (x, y)
    residual, cosine, mean, rotated = reference.procrustes(fit, judge, protocol != "paper")
    assert result.residual_variance_ratio.item() == pytest.approx(residual, rel=rel)
    assert result.global_cosine.item() == pytest.approx(cosine, rel=rel)
    assert result.mean_cosine.item() == pytest.approx(mean, rel=rel)
    whole = reference.procrustes((x, y), (x, y))[3]
    entropy = reference.inverse_row_entropy(whole)
    assert result.inverse_row_entropy.item() == pytest.approx(entropy, rel=rel)
    assert result.rotation is not None
    torch.testing.assert_close(result.rotation, torch.from_numpy(rotated), rtol=0, atol=1e-5)


@pytest.mark.parametrize("protocol", ["held_out", "in_sample", "paper"])
@pytest.mark.parametrize("name", FULL_RANK)
def test_agrees_with_scipy(name: str, protocol: str) -> None:
    check(*HOSTILE[name](), protocol)


@pytest.mark.parametrize("protocol", ["in_sample", "paper"])
def test_fewer_samples_than_features_in_sample(protocol: str) -> None:
    x, y = HOSTILE["fewer_samples_than_features"]()
    with pytest.warns(SimilarityWarning, match="must have rank d = 64 .* has rank 23"):
        result = orthogonal_procrustes(x, y, "in_sample")
    residual, cosine, mean, _ = reference.procrustes((x, y), (x, y))
    assert result.residual_variance_ratio.item() == pytest.approx(residual, rel=1e-6)
    assert result.global_cosine.item() == pytest.approx(cosine, rel=1e-6)
    assert result.mean_cosine.item() == pytest.approx(mean, rel=1e-6)
    assert math.isnan(result.inverse_row_entropy.item())


def test_directions_left_open_count_as_unaligned() -> None:
    """Held out with n < d: the value is the average over all optimal rotations."""
    x, y = pair(24, 16)
    value = orthogonal_procrustes(x, y).global_cosine.item()
    judged = split_halves(y, None)
    fit_x, fit_y = (v[~judged].double() for v in (x, y))
    fit_x, fit_y = fit_x - fit_x.mean(0), fit_y - fit_y.mean(0)
    u, s, v = torch.linalg.svd(fit_x.mT @ fit_y)
    open_ = s < 1e-9 * s[0]
    assert open_.any()
    test_x, test_y = (z[judged].double() for z in (x, y))
    test_x, test_y = test_x - test_x.mean(0), test_y - test_y.mean(0)
    values = []
    for seed in range(20):
        # Minus a rotation is as likely as the rotation.
        completion = (-1) ** seed * rotation(int(open_.sum()), seed // 2)
        v_open = torch.cat((v[~open_], completion @ v[open_]))
        inner = ((test_x @ u @ v_open) * test_y).sum()
        values.append(float(inner / (test_x.norm() * test_y.norm())))
    assert max(values) - min(values) > 0.01
    assert value == pytest.approx(sum(values) / len(values), rel=1e-6)


def test_a_rotated_and_shifted_copy_is_aligned_perfectly() -> None:
    x, _ = pair(200, 16)
    y = (x.double() @ rotation(16) * 3 + 5).float()
    result = orthogonal_procrustes(3 * x, y)
    assert result.residual_variance_ratio.item() == pytest.approx(0, abs=1e-6)
    assert result.global_cosine.item() == pytest.approx(1, abs=1e-6)
    assert result.mean_cosine.item() == pytest.approx(1, abs=1e-6)


def test_unrelated_data_reach_chance_when_held_out() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2000, 32), torch.randn(2000, 32)
    held_out = orthogonal_procrustes(x, y)
    assert held_out.residual_variance_ratio.item() == pytest.approx(2, abs=0.05)
    assert held_out.global_cosine.item() == pytest.approx(0, abs=0.03)
    assert held_out.mean_cosine.item() == pytest.approx(0, abs=0.03)
    in_sample = orthogonal_procrustes(x, y, "in_sample")
    assert in_sample.global_cosine.item() > 0.07


def test_in_sample_overfits_and_held_out_does_not() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(256, 256), torch.randn(256, 256)
    with pytest.warns(SimilarityWarning, match="inverse row entropy"):
        in_sample = orthogonal_procrustes(x, y, "in_sample")
    assert in_sample.residual_variance_ratio.item() == pytest.approx(0.51, abs=0.02)
    assert in_sample.mean_cosine.item() == pytest.approx(0.75, abs=0.02)
    with pytest.warns(SimilarityWarning, match="inverse row entropy"):
        held_out = orthogonal_procrustes(x, y)
    assert held_out.residual_variance_ratio.item() == pytest.approx(2, abs=0.1)
    assert held_out.mean_cosine.item() == pytest.approx(0, abs=0.05)


def test_different_widths_equal_zero_padding() -> None:
    x, y = HOSTILE["different_widths"]()
    with pytest.warns(SimilarityWarning, match="equal widths, got 16 and 5"):
        result = orthogonal_procrustes(x, y, "in_sample")
    padded = torch.cat((y, torch.zeros(120, 11)), 1)
    residual, cosine, mean, _ = reference.procrustes((x, padded), (x, padded))
    assert result.residual_variance_ratio.item() == pytest.approx(residual, rel=1e-6)
    assert result.global_cosine.item() == pytest.approx(cosine, rel=1e-6)
    assert result.mean_cosine.item() == pytest.approx(mean, rel=1e-6)


def test_rank_deficient_data_have_no_row_entropy() -> None:
    x, y = HOSTILE["rank_deficient"]()
    with pytest.warns(SimilarityWarning, match="inverse row entropy is NaN"):
        result = orthogonal_procrustes(x, y, "in_sample")
    assert math.isnan(result.inverse_row_entropy.item())
    residual, cosine, _, _ = reference.procrustes((x, y), (x, y))
    assert result.residual_variance_ratio.item() == pytest.approx(residual, rel=1e-6)
    assert result.global_cosine.item() == pytest.approx(cosine, rel=1e-6)


def test_small_chunks_give_the_same_values() -> None:
    x, y = pair(300, 8)
    for whole, parts in zip(
        orthogonal_procrustes(x, y)[:4],
        orthogonal_procrustes(x, y, chunk_bytes=2000)[:4],
        strict=True,
    ):
        assert parts.item() == pytest.approx(whole.item(), rel=1e-6)


def test_ids_decide_the_halves() -> None:
    x, y = pair()
    ids = [f"probe-{i}" for i in range(120)]
    order = torch.randperm(120)
    shuffled = [ids[i] for i in order]
    turned = (y.double() @ rotation(16)).float()
    base = orthogonal_procrustes(x, y, x_ids=ids)
    moved = orthogonal_procrustes(x[order], turned[order], y_ids=shuffled)
    assert moved.global_cosine.item() == pytest.approx(base.global_cosine.item(), rel=1e-6)
    other = orthogonal_procrustes(x, y)
    assert other.global_cosine.item() != pytest.approx(base.global_cosine.item(), rel=1e-6)


def test_inverse_row_entropy_of_known_matrices() -> None:
    signed = torch.eye(8, dtype=torch.float64)[torch.randperm(8)] * -1
    assert inverse_row_entropy(signed).item() == pytest.approx(1)
    mixed = torch.full((4, 4), 0.5, dtype=torch.float64)
    assert inverse_row_entropy(mixed).item() == pytest.approx(0, abs=1e-12)
    assert inverse_row_entropy(torch.ones(1, 1)).item() == 1


@pytest.mark.parametrize(("d", "chance"), [(64, 0.172), (256, 0.131), (768, 0.110), (4096, 0.088)])
def test_chance_level_of_the_inverse_row_entropy(d: int, chance: float) -> None:
    assert random_rotation_inverse_row_entropy(d) == pytest.approx(chance, abs=6e-4)
    if d <= 256:
        measured = inverse_row_entropy(rotation(d)).item()
        assert measured == pytest.approx(chance, abs=0.01)


def test_non_finite_input_gives_nan_and_one_warning() -> None:
    x, y = pair()
    y[0, 0] = math.inf
    with pytest.warns(SimilarityWarning, match="orthogonal Procrustes is NaN") as caught:
        result = orthogonal_procrustes(x, y)
    assert len(caught) == 1
    assert all(math.isnan(value.item()) for value in result[:4])


def test_constant_input_gives_nan() -> None:
    x, y = pair()
    with pytest.warns(SimilarityWarning, match="no variance"):
        result = orthogonal_procrustes(x, torch.ones_like(y), "in_sample")
    assert math.isnan(result.residual_variance_ratio.item())


def test_errors() -> None:
    x, y = pair()
    with pytest.raises(ValueError, match="`protocol` to be one of held_out, in_sample, paper"):
        orthogonal_procrustes(x, y, "cross")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 4 samples, got 3"):
        orthogonal_procrustes(x[:3], y[:3])


@pytest.mark.parametrize("name", FULL_RANK)
def test_spectrum_agrees_with_scipy(name: str) -> None:
    x, y = HOSTILE[name]()
    spectrum = alignment_spectrum(x, y)
    left, right = (m.double().numpy() - m.double().numpy().mean(0) for m in (x, y))
    expected = scipy.linalg.svdvals(left.T @ right) / (len(x) - 1)
    error = np.abs(spectrum.singular_values.numpy() - expected).max()
    assert error <= 1e-6 * expected[0], "rounding of the largest, as in float32"
    rotation = torch.from_numpy(reference.procrustes((x, y), (x, y))[3])
    rows = [scipy.stats.entropy(row**2) / math.log(len(row)) for row in rotation.numpy()]
    torch.testing.assert_close(spectrum.row_entropies, torch.tensor(rows), rtol=0, atol=1e-5)


def test_spectrum_says_what_the_data_leave_open() -> None:
    x, y = HOSTILE["fewer_samples_than_features"]()
    with pytest.warns(SimilarityWarning, match="row entropies.*24 samples must have rank d = 64"):
        spectrum = alignment_spectrum(x, y)
    assert len(spectrum.singular_values) == 23, "as many as samples less one"
    assert bool(spectrum.row_entropies.isnan().all())
    x[0, 0] = torch.inf
    with pytest.warns(SimilarityWarning, match="alignment spectrum.*not finite"):
        spectrum = alignment_spectrum(x, y)
    assert bool(spectrum.singular_values.isnan().all() & spectrum.row_entropies.isnan().all())


def test_spectrum_adds_up_to_the_values_of_its_rotation() -> None:
    x, y = pair(200, 12)
    spectrum = alignment_spectrum(x, y)
    result = orthogonal_procrustes(x, y, "in_sample")
    sizes = [torch.linalg.vector_norm((m - m.mean(0)).double()) for m in (x, y)]
    cosine = spectrum.singular_values.sum() * (len(x) - 1) / (sizes[0] * sizes[1])
    assert cosine.item() == pytest.approx(result.global_cosine.item(), rel=1e-6)
    inverse = 1 - spectrum.row_entropies.mean().item()
    assert inverse == pytest.approx(result.inverse_row_entropy.item(), abs=1e-12)
