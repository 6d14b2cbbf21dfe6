"""The definitions of arXiv 2601.21192 written out, so that published figures can be compared."""

import math

import numpy as np
import pytest
import torch

from hrsa_lightning.functional import (
    dimension_correlation,
    knn_overlap,
    linear_cka,
    orthogonal_procrustes,
)
from tests.functional.inputs import pair, rotation


def paper_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = pair(300, 24)
    return x + 0.8, y - 1.3


def test_cka_is_the_plain_ratio_of_frobenius_norms() -> None:
    x, y = paper_inputs()
    a, b = (v.double().numpy() for v in (x, y))
    a, b = a - a.mean(0), b - b.mean(0)
    cross = np.linalg.norm(b.T @ a, "fro") ** 2
    expected = cross / (np.linalg.norm(a.T @ a, "fro") * np.linalg.norm(b.T @ b, "fro"))
    assert linear_cka(x, y, debiased=False).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("k", [5, 10, 50])
def test_knn_is_the_jaccard_index_of_cosine_neighbors(k: int) -> None:
    x, y = paper_inputs()
    sets = []
    for v in (x, y):
        unit = v.double() / v.double().norm(dim=1, keepdim=True)
        similarity = (unit @ unit.mT).fill_diagonal_(-math.inf)
        sets.append(similarity.topk(k, dim=1).indices)
    jaccard = [
        len(set(a) & set(b)) / len(set(a) | set(b))
        for a, b in zip(sets[0].tolist(), sets[1].tolist(), strict=True)
    ]
    assert knn_overlap(x, y, k).item() == pytest.approx(np.mean(jaccard), rel=1e-12)


def authors_procrustes(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float, float, float]:
    """Rotation from centered data; residual and cosines from the data as they are."""
    a, b = (v.double().numpy() for v in (x, y))
    u, _, vt = np.linalg.svd((a - a.mean(0)).T @ (b - b.mean(0)))
    o = u @ vt
    turned = a @ o
    residual = np.linalg.norm(turned - b) ** 2 / np.linalg.norm(b) ** 2
    flat = np.sum(turned * b) / (np.linalg.norm(turned) * np.linalg.norm(b))
    each = np.sum(turned * b, 1) / (np.linalg.norm(turned, axis=1) * np.linalg.norm(b, axis=1))
    shares = o**2 / np.sum(o**2, axis=1, keepdims=True)
    entropy = -np.sum(shares * np.log(shares), axis=1) / math.log(o.shape[1])
    return residual, flat, np.mean(each), 1 - np.mean(entropy)


def test_procrustes_is_fitted_centered_and_judged_uncentered() -> None:
    x, y = paper_inputs()
    result = orthogonal_procrustes(x, y, "paper")
    for value, expected in zip(result[:4], authors_procrustes(x, y), strict=True):
        assert value.item() == pytest.approx(expected, rel=1e-6)


def test_the_paper_protocol_penalizes_a_shift_and_ours_does_not() -> None:
    x = torch.randn(400, 24)
    y = (x.double() @ rotation(24) + 2).float()
    paper = orthogonal_procrustes(x, y, "paper")
    assert paper.residual_variance_ratio.item() > 0.5
    assert paper.mean_cosine.item() < 0.6
    ours = orthogonal_procrustes(x, y)
    assert ours.residual_variance_ratio.item() == pytest.approx(0, abs=1e-6)
    assert ours.mean_cosine.item() == pytest.approx(1, abs=1e-6)


def test_dimension_correlation_is_the_mean_pearson_r() -> None:
    x, y = paper_inputs()
    expected = [
        np.corrcoef(x[:, j].double().numpy(), y[:, j].double().numpy())[0, 1] for j in range(24)
    ]
    assert dimension_correlation(x, y).mean.item() == pytest.approx(np.mean(expected), rel=1e-6)
