import math

import pytest
import torch

from hrsa_lightning.functional import SimilarityWarning, linear_cka, linear_cka_heatmap
from hrsa_lightning.functional.cka_heatmap import linear_cka_heatmaps
from tests.functional import reference
from tests.functional.inputs import HOSTILE, pair


def layers(n: int = 150) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    x, y = pair(n, 16)
    return [x, x[:, :5] ** 2, y], [y, x.relu()]


@pytest.mark.parametrize("debiased", [True, False])
def test_every_entry_is_the_cka_of_its_pair(debiased: bool) -> None:
    xs, ys = layers()
    heatmap = linear_cka_heatmap(xs, ys, debiased)
    assert heatmap.shape == (3, 2)
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            expected = reference.cka(x, y, debiased)
            assert heatmap[i, j].item() == pytest.approx(expected, rel=1e-6)


def test_standardized_maps_are_those_of_standardized_layers() -> None:
    xs, ys = layers()
    xs[0] = xs[0] * torch.logspace(-3, 3, 16) + 100
    heatmap = linear_cka_heatmap(xs, ys, standardize=True, chunk_bytes=5 * 150 * 4 * 7)
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            expected = linear_cka(x, y, standardize=True).item()
            assert heatmap[i, j].item() == pytest.approx(expected, rel=1e-5)
    plain = linear_cka_heatmap(xs, ys)
    assert (plain[0] - heatmap[0]).abs().min() > 0.01, "one dimension decided"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_inputs(name: str) -> None:
    x, y = HOSTILE[name]()
    plain, unbiased = linear_cka_heatmaps([x, y], [y])
    for row, left in enumerate((x, y)):
        assert plain[row, 0].item() == pytest.approx(reference.cka(left, y, False), rel=1e-6)
        expected = reference.cka(left, y, True)
        assert unbiased[row, 0].item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_blocks_of_rows_do_not_change_the_value() -> None:
    xs, ys = layers(301)
    whole = linear_cka_heatmap(xs, ys)
    for chunk_bytes in (1, 5 * 301 * 4 * 7, 5 * 301 * 4 * 150):
        torch.testing.assert_close(
            linear_cka_heatmap(xs, ys, chunk_bytes=chunk_bytes), whole, rtol=1e-6, atol=0
        )


def test_stacked_layers_equal_a_list() -> None:
    x, y = pair(40, 8)
    stacked = torch.stack((x, y))
    torch.testing.assert_close(
        linear_cka_heatmap(stacked, stacked), linear_cka_heatmap([x, y], [x, y]), rtol=0, atol=0
    )


def test_one_layer_equals_linear_cka() -> None:
    x, y = pair(40, 64)
    assert linear_cka_heatmap([x], [y]).item() == linear_cka(x, y).item()


def test_a_broken_layer_spoils_only_its_own_row() -> None:
    xs, ys = layers()
    good = linear_cka_heatmap(xs, ys)
    xs[1] = xs[1].clone()
    xs[1][0, 0] = math.nan
    with pytest.warns(SimilarityWarning, match="linear CKA is NaN") as caught:
        heatmap = linear_cka_heatmap(xs, ys)
    assert len(caught) == 1
    assert heatmap[1].isnan().all()
    torch.testing.assert_close(heatmap[[0, 2]], good[[0, 2]], rtol=1e-12, atol=0)


def test_errors_name_the_layer() -> None:
    x, y = pair(40, 8)
    with pytest.raises(ValueError, match=r"`ys\[1\]` to hold 40 samples"):
        linear_cka_heatmap([x], [y, y[:30]])
    with pytest.raises(ValueError, match=r"shape \(layers, samples, features\)"):
        linear_cka_heatmap(x, [y])
    with pytest.raises(ValueError, match="at least one layer"):
        linear_cka_heatmap([], [y])
    with pytest.raises(TypeError, match=r"`xs\[0\]` to hold floating point"):
        linear_cka_heatmap([x.long()], [y])
    with pytest.raises(ValueError, match="got id 1 in `x_ids` and 2 in `y_ids` at row 1"):
        linear_cka_heatmap([x[:4]], [y[:4]], x_ids=[0, 1, 2, 3], y_ids=[0, 2, 1, 3])
