"""Slow float64 definitions of every metric, written without the package under test."""

import math

import numpy as np
import scipy.linalg
import torch


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def grams(x: torch.Tensor) -> np.ndarray:
    rows = array(x)
    # The kernel of differences is the same kernel; it keeps its digits when the mean is large.
    rows = rows - np.median(rows, axis=0)
    return rows @ rows.T


def hsic_biased(k: np.ndarray, ell: np.ndarray) -> float:
    n = len(k)
    h = np.eye(n) - 1 / n
    return float(np.sum((h @ k @ h) * (h @ ell @ h)))


def hsic_unbiased(k: np.ndarray, ell: np.ndarray) -> float:
    """Song et al. 2012, eq. 5."""
    n = len(k)
    k, ell = k.copy(), ell.copy()
    np.fill_diagonal(k, 0)
    np.fill_diagonal(ell, 0)
    one = np.ones(n)
    first = np.trace(k @ ell)
    second = (one @ k @ one) * (one @ ell @ one) / ((n - 1) * (n - 2))
    third = 2 / (n - 2) * (one @ k @ ell @ one)
    return float((first + second - third) / (n * (n - 3)))


def cka(x: torch.Tensor, y: torch.Tensor, debiased: bool) -> float:
    hsic = hsic_unbiased if debiased else hsic_biased
    k, ell = grams(x), grams(y)
    return hsic(k, ell) / math.sqrt(hsic(k, k) * hsic(ell, ell))


def procrustes(
    fit: tuple[torch.Tensor, torch.Tensor],
    judge: tuple[torch.Tensor, torch.Tensor],
    centered: bool = True,
) -> tuple[float, float, float, np.ndarray]:
    """Residual variance ratio, global cosine, mean cosine and rotation, with scipy's rotation."""
    fit_x, fit_y = (array(v) - array(v).mean(0) for v in fit)
    rotation, _ = scipy.linalg.orthogonal_procrustes(fit_x, fit_y)
    x, y = (array(v) for v in judge)
    if centered:
        x, y = x - x.mean(0), y - y.mean(0)
    turned = x @ rotation
    residual = np.sum((turned - y) ** 2) / np.sum(y**2)
    cosine = np.sum(turned * y) / (np.linalg.norm(turned) * np.linalg.norm(y))
    each = np.sum(turned * y, 1) / (np.linalg.norm(turned, axis=1) * np.linalg.norm(y, axis=1))
    return float(residual), float(cosine), float(np.mean(each)), rotation


def inverse_row_entropy(rotation: np.ndarray) -> float:
    shares = rotation**2
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return float(1 + np.mean(np.sum(shares * logs, 1)) / math.log(len(rotation)))


def neighbors(x: torch.Tensor, k: int, similarity: str) -> np.ndarray:
    """Indices of the nearest others in float64, ties by index."""
    rows = array(x)
    # Bit-equal rows must have bit-equal similarities, which a product of matrices does not promise.
    unique, inverse = np.unique(rows, axis=0, return_inverse=True)
    if similarity == "cosine":
        unit = unique / np.linalg.norm(unique, axis=1, keepdims=True)
        scores = unit @ unit.T
    else:
        unique = unique - unique.mean(0)
        norms = np.sum(unique**2, 1)
        scores = unique @ unique.T - norms / 2
    scores = scores[np.ix_(inverse.ravel(), inverse.ravel())]
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def knn_overlap(
    x: torch.Tensor, y: torch.Tensor, k: int, similarity: str = "cosine", overlap: str = "jaccard"
) -> float:
    values = []
    for a, b in zip(neighbors(x, k, similarity), neighbors(y, k, similarity), strict=True):
        shared = len(set(a) & set(b))
        values.append(shared / k if overlap == "mutual" else shared / len(set(a) | set(b)))
    return float(np.mean(values))


def correlations(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    a, b = array(x), array(y)
    a, b = a - a[0], b - b[0]
    a, b = a - a.mean(0), b - b.mean(0)
    return np.sum(a * b, 0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))
