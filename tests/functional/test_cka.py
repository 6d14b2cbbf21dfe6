import math

import pytest
import torch

from hrsa_lightning.functional import Reference, SimilarityWarning, linear_cka
from hrsa_lightning.functional._inputs import halves, sample_keys
from hrsa_lightning.functional._moments import PairMoments
from hrsa_lightning.functional._numerics import DEFAULT_CHUNK_BYTES
from hrsa_lightning.functional.cka import chance_cka, cka_from_moments
from tests.functional import reference
from tests.functional.inputs import HOSTILE, pair

BOTH = pytest.mark.parametrize("debiased", [True, False], ids=["debiased", "plain"])


def moments_of(x: torch.Tensor, y: torch.Tensor, num_halves: int = 1) -> PairMoments:
    moments = PairMoments.zeros(x.shape[1], y.shape[1], num_halves, x.device)
    judged = halves(sample_keys(y, None)) if num_halves == 2 else None
    moments.add(x, y, judged, DEFAULT_CHUNK_BYTES)
    return moments


@BOTH
@pytest.mark.parametrize("name", HOSTILE)
def test_agrees_with_the_gram_definition(name: str, debiased: bool) -> None:
    x, y = HOSTILE[name]()
    expected = reference.cka(x, y, debiased)
    assert linear_cka(x, y, debiased).item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


@BOTH
@pytest.mark.parametrize("name", HOSTILE)
def test_moments_agree_with_the_gram_definition(name: str, debiased: bool) -> None:
    x, y = HOSTILE[name]()
    expected = reference.cka(x, y, debiased)
    value = cka_from_moments(moments_of(x, y, 2), debiased).item()
    assert value == pytest.approx(expected, rel=1e-6, abs=1e-8)


@BOTH
def test_both_forms_of_the_computation_agree(debiased: bool) -> None:
    # n = 40 uses Gram matrices for 64 features and moments for 4.
    for d in (4, 64):
        x, y = pair(40, d)
        form = cka_from_moments(moments_of(x, y), debiased).item()
        assert linear_cka(x, y, debiased).item() == pytest.approx(form, rel=1e-6)


@BOTH
@pytest.mark.parametrize("kept", [False, True])
def test_many_samples_cost_no_digits(debiased: bool, kept: bool) -> None:
    """Squares of a whole matrix added up in float32 would be off by some 1e-7."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8192, 768, generator=generator)
    y = x + torch.randn(8192, 768, generator=generator)
    expected = linear_cka(x.double(), y.double(), debiased).item()
    value = linear_cka(x, Reference(y) if kept else y, debiased).item()
    assert value == pytest.approx(expected, rel=5e-8)


@BOTH
@pytest.mark.parametrize(("d_x", "d_y"), [(128, 129), (255, 300), (384, 7), (513, 1)])
def test_any_widths(debiased: bool, d_x: int, d_y: int) -> None:
    """Products of features with themselves are taken in parts, whose number may not fit."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(900, d_x, generator=generator) + 5
    y = x[:, :1] * torch.randn(900, d_y, generator=generator)
    expected = reference.cka(x, y, debiased)
    assert linear_cka(x, y, debiased).item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


@BOTH
def test_small_chunks_give_the_same_value(debiased: bool) -> None:
    x, y = pair(300, 8)
    whole = linear_cka(x, y, debiased).item()
    assert linear_cka(x, y, debiased, chunk_bytes=1000).item() == pytest.approx(whole, rel=1e-6)
    x, y = pair(40, 64)
    whole = linear_cka(x, y, debiased).item()
    assert linear_cka(x, y, debiased, chunk_bytes=1000).item() == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    x, y = (v.to(dtype) for v in pair())
    assert linear_cka(x, y).item() == linear_cka(x.float(), y.float()).item()


def test_float64_inputs_are_computed_in_float64() -> None:
    x, y = (v.double() for v in pair())
    assert linear_cka(x, y).item() == pytest.approx(reference.cka(x, y, True), rel=1e-12)


def test_independent_data_give_zero_debiased_and_the_known_bias_plain() -> None:
    torch.manual_seed(3)
    x, y = torch.randn(64, 256), torch.randn(64, 256)
    assert abs(linear_cka(x, y).item()) < 0.02
    plain = linear_cka(x, y, debiased=False).item()
    assert plain == pytest.approx(256 / (64 + 256), abs=0.03)
    assert float(chance_cka(moments_of(x, y))) == pytest.approx(plain, abs=0.01)


def test_debiased_value_is_not_clamped_at_zero() -> None:
    values = [
        linear_cka(*torch.randn(2, 32, 8, generator=torch.Generator().manual_seed(s)).unbind())
        for s in range(20)
    ]
    assert min(values) < -1e-3


def test_standardize_uncovers_what_one_massive_dimension_hides() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(500, 32), torch.randn(500, 32)
    shared = 300 * torch.randn(500)
    x[:, 0], y[:, 0] = shared, shared
    assert linear_cka(x, y).item() > 0.99
    assert abs(linear_cka(x, y, standardize=True).item()) < 0.1
    z = (x - x.mean(0)) / x.std(0, correction=0), (y - y.mean(0)) / y.std(0, correction=0)
    expected = reference.cka(*z, debiased=True)
    assert linear_cka(x, y, standardize=True).item() == pytest.approx(expected, rel=1e-5)


def test_standardize_leaves_constant_features_out() -> None:
    x, y = pair()
    padded = torch.cat((x, torch.full((120, 1), 3.7)), 1)
    expected = linear_cka(x, y, standardize=True).item()
    assert linear_cka(padded, y, standardize=True).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("d", [4, 64])
def test_non_finite_input_gives_nan_and_one_warning(bad: float, d: int) -> None:
    x, y = pair(40, d)
    x[3, 1] = bad
    with pytest.warns(SimilarityWarning, match="linear CKA is NaN") as caught:
        assert math.isnan(linear_cka(x, y).item())
    assert len(caught) == 1


@pytest.mark.parametrize("d", [4, 64])
def test_constant_input_gives_nan_and_one_warning(d: int) -> None:
    x, y = pair(40, d)
    with pytest.warns(SimilarityWarning, match="no variance") as caught:
        assert math.isnan(linear_cka(torch.full_like(x, 0.1), y).item())
    assert len(caught) == 1


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 samples, got 3"):
        linear_cka(torch.randn(3, 2), torch.randn(3, 2))


def test_moments_survive_a_misleading_first_batch() -> None:
    """The center starts on a massive row and has to move."""
    x, y = HOSTILE["massive_rows"]()
    moments = PairMoments.zeros(16, 16, 1, x.device)
    for i in range(0, 120, 1):
        moments.add(x[i : i + 1], y[i : i + 1], None, DEFAULT_CHUNK_BYTES)
    expected = reference.cka(x, y, True)
    assert cka_from_moments(moments, True).item() == pytest.approx(expected, rel=1e-6)


def test_recentering_is_exact() -> None:
    x, y = pair(50, 6)
    moments, moved = moments_of(x, y, 2), moments_of(x, y, 2)
    shift = torch.randn(6, dtype=torch.float64)
    moved.recenter(moved.center_x + shift, moved.center_y - 2 * shift)
    rows = x.double() - moved.center_x
    other = y.double() - moved.center_y
    torch.testing.assert_close(moved.self_x, rows.mT @ rows, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(moved.cross.sum(0), rows.mT @ other, rtol=1e-6, atol=1e-4)
    k, ell = rows.square().sum(1), other.square().sum(1)
    torch.testing.assert_close(
        moved.quartic, torch.stack((k.dot(k), ell.dot(ell), k.dot(ell))), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        moved.weighted_x, torch.stack((k @ rows, ell @ rows)), rtol=1e-5, atol=1e-2
    )
    torch.testing.assert_close(
        moved.weighted_y, torch.stack((k @ other, ell @ other)), rtol=1e-5, atol=1e-2
    )
    for name in ("debiased", "plain"):
        before = cka_from_moments(moments, name == "debiased").item()
        after = cka_from_moments(moved, name == "debiased").item()
        assert after == pytest.approx(before, rel=1e-12)


@BOTH
@pytest.mark.parametrize("name", HOSTILE)
def test_a_kept_reference_gives_the_same_value(name: str, debiased: bool) -> None:
    x, y = HOSTILE[name]()
    reference_y = Reference(y)
    expected = linear_cka(x, y, debiased).item()
    for other in (x, x):
        value = linear_cka(other, reference_y, debiased).item()
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-8)
